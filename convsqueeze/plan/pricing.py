"""What is known of each part of a region: as one layer, or why it is none, and what it costs.

Knows names, shapes and geometry. What a part computes, is refused for and costs comes from
`candidates`, which plans it.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from convsqueeze.algebra.geometry import Geometry
from convsqueeze.algebra.sizes import merged
from convsqueeze.algebra.tree import Chain, Sum, Tree, children, leaves
from convsqueeze.errors import GeometryError
from convsqueeze.graph import Region
from convsqueeze.manifest import Border, ChainEntry, Request, SumEntry, entry_of
from convsqueeze.plan.candidates import candidate_of
from convsqueeze.plan.checks import conflicts
from convsqueeze.plan.model import Growth, Merge, Timing, geometry_tree, macs_and_size
from convsqueeze.plan.parameters import Cause, Infos, Problem, dropped_keys
from convsqueeze.plan.resolve import ResolvedLayer, infer_in_channels, infer_rank
from convsqueeze.plan.wording import grows

Minimize = Literal["weights", "macs", "latency"]
Name = Callable[[Request[ResolvedLayer]], str | None]
Latency = Callable[[Merge], Timing]
Size = tuple[int, ...]
Places = tuple[int, ...]
"""Which items of a group: a run of links, or some branches."""
Layers = Tree[ResolvedLayer]


@dataclass(frozen=True)
class Rejected:
    """A part of a region that does not become one layer, and why."""

    request: Request[ResolvedLayer]
    cause: Cause
    reason: str


@dataclass(frozen=True)
class Cost:
    """What layers cost: numbers stored, multiplications for one image, how many layers they are.

    `nanoseconds` is the time that merging changed, zero for layers apart and where none is
    measured. Identities are among the `links` but no `layers`.
    """

    weights: int = 0
    macs: int = 0
    layers: int = 0
    links: int = 0
    nanoseconds: int = 0

    @classmethod
    def of(cls, merge: Merge) -> "Cost":
        """The cost of the one layer that a merge gives."""
        timing = merge.timing
        change = 0 if timing is None else timing.after - timing.before
        return cls(merge.weights_after, merge.macs_after, 1, 1, change)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.weights + other.weights,
            self.macs + other.macs,
            self.layers + other.layers,
            self.links + other.links,
            self.nanoseconds + other.nanoseconds,
        )

    def under(self, minimize: Minimize) -> int:
        """The chosen measure alone."""
        return self.nanoseconds if minimize == "latency" else getattr(self, minimize)

    def order(self, minimize: Minimize) -> tuple[int, ...]:
        """What decides between two partitions: the measure, then the others, then fewer layers."""
        others = (self.macs, self.weights) if minimize == "macs" else (self.weights, self.macs)
        return (self.under(minimize), *others, self.layers, self.links)


@dataclass(frozen=True)
class Partition:
    """The best way to merge an entry: `merged` are its parts, everything else stays `apart`.

    `request` is what was given, with an input of `size`. `before` and `after` cost all of its
    layers. `given` is the region as a whole: merged, or why it is not.
    `kept_apart` has for each boundary that stays the reason why what meets there is not one layer.
    """

    request: Request[ResolvedLayer]
    minimize: Minimize
    size: tuple[int, ...]
    merged: tuple[Merge, ...]
    apart: tuple[str, ...]
    before: Cost
    after: Cost
    given: Merge | Rejected
    kept_apart: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def entries(self) -> tuple[ChainEntry | SumEntry, ...]:
        """The merged parts as entries of a manifest."""
        return tuple(entry_of(merge.request) for merge in self.merged)

    @property
    def is_given(self) -> bool:
        """Whether it merges the entry as a whole."""
        return self.apart == () and len(self.merged) == 1


@dataclass(frozen=True, eq=False)
class Group:
    """The links of a chain, or the branches of a sum.

    `sizes` and `macs` have, for each item, the size of the image that it takes and its
    multiplications on that as it is.
    """

    tree: Chain[ResolvedLayer] | Sum[ResolvedLayer]
    items: tuple[Layers, ...]
    sizes: tuple[Size, ...]
    macs: tuple[int, ...]
    answers: dict[Places, Merge | Rejected] = field(default_factory=dict)
    _geometries: dict[Places, Geometry | str] = field(default_factory=dict)

    @classmethod
    def of(cls, layers: Layers, size: Size) -> "Group":
        tree = layers if isinstance(layers, Chain | Sum) else Chain((layers,))
        items: tuple[Layers, ...] = children(tree)
        sizes, macs = [], []
        for item in items:
            sizes.append(size)
            count, behind = macs_and_size(item, size)
            macs.append(count)
            size = behind if isinstance(tree, Chain) else size
        return cls(tree, items, tuple(sizes), tuple(macs))

    def part(self, places: Places) -> Layers:
        if len(places) == len(self.items):
            return self.tree
        some = tuple(self.items[place] for place in places)
        return Chain(some) if isinstance(self.tree, Chain) else Sum(some)

    def geometry(self, places: Places) -> Geometry | str:
        """Of a part as one layer, whatever its border; the reason where it is no convolution."""
        if places not in self._geometries:
            try:
                self._geometries[places] = merged(geometry_tree(self.part(places)))
            except GeometryError as error:
                self._geometries[places] = str(error)
        return self._geometries[places]

    def has_effect(self, places: Places) -> bool:
        """Whether there is anything to merge beside identities."""
        if isinstance(self.tree, Sum):
            return True
        items = [self.items[place] for place in places]
        real = [one for one in items if isinstance(one, Chain | Sum) or not one.layer.is_identity]
        return len(real) > 1 or any(isinstance(one, Sum) for one in real)


@dataclass(frozen=True, eq=False)
class Pricing:
    """What `best_partition` was asked, and the cost of each layer as it is."""

    request: Request[ResolvedLayer]
    infos: Infos
    place: str
    border: Border
    growth: Growth
    minimize: Minimize
    size: Size
    name: Name
    latency: Latency | None

    @cached_property
    def users(self) -> Counter[str]:
        """How many layers use each tensor."""
        return Counter(key for op in self.request.region.layers for key in set(op.keys))

    @cached_property
    def weights(self) -> dict[str, int]:
        """What each layer stores, by its name; a tensor that several share counts for the first."""
        counted: set[str] = set()
        found = {}
        for op in self.request.region.layers:
            uncounted = set(op.stored) - counted
            counted |= uncounted
            found[op.name] = sum(self.infos[key].numel for key in uncounted)
        return found

    @cached_property
    def dropped_weights(self) -> int:
        keys = {k for given in self.request.drop for k in dropped_keys(given, self.infos)}
        return sum(self.infos[key].numel for key in keys - self.users.keys())

    def apart(self, group: Group, places: Places) -> Cost:
        """The cost of items as they are."""
        weights = macs = layers = links = 0
        for place in places:
            macs += group.macs[place]
            for op in leaves(group.items[place]):
                weights += self.weights[op.name]
                layers += not op.layer.is_identity
                links += 1
        return Cost(weights, macs, layers, links)

    def answer(self, group: Group, places: Places) -> Merge | Rejected:
        """The part as one layer, or why it is none: asked once, then known."""
        if places not in group.answers:
            group.answers[places] = self._planned(group, places)
        return group.answers[places]

    def _planned(self, group: Group, places: Places) -> Merge | Rejected:
        request = self._request(group, places)
        layers = request.region.layers

        def rejected(cause: Cause, reason: str) -> Rejected:
            return Rejected(request, cause, reason)

        geometry = group.geometry(places)
        if isinstance(geometry, str):
            return rejected("geometry", geometry)
        if infer_in_channels(request.region.expression) is None:
            return rejected("geometry", "nothing here tells the number of channels")
        if shared := next((k for op in layers for k in op.keys if self.users[k] > 1), None):
            count = self.users[shared]
            return rejected(
                "tensors", f"{shared} is used by {count} layers of this entry. Use it once"
            )
        try:
            request = replace(request, into=self.name(request) or request.into)
        except GeometryError as error:
            return rejected("veto", str(error))
        before = self.apart(group, places).weights
        before += self.dropped_weights if len(layers) == len(self.weights) else 0
        if self.growth != "allow" and geometry.weights > before:
            return rejected("growth", grows(before, geometry.weights))
        merge = candidate_of(self.place, request, geometry, self.infos, self.border)
        if isinstance(merge, Problem):
            return rejected(merge.cause, merge.reason)
        against = conflicts([merge], self.infos)
        if against:
            return rejected("tensors", against[0].removeprefix(f"{self.place}: "))
        merge = replace(merge, size=group.sizes[places[0]])
        if self.growth != "allow" and merge.weights_after > merge.weights_before:
            return rejected("growth", grows(merge.weights_before, merge.weights_after))
        if self.latency is None or self.minimize != "latency":
            return merge
        timing = self.latency(merge)
        if not timing.faster or timing.after >= timing.before:
            return rejected(
                "time",
                f"takes {timing.after / 1e6:.3g} ms where the layers apart take "
                f"{timing.before / 1e6:.3g} ms, which is no faster beyond the noise",
            )
        return replace(merge, timing=timing)

    def _request(self, group: Group, places: Places) -> Request[ResolvedLayer]:
        """The items and their terms. An `input` is told where the whole has one, and where no layer
        in them tells how many axes there are.
        """
        given, region = self.request, Region.of(group.part(places))
        is_known = given.input_size is None and infer_rank(region.layers) == len(self.size)
        size = None if is_known else group.sizes[places[0]]
        if len(region.layers) == len(self.weights):
            return replace(given, region=region, input_size=size)
        return Request(region, None, given.border, size)
