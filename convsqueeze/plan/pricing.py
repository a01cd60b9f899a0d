"""What is known of each part of a region: as one layer, or why it is none, and what it costs.

Knows names, shapes and geometry. What a part computes, is refused for and costs comes from
`candidates`, which plans it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from itertools import pairwise
from math import prod

from convsqueeze.algebra.geometry import Geometry, add, compose
from convsqueeze.algebra.sizes import smallest_size
from convsqueeze.algebra.tree import Chain, Sum, Tree, children, counted, leaves
from convsqueeze.errors import GeometryError, PlanError
from convsqueeze.graph import LayerOp, Region, result_of
from convsqueeze.manifest import Border, Request
from convsqueeze.plan.candidates import (
    NOMINAL_SIZE,
    candidate_of,
    drop_problems,
    dropped_keys,
)
from convsqueeze.plan.checks import conflicts
from convsqueeze.plan.model import Growth, geometry_tree, macs_of
from convsqueeze.plan.parameters import Infos
from convsqueeze.plan.parts import (
    Allowed,
    Cause,
    Cost,
    Latency,
    Merged,
    Minimize,
    Name,
    Part,
    Rejected,
)
from convsqueeze.plan.resolve import ResolvedLayer, infer_in_channels, infer_rank, resolve

Size = tuple[int, ...]
Places = tuple[int, ...]
"""Which items of a group: a run of links, or some branches."""
Layers = Tree[ResolvedLayer]


@dataclass(frozen=True, eq=False)
class Group:
    """The links of a chain, or the branches of a sum, and the size of the image that each takes."""

    tree: Chain[ResolvedLayer] | Sum[ResolvedLayer]
    sizes: tuple[Size, ...]
    is_whole: bool = False
    _known: dict[Places, Geometry | None] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, tree: Layers, size: Size, *, is_whole: bool = False) -> "Group":
        if isinstance(tree, Sum):
            return cls(tree, (size,) * len(tree.branches), is_whole)
        chain = tree if isinstance(tree, Chain) else Chain((tree,))
        sizes = [size]
        for link in chain.links:
            sizes.append(_size_behind(link, sizes[-1]))
        return cls(chain, tuple(sizes[:-1]), is_whole)

    @property
    def items(self) -> tuple[Layers, ...]:
        return children(self.tree)

    @cached_property
    def results(self) -> tuple[str, ...]:
        """The value that each item gives."""
        return tuple(map(result_of, self.items))

    def part(self, places: Places) -> Layers:
        if len(places) == len(self.items):
            return self.tree
        some = tuple(self.items[place] for place in places)
        return Chain(some) if isinstance(self.tree, Chain) else Sum(some)

    def geometry(self, places: Places) -> Geometry | None:
        """Of a part as one layer, whatever its border; None where it is no convolution."""
        if places not in self._known:
            self._known[places] = self._combined(places)
        return self._known[places]

    def _combined(self, places: Places) -> Geometry | None:
        *before, last = places
        try:
            own = combined(self.items[last])
            if not before:
                return own
            rest = self.geometry(tuple(before))
            if rest is None:
                return None
            return compose(own, rest) if isinstance(self.tree, Chain) else add(rest, own)
        except GeometryError:
            return None


def combined(tree: Layers) -> Geometry:
    """The geometry of layers as one. Raises GeometryError where they make none."""
    if isinstance(tree, Chain):
        return reduce(lambda inner, outer: compose(outer, inner), map(combined, tree.links))
    return add(*map(combined, tree.branches)) if isinstance(tree, Sum) else tree.geometry


def _size_behind(tree: Layers, size: Size) -> Size:
    return counted(tree, size, lambda op, now: (0, op.geometry.output_size(now)))[1]


@dataclass(frozen=True, eq=False)
class Pricing:
    """What `best_partition` was asked, and each part's answer once it is known."""

    request: Request[ResolvedLayer]
    infos: Infos
    place: str
    border: Border
    growth: Growth
    minimize: Minimize
    size: Size
    allowed: Allowed
    name: Name
    latency: Latency | None
    known: dict[tuple[type, tuple[str, ...]], Merged | Rejected] = field(default_factory=dict)

    @cached_property
    def owners(self) -> dict[str, list[ResolvedLayer]]:
        """The layers that use each tensor."""
        owners: dict[str, list[ResolvedLayer]] = {}
        for op in self.request.region.layers:
            for key in dict.fromkeys(op.keys):
                owners.setdefault(key, []).append(op)
        return owners

    def apart(self, tree: Layers, size: Size) -> Cost:
        """The cost of layers as they are; a tensor that several share counts for the first."""
        weights = layers = links = 0
        for op in leaves(tree):
            own = [key for key in dict.fromkeys(op.keys) if self.owners[key][0] is op]
            weights += sum(prod(self.infos[key].shape) for key in own if key not in op.counters)
            layers += not op.layer.is_identity
            links += 1
        return Cost(weights, macs_of(tree, size), layers, links)

    @cached_property
    def dropped_weights(self) -> int:
        keys = {k for given in self.request.drop for k in dropped_keys(given, self.infos)}
        return sum(prod(self.infos[key].shape) for key in keys - self.owners.keys())

    def answer(self, group: Group, places: Places) -> Merged | Rejected:
        """The part as one layer, or why it is none: asked once, then known."""
        key = type(group.tree), tuple(group.results[place] for place in places)
        if key not in self.known:
            self.known[key] = self._planned(group, places)
        return self.known[key]

    def _planned(self, group: Group, places: Places) -> Merged | Rejected:
        part, size = self._part(group, places), group.sizes[places[0]]
        tree = part.request.region.expression

        def rejected(cause: Cause, reason: str) -> Rejected:
            return Rejected(part, cause, reason)

        try:
            geometry = combined(tree)
        except GeometryError as error:
            return rejected("geometry", str(error))
        if infer_in_channels(tree) is None:
            return rejected("geometry", "nothing here tells the number of channels")
        if shared := self._shared(part):
            return rejected("tensors", shared)
        if veto := self.allowed(part):
            return rejected("veto", veto)
        before = self.apart(tree, size).weights + (self.dropped_weights if part.whole else 0)
        if self.growth != "allow" and geometry.weights > before:
            return rejected("growth", _grows(before, geometry.weights))
        found = candidate_of(self.place, part.request, geometry, self.infos, self.border)
        if found.merge is None:
            cause: Cause = "border" if found.leaking else "geometry"
            return rejected(cause, found.problems[0].reason)
        against = conflicts([found.merge], self.infos)
        if against:
            return rejected("tensors", against[0].removeprefix(f"{self.place}: "))
        merge = replace(found.merge, size=size)
        if self.growth != "allow" and merge.weights_after > merge.weights_before:
            return rejected("growth", _grows(merge.weights_before, merge.weights_after))
        if self.latency is None or self.minimize != "latency":
            return Merged(part, merge)
        timing = self.latency(merge)
        if not timing.faster or timing.after >= timing.before:
            return rejected("time", _no_faster(timing.before, timing.after))
        return Merged(part, merge, timing)

    def _shared(self, part: Part) -> str | None:
        for op in part.layers:
            for key in op.keys:
                count = len(self.owners[key])
                if count > 1:
                    return f"{key} is used by {count} layers of this entry. Use it once"
        return None

    def _part(self, group: Group, places: Places) -> Part:
        """The items and their terms. An `input` is told where the whole has one, and where no layer
        in them tells how many axes there are.
        """
        given, tree = self.request, group.part(places)
        whole = group.is_whole and len(places) == len(group.items)
        size = group.sizes[places[0]]
        fixed = given.input_size is not None or infer_rank(tree) != len(self.size)
        request = Request(
            Region.of(tree),
            given.into if whole else None,
            given.border,
            size if fixed else None,
            given.drop if whole else (),
        )
        part = Part(request, whole)
        into = self.name(part)
        return part if into is None else Part(replace(request, into=into), whole)


