"""What is asked of a partition, and what is known of each part: as one layer, or why it is none.

Knows names, shapes and geometry. What a part computes, is refused for and costs comes from
`candidates`, which plans it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import pairwise
from math import prod

from convsqueeze.algebra.sizes import merged as merged_geometry
from convsqueeze.algebra.sizes import smallest_size
from convsqueeze.algebra.tree import Chain, Sum, Tree, counted, leaves, mapped
from convsqueeze.errors import GeometryError, PlanError
from convsqueeze.manifest import (
    Border,
    ChainEntry,
    ChainItem,
    Entry,
    Item,
    SumEntry,
    SumItem,
)
from convsqueeze.plan.candidates import (
    NOMINAL_SIZE,
    candidate_of,
    dropped_keys,
    entry_problems,
)
from convsqueeze.plan.checks import conflicts
from convsqueeze.plan.model import Growth, geometry_tree, macs_of
from convsqueeze.plan.parameters import Infos, NamedLayer
from convsqueeze.plan.parts import (
    Allowed,
    Cause,
    Cost,
    Latency,
    Merged,
    Minimize,
    Name,
    Part,
    Place,
    Rejected,
)
from convsqueeze.plan.resolve import ResolvedLayer, resolve, told_channels, told_rank

Size = tuple[int, ...]


@dataclass(frozen=True)
class Asked:
    """What `best_partition` was asked, and each part's answer once it is known."""

    entry: ChainEntry | SumEntry
    tree: Tree[ResolvedLayer]
    infos: Infos
    place: str
    border: Border
    growth: Growth
    minimize: Minimize
    size: Size
    allowed: Allowed
    name: Name
    latency: Latency | None
    owners: dict[str, list[ResolvedLayer]]
    known: dict[tuple[Place, Place], Merged | Rejected] = field(default_factory=dict)
    inside: "dict[Place, Choice]" = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Group:
    """Items of one chain or sum, their layers, and the size of the image that they take."""

    within: Place
    items: tuple[Item, ...]
    tree: Chain[ResolvedLayer] | Sum[ResolvedLayer]
    sizes: tuple[Size, ...]

    @property
    def trees(self) -> tuple[Tree[ResolvedLayer], ...]:
        return self.tree.links if isinstance(self.tree, Chain) else self.tree.branches

    def part_tree(self, indices: Place) -> Chain[ResolvedLayer] | Sum[ResolvedLayer]:
        return type(self.tree)(tuple(self.trees[index] for index in indices))


@dataclass(frozen=True)
class Piece:
    """Items that were chosen to be one layer, or a single item that is not part of one.

    `inside` is the choice among the branches of a sum, or the links of a branch.
    """

    indices: Place
    merged: Merged | None = None
    inside: "Choice | None" = None


@dataclass(frozen=True)
class Choice:
    """A partition of (some of) a group's items."""

    cost: Cost
    pieces: tuple[Piece, ...] = ()
    group: Group | None = None


def items_of(item: Entry | Item) -> tuple[Item, ...]:
    if isinstance(item, ChainItem):
        return item.chain
    return item.sum if isinstance(item, SumItem) else ()


def sound_tree(
    entry: ChainEntry | SumEntry, infos: Infos, size: Sequence[int] | None, place: str
) -> Tree[ResolvedLayer]:
    """The entry's layers; raises PlanError unless each is sound and they could run.

    Where no layer tells how many axes there are, `size` does.
    """
    sized = entry
    if size is not None and entry.input is None:
        sized = entry.model_copy(update={"input": tuple(size)})
    tree, _, problems = resolve(sized, infos)
    of_entry = entry_problems(entry, infos)
    if tree is None or of_entry or not _runs(tree):
        told = [f"{place}: {problem.reason}" for problem in (*problems, *of_entry)]
        raise PlanError(told or [f"{place}: these layers do not follow each other"])
    return tree


def _runs(tree: Tree[ResolvedLayer]) -> bool:
    """Whether channels and axes fit, whatever becomes of strides."""
    ranks = {leaf.rank for leaf in leaves(tree)}
    return len(ranks) == 1 and _channels(tree) is not None


