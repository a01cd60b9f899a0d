"""A manifest's layers with their tensors and geometry, and the operators they make.

Planning builds the operators from shapes alone (tensors on the meta device), squeezing from values:
the same functions serve both. Holds no tensor data.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from convsqueeze.algebra import layers
from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import Geometry, add, compose
from convsqueeze.algebra.tree import Chain, Sum, Tree
from convsqueeze.algebra.tree import leaves as tree_leaves
from convsqueeze.errors import GeometryError
from convsqueeze.manifest import (
    AvgPoolLayer,
    BatchNormLayer,
    ConvLayer,
    ConvTransposeLayer,
    Entry,
    IdentityLayer,
    KeyPath,
    Layer,
    LinearLayer,
    PadLayer,
    ScaleLayer,
)
from convsqueeze.plan.parameters import (
    Infos,
    Load,
    NamedLayer,
    Parameter,
    Problem,
    check_variance,
    find,
    negative_notes,
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
        """The layer's operator with its values. Raises TensorDataError for those that make none."""
        tensors = {role: parameter.values(load) for role, parameter in self.parameters.items()}
        if isinstance(self.layer, BatchNormLayer):
            check_variance(self.parameters["running_var"], tensors["running_var"], self.layer.eps)
        return build(self.layer, tensors, self.rank, self.geometry.in_channels)

    def value_notes(self, load: Load) -> list[str]:
        """Values that are merged, though no training gives them."""
        if not isinstance(self.layer, BatchNormLayer):
            return []
        variance = self.parameters["running_var"]
        return negative_notes(variance, load(variance.keys[0]), self.layer.eps)


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
            numbers = {"factor": layer.factor, "shift": layer.shift}
            return layers.scale(weight, bias, channels=channels, rank=rank, **numbers)
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


def resolve(
    entry: Entry, infos: Infos
) -> tuple[Tree[ResolvedLayer] | None, Geometry | None, list[Problem]]:
    """The entry's layers with their tensors and geometry, the merged geometry, and what is wrong.

    With problems the first two may be None.
    """
    problems: list[Problem] = []
    named = find(entry, (), infos, problems)
    if named is None or problems:
        return None, None, problems
    rank = told_rank(entry, named)
    if rank is None:
        reason = "no convolution here tells the number of axes. Give input: [H, W]"
        return None, None, [Problem((), reason)]
    tree, geometry = _place(named, rank, told_channels(named), problems)
    return tree, geometry, problems


def told_rank(entry: Entry, tree: Tree[NamedLayer]) -> int | None:
    """The number of spatial axes: a convolution's, or as the manifest tells."""
    told: list[int] = [] if entry.input is None else [len(entry.input)]
    for leaf in tree_leaves(tree):
        if isinstance(leaf.layer, ConvLayer | ConvTransposeLayer):
            return max(len(leaf.parameters["weight"].shape) - 2, 0)
        for field in ("kernel_size", "padding"):
            value = getattr(leaf.layer, field, None)
            if isinstance(value, tuple):
                told.append(len(value))
    if not told and any(isinstance(leaf.layer, LinearLayer) for leaf in tree_leaves(tree)):
        return 0
    return told[0] if told else None


def told_channels(tree: Tree[NamedLayer]) -> int | None:
    """The channels that enter, told by the first layer whose weights say so."""
    if isinstance(tree, Chain):
        for link in tree.links:
            channels = told_channels(link)
            if channels is not None:
                return channels
        return None
    if isinstance(tree, Sum):
        return next(filter(None, map(told_channels, tree.branches)), None)
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


_NO_CHANNELS = "has no channels, at least one was needed. Leave the entry out"

Placed = tuple[Tree[ResolvedLayer] | None, Geometry | None]


def _place(
    tree: Tree[NamedLayer], rank: int, channels: int | None, problems: list[Problem]
) -> Placed:
    """Every layer with its geometry, given the channels that enter, and that of the whole.

    What does not fit is added to `problems`; the rest is placed all the same, as far as its own
    tensors tell, so that one run tells everything.
    """
    if isinstance(tree, Chain):
        return _place_chain(tree, rank, channels, problems)
    if isinstance(tree, Sum):
        return _place_sum(tree, rank, channels, problems)
    if channels is None:
        channels = told_channels(tree)
    if channels == 0:
        problems.append(Problem(tree.path, f"{tree.layer.label}: {_NO_CHANNELS}"))
        return None, None
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
    if not geometry.in_channels or not geometry.out_channels:
        problems.append(Problem(tree.path, f"{tree.layer.label}: {_NO_CHANNELS}"))
        return None, None
    return (
        ResolvedLayer(tree.layer, tree.path, tree.parameters, tree.counters, geometry),
        geometry,
    )


def _place_chain(
    chain: Chain[NamedLayer], rank: int, channels: int | None, problems: list[Problem]
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
            hint = _order_hint(chain, index, geometry, whole)
            whole = _combined(compose, geometry, whole, link, problems, hint)
        else:
            whole = None
        rest = Chain(chain.links[index + 1 :])
        leaving = _leaving(tree) if geometry is None else geometry.out_channels
        channels = told_channels(rest) if leaving is None else leaving
    return (Chain(tuple(placed)), whole) if len(placed) == len(chain.links) else (None, None)


def _leaving(tree: Tree[ResolvedLayer] | None) -> int | None:
    """The channels that leave layers which need not be one convolution."""
    while isinstance(tree, Chain | Sum):
        parts = tree.links[-1:] if isinstance(tree, Chain) else tree.branches[:1]
        tree = parts[0] if parts else None
    return tree.geometry.out_channels if tree is not None else None


def _order_hint(chain: Chain[NamedLayer], index: int, outer: Geometry, inner: Geometry) -> str:
    """What to add to the refusal of a link whose channels would fit before the links so far."""
    fits = outer.in_channels == inner.out_channels
    if fits or outer.out_channels != inner.in_channels:
        return ""
    order = f"{_name(chain.links[index])} then {_name(Chain(chain.links[:index]))}"
    return f". {order} would fit: are they given in the wrong order?"


def _name(tree: Tree[NamedLayer]) -> str:
    labels = [leaf.layer.label for leaf in tree_leaves(tree)]
    return labels[0] if len(labels) == 1 else f"({', '.join(labels)})"


def _place_sum(
    branches: Sum[NamedLayer], rank: int, channels: int | None, problems: list[Problem]
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
    blamed: Tree[NamedLayer],
    problems: list[Problem],
    hint: str = "",
) -> Geometry | None:
    try:
        return operation(left, right)
    except GeometryError as error:
        first = next(tree_leaves(blamed))
        problems.append(Problem(first.path, f"{first.layer.label}: {error}{hint}"))
        return None
