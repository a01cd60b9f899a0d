"""A model's graph -> a manifest of the merges that pay, and why all else is left alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

from convsqueeze.checkpoint import TensorInfo
from convsqueeze.errors import GeometryError, PlanError
from convsqueeze.graph import (
    Graph,
    LayerOp,
    OpaqueOp,
    Reason,
    ReasonKind,
    Region,
    Shape,
    find_regions,
    unusable,
)
from convsqueeze.kinds import KINDS
from convsqueeze.manifest import Border, ChainEntry, Document, Request, SumEntry, entry_of
from convsqueeze.manifest.contract import contract
from convsqueeze.plan import Growth, Merge, ResolvedLayer
from convsqueeze.plan.parameters import dropped_keys
from convsqueeze.plan.partition import best_partition
from convsqueeze.plan.pricing import Latency, Minimize, Partition
from convsqueeze.scan.placing import Placing
from convsqueeze.verify import effort_problem

Infos = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class LeftAlone:
    """Layers that follow each other, or one layer, and why they stay as they are."""

    layers: tuple[str, ...]
    reason: Reason


@dataclass(frozen=True)
class Scanned:
    """A linear region of the model and the best partition of it; None for a single layer."""

    region: Region[LayerOp]
    partition: Partition | None


@dataclass(frozen=True)
class ScannedEntry:
    """An entry of the manifest and the merges that it stands for, in the order of its expansion."""

    entry: ChainEntry | SumEntry
    merged: tuple[Merge, ...]


@dataclass(frozen=True)
class Scan:
    """What scanning a model found: entries, what pays first, and what was left alone.

    Merges of layers that have the same names but for numbers are one entry, with placeholders,
    where that stands for nothing else in the model; it has the place of its first.
    """

    scanned: tuple[Scanned, ...]
    entries: tuple[ScannedEntry, ...]
    left: tuple[LeftAlone, ...]
    border: Border
    minimize: Minimize
    notes: tuple[str, ...] = ()

    @property
    def document(self) -> Document | None:
        """The manifest; None where nothing is to be merged."""
        if not self.entries:
            return None
        given = {} if self.border == "exact" else {"border": self.border}
        return Document(version=1, pairs=tuple(one.entry for one in self.entries), **given)

    @property
    def merged(self) -> tuple[Merge, ...]:
        """Every merge, in the order of the entries."""
        return tuple(merged for one in self.entries for merged in one.merged)


def scan(
    graph: Graph,
    infos: Infos,
    *,
    border: Border = "exact",
    growth: Growth = "refuse",
    minimize: Minimize = "weights",
    latency: Latency | None = None,
) -> Scan:
    """Every maximal linear region of a graph, partitioned for the least `minimize`.

    `infos` are the tensors of the model's state dict. Each merge has a module to go to: what only
    the code of a larger module does stays there.
    """
    regions, ends = find_regions(graph)
    search = _Search(graph, infos, border, growth, minimize, latency)
    scanned = tuple(Scanned(region, search.partition(region)) for region in regions)
    partitions = [one.partition for one in scanned if one.partition is not None]
    chosen = [search.placed(one) for partition in partitions for one in partition.merged]
    chosen.sort(key=lambda merge: _saved(merge, minimize), reverse=True)
    entries = contract([entry_of(merge.request) for merge in chosen], list(infos))
    left = (*_apart(scanned), *_beyond(graph, scanned, ends), *_alone(graph), *search.impossible)
    notes = [*graph.notes, *(note for partition in partitions for note in partition.notes)]
    return Scan(
        scanned=scanned,
        entries=tuple(
            ScannedEntry(one.entry, tuple(chosen[place] for place in one.members))
            for one in entries
        ),
        left=tuple(dict.fromkeys(left)),
        border=border,
        minimize=minimize,
        notes=tuple(dict.fromkeys(notes)),
    )


def _saved(merge: Merge, minimize: Minimize) -> int:
    """What a merge saves of what is minimised."""
    if minimize == "latency" and merge.timing is not None:
        return merge.timing.before - merge.timing.after
    if minimize == "macs":
        return merge.macs_before - merge.macs_after
    return merge.weights_before - merge.weights_after


@dataclass
class _Search:
    """Partitions regions; knows where each part would go."""

    graph: Graph
    infos: Infos
    border: Border
    growth: Growth
    minimize: Minimize
    latency: Latency | None
    impossible: list[LeftAlone] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._placing = Placing(self.graph)

    def partition(self, region: Region[LayerOp]) -> Partition | None:
        if len(region.ops) == 1 or not any(op.has_tensors for op in region.layers):
            return None
        region = self._placing.named(region)
        labels = tuple(op.label for op in region.layers)

        def name(part: Request[ResolvedLayer]) -> str:
            tree = part.region.expression
            found = self._placing.of(tree)
            if found is None:
                raise GeometryError(self._placing.left_in_code(tree))
            return found.into

        try:
            found = best_partition(
                Request(region),
                self.infos,
                place=" + ".join(labels),
                size=self._size(region),
                border=self.border,
                growth=self.growth,
                minimize=self.minimize,
                latency=self.latency,
                name=name,
            )
        except PlanError as error:
            reason = Reason("not one convolution", error.problems[0])
            self.impossible.append(LeftAlone(labels, reason))
            return None
        for merge in found.merged:
            if (problem := effort_problem(merge)) is not None:
                self.impossible.append(LeftAlone(labels, Reason("too large", problem)))
                return None
        return found

    def _size(self, region: Region[LayerOp]) -> Shape | None:
        """The sizes of the region's input behind the channels."""
        shape = self.graph.shape(region.sources[0])
        rank = next((op.rank for op in region.layers if op.rank is not None), None)
        if shape is None or rank is None or len(shape) < rank:
            return None
        return tuple(shape[len(shape) - rank :])

    def placed(self, merge: Merge) -> Merge:
        """A merge with its place in the model. What else goes with the modules that it replaces is
        dropped with it.
        """
        place = self._placing.of(merge.tree)
        if place is None:
            return merge
        modules = (place.into, *(one.name for one in place.replaced))
        unread = tuple(dict.fromkeys(self._unread(modules)))
        drop = tuple(dict.fromkeys((*merge.request.drop, *unread)))
        keys = dict.fromkeys(key for name in unread for key in dropped_keys(name, self.infos))
        more = [key for key in keys if key not in merge.consumed]
        weights = sum(prod(self.infos[key].shape) for key in more)
        return replace(
            merge,
            into=place.into,
            request=replace(merge.request, into=place.into, drop=drop),
            placement=place,
            consumed=(*merge.consumed, *more),
            weights_before=merge.weights_before + weights,
        )

    def _unread(self, modules: tuple[str, ...]) -> Iterator[str]:
        """Layers inside replaced modules whose tensors nothing reads."""
        inside = tuple(f"{module}." for module in modules)
        for key in [key for key in self.infos if key.startswith(inside)]:
            if key not in self._read and not key.endswith(".num_batches_tracked"):
                owner = key.rpartition(".")[0]
                yield key if owner in modules else owner

    @cached_property
    def _read(self) -> set[str]:
        """The stored tensors that the model's code reads."""
        return {*self.graph.kept}.union(*[op.reads for op in self.graph.ops.values()])


