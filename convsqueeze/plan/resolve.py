"""A region's layers with their tensors and geometry, and the operators they make.

Planning builds the operators from shapes alone (tensors on the meta device), squeezing from values:
the same functions serve both. Holds no tensor data.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import torch

from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import Geometry, add, compose
from convsqueeze.algebra.tree import Chain, Sum, Tree, leaves, mapped
from convsqueeze.errors import GeometryError
from convsqueeze.graph import LayerOp
from convsqueeze.manifest import Request
from convsqueeze.plan.parameters import Infos, Load, Parameters, Problem, dropped_keys, find

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

    @cached_property
    def stored(self) -> tuple[str, ...]:
        """The tensors of the checkpoint that its parameters are stored in."""
        return tuple(key for parameter in self.parameters.values() for key in parameter.keys)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Every tensor of the checkpoint that belongs to the layer."""
        return (*self.stored, *self.counters)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter, by its role."""
        return {role: parameter.shape for role, parameter in self.parameters.items()}

    @cached_property
    def in_channels(self) -> int | None:
        """The channels that enter, as far as its tensors tell."""
        return self.layer.infer_in_channels(self.shapes)

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


def infer_rank(
    layers: Sequence[ResolvedLayer], input_size: tuple[int, ...] | None = None
) -> int | None:
    """The number of spatial axes: a convolution's, or as the manifest tells."""
    for op in layers:
        if (rank := op.layer.kernel_rank(op.shapes)) is not None:
            return rank
    given = [] if input_size is None else [len(input_size)]
    for rank in (*given, *(op.layer.listed_rank for op in layers)):
        if rank is not None:
            return rank
    return 0 if any(op.layer.mixes_channels for op in layers) else None


def infer_in_channels(tree: Tree[ResolvedLayer]) -> int | None:
    """The channels that enter, told by the first layer whose weights say so."""
    channels = [op.in_channels for op in leaves(tree) if op.in_channels is not None]
    return next(filter(None, channels), channels[0] if channels else None)


MOST_OPERATIONS = 256
"""In one entry: planning takes the square of it, looking for better parts its third power."""
_NO_CHANNELS = "has no channels, at least one was needed. Leave the entry out"


def resolve(
    request: Request[LayerOp], infos: Infos, size: tuple[int, ...] | None = None
) -> tuple[Request[ResolvedLayer] | None, Geometry | None, list[Problem]]:
    """The request with its layers' tensors and geometry, the merged geometry, and what is wrong.

    `size` is that of the source, where the request fixes none. The first is None unless each layer
    is sound and its channels and axes fit, the second unless they make one convolution.
    """
    problems: list[Problem] = []
    if (count := len(request.region.ops)) > MOST_OPERATIONS:
        many = f"has {count:,} layers and sums, at most {MOST_OPERATIONS} become one layer"
        return None, None, [Problem((), f"{many}. Merge them in parts")]
    resolved: Request[ResolvedLayer] | None = None
    geometry: Geometry | None = None
    stored: dict[str, ResolvedLayer] = {}
    for op in request.region.layers:
        if found := find(op.layer, op.path, infos, problems):
            plain = {one.name: getattr(op, one.name) for one in fields(LayerOp)}
            stored[op.name] = ResolvedLayer(**plain, parameters=found[0], counters=found[1])
    rank = None if problems else infer_rank(list(stored.values()), request.input_size or size)
    if rank is not None:
        placing = _Placing(rank, problems)
        tree = mapped(request.region.expression, lambda op: stored[op.name])
        geometry = placing.place(tree, infer_in_channels(tree))
        if placing.fits and len(placing.resolved) == len(stored):
            region = request.region.with_layers(placing.resolved)
            resolved = replace(request, region=region)  # type: ignore[assignment]
    elif not problems:
        reason = "no convolution here tells the number of axes. Give input: [H, W]"
        problems.append(Problem((), reason))
    for name in request.drop:
        if not dropped_keys(name, infos):
            reason = f"{name} is neither a layer nor a tensor of the checkpoint"
            problems.append(Problem(("drop",), reason))
            resolved = None
    return resolved, geometry, problems


