"""A manifest's layers -> the stored tensors they mean and the operators those make.

Planning builds the operators from shapes alone (tensors on the meta device), squeezing from values:
the same functions serve both. Knows names, shapes and layer kinds; holds no tensor data.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import torch
from torch import Tensor

from convsqueeze.algebra import layers
from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import Geometry, add, compose
from convsqueeze.algebra.precision import STORAGE_DTYPES
from convsqueeze.algebra.tree import Chain, Sum, Tree
from convsqueeze.algebra.tree import leaves as tree_leaves
from convsqueeze.checkpoint import TensorInfo
from convsqueeze.errors import GeometryError, TensorDataError
from convsqueeze.manifest import (
    AvgPoolLayer,
    BatchNormLayer,
    ChainItem,
    ConvLayer,
    ConvTransposeLayer,
    Entry,
    IdentityLayer,
    KeyPath,
    Layer,
    LinearLayer,
    PadLayer,
    ScaleLayer,
    SumItem,
    item_parts,
    parts,
)

Infos = Mapping[str, TensorInfo]
Load = Callable[[str], Tensor]


@dataclass(frozen=True)
class Problem:
    """A reason why an entry cannot be merged, at a key of the entry."""

    path: KeyPath
    reason: str


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
            _check_finite(key, tensor)
        if not self.is_weight_norm:
            return stored[0]
        length, direction = (tensor.double() for tensor in stored)
        summed = [d for d in range(direction.ndim) if length.ndim == 0 or length.shape[d] == 1]
        return direction * (length / direction.square().sum(summed, keepdim=True).sqrt())


def _check_finite(key: str, tensor: Tensor) -> None:
    bad = (~tensor.isfinite()).nonzero()
    if len(bad):
        place = tuple(bad[0].tolist())
        raise TensorDataError(
            f"{key}: holds {tensor[place].item()} at {list(place)} ({len(bad)} such values), "
            "finite numbers were needed. Repair the checkpoint, or leave this layer out."
        )


@dataclass(frozen=True)
class ResolvedLayer:
    """One layer of the manifest with its tensors and its geometry.

    `parameters` maps torch's names (`weight`, `bias`, `running_mean`, ...) to where they are;
    `counters` are tensors that go with the layer and hold no weights.
    """

    layer: Layer
    path: KeyPath
    parameters: Mapping[str, Parameter]
    counters: tuple[str, ...]
    geometry: Geometry

    @property
    def label(self) -> str:
        return self.layer.label

    @property
    def rank(self) -> int:
        return len(self.geometry.axes)

    @property
    def keys(self) -> tuple[str, ...]:
        """Every tensor of the checkpoint that belongs to the layer."""
        stored = [key for parameter in self.parameters.values() for key in parameter.keys]
        return (*stored, *self.counters)

    def conv(self, load: Load) -> Conv:
        """The layer's operator with its values."""
        tensors = {role: parameter.values(load) for role, parameter in self.parameters.items()}
        return build(self.layer, tensors, self.rank, self.geometry.in_channels)


def build(layer: Layer, tensors: Mapping[str, Tensor], rank: int, channels: int) -> Conv:
    """The operator of a layer from its parameters. Raises GeometryError where it is not legal.

    `rank` and `channels` (the layer's input channels) are for the kinds whose tensors do not tell.
    """
    weight, bias = tensors.get("weight"), tensors.get("bias")
    match layer:
        case ConvLayer():
            return layers.convolution(
                tensors["weight"],
                bias,
                stride=layer.stride,
                padding=layer.padding,
                dilation=layer.dilation,
                groups=layer.groups,
                padding_mode=layer.padding_mode,
            )
        case ConvTransposeLayer():
            return layers.transposed(
                tensors["weight"],
                bias,
                stride=layer.stride,
                padding=layer.padding,
                output_padding=layer.output_padding,
                dilation=layer.dilation,
                groups=layer.groups,
            )
        case LinearLayer():
            return layers.linear(tensors["weight"], bias, rank=rank)
        case BatchNormLayer():
            mean, variance = tensors["running_mean"], tensors["running_var"]
            return layers.batch_norm(mean, variance, weight, bias, eps=layer.eps, rank=rank)
        case ScaleLayer():
            return layers.scale(weight, bias, channels=channels, factor=layer.factor, rank=rank)
        case AvgPoolLayer():
            size = layers.per_axis(layer.kernel_size, rank, "kernel_size")
            return layers.average_pool(
                channels, kernel_size=size, stride=layer.stride, padding=layer.padding
            )
        case IdentityLayer():
            return layers.identity(channels, rank=rank)
        case PadLayer():
            return layers.pad(
                channels, padding=layer.padding, rank=rank, padding_mode=layer.padding_mode
            )