def cost_merged(one: Merged) -> Cost:
    change = 0 if one.timing is None else one.timing.after - one.timing.before
    return Cost(one.merge.weights_after, one.merge.macs_after, 1, 1, change)


def has_effect(group: Group, places: Places) -> bool:
    """Whether there is anything to merge beside identities."""
    if isinstance(group.tree, Sum):
        return True
    items = [group.items[place] for place in places]
    real = [one for one in items if isinstance(one, Chain | Sum) or not one.layer.is_identity]
    return len(real) > 1 or any(isinstance(one, Sum) for one in real)


def resolved(
    request: Request[LayerOp], infos: Infos, size: Sequence[int] | None, place: str
) -> Request[ResolvedLayer]:
    """The request with its layers' tensors and geometry. Where no layer tells how many axes there
    are, `size` does.

    Raises PlanError unless each layer is sound and they could run one after the other.
    """
    told = tuple(size) if size is not None else None
    region, _, problems = resolve(request.region, infos, request.input_size or told)
    of_entry = drop_problems(request, infos)
    if region is None or of_entry or not _runs(region):
        reasons = [f"{place}: {problem.reason}" for problem in (*problems, *of_entry)]
        raise PlanError(reasons or [f"{place}: these layers do not follow each other"])
    return Request(region, request.into, request.border, request.input_size, request.drop)


def _runs(region: Region[ResolvedLayer]) -> bool:
    """Whether channels and axes fit, whatever becomes of strides."""
    ranks = {len(op.geometry.axes) for op in region.layers}
    return len(ranks) == 1 and _channels(region.expression) is not None


def _channels(tree: Layers) -> tuple[int, int] | None:
    """The channels that enter and leave; None where some do not fit."""
    if not isinstance(tree, Chain | Sum):
        return tree.geometry.in_channels, tree.geometry.out_channels
    parts: tuple[Layers, ...] = children(tree)
    ends = [_channels(part) for part in parts]
    known = [one for one in ends if one is not None]
    if len(known) < len(ends):
        return None
    if isinstance(tree, Sum):
        return known[0] if len(set(known)) == 1 else None
    fits = all(inner[1] == outer[0] for inner, outer in pairwise(known))
    return (known[0][0], known[-1][1]) if fits else None


def input_size(request: Request[ResolvedLayer], size: Sequence[int] | None, place: str) -> Size:
    """The size of the image that enters: the one given, else the nominal one.

    Raises PlanError for one that the layers do not take.
    """
    shapes = geometry_tree(request.region.expression)
    given = size if request.input_size is None else request.input_size
    rank = len(request.region.layers[0].geometry.axes)
    try:
        smallest = [smallest_size(shapes, axis) for axis in range(rank)]
    except GeometryError as error:
        raise PlanError([f"{place}: {error}"]) from error
    if given is None:
        return tuple(max(n, NOMINAL_SIZE) for n in smallest)
    if len(given) != rank or any(n < s for n, s in zip(given, smallest, strict=True)):
        raise PlanError(
            [f"{place}: an input of {list(given)} is none for these layers, which take {smallest}"]
        )
    return tuple(given)


def _grows(before: int, after: int) -> str:
    return f"would grow from {before:,} to {after:,} weights ({after / before:.1f} times)"


def _no_faster(before: int, after: int) -> str:
    return (
        f"takes {after / 1e6:.3g} ms where the layers apart take {before / 1e6:.3g} ms, which is "
        "no faster beyond the noise"
    )
