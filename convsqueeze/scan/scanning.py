"""A model's graph -> a manifest of the merges that pay, and why all else is left alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from convsqueeze.algebra.tree import Chain, Sum, Tree, at, children, fold, leaves
from convsqueeze.checkpoint import TensorInfo
from convsqueeze.errors import PlanError
from convsqueeze.manifest import (
    Border,
    ChainEntry,
    ChainItem,
    Document,
    Item,
    Layer,
    SumEntry,
    SumItem,
    contract,
)
from convsqueeze.plan import Growth, Merged, Minimize, Part, Partition, Rejected, best_partition
from convsqueeze.plan.parts import Latency
from convsqueeze.scan.placing import Placing
from convsqueeze.scan.regions import Added, Placed, Region, find_regions, unusable
from convsqueeze.tracing import Graph, Reason, ReasonKind

Infos = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class LeftAlone:
    """Layers that follow each other, or one layer, and why they stay as they are."""

    layers: tuple[str, ...]
    reason: Reason


@dataclass(frozen=True)
class Scanned:
    """A linear region of the model and the best partition of it; None for a single layer."""

    region: Region
    partition: Partition | None


@dataclass(frozen=True)
class ScannedEntry:
    """An entry of the manifest and the merges that it stands for, in the order of its expansion."""

    entry: ChainEntry | SumEntry
    merged: tuple[Merged, ...]


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
    def merged(self) -> tuple[Merged, ...]:
        """Every merge, in the order of the entries."""
        return tuple(merged for one in self.entries for merged in one.merged)

    @property
    def regions(self) -> tuple[Region, ...]:
        return tuple(one.region for one in self.scanned)


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
    chosen = [
        (merged, search.entry(one.region, merged.part))
        for one in scanned
        if one.partition is not None
        for merged in one.partition.merged
    ]
    chosen.sort(key=lambda pair: _saved(pair[0], minimize), reverse=True)
    left = (*_apart(scanned), *_beyond(graph, scanned, ends), *_alone(graph), *search.unsound)
    notes = [
        *graph.notes,
        *(note for one in scanned if one.partition for note in one.partition.notes),
    ]
    return Scan(
        scanned=scanned,
        entries=tuple(
            ScannedEntry(one.entry, tuple(chosen[place][0] for place in one.members))
            for one in contract([entry for _, entry in chosen], list(infos))
        ),
        left=tuple(dict.fromkeys(left)),
        border=border,
        minimize=minimize,
        notes=tuple(dict.fromkeys(notes)),
    )


def _saved(merged: Merged, minimize: Minimize) -> int:
    """What a merge saves of what is minimised."""
    if minimize == "latency" and merged.timing is not None:
        return merged.timing.before - merged.timing.after
    merge = merged.merge
    if minimize == "macs":
        return merge.macs_before - merge.macs_after
    return merge.weights_before - merge.weights_after


class _Search:
    """Partitions regions; knows where each part would go."""

    def __init__(
        self,
        graph: Graph,
        infos: Infos,
        border: Border,
        growth: Growth,
        minimize: Minimize,
        latency: Latency | None,
    ) -> None:
        self._graph, self._infos = graph, infos
        self._policies = {"border": border, "growth": growth, "minimize": minimize}
        self._latency = latency
        self._placing = Placing(graph)
        self.unsound: list[LeftAlone] = []

    def partition(self, region: Region) -> Partition | None:
        only = region.links[0] if len(region.links) == 1 else None
        if only is not None and not isinstance(only, Sum):
            return None
        if not any(one.has_tensors for one in region.layers):
            return None
        entry = entry_of(region.links, self._placing.layer)

        def allowed(part: Part) -> str | None:
            tree = _part_of(region, part)
            return None if self._placing.of(tree) else self._placing.left_in_code(tree)

        def name(part: Part) -> str | None:
            found = self._placing.of(_part_of(region, part))
            return found.into if found else None

        try:
            return best_partition(
                entry,
                self._infos,
                place=" + ".join(placed.layer.label for placed in region.layers),
                size=self._size(region),
                allowed=allowed,
                name=name,
                latency=self._latency,
                **self._policies,  # type: ignore[arg-type]
            )
        except PlanError as error:
            labels = tuple(placed.layer.label for placed in region.layers)
            reason = Reason("not one convolution", error.problems[0])
            self.unsound.append(LeftAlone(labels, reason))
            return None

    def _size(self, region: Region) -> tuple[int, ...] | None:
        """The sizes of the region's input behind the channels."""
        step = self._graph.steps.get(region.source)
        shape = step.shape if step is not None else self._graph.inputs.get(region.source)
        ranks = [self._graph.steps[placed.step].rank for placed in region.layers]
        rank = next((rank for rank in ranks if rank is not None), None)
        if shape is None or rank is None or len(shape) < rank:
            return None
        return tuple(shape[len(shape) - rank :])

    def entry(self, region: Region, part: Part) -> ChainEntry | SumEntry:
        """The part as an entry with its place, and what else goes with the modules it replaces."""
        found = self._placing.of(_part_of(region, part))
        if found is None:
            return part.entry
        modules = (found.into, *(one.name for one in found.silenced))
        given: dict[str, object] = {"into": found.into}
        if drop := tuple(dict.fromkeys(self._unread(modules, part))):
            given["drop"] = drop
        return part.entry.model_copy(update=given)

    def _unread(self, modules: tuple[str, ...], part: Part) -> Iterator[str]:
        """Layers inside replaced modules whose tensors nothing reads."""
        read = {*self._graph.kept}.union(*(step.keys for step in self._graph.steps.values()))
        for key in self._infos:
            inside = any(key.startswith(f"{module}.") for module in modules)
            if inside and key not in read and not key.endswith(".num_batches_tracked"):
                owner = key.rpartition(".")[0]
                yield key if owner in modules else owner


