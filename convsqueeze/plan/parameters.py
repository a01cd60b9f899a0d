"""Which stored tensors a manifest's layers mean, and what is missing or stored in no usable form.

Knows names, shapes and dtypes; nothing of geometry.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from convsqueeze.algebra.precision import STORAGE_DTYPES
from convsqueeze.checkpoint import TensorInfo
from convsqueeze.errors import TensorDataError
from convsqueeze.kinds import Layer
from convsqueeze.names import KeyPath, nearest

Infos = Mapping[str, TensorInfo]
Load = Callable[[str], Tensor]


Cause = Literal["geometry", "tensors", "border", "growth", "time", "veto", "cost"]
"""Why layers are not merged. `geometry`: not one convolution. `tensors`: a tensor that something
else uses. `border`: the policy. `growth`: more weights, or `time`: no less time than apart. `veto`:
the caller's. `cost`: it could be one layer, but what was chosen is better.
"""


@dataclass(frozen=True)
class Problem:
    """A reason why an entry cannot be merged, at a key of the entry."""

    path: KeyPath
    reason: str
    cause: Cause = "geometry"


@dataclass(frozen=True)
class Parameter:
    """Where one parameter of a layer is stored: one tensor, or weight norm's length and direction.

    `keys` are (key,) or (g, v): the weight is `g * v / |v|`, the norm taken over every dimension
    along which `g` has size one (Salimans and Kingma, "Weight normalization", 2016).
    """

    keys: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def is_weight_norm(self) -> bool:
        return len(self.keys) == 2

    def values(self, load: Load) -> Tensor:
        """The parameter; a weight-norm weight in float64. Raises TensorDataError unless finite."""
        stored = [load(key) for key in self.keys]
        for key, tensor in zip(self.keys, stored, strict=True):
            bad = (~tensor.isfinite()).nonzero()
            if len(bad):
                place = tuple(bad[0].tolist())
                raise TensorDataError(
                    f"{key}: holds {tensor[place].item()} at {list(place)} ({len(bad)} such "
                    "values), finite numbers were needed. Repair the checkpoint, or leave this "
                    "layer out."
                )
        if not self.is_weight_norm:
            return stored[0]
        length, direction = (tensor.double() for tensor in stored)
        summed = [d for d in range(direction.ndim) if length.ndim == 0 or length.shape[d] == 1]
        norm = direction.square().sum(summed, keepdim=True).sqrt()
        zero = (norm == 0).nonzero()
        if len(zero):
            raise TensorDataError(
                f"{self.keys[1]}: has length 0 at {zero[0].tolist()}, which weight norm divides "
                "by, a length above zero was needed. Repair the checkpoint, or leave this layer "
                "out."
            )
        return direction * (length / norm)


Parameters = Mapping[str, Parameter]


def find(
    layer: Layer, path: KeyPath, infos: Infos, problems: list[Problem]
) -> tuple[Parameters, tuple[str, ...]] | None:
    """Where a layer's parameters are stored, by torch's names, and its tensors that hold no
    weights; None, and more `problems`, where something is missing or stored in no usable form.
    """
    parameters: dict[str, Parameter] = {}
    before = len(problems)
    for role in layer.roles:
        parameter = _parameter(layer, role, infos)
        if isinstance(parameter, Parameter):
            parameters[role] = parameter
        elif role in layer.required or getattr(layer, role, None) is not None:
            problems.append(Problem(path, parameter or _missing(layer, role, infos)))
    if layer.roles and not layer.required and layer.name is not None and not parameters:
        problems.append(Problem(path, _missing(layer, layer.roles[0], infos)))
    named = (f"{layer.name}.{counter}" for counter in layer.counters)
    counters = tuple(key for key in named if key in infos)
    problems += [Problem(path, reason) for reason in _bad_dtypes(parameters, infos)]
    return None if len(problems) > before else (parameters, counters)


def _parameter(layer: Layer, role: str, infos: Infos) -> Parameter | str | None:
    """Where a parameter is stored; a reason where it is stored in a form that is not merged."""
    given = getattr(layer, role, None) if role in ("weight", "bias") else None
    if given is None and layer.name is None:
        return None
    key = given or f"{layer.name}.{role}"
    if key in infos:
        return Parameter((key,), infos[key].shape)
    stem, _, leaf = key.rpartition(".")
    prefix = f"{stem}." if stem else ""
    inside = f"{prefix}parametrizations.{leaf}.original"
    for g, v in ((f"{key}_g", f"{key}_v"), (f"{inside}0", f"{inside}1")):
        if g in infos and v in infos:
            return _weight_norm(g, v, infos)
    if f"{key}_orig" in infos or inside in infos:
        return (
            f"{key} is stored under another parametrization (spectral norm or pruning), a plain or "
            "weight-normed tensor was needed. Remove the parametrization in torch and save again"
        )
    return None


def _weight_norm(g: str, v: str, infos: Infos) -> Parameter | str:
    """Weight norm's two tensors; a reason where their shapes are not those of a weight norm."""
    length, direction = infos[g].shape, infos[v].shape
    fits = len(length) == len(direction) and all(
        n in (1, m) for n, m in zip(length, direction, strict=True)
    )
    if length == () or (fits and sum(n > 1 for n in length) <= 1):
        return Parameter((g, v), direction)
    return (
        f"{g} of shape {list(length)} is no weight norm's length for {v} of shape "
        f"{list(direction)}: one number, or one along one dimension, was needed"
    )


def _missing(layer: Layer, role: str, infos: Infos) -> str:
    given = getattr(layer, role, None) if role in ("weight", "bias") else None
    key = given or f"{layer.name}.{role}"
    present = [name for name in infos if name.rpartition(".")[0] == layer.name]
    if present and not given:
        roles = ", ".join(name.rpartition(".")[2] for name in present)
        return f"{key} is not in the checkpoint, {layer.name} has {roles}. Check the layer's type"
    known = list(infos) if given else sorted({name.rpartition(".")[0] for name in infos} - {""})
    hint = nearest(given or layer.name or "", known, "See `convsqueeze inspect`.", cutoff=0.5)
    return f"{key} is not in the checkpoint. {hint}"


def _bad_dtypes(parameters: Parameters, infos: Infos) -> Iterator[str]:
    for key in (key for parameter in parameters.values() for key in parameter.keys):
        dtype, layout = infos[key].dtype, infos[key].layout
        if dtype in STORAGE_DTYPES and layout == torch.strided:
            continue
        kind = str(dtype if layout == torch.strided else layout).removeprefix("torch.")
        advice = "Dequantize" if "int" in kind or "float8" in kind else "Convert"
        yield (
            f"{key} is stored as {kind}, dense float64, float32, float16 or bfloat16 was needed. "
            f"{advice} it first, or leave the layer out"
        )


def dropped_keys(name: str, infos: Infos) -> list[str]:
    """The tensors that an entry's `drop` means by a name: that of a tensor, or of a layer."""
    return [key for key in infos if key == name or key.startswith(f"{name}.")]
