"""A whole ONNX model in onnxruntime against the model in torch. Writes nothing but what is too
large for one message, to a temporary folder.

The reference runs in float64. A few units in the last place of the dtype in which onnxruntime
computes are granted. Where a difference is larger, what that dtype can lose is measured: torch runs
the squeezed model in it too, and its distance from float64, the largest over all inputs, is the
unit; `FACTOR` of them are granted, and what storing merged weights was seen to cost.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from convsqueeze.algebra.precision import dtype_name
from convsqueeze.copying import as_wide
from convsqueeze.errors import VerificationError
from convsqueeze.export.check import FORM_ERRORS, fits_one_message
from convsqueeze.export.graph import DTYPES
from convsqueeze.export.runtime import in_float32
from convsqueeze.export.session import RUNTIME_ERRORS, first_line, session_of
from convsqueeze.models.inputs import Inputs
from convsqueeze.models.outputs import NamedTensors
from convsqueeze.models.running import Running, Steps, distances, largest_value, nearest
from convsqueeze.models.whole import FACTOR
from convsqueeze.verify import Worst

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class OnnxReport:
    """What the check saw: the sizes of each input (a name: any), the shapes that were run, in which
    dtype onnxruntime computed, the output nearest to its bound, and what is good to know.
    """

    inputs: tuple[tuple[str, tuple[int | str, ...]], ...]
    shapes: tuple[Shapes, ...]
    dtype: str
    worst: Worst
    largest: float
    notes: tuple[str, ...] = ()

    def to_data(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _Outcome:
    """What torch and onnxruntime gave for an input, in the order in which the exporter gives it."""

    place: str
    arguments: tuple[Any, ...]
    wanted: NamedTensors
    found: NamedTensors


@dataclass(frozen=True, eq=False)
class OnnxCheck:
    """What an ONNX model is held against: the `reference`, and the `squeezed` model that it is.

    `steps` say how far storing merged weights has moved them from those of the reference, `known`
    what that gave for an input, if it ran already, `notes` what is good to know.
    """

    reference: Running
    squeezed: Running
    inputs: Inputs
    seed: int = 0
    steps: Steps = field(default_factory=dict)
    known: tuple[tuple[Any, ...], Any] | None = None
    notes: tuple[str, ...] = ()

    def report(self, model: ModelProto) -> OnnxReport:
        """Form, values of the merged layers, then outputs. Raises VerificationError."""
        with tempfile.TemporaryDirectory(prefix="convsqueeze-") as folder:
            runs = _Session(model, Path(folder))
            opened = tuple((value.name, _sizes(value)) for value in model.graph.input)
            shapes = _shapes_to_try(self.inputs, [sizes for _, sizes in opened])
            every = {one: self._outcome(runs, one) for one in shapes}
        outcomes = {one: outcome for one, outcome in every.items() if outcome is not None}
        if not outcomes:
            raise VerificationError(["the model in torch takes none of the inputs."])
        worst = self._judged(list(outcomes.values()), runs.dtype)
        largest = max(largest_value(y) for one in outcomes.values() for y in one.wanted.values())
        notes = self.notes + runs.notes + _fixed(opened)
        return OnnxReport(opened, tuple(outcomes), dtype_name(runs.dtype), worst, largest, notes)

    def _outcome(self, runs: "_Session", shapes: Shapes) -> _Outcome | None:
        """None where the reference does not take the shapes. Raises VerificationError for outputs
        of other shapes.
        """
        arguments = self.inputs.resized(shapes).drawn(self.seed, runs.dtype)
        if self.known is not None and _are_equal(arguments, self.known[0]):
            wanted = _named(tree_leaves(self.known[1]))
        else:
            wanted = _outputs(self.reference, arguments)
        if not wanted:
            return None
        place = f"input {' '.join('x'.join(map(str, one)) for one in shapes)}"
        found = _named(runs.run(arguments, place))
        given, needed = ([tuple(y.shape) for y in one.values()] for one in (found, wanted))
        if given != needed:
            told, other = (", ".join(map(str, one)) for one in (given, needed))
            raise VerificationError(
                [f"gives outputs of shapes {told} in onnxruntime, {other} in torch, {place}."]
            )
        return _Outcome(place, arguments, wanted, found)

    def _judged(self, outcomes: Sequence[_Outcome], dtype: torch.dtype) -> Worst:
        """The output nearest to its bound. Raises VerificationError where one is beyond it."""
        worst = _nearest(outcomes, {}, dtype)
        if not worst.share <= 1.0:
            worst = _nearest(outcomes, self._moved(outcomes, dtype), dtype)
        if not worst.share <= 1.0:
            raise VerificationError([f"onnxruntime and torch differ by {worst.excess}."])
        return worst

    def _moved(self, outcomes: Sequence[_Outcome], dtype: torch.dtype) -> Mapping[str, float]:
        """What rounding was seen to move each output by: computing in `dtype`, and storing."""
        seen: dict[str, float] = {}
        for seed, outcome in enumerate(outcomes, self.seed):
            base = _outputs(self.squeezed, outcome.arguments)
            with self.squeezed.computing_in(dtype):
                computed = _outputs(self.squeezed, outcome.arguments, dtype)
            with self.squeezed.with_values(self.squeezed.moved(self.steps, seed)):
                stored = _outputs(self.squeezed, outcome.arguments)
            for moved in (distances(base, computed), distances(base, stored)):
                for place in (one for one in moved if moved[one] < torch.inf):
                    seen[place] = max(seen.get(place, 0.0), moved[place])
        return seen


def _nearest(outcomes: Sequence[_Outcome], moved: Mapping[str, float], dtype: torch.dtype) -> Worst:
    """The output nearest to its bound. A few units in the last place are always granted."""
    worst, eps = Worst(), torch.finfo(dtype).eps
    for one in outcomes:
        granted = {p: eps * largest_value(y) * y.is_floating_point() for p, y in one.wanted.items()}
        bounds = {place: FACTOR * (granted[place] + moved.get(place, 0.0)) for place in one.wanted}
        _, found = nearest(one.wanted, one.found, bounds)
        if found.share >= worst.share:
            worst = replace(found, place=f"{found.place}, {one.place}")
    return worst


def _are_equal(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    pairs = list(zip(tree_leaves(one), tree_leaves(other), strict=True))
    return all(
        a.shape == b.shape and a.equal(b.to(a.dtype)) if isinstance(a, Tensor) else a == b
        for a, b in pairs
    )


def _outputs(
    running: Running, arguments: tuple[Any, ...], dtype: torch.dtype | None = None
) -> NamedTensors:
    """Those of a model that computes in `dtype`, by default its own; empty where it does not run,
    as not every size is one that its code takes.
    """
    with suppress(Exception):
        given = tree_map_only(Tensor, lambda x: as_wide(x, dtype or running.dtype), arguments)
        return _named(tree_leaves(running.output(given)))
    return {}


def _named(outputs: Sequence[Any]) -> NamedTensors:
    tensors = (one.detach() for one in outputs if isinstance(one, Tensor))
    return {f"output {index}": tensor for index, tensor in enumerate(tensors)}


class _Session:
    """The model in onnxruntime, or a copy in float32 where that has no kernels for its dtype."""

    def __init__(self, model: ModelProto, folder: Path) -> None:
        self.notes: tuple[str, ...] = ()
        _check_form(model, folder)
        self.names = [value.name for value in model.graph.input]
        held = {DTYPES[v.type.tensor_type.elem_type] for v in _float_values(model)}
        self.dtype = max(held or {torch.float32}, key=lambda dtype: torch.finfo(dtype).eps)
        try:
            self._session = _opened(model, folder)
        except RUNTIME_ERRORS as error:
            if self.dtype == torch.float32:
                raise VerificationError(
                    [f"onnxruntime refuses it: {first_line(error)}."]
                ) from error
            self.notes = (
                f"onnxruntime has no {dtype_name(self.dtype)} kernels for it on the CPU; a copy in "
                "float32 was run",
            )
            self.dtype = torch.float32
            self._session = _opened(in_float32(model), folder)

    def run(self, arguments: tuple[Any, ...], place: str) -> list[Tensor]:
        """Its outputs. Raises VerificationError where it fails."""
        tensors = [one.numpy() for one in arguments if isinstance(one, Tensor)]
        try:
            found = self._session.run(None, dict(zip(self.names, tensors, strict=True)))
        except (*RUNTIME_ERRORS, ValueError) as error:
            raise VerificationError(
                [f"onnxruntime fails on an {place}: {first_line(error)}."]
            ) from error
        return [torch.from_numpy(one) for one in found]


def _float_values(model: ModelProto) -> Iterator[Any]:
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type in DTYPES:
            yield value


def _check_form(model: ModelProto, folder: Path) -> None:
    try:
        if fits_one_message(model):
            onnx.checker.check_model(model, full_check=True)
        else:
            onnx.checker.check_model(str(_saved(model, folder)), full_check=False)
    except FORM_ERRORS as error:
        raise VerificationError([f"is not well-formed: {first_line(error)}."]) from error


def _saved(model: ModelProto, folder: Path) -> Path:
    """In a temporary folder, values apart: a model of more than 2 GiB is no single message."""
    place = folder / "model.onnx"
    if not place.exists():
        copy = ModelProto()
        copy.CopyFrom(model)
        onnx.save_model(copy, place, save_as_external_data=True, location="model.onnx.data")
    return place


def _opened(model: ModelProto, folder: Path) -> Any:
    return session_of(model if fits_one_message(model) else _saved(model, folder))


def _sizes(value: Any) -> tuple[int | str, ...]:
    return tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)


def _fixed(opened: Sequence[tuple[str, tuple[int | str, ...]]]) -> tuple[str, ...]:
    """Says which inputs have sizes that are not open, beside channels."""
    told = []
    for name, sizes in opened:
        rest = [size for index, size in enumerate(sizes) if index != 1 or len(sizes) < 3]
        if any(isinstance(size, int) for size in rest):
            shown = "x".join(map(str, sizes))
            told.append(f"input {name} is {shown}: the model's code takes numbers for sizes there")
    return tuple(told)


_CHANGES: tuple[Callable[[int, int], int], ...] = (
    lambda place, size: size + (1, 0, 32, 64, 96)[place],
    lambda place, size: size + (2, 0, 1, 2, 3)[place],
    lambda place, size: size if place < 2 else max(size // 2, 1),
    lambda place, size: size + (0, 8, 0, 0, 0)[place],
)
"""Another size for one, by its place: batch, channels, then the axes."""


def _place(index: int, rank: int) -> int:
    """What a dimension is likely to be: of three, the second is the length of a sequence, or the
    channels of a signal, whose length is the third.
    """
    return min(index, 4) if rank > 3 or index == 0 else index + 1


def _shapes_to_try(inputs: Inputs, opened: Sequence[tuple[int | str, ...]]) -> Iterator[Shapes]:
    """The given shapes, then others where sizes are open: the same name the same size everywhere.

    Larger by 32, which most networks with strides take, by a few each, and half as large, with
    other batches; and at last with other channels too, where they are open. Those that the model in
    torch does not take are left out by the caller.
    """
    given = [spec.shape for spec in inputs.tensors]
    yield tuple(given)
    names = list(dict.fromkeys(s for sizes in opened for s in sizes if isinstance(s, str)))
    if not names:
        return
    seen = {tuple(given)}
    for change in _CHANGES:
        sizes: dict[str, int] = {}
        shapes = []
        for shape, own in zip(given, opened, strict=True):
            made = []
            for index, (size, kind) in enumerate(zip(shape, own, strict=True)):
                if isinstance(kind, str):
                    size = sizes.setdefault(kind, change(_place(index, len(own)), size))
                made.append(size)
            shapes.append(tuple(made))
        if tuple(shapes) not in seen:
            seen.add(tuple(shapes))
            yield tuple(shapes)