@dataclass(frozen=True)
class _Named:
    """A layer whose tensors are found and whose place in the rest is not yet known."""

    layer: Layer
    path: KeyPath
    parameters: Mapping[str, Parameter]
    counters: tuple[str, ...]

    def meta(self) -> dict[str, Tensor]:
        return {
            role: torch.empty(parameter.shape, device="meta")
            for role, parameter in self.parameters.items()
        }


def resolve(
    entry: Entry, infos: Infos
) -> tuple[Tree[ResolvedLayer] | None, Geometry | None, list[Problem]]:
    """The entry's layers with their tensors and geometry, the merged geometry, and what is wrong.

    With problems the first two may be None.
    """
    problems: list[Problem] = []
    named = _find(entry, (), infos, problems)
    if named is None or problems:
        return None, None, problems
    try:
        rank = _rank(entry, named)
    except _Misfit as misfit:
        return None, None, [Problem(misfit.path, misfit.reason)]
    tree, geometry = _place(named, rank, _input_channels(named), problems)
    return tree, geometry, problems


class _Misfit(Exception):
    def __init__(self, path: KeyPath, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(reason)


def _find(
    item: "Entry | Layer | ChainItem | SumItem",
    path: KeyPath,
    infos: Infos,
    problems: list[Problem],
) -> Tree[_Named] | None:
    """The item with the tensors of each of its layers; None where a tensor is missing."""
    if isinstance(item, ConvLayer | ConvTransposeLayer | LinearLayer):
        return _find_layer(item, path, infos, problems)
    if isinstance(item, BatchNormLayer | ScaleLayer | AvgPoolLayer | IdentityLayer | PadLayer):
        return _find_layer(item, path, infos, problems)
    kind, children = item_parts(item) if isinstance(item, ChainItem | SumItem) else parts(item)
    found = [_find(child, (*path, *step), infos, problems) for step, child in children]
    whole = tuple(child for child in found if child is not None)
    if len(whole) < len(found):
        return None
    return Chain(whole) if kind == "chain" else Sum(whole)


_REQUIRED: dict[type, tuple[str, ...]] = {
    ConvLayer: ("weight",),
    ConvTransposeLayer: ("weight",),
    LinearLayer: ("weight",),
    BatchNormLayer: ("running_mean", "running_var"),
    ScaleLayer: (),
    AvgPoolLayer: (),
    IdentityLayer: (),
    PadLayer: (),
}


def _find_layer(
    layer: Layer, path: KeyPath, infos: Infos, problems: list[Problem]
) -> _Named | None:
    required = _REQUIRED[type(layer)]
    parameters: dict[str, Parameter] = {}
    counters: tuple[str, ...] = ()
    before = len(problems)
    if not isinstance(layer, AvgPoolLayer | IdentityLayer | PadLayer):
        for role in dict.fromkeys((*required, "weight", "bias")):
            parameter = _parameter(layer, role, infos)
            if isinstance(parameter, Parameter):
                parameters[role] = parameter
            elif role in required or getattr(layer, role, None) is not None:
                problems.append(Problem(path, parameter or _missing(layer, role, infos)))
        if isinstance(layer, ScaleLayer) and layer.name is not None and not parameters:
            problems.append(Problem(path, _missing(layer, "weight", infos)))
    if isinstance(layer, BatchNormLayer):
        counter = f"{layer.name}.num_batches_tracked"
        counters = (counter,) if counter in infos else ()
    problems += [Problem(path, reason) for reason in _bad_dtypes(parameters, infos)]
    return None if len(problems) > before else _Named(layer, path, parameters, counters)


def _parameter(layer: Layer, role: str, infos: Infos) -> Parameter | str | None:
    """Where a parameter is stored; a reason where it is stored in a form that is not merged."""
    given = getattr(layer, role, None) if role in ("weight", "bias") else None
    if given is None and layer.name is None:
        return None
    if given is None and role == "bias" and getattr(layer, "weight", None) is not None:
        return None
    key = given or f"{layer.name}.{role}"
    if key in infos:
        return Parameter((key,), infos[key].shape)
    stem, _, leaf = key.rpartition(".")
    prefix = f"{stem}." if stem else ""
    for g, v in (
        (f"{key}_g", f"{key}_v"),
        (
            f"{prefix}parametrizations.{leaf}.original0",
            f"{prefix}parametrizations.{leaf}.original1",
        ),
    ):
        if g in infos and v in infos:
            return Parameter((g, v), infos[v].shape)
    if f"{key}_orig" in infos or f"{prefix}parametrizations.{leaf}.original" in infos:
        return (
            f"{key} is stored under another parametrization (spectral norm or pruning), a plain or "
            "weight-normed tensor was needed. Remove the parametrization in torch and save again"
        )
    return None


def _missing(layer: Layer, role: str, infos: Infos) -> str:
    given = getattr(layer, role, None) if role in ("weight", "bias") else None
    key = given or f"{layer.name}.{role}"
    own = [name for name in infos if name.rpartition(".")[0] == layer.name]
    if own and not given:
        roles = ", ".join(name.rpartition(".")[2] for name in own)
        return f"{key} is not in the checkpoint, {layer.name} has {roles}. Check the layer's type"
    known = list(infos) if given else sorted({name.rpartition(".")[0] for name in infos} - {""})
    close = get_close_matches(given or layer.name or "", known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(close)}?" if close else "See `convsqueeze inspect`."
    return f"{key} is not in the checkpoint. {hint}"


def _bad_dtypes(parameters: Mapping[str, Parameter], infos: Infos) -> list[str]:
    keys = [key for parameter in parameters.values() for key in parameter.keys]
    problems = []
    for key in keys:
        dtype, layout = infos[key].dtype, infos[key].layout
        if dtype in STORAGE_DTYPES and layout == torch.strided:
            continue
        kind = str(dtype if layout == torch.strided else layout).removeprefix("torch.")
        advice = "Dequantize" if "int" in kind or "float8" in kind else "Convert"
        problems.append(
            f"{key} is stored as {kind}, dense float64, float32, float16 or bfloat16 was needed. "
            f"{advice} it first, or leave the layer out"
        )
    return problems


def _rank(entry: Entry, tree: Tree[_Named]) -> int:
    """The number of spatial axes: a convolution's, or as the manifest tells."""
    told: list[tuple[int, Literal["sure", "told"]]] = []
    for leaf in tree_leaves(tree):
        if isinstance(leaf.layer, ConvLayer | ConvTransposeLayer):
            return max(len(leaf.parameters["weight"].shape) - 2, 0)
        for field in ("kernel_size", "padding"):
            value = getattr(leaf.layer, field, None)
            if isinstance(value, tuple):
                told.append((len(value), "told"))
    if entry.input is not None:
        return len(entry.input)
    if told:
        return told[0][0]
    if any(isinstance(leaf.layer, LinearLayer) for leaf in tree_leaves(tree)):
        return 0
    raise _Misfit((), "no convolution here tells the number of axes. Give input: [H, W]")


def _input_channels(tree: Tree[_Named]) -> int | None:
    """The channels that enter, told by the first layer whose weights say so."""
    if isinstance(tree, Chain):
        for link in tree.links:
            channels = _input_channels(link)
            if channels is not None:
                return channels
        return None
    if isinstance(tree, Sum):
        return next(filter(None, map(_input_channels, tree.branches)), None)
    shapes = {role: parameter.shape for role, parameter in tree.parameters.items()}
    match tree.layer:
        case ConvLayer(groups=groups):
            return shapes["weight"][1] * groups if len(shapes["weight"]) > 1 else None
        case LinearLayer():
            return shapes["weight"][1] if len(shapes["weight"]) > 1 else None
        case ConvTransposeLayer():
            return shapes["weight"][0]
        case BatchNormLayer():
            return torch.Size(shapes["running_mean"]).numel()
        case _:
            count = max((torch.Size(shape).numel() for shape in shapes.values()), default=1)
            return count if count > 1 else None


Placed = tuple[Tree[ResolvedLayer] | None, Geometry | None]


def _place(tree: Tree[_Named], rank: int, channels: int | None, problems: list[Problem]) -> Placed:
    """Every layer with its geometry, given the channels that enter, and that of the whole.

    What does not fit is added to `problems`; the rest is placed all the same, as far as its own
    tensors tell, so that one run tells everything.
    """
    if isinstance(tree, Chain):
        return _place_chain(tree, rank, channels, problems)
    if isinstance(tree, Sum):
        return _place_sum(tree, rank, channels, problems)
    if channels is None:
        channels = _input_channels(tree)
    if channels is None:
        if not problems:  # else it is the misfit before that hides the channels
            reason = "nothing here tells the number of channels. Name a layer that has weights"
            problems.append(Problem(tree.path, f"{tree.layer.label}: {reason}"))
        return None, None
    try:
        geometry = build(tree.layer, tree.meta(), rank, channels).geometry
    except GeometryError as error:
        problems.append(Problem(tree.path, f"{tree.layer.label}: {error}"))
        return None, None
    return (
        ResolvedLayer(tree.layer, tree.path, tree.parameters, tree.counters, geometry),
        geometry,
    )


def _place_chain(
    chain: Chain[_Named], rank: int, channels: int | None, problems: list[Problem]
) -> Placed:
    placed: list[Tree[ResolvedLayer]] = []
    whole: Geometry | None = None
    for index, link in enumerate(chain.links):
        tree, geometry = _place(link, rank, channels, problems)
        if tree is not None:
            placed.append(tree)
        if index == 0:
            whole = geometry
        elif whole is not None and geometry is not None:
            whole = _combined(compose, geometry, whole, link, problems)
        else:
            whole = None
        rest = Chain(chain.links[index + 1 :])
        channels = _input_channels(rest) if geometry is None else geometry.out_channels
    return (Chain(tuple(placed)), whole) if len(placed) == len(chain.links) else (None, None)


def _place_sum(
    branches: Sum[_Named], rank: int, channels: int | None, problems: list[Problem]
) -> Placed:
    found = [_place(branch, rank, channels, problems) for branch in branches.branches]
    placed = tuple(tree for tree, _ in found if tree is not None)
    whole = found[0][1]
    for branch, (_, geometry) in zip(branches.branches[1:], found[1:], strict=True):
        if whole is None or geometry is None:
            whole = None
            break
        whole = _combined(add, whole, geometry, branch, problems)
    return (Sum(placed), whole) if len(placed) == len(found) else (None, None)


def _combined(
    operation: Callable[[Geometry, Geometry], Geometry],
    left: Geometry,
    right: Geometry,
    blamed: Tree[_Named],
    problems: list[Problem],
) -> Geometry | None:
    try:
        return operation(left, right)
    except GeometryError as error:
        first = next(tree_leaves(blamed))
        problems.append(Problem(first.path, f"{first.layer.label}: {error}"))
        return None
