"""A region's layers with their tensors and geometry, and the operators they make.

Planning builds the operators from shapes alone (tensors on the meta device), squeezing from values:
the same functions serve both. Holds no tensor data.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Protocol

import torch
from torch import Tensor

from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import Geometry, add, compose
from convsqueeze.algebra.tree import Chain, Sum, Tree, children, leaves, mapped
from convsqueeze.errors import GeometryError
from convsqueeze.graph import LayerOp, Region
from convsqueeze.kinds import Layer
from convsqueeze.plan.parameters import (
    Infos,
    Load,
    Parameters,
    Problem,
    find,
)

_NO_GEOMETRY = Geometry(1, 1, ())


@dataclass(frozen=True)
class ResolvedLayer(LayerOp):
    """A layer of a region with its tensors and its geometry.

    `parameters` maps torch's names (`weight`, `bias`, `running_mean`, ...) to where they are;
    `counters` are tensors that go with the layer and hold no weights.
    """

    parameters: Parameters = field(default_factory=dict)
    counters: tuple[str, ...] = ()
    geometry: Geometry = _NO_GEOMETRY

    @property
    def keys(self) -> tuple[str, ...]:
        """Every tensor of the checkpoint that belongs to the layer."""
        stored = [key for parameter in self.parameters.values() for key in parameter.keys]
        return (*stored, *self.counters)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter, by its role."""
        return {role: parameter.shape for role, parameter in self.parameters.items()}

    def conv(self, load: Load) -> Conv:
        """The layer's operator with its values. Raises TensorDataError for those that make none."""
        tensors = {role: parameter.values(load) for role, parameter in self.parameters.items()}
        self.layer.check_values(tensors, self._places)
        channels, rank = self.geometry.in_channels, len(self.geometry.axes)
        return self.layer.operator(tensors, rank, channels)

    def value_notes(self, load: Load) -> list[str]:
        """Values that are merged, though no training gives them."""
        return self.layer.value_notes(self._places, load)

    @property
    def _places(self) -> dict[str, str]:
        """By role, the tensor that messages name."""
        return {role: parameter.keys[0] for role, parameter in self.parameters.items()}


class Stored(Protocol):
    """A layer whose tensors are known."""

    @property
    def layer(self) -> Layer: ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...


def infer_rank(tree: Tree[Stored], input_size: tuple[int, ...] | None = None) -> int | None:
    """The number of spatial axes: a convolution's, or as the manifest tells."""
    told: list[int] = [] if input_size is None else [len(input_size)]
    for leaf in leaves(tree):
        rank = leaf.layer.kernel_rank(leaf.shapes)
        if rank is not None:
            return rank
        if leaf.layer.listed_rank is not None:
            told.append(leaf.layer.listed_rank)
    if not told and any(leaf.layer.mixes_channels for leaf in leaves(tree)):
        return 0
    return told[0] if told else None


def infer_in_channels(tree: Tree[Stored]) -> int | None:
    """The channels that enter, told by the first layer whose weights say so."""
    if isinstance(tree, Chain | Sum):
        parts: tuple[Tree[Stored], ...] = children(tree)
        return next(filter(None, map(infer_in_channels, parts)), None)
    return tree.layer.infer_in_channels(tree.shapes)


_NO_CHANNELS = "has no channels, at least one was needed. Leave the entry out"


