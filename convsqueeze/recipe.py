"""The recipe that travels inside a squeezed file: what was merged from what, and how to run it.

Plain values and their JSON; knows geometry, no tensors, files or layers of a model.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from convsqueeze.algebra.border.corrections import Corrections
from convsqueeze.algebra.geometry import Axis, Geometry
from convsqueeze.checkpoint.sharded import parse_object
from convsqueeze.errors import CheckpointError, GeometryError
from convsqueeze.names import shown
from convsqueeze.version import newer_version

Kind = Literal["conv", "conv_transpose", "linear"]
Border = Literal["exact", "corrected", "interior"]
MOST_AXES = 3
Wider = Literal["float32", "float64"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class RecipeLayer(_Value):
    """One squeezed layer, in torch's terms.

    For `conv_transpose` the stride is the upsampling and the padding what torch takes off the full
    output; `output_stride`, given where it is not 1, keeps every n-th sample of that.
    `padding_mode` is one word, or one for each axis where they differ. `corrections` say what the
    tensors under `<name>.border.` are for and to which rows of which input sizes they are added.
    `widened`, given where there are any, are the tensors (`weight`, `border.0.bias`) that are
    stored in a wider dtype than the rest, which would not hold their values.
    """

    name: str
    sources: tuple[str, ...] = Field(alias="from")
    kind: Kind
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    padding_mode: str | tuple[str, ...] = "zeros"
    dilation: tuple[int, ...]
    groups: int
    border: Border
    weights_before: int
    weights_after: int
    output_stride: tuple[int, ...] | None = None
    corrections: Corrections | None = None
    widened: dict[str, Wider] | None = None

    @classmethod
    def of(
        cls,
        name: str,
        geometry: Geometry,
        *,
        sources: Sequence[str],
        border: Border,
        weights_before: int,
        corrections: Corrections | None = None,
        widened: Mapping[str, str] | None = None,
    ) -> "RecipeLayer":
        """The entry for a merged layer of this geometry."""
        axes = geometry.axes
        kind: Kind = "conv" if axes else "linear"
        if geometry.is_transposed:
            kind = "conv_transpose"
        steps = tuple(axis.stride for axis in axes)
        stepped = kind == "conv_transpose" and any(step > 1 for step in steps)
        modes = {axis.padding_mode for axis in axes if axis.pads} or {"zeros"}
        return cls(
            name=name,
            **{"from": tuple(sources)},
            kind=kind,
            kernel_size=geometry.kernel_size,
            stride=tuple(a.upsample for a in axes) if kind == "conv_transpose" else steps,
            padding=tuple(_padding(kind, a.extent - 1, a.before, a.after) for a in axes),
            padding_mode=modes.pop() if len(modes) == 1 else tuple(a.padding_mode for a in axes),
            dilation=tuple(axis.dilation for axis in axes),
            groups=geometry.groups,
            border=border,
            weights_before=weights_before,
            weights_after=geometry.weights + (corrections.weights(geometry) if corrections else 0),
            output_stride=steps if stepped else None,
            corrections=corrections,
            widened=dict(widened) if widened else None,
        )

    def axes(self) -> tuple[Axis, ...]:
        """The axes of the layer's operator. Raises GeometryError where they are not legal."""
        rank = len(self.kernel_size)
        given = (self.stride, self.padding, self.dilation, self.output_stride, self.padding_mode)
        counts = {len(one) for one in given if isinstance(one, tuple)}
        if self.kind == "linear" and rank:
            raise GeometryError(
                f"{shown(self.name)}: its recipe has {rank} axes for a linear layer, which has none"
            )
        if counts != {rank} or rank > MOST_AXES:
            raise GeometryError(
                f"{shown(self.name)}: its recipe has numbers for {sorted(counts | {rank})} axes, "
                f"as many of each and at most {MOST_AXES} were needed"
            )
        transposed = self.kind == "conv_transpose"
        steps = self.output_stride or (1,) * rank
        modes = (self.padding_mode,) * rank
        if isinstance(self.padding_mode, tuple):
            modes = self.padding_mode
        axes = []
        for k, s, d, pads, step, mode in zip(
            self.kernel_size, self.stride, self.dilation, self.padding, steps, modes, strict=True
        ):
            strides = (step, s) if transposed else (s, 1)
            before, after = _padding(self.kind, d * (k - 1), *pads)
            axes.append(Axis(k, strides[0], d, before, after, strides[1], mode))
        return tuple(axes)


def _padding(kind: Kind, reach: int, low: int, high: int) -> tuple[int, int]:
    """From samples added to the input of a kernel to what torch says of the layer, and back."""
    return (reach - low, reach - high) if kind == "conv_transpose" else (low, high)


RECIPE_VERSION = 1


class Source(_Value):
    """The file that was squeezed: its name, and the sha256 of its content in hex."""

    file: str
    sha256: str


class Recipe(_Value):
    """Everything that `verify`, `export-onnx` and `apply` need beside the tensors.

    `border` and `growth` are the policies that the command gave over the manifest's.
    """

    version: Literal[1] = 1
    source: Source
    layers: tuple[RecipeLayer, ...]
    manifest: dict[str, Any]
    border: Border | None = None
    growth: Literal["refuse", "skip", "allow"] = "refuse"

    def to_json(self) -> str:
        """The text that is stored; equal recipes give equal text."""
        data = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return json.dumps(data, separators=(",", ":"))


def read_recipe(text: str | None, where: str) -> Recipe:
    """The recipe in a file's metadata. Raises CheckpointError where there is none, it is bad, or of
    a later version.
    """
    if text is None:
        raise CheckpointError(
            f"{where}: holds no recipe, a file written by `convsqueeze merge` was needed."
        )
    try:
        parse_object(text.encode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise _unreadable(where, str(error)) from error
    try:
        return Recipe.model_validate_json(text)
    except ValidationError as error:
        found = [one["input"] for one in error.errors() if one["loc"] == ("version",)]
        if found and (newer := newer_version(found[0], RECIPE_VERSION)):
            raise CheckpointError(
                f"{where}: its recipe is of version {newer}, or merge again with this version."
            ) from error
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _unreadable(where, f"{place}: {first['msg']}") from error


def _unreadable(where: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: its recipe is not one this version reads ({reason}). Merge again, or use the "
        "version that wrote it."
    )