def _channels(tree: Tree[ResolvedLayer]) -> tuple[int, int] | None:
    """The channels that enter and leave; None where some do not fit."""
    if not isinstance(tree, Chain | Sum):
        return tree.geometry.in_channels, tree.geometry.out_channels
    ends = [_channels(part) for part in (tree.links if isinstance(tree, Chain) else tree.branches)]
    known = [one for one in ends if one is not None]
    if len(known) < len(ends):
        return None
    if isinstance(tree, Sum):
        return known[0] if len(set(known)) == 1 else None
    fits = all(inner[1] == outer[0] for inner, outer in pairwise(known))
    return (known[0][0], known[-1][1]) if fits else None


def input_size(
    entry: ChainEntry | SumEntry,
    tree: Tree[ResolvedLayer],
    size: Sequence[int] | None,
    place: str,
) -> Size:
    shapes = geometry_tree(tree)
    rank = next(leaves(tree)).rank
    given = size if entry.input is None else entry.input
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


def owners_of(tree: Tree[ResolvedLayer]) -> dict[str, list[ResolvedLayer]]:
    """The layers that use each tensor."""
    owners: dict[str, list[ResolvedLayer]] = {}
    for leaf in leaves(tree):
        for key in dict.fromkeys(leaf.keys):
            owners.setdefault(key, []).append(leaf)
    return owners


def group_of(
    within: Place, items: tuple[Item, ...], tree: Tree[ResolvedLayer], size: Size
) -> Group:
    if isinstance(tree, Sum):
        return Group(within, items, tree, (size,) * len(items))
    links = tree.links if isinstance(tree, Chain) else (tree,)
    sizes = reduce(lambda sizes, link: [*sizes, _size_behind(link, sizes[-1])], links, [size])
    return Group(within, items, Chain(links), tuple(sizes[:-1]))


def _size_behind(tree: Tree[ResolvedLayer], size: Size) -> Size:
    return counted(tree, size, lambda leaf, now: (0, leaf.geometry.output_size(now)))[1]


def cost_apart(asked: Asked, tree: Tree[ResolvedLayer], size: Size) -> Cost:
    """Of layers as they are; a tensor that several share counts for the first of them."""
    weights = layers = links = 0
    for leaf in leaves(tree):
        own = [k for k in dict.fromkeys(leaf.keys) if asked.owners[k][0] is leaf]
        weights += sum(prod(asked.infos[k].shape) for k in own if k not in leaf.counters)
        layers += not leaf.layer.is_identity
        links += 1
    return Cost(weights, macs_of(tree, size), layers, links)


def cost_merged(one: Merged) -> Cost:
    change = 0 if one.timing is None else one.timing.after - one.timing.before
    return Cost(one.merge.weights_after, one.merge.macs_after, 1, 1, change)


def plain_cost(group: Group, indices: Place) -> Cost | None:
    """Of a part as one plain layer, whatever its border; None where it is no convolution."""
    try:
        plain = merged_geometry(geometry_tree(group.part_tree(indices)))
    except GeometryError:
        return None
    return Cost(plain.weights, plain.macs(group.sizes[indices[0]]), 1, 1)


def has_effect(group: Group, indices: Place) -> bool:
    """Whether there is anything to merge beside identities."""
    if isinstance(group.tree, Sum):
        return True
    real = [i for i in indices if not getattr(group.items[i], "is_identity", False)]
    return len(real) > 1 or any(isinstance(group.items[i], SumItem) for i in real)


def dropped_weights(asked: Asked) -> int:
    own = asked.owners.keys()
    keys = {k for given in asked.entry.drop for k in dropped_keys(given, asked.infos)} - own
    return sum(prod(asked.infos[key].shape) for key in keys)


def answer(asked: Asked, group: Group, indices: Place) -> Merged | Rejected:
    """The part as one layer, or why it is none: asked once, then known."""
    key = (group.within, indices)
    if key not in asked.known:
        asked.known[key] = _planned(asked, group, indices)
    return asked.known[key]