def entry_of(
    links: tuple[Tree[Placed], ...], layer: Callable[[Placed], Layer]
) -> ChainEntry | SumEntry:
    """Links as an entry of a manifest, its layers as `layer` gives them."""
    items = [_item(link, layer) for link in links]
    if len(items) == 1 and isinstance(items[0], SumItem):
        return SumEntry(sum=items[0].sum)
    return ChainEntry(chain=tuple(items))


def _item(tree: Tree[Placed], layer: Callable[[Placed], Item]) -> Item:
    return fold(
        tree,
        layer,
        lambda links: ChainItem(chain=tuple(links)),
        lambda branches: SumItem(sum=tuple(branches)),
    )


def _part_of(region: Region, part: Part) -> Tree[Placed]:
    """The part of the region's layers that it is."""
    only = region.links[0]
    tree: Tree[Placed] = only if len(region.links) == 1 else Chain(region.links)
    tree = at(tree, part.within)
    every_part = children(tree)
    chosen = tuple(every_part[index] for index in part.indices)
    if isinstance(tree, Sum):
        every = len(chosen) == len(every_part) and isinstance(tree, Added)
        return tree if every else Sum(chosen)
    return Chain(chosen)


KINDS: Mapping[str, ReasonKind] = {
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
            part = tuple(leaves(_part_of(one.region, rejected.part)))
            if sum(placed.has_tensors for placed in part) > 1:
                yield LeftAlone(rejected.part.labels, _reason(rejected))
            elif rejected.cause == "veto" and (around := _around(one.region, part)):
                yield LeftAlone(around, _reason(rejected))


def _around(region: Region, part: Sequence[Placed]) -> tuple[str, str] | None:
    """The nearest layers with tensors on both sides of what in a part has none."""
    layers = region.layers
    places = [
        place
        for place, placed in enumerate(layers)
        if any(placed is one for one in part) and not placed.has_tensors
    ]
    if not places:
        return None
    before = [one.layer.label for one in layers[: places[0]] if one.has_tensors]
    behind = [one.layer.label for one in layers[places[-1] + 1 :] if one.has_tensors]
    return (before[-1], behind[0]) if before and behind else None


def _reason(rejected: Rejected) -> Reason:
    return Reason(KINDS[rejected.cause], rejected.reason)


def _beyond(
    graph: Graph, scanned: tuple[Scanned, ...], ends: Mapping[str, Reason]
) -> Iterator[LeftAlone]:
    """The last layer of each region and the first behind it, and what stands between."""
    for one in scanned:
        reason = ends.get(one.region.result)
        if reason is None or not any(placed.has_tensors for placed in one.region.layers):
            continue
        last = _last_label(one.region)
        for follower in _followers(graph, one.region.result):
            yield LeftAlone((last, follower), reason)


def _last_label(region: Region) -> str:
    return [placed.layer.label for placed in region.layers if placed.has_tensors][-1]


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
            step = graph.steps[name]
            if step.keys and step.tree is not None:
                yield step.label
            elif (seen.issuperset(step.inputs) or distance == 0) and name not in seen:
                seen.add(name)
                behind.append(name)
        now = behind


WITH_KERNEL = frozenset(
    ["linear", *(f"{kind}{n}d" for kind in ("conv", "conv_transpose") for n in (1, 2, 3))]
)
"""Operators that are layers but for what they are given."""


def _alone(graph: Graph) -> Iterator[LeftAlone]:
    """Layers that no region may hold."""
    for name, reason in unusable(graph):
        yield LeftAlone((graph.steps[name].label,), reason)
    for step in graph.steps.values():
        if step.opaque is not None and step.keys and step.operator in WITH_KERNEL:
            yield LeftAlone((step.label,), step.opaque)