@dataclass(frozen=True)
class _Named:
    """A layer whose tensors are found and whose geometry is not yet known."""

    layer: Layer
    parameters: Parameters
    counters: tuple[str, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {role: parameter.shape for role, parameter in self.parameters.items()}

    def meta(self) -> dict[str, Tensor]:
        return {role: torch.empty(shape, device="meta") for role, shape in self.shapes.items()}


def resolve(
    region: Region[LayerOp], infos: Infos, input_size: tuple[int, ...] | None
) -> tuple[Region[ResolvedLayer] | None, Geometry | None, list[Problem]]:
    """The region with the tensors and geometry of its layers, the merged geometry, and what is
    wrong.

    `input_size` is that of the source, where it is fixed. With problems the first two may be None.
    """
    problems: list[Problem] = []
    stored: dict[str, _Named] = {}
    for op in region.layers:
        if found := find(op.layer, op.path, infos, problems):
            stored[op.name] = _Named(op.layer, *found)
    if problems:
        return None, None, problems
    named = mapped(region.expression, lambda op: stored[op.name])
    rank = infer_rank(named, input_size)
    if rank is None:
        reason = "no convolution here tells the number of axes. Give input: [H, W]"
        return None, None, [Problem((), reason)]
    placing = _Placing(stored, rank, problems)
    geometry = placing.place(region.expression, infer_in_channels(named))
    if len(placing.resolved) < len(stored):
        return None, geometry, problems
    resolved: Region[ResolvedLayer] = region.with_layers(placing.resolved)  # type: ignore[assignment]
    return resolved, geometry, problems


class _Placing:
    """Every layer's geometry, given the channels that enter, and that of the whole.

    What does not fit is added to `problems`; the rest is placed all the same, as far as its own
    tensors tell, so that one run tells everything.
    """

    def __init__(self, stored: Mapping[str, _Named], rank: int, problems: list[Problem]) -> None:
        self._stored, self._rank, self._problems = stored, rank, problems
        self.resolved: dict[str, ResolvedLayer] = {}

    def place(self, tree: Tree[LayerOp], channels: int | None) -> Geometry | None:
        """The geometry of a part that `channels` enter, None where it has none."""
        if isinstance(tree, Chain):
            return self._chain(tree, channels)
        if isinstance(tree, Sum):
            return self._sum(tree, channels)
        return self._layer(tree, channels)

    def _layer(self, op: LayerOp, channels: int | None) -> Geometry | None:
        named = self._stored[op.name]
        if channels is None:
            channels = infer_in_channels(named)
        if channels is None:
            if not self._problems:  # else it is the misfit before that hides the channels
                self._refuse(
                    op, "nothing here tells the number of channels. Name a layer that has weights"
                )
            return None
        try:
            if channels == 0:
                raise GeometryError(_NO_CHANNELS)
            geometry = op.layer.operator(named.meta(), self._rank, channels).geometry
            if not geometry.in_channels or not geometry.out_channels:
                raise GeometryError(_NO_CHANNELS)
        except GeometryError as error:
            self._refuse(op, str(error))
            return None
        own = {one.name: getattr(op, one.name) for one in fields(LayerOp)}
        own["rank"] = self._rank
        self.resolved[op.name] = ResolvedLayer(
            **own, parameters=named.parameters, counters=named.counters, geometry=geometry
        )
        return geometry

    def _refuse(self, op: LayerOp, reason: str) -> None:
        self._problems.append(Problem(op.path, f"{op.label}: {reason}"))

    def _chain(self, chain: Chain[LayerOp], channels: int | None) -> Geometry | None:
        whole: Geometry | None = None
        for index, link in enumerate(chain.links):
            geometry = self.place(link, channels)
            if index == 0:
                whole = geometry
            elif whole is not None and geometry is not None:
                hint = _order_hint(chain, index, geometry, whole)
                whole = self._combined(compose, geometry, whole, link, hint)
            else:
                whole = None
            channels = self._leaving(link) if geometry is None else geometry.out_channels
            if channels is None:
                behind: Tree[LayerOp] = Chain(chain.links[index + 1 :])
                channels = infer_in_channels(mapped(behind, lambda op: self._stored[op.name]))
        return whole

    def _leaving(self, tree: Tree[LayerOp]) -> int | None:
        """The channels that leave layers which need not be one convolution."""
        while isinstance(tree, Chain | Sum):
            tree = tree.links[-1] if isinstance(tree, Chain) else tree.branches[0]
        found = self.resolved.get(tree.name)
        return None if found is None else found.geometry.out_channels

    def _sum(self, tree: Sum[LayerOp], channels: int | None) -> Geometry | None:
        found = [self.place(branch, channels) for branch in tree.branches]
        whole = found[0]
        for branch, geometry in zip(tree.branches[1:], found[1:], strict=True):
            if whole is None or geometry is None:
                return None
            whole = self._combined(add, whole, geometry, branch)
        return whole

    def _combined(
        self,
        operation: Callable[[Geometry, Geometry], Geometry],
        left: Geometry,
        right: Geometry,
        blamed: Tree[LayerOp],
        hint: str = "",
    ) -> Geometry | None:
        try:
            return operation(left, right)
        except GeometryError as error:
            self._refuse(leaves(blamed)[0], f"{error}{hint}")
            return None


def _order_hint(chain: Chain[LayerOp], index: int, outer: Geometry, inner: Geometry) -> str:
    """What to add to the refusal of a link whose channels would fit before the links so far."""
    fits = outer.in_channels == inner.out_channels
    if fits or outer.out_channels != inner.in_channels:
        return ""
    order = f"{_labels(chain.links[index])} then {_labels(Chain(chain.links[:index]))}"
    return f". {order} would fit: are they given in the wrong order?"


def _labels(tree: Tree[LayerOp]) -> str:
    labels = [op.label for op in leaves(tree)]
    return labels[0] if len(labels) == 1 else f"({', '.join(labels)})"