def _planned(asked: Asked, group: Group, indices: Place) -> Merged | Rejected:
    part, tree = _part(asked, group, indices), group.part_tree(indices)

    def rejected(cause: Cause, reason: str) -> Rejected:
        return Rejected(part, cause, reason)

    try:
        geometry = merged_geometry(geometry_tree(tree))
    except GeometryError as error:
        return rejected("geometry", str(error))
    if told_channels(_named(tree)) is None:
        return rejected("geometry", "nothing here tells the number of channels")
    if shared := _shared(asked, tree):
        return rejected("tensors", shared)
    if veto := asked.allowed(part):
        return rejected("veto", veto)
    before = cost_apart(asked, tree, group.sizes[indices[0]]).weights
    before += dropped_weights(asked) if part.whole else 0
    if asked.growth != "allow" and geometry.weights > before:
        return rejected("growth", _grows(before, geometry.weights))
    found = candidate_of(asked.place, part.entry, tree, geometry, asked.infos, asked.border)
    if found.merge is None:
        cause: Cause = "border" if found.leaking else "geometry"
        return rejected(cause, found.problems[0].reason)
    against = conflicts([found.merge], asked.infos)
    if against:
        return rejected("tensors", against[0].removeprefix(f"{asked.place}: "))
    merge = replace(found.merge, size=group.sizes[indices[0]])
    if asked.growth != "allow" and merge.weights_after > merge.weights_before:
        return rejected("growth", _grows(merge.weights_before, merge.weights_after))
    if asked.latency is None or asked.minimize != "latency":
        return Merged(part, merge)
    timing = asked.latency(merge)
    if not timing.faster or timing.after >= timing.before:
        return rejected("time", _no_faster(timing.before, timing.after))
    return Merged(part, merge, timing)


def _grows(before: int, after: int) -> str:
    return f"would grow from {before:,} to {after:,} weights ({after / before:.1f} times)"


def _no_faster(before: int, after: int) -> str:
    return (
        f"takes {after / 1e6:.3g} ms where the layers apart take {before / 1e6:.3g} ms, which is "
        "no faster beyond the noise"
    )


def _named(tree: Tree[ResolvedLayer]) -> Tree[NamedLayer]:
    return mapped(
        tree, lambda leaf: NamedLayer(leaf.layer, leaf.path, leaf.parameters, leaf.counters)
    )


def _shared(asked: Asked, tree: Tree[ResolvedLayer]) -> str | None:
    for leaf in leaves(tree):
        for key in leaf.keys:
            count = len(asked.owners[key])
            if count > 1:
                return f"{key} is used by {count} layers of this entry. Use it once"
    return None


def _part(asked: Asked, group: Group, indices: Place) -> Part:
    whole = not group.within and len(indices) == len(group.items)
    entry = _entry(asked, group, indices)
    if whole:
        given = {name: getattr(asked.entry, name) for name in ("into", "drop")}
        entry = entry.model_copy(update={k: v for k, v in given.items() if v})
    part = Part(entry, group.within, indices, whole)
    into = asked.name(part)
    return part if into is None else replace(part, entry=entry.model_copy(update={"into": into}))


def _entry(asked: Asked, group: Group, indices: Place) -> ChainEntry | SumEntry:
    """The items as an entry. It is told an `input` where the whole has one, and where no layer in
    it tells how many axes there are.
    """
    items = tuple(group.items[index] for index in indices)
    is_chain = isinstance(group.tree, Chain)
    kind, key = (ChainEntry, "chain") if is_chain else (SumEntry, "sum")
    entry: ChainEntry | SumEntry = kind.model_validate({key: items})
    if asked.entry.border is not None:
        entry = entry.model_copy(update={"border": asked.entry.border})
    rank = told_rank(entry, _named(group.part_tree(indices)))
    if asked.entry.input is not None or rank != len(asked.size):
        entry = entry.model_copy(update={"input": group.sizes[indices[0]]})
    return entry
