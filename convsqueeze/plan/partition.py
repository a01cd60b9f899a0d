"""Which runs of a chain, and which branches of a sum, are best merged to one layer each.

What a part costs as one layer does not depend on what becomes of the rest, so the cheapest
partition of a chain's first `j` links ends in some run `i .. j` behind the cheapest partition of
the first `i` (dynamic programming over prefixes, Bellman 1957); that of a set of branches holds the
first of them in some group, beside the cheapest partition of the others (over subsets). A sum among
the links is either part of a run, or stays a sum whose branches are partitioned for themselves.

Knows names, shapes and geometry; what a part computes, is refused for and costs is asked of
`pricing`, which plans it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

from convsqueeze.algebra.tree import Chain, Sum, leaves
from convsqueeze.errors import GeometryError, PlanError
from convsqueeze.graph import LayerOp
from convsqueeze.manifest import Border, Request
from convsqueeze.plan.candidates import size_entering
from convsqueeze.plan.model import Growth, Merge, geometry_tree
from convsqueeze.plan.parameters import Infos, dropped_keys
from convsqueeze.plan.pricing import (
    Cost,
    Group,
    Latency,
    Layers,
    Minimize,
    Name,
    Partition,
    Places,
    Pricing,
    Rejected,
)
from convsqueeze.plan.resolve import resolve

MOST_BRANCHES = 8
"""Of a sum whose every subset is looked at; of more, only neighbours are put together."""


@dataclass(frozen=True)
class Piece:
    """Items that were chosen to be one layer, or a single item: with the choice among the
    branches or links that it has itself, or as it is.
    """

    places: Places
    cost: Cost
    found: "Merge | Choice | Layers"


@dataclass(frozen=True)
class Choice:
    """A partition of (some of) a group's items."""

    cost: Cost
    pieces: tuple[Piece, ...]
    group: Group

    @property
    def in_order(self) -> list[Piece]:
        return sorted(self.pieces, key=lambda piece: piece.places)

    def parts(self) -> "Iterator[Merge | Layers]":
        """What is one layer and what stays as it is, those within other parts too."""
        for piece in self.in_order:
            if isinstance(piece.found, Choice):
                yield from piece.found.parts()
            else:
                yield piece.found


def best_partition(
    request: Request[LayerOp],
    infos: Infos,
    *,
    place: str = "",
    border: Border | None = None,
    growth: Growth = "refuse",
    minimize: Minimize = "weights",
    size: Sequence[int] | None = None,
    name: Name = lambda part: None,
    latency: Latency | None = None,
) -> Partition:
    """The partition of a region's layers that costs least under `minimize`.

    The layers need not make one convolution. `border` overrides the request's own policy (else
    `exact`); a part that grows is none unless `growth` is `allow`. Multiplications are counted, and
    `latency` is asked, for an image of `size` at the source (by default the request's, else the
    nominal size). `name` may give another `into` for a part, or raise GeometryError with the reason
    why it is not to be merged. `latency` gets the planned merge of each part.

    Raises PlanError where the layers themselves are not sound: a missing tensor, channels that do
    not chain, an input too small.
    """
    if minimize == "latency" and latency is None:
        raise ValueError("latency is minimised by a function that measures it, none was given")
    whole, _, problems = resolve(request, infos, None if size is None else tuple(size))
    if whole is None:
        raise PlanError([f"{place}: {problem.reason}" for problem in problems])
    fixed = size if whole.input_size is None else whole.input_size
    try:
        given = size_entering(geometry_tree(whole.region.expression), fixed)
    except GeometryError as error:
        raise PlanError([f"{place}: {error}"]) from error
    policy = border or request.border or "exact"
    pricing = Pricing(whole, infos, place, policy, growth, minimize, given, name, latency)
    search = _Search(pricing)
    group = Group.of(whole.region.expression, given)
    everything = tuple(range(len(group.items)))
    best, answer = search.best(group), pricing.answer(group, everything)
    dropped = pricing.dropped_weights
    if dropped and not any(isinstance(part, Merge) for part in best.parts()):
        # nothing is dropped then, which may cost more than all in one
        best = replace(best, cost=best.cost + Cost(dropped))
        if isinstance(answer, Merge) and search.order(Cost.of(answer)) < search.order(best.cost):
            cost = Cost.of(answer)
            best = Choice(cost, (Piece(everything, cost, answer),), group)
    parts = list(best.parts())
    merges = [part for part in parts if isinstance(part, Merge)]
    apart = [leaf.label for part in parts if not isinstance(part, Merge) for leaf in leaves(part)]
    if dropped and merges and len(merges[0].layers) < len(whole.region.layers):
        merges[0] = _dropping(merges[0], whole.drop, infos, dropped)
    return Partition(
        request=whole,
        minimize=minimize,
        size=given,
        merged=tuple(merges),
        apart=tuple(apart),
        before=pricing.apart(group, everything) + Cost(dropped),
        after=best.cost,
        given=answer,
        kept_apart=tuple(search.boundaries(best)),
        notes=tuple(dict.fromkeys(search.notes)),
    )