REASONS: Mapping[str, ReasonKind] = {
    "geometry": "not one convolution",
    "tensors": "used twice",
    "border": "border",
    "growth": "growth",
    "time": "no gain",
    "veto": "in code",
    "cost": "no gain",
}


def _apart(scanned: tuple[Scanned, ...]) -> Iterator[LeftAlone]:
    """Layers inside a region that stay apart."""
    for one in scanned:
        for rejected in one.partition.kept_apart if one.partition else ():
            part, reason = rejected.request, Reason(REASONS[rejected.cause], rejected.reason)
            if sum(op.has_tensors for op in part.region.layers) > 1:
                yield LeftAlone(part.labels, reason)
            elif rejected.cause == "veto" and (around := _around(one.region, part)):
                yield LeftAlone(around, reason)


def _around(region: Region[LayerOp], part: Request[ResolvedLayer]) -> tuple[str, str] | None:
    """The nearest layers with tensors on both sides of what in a part has none."""
    layers = region.layers
    bare = {op.name for op in part.region.layers if not op.has_tensors}
    place = next((place for place, op in enumerate(layers) if op.name in bare), None)
    if place is None:
        return None
    before = [op.label for op in layers[:place] if op.has_tensors]
    behind = [op.label for op in layers[place + 1 :] if op.has_tensors]
    return (before[-1], behind[0]) if before and behind else None


def _beyond(
    graph: Graph, scanned: tuple[Scanned, ...], ends: Mapping[str, Reason]
) -> Iterator[LeftAlone]:
    """The last layer of each region and the first behind it, and what stands between."""
    for one in scanned:
        reason = ends.get(one.region.result)
        labels = [op.label for op in one.region.layers if op.has_tensors]
        if reason is None or not labels:
            continue
        for follower in _followers(graph, one.region.result):
            yield LeftAlone((labels[-1], follower), reason)


MOST_BETWEEN = 8
"""Steps between two layers that are looked at for the one that keeps them apart."""


def _followers(graph: Graph, value: str) -> Iterator[str]:
    """The labels of the layers that read a value, what one operator makes of it (with others, it
    may be), or operators make of that and nothing else.
    """
    seen, now = {value}, [value]
    for distance in range(MOST_BETWEEN):
        behind: list[str] = []
        for name in (name for value in now for name in graph.readers.get(value, ())):
            op = graph.ops[name]
            if op.reads and isinstance(op, LayerOp):
                yield graph.labels[op.node]
            elif (seen.issuperset(op.inputs) or distance == 0) and name not in seen:
                seen.add(name)
                behind.append(name)
        now = behind


WITH_KERNEL = {name for kind in KINDS if kind.layer.mixes_channels for name in kind.aten}
"""Operators that are layers but for what they are given."""


def _alone(graph: Graph) -> Iterator[LeftAlone]:
    """Layers that no region may hold."""
    for name, reason in unusable(graph):
        yield LeftAlone((graph.labels[graph.ops[name].node],), reason)
    for op in graph.ops.values():
        if isinstance(op, OpaqueOp) and op.reads and op.operator in WITH_KERNEL:
            yield LeftAlone((op.label,), op.reason)