class _Placing:
    """Every layer's geometry, given the channels that enter, and that of the whole.

    What does not fit is added to `problems`; the rest is placed all the same, as far as its own
    tensors tell, so that one run tells everything. `fits` says whether the layers could run one
    after the other, whatever becomes of strides.
    """

    def __init__(self, rank: int, problems: list[Problem]) -> None:
        self._rank, self._problems = rank, problems
        self.resolved: dict[str, ResolvedLayer] = {}
        self.fits = True

    def place(self, tree: Tree[ResolvedLayer], channels: int | None) -> Geometry | None:
        """The geometry of a part that `channels` enter, None where it has none."""
        if isinstance(tree, Chain):
            return self._chain(tree, channels)
        if isinstance(tree, Sum):
            return self._sum(tree, channels)
        return self._layer(tree, channels)

    def _layer(self, op: ResolvedLayer, channels: int | None) -> Geometry | None:
        if channels is None:
            channels = op.in_channels
        if channels is None:
            if not self._problems:  # else it is the misfit before that hides the channels
                self._refuse(
                    op, "nothing here tells the number of channels. Name a layer that has weights"
                )
            return None
        meta = {role: torch.empty(shape, device="meta") for role, shape in op.shapes.items()}
        try:
            if channels == 0:
                raise GeometryError(_NO_CHANNELS)
            geometry = op.layer.operator(meta, self._rank, channels).geometry
            if not geometry.in_channels or not geometry.out_channels:
                raise GeometryError(_NO_CHANNELS)
        except GeometryError as error:
            self._refuse(op, str(error))
            return None
        self.fits &= (geometry.in_channels, len(geometry.axes)) == (channels, self._rank)
        self.resolved[op.name] = replace(op, rank=self._rank, geometry=geometry)
        return geometry

    def _refuse(self, op: ResolvedLayer, reason: str) -> None:
        self._problems.append(Problem(op.path, f"{op.label}: {reason}"))

    def _chain(self, chain: Chain[ResolvedLayer], channels: int | None) -> Geometry | None:
        whole: Geometry | None = None
        for index, link in enumerate(chain.links):
            geometry = self.place(link, channels)
            if index == 0 or geometry is None:
                whole = geometry
            elif whole is not None:
                try:
                    whole = compose(geometry, whole)
                except GeometryError as error:
                    hint = _order_hint(chain, index, geometry, whole)
                    self._refuse(next(iter(leaves(link))), f"{error}{hint}")
                    whole = None
            channels = self._leaving(link)
            if channels is None:
                channels = infer_in_channels(Chain(chain.links[index + 1 :]))
        return whole

    def _leaving(self, tree: Tree[ResolvedLayer]) -> int | None:
        """The channels that leave layers which need not be one convolution."""
        while isinstance(tree, Chain | Sum):
            tree = tree.links[-1] if isinstance(tree, Chain) else tree.branches[0]
        found = self.resolved.get(tree.name)
        return None if found is None else found.geometry.out_channels

    def _sum(self, tree: Sum[ResolvedLayer], channels: int | None) -> Geometry | None:
        found = [self.place(branch, channels) for branch in tree.branches]
        self.fits &= len(set(map(self._leaving, tree.branches))) == 1
        whole = found[0]
        for branch, geometry in zip(tree.branches[1:], found[1:], strict=True):
            if whole is None or geometry is None:
                return None
            try:
                whole = add(whole, geometry)
            except GeometryError as error:
                self._refuse(next(iter(leaves(branch))), str(error))
                return None
        return whole


def _order_hint(chain: Chain[ResolvedLayer], index: int, outer: Geometry, inner: Geometry) -> str:
    """What to add to the refusal of a link whose channels would fit before the links so far."""
    fits = outer.in_channels == inner.out_channels
    if fits or outer.out_channels != inner.in_channels:
        return ""
    order = f"{_labels(chain.links[index])} then {_labels(Chain(chain.links[:index]))}"
    return f". {order} would fit: are they given in the wrong order?"


def _labels(tree: Tree[ResolvedLayer]) -> str:
    labels = [op.label for op in leaves(tree)]
    return labels[0] if len(labels) == 1 else f"({', '.join(labels)})"