def _dropping(first: Merge, drop: tuple[str, ...], infos: Infos, weights: int) -> Merge:
    """The first part that is merged, with what is dropped."""
    keys = [key for name in drop for key in dropped_keys(name, infos)]
    return replace(
        first,
        request=replace(first.request, drop=drop),
        consumed=tuple(dict.fromkeys([*first.consumed, *keys])),
        weights_before=first.weights_before + weights,
    )


class _Search:
    """The cheapest choices; knows those within items that are sums or chains themselves."""

    def __init__(self, pricing: Pricing) -> None:
        self._pricing = pricing
        self._inside: dict[tuple[Group, int], Choice] = {}
        self.notes: list[str] = []

    def best(self, group: Group) -> Choice:
        if isinstance(group.tree, Sum) and len(group.items) <= MOST_BRANCHES:
            return self._best_subsets(group)
        if isinstance(group.tree, Sum):
            self.notes.append(
                f"a sum of {len(group.items)} branches: only neighbours are put together, of up to "
                f"{MOST_BRANCHES} every subset would be looked at"
            )
        return self._best_runs(group)

    def _best_runs(self, group: Group) -> Choice:
        """Over prefixes: the last piece is a single item or a run."""
        best = [Choice(Cost(), (), group)]
        for end in range(1, len(group.items) + 1):
            options = ((best[start], tuple(range(start, end))) for start in range(end - 1, -1, -1))
            best.append(self._cheapest(group, options))
        return best[-1]

    def _best_subsets(self, group: Group) -> Choice:
        """Over subsets: the first branch of a subset is in a group with some of the others."""
        best: dict[Places, Choice] = {(): Choice(Cost(), (), group)}
        everything = range(len(group.items))
        for count in range(1, len(group.items) + 1):
            for subset in combinations(everything, count):
                options = (
                    (best[tuple(i for i in subset if i not in beside and i != subset[0])], places)
                    for others in range(count)
                    for beside in combinations(subset[1:], others)
                    for places in [(subset[0], *beside)]
                )
                best[subset] = self._cheapest(group, options)
        return best[tuple(everything)]

    def _cheapest(self, group: Group, options: Iterator[tuple[Choice, Places]]) -> Choice:
        """The cheapest way to add one piece; the first option is that of a single item."""
        best: Choice | None = None
        for rest, places in options:
            if best is not None and not self._may_win(group, rest.cost, places, best.cost):
                continue
            piece = self._piece(group, places)
            if piece is None:
                continue
            cost = rest.cost + piece.cost
            if best is None or self.order(cost) < self.order(best.cost):
                best = Choice(cost, (*rest.pieces, piece), group)
        if best is None:
            raise AssertionError("a single item is always a piece")
        return best

    def order(self, cost: Cost) -> tuple[int, ...]:
        return cost.order(self._pricing.minimize)

    def _may_win(self, group: Group, rest: Cost, places: Places, best: Cost) -> bool:
        """Whether a part could be better, from its plain form, which no other form is cheaper
        than.
        """
        if self._pricing.minimize == "latency":
            return True
        plain = group.geometry(places)
        if isinstance(plain, str):
            return False
        least = Cost(plain.weights, plain.macs(group.sizes[places[0]]), 1, 1)
        return self.order(rest + least) < self.order(best)

    def _piece(self, group: Group, places: Places) -> Piece | None:
        """A single item as it is best, or several as one layer; None where they cannot be one."""
        if len(places) > 1:
            found = self._pricing.answer(group, places) if group.has_effect(places) else None
            return Piece(places, Cost.of(found), found) if isinstance(found, Merge) else None
        tree, known = group.items[places[0]], (group, places[0])
        if not isinstance(tree, Chain | Sum):
            return Piece(places, self._pricing.apart(group, places), tree)
        if known not in self._inside:
            self._inside[known] = self.best(Group.of(tree, group.sizes[places[0]]))
        return Piece(places, self._inside[known].cost, self._inside[known])

    def boundaries(self, choice: Choice) -> Iterator[Rejected]:
        """Why neighbours in a chain, or groups of branches in a sum, are not one layer."""
        group, pieces = choice.group, choice.in_order
        every_pair = isinstance(group.tree, Sum) and len(group.items) <= MOST_BRANCHES
        for one, other in combinations(pieces, 2) if every_pair else pairwise(pieces):
            places = tuple(sorted((*one.places, *other.places)))
            if group.has_effect(places):
                yield self._why_apart(group, places, one.cost + other.cost)
        for piece in pieces:
            if isinstance(piece.found, Choice):
                yield from self.boundaries(piece.found)

    def _why_apart(self, group: Group, places: Places, now: Cost) -> Rejected:
        found = self._pricing.answer(group, places)
        if isinstance(found, Rejected):
            return found
        reason = _costs_more(now, Cost.of(found), self._pricing.minimize)
        return Rejected(found.request, "cost", reason)


def _costs_more(now: Cost, merged: Cost, minimize: Minimize) -> str:
    if minimize == "latency":
        saved = [-cost.nanoseconds / 1e6 for cost in (merged, now)]
        return f"would save {saved[0]:.3g} ms as one layer, {saved[1]:.3g} ms are saved as they are"
    what = {"weights": "weights", "macs": "multiplications"}[minimize]
    counts = [cost.under(minimize) for cost in (merged, now)]
    return f"would have {counts[0]:,} {what} as one layer, {counts[1]:,} as they are"
