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
from convsqueeze.graph import LayerOp
from convsqueeze.manifest import Border, Request
from convsqueeze.plan.candidates import dropped_keys
from convsqueeze.plan.model import Growth
from convsqueeze.plan.parameters import Infos
from convsqueeze.plan.parts import (
    Allowed,
    Cost,
    Latency,
    Merged,
    Minimize,
    Name,
    Part,
    Partition,
    Rejected,
)
from convsqueeze.plan.pricing import (
    Group,
    Places,
    Pricing,
    cost_merged,
    has_effect,
    input_size,
    resolved,
)

MOST_BRANCHES = 8
"""Of a sum whose every subset is looked at; of more, only neighbours are put together."""


@dataclass(frozen=True)
class Piece:
    """Items that were chosen to be one layer, or a single item that is not part of one.

    `inside` is the choice among the branches of a sum, or the links of a branch.
    """

    places: Places
    merged: Merged | None = None
    inside: "Choice | None" = None


@dataclass(frozen=True)
class Choice:
    """A partition of (some of) a group's items."""

    cost: Cost
    pieces: tuple[Piece, ...]
    group: Group


def nothing_against(part: Part) -> None:
    """Allows every part."""


def as_given(part: Part) -> None:
    """Leaves `into` as it is: the entry's for the whole, else the first named layer's."""


def best_partition(
    request: Request[LayerOp],
    infos: Infos,
    *,
    place: str = "",
    border: Border | None = None,
    growth: Growth = "refuse",
    minimize: Minimize = "weights",
    size: Sequence[int] | None = None,
    allowed: Allowed = nothing_against,
    name: Name = as_given,
    latency: Latency | None = None,
) -> Partition:
    """The partition of a region's layers that costs least under `minimize`.

    The layers need not make one convolution. `border` overrides the request's own policy (else
    `exact`); a part that grows is none unless `growth` is `allow`. Multiplications are counted, and
    `latency` is asked, for an image of `size` at the source (by default the request's, else the
    nominal size). `allowed` may veto a part with a reason, before it is planned; `name` may give
    another `into`. `latency` gets the planned merge of each part.

    Raises PlanError where the layers themselves are not sound: a missing tensor, channels that do
    not chain, an input too small.
    """
    if minimize == "latency" and latency is None:
        raise ValueError("latency is minimised by a function that measures it, none was given")
    whole = resolved(request, infos, size, place)
    given = input_size(whole, size, place)
    policy = border or request.border or "exact"
    pricing = Pricing(
        *(whole, infos, place, policy, growth, minimize, given, allowed, name, latency)
    )
    search = _Search(pricing)
    group = Group.of(whole.region.expression, given, is_whole=True)
    best = search.best(group)
    answer = pricing.answer(group, tuple(range(len(group.items))))
    best = search.with_drops(group, best, answer)
    return Partition(
        request=whole,
        minimize=minimize,
        size=given,
        merged=tuple(_merged(best)),
        apart=_apart(best),
        before=pricing.apart(group.tree, given) + Cost(pricing.dropped_weights),
        after=best.cost,
        given=answer,
        kept_apart=tuple(search.boundaries(best)),
        rejected=tuple(one for one in pricing.known.values() if isinstance(one, Rejected)),
        notes=tuple(dict.fromkeys(search.notes)),
    )


class _Search:
    """The cheapest choices; knows those within items that are sums or chains themselves."""

    def __init__(self, pricing: Pricing) -> None:
        self._pricing = pricing
        self._inside: dict[tuple[int, int], Choice] = {}
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
            piece, cost = self._piece(group, places)
            if piece is None:
                continue
            choice = Choice(rest.cost + cost, (*rest.pieces, piece), group)
            if best is None or self._order(choice.cost) < self._order(best.cost):
                best = choice
        if best is None:
            raise AssertionError("a single item is always a piece")
        return best

    def _order(self, cost: Cost) -> tuple[int, ...]:
        return cost.order(self._pricing.minimize)

    def _may_win(self, group: Group, rest: Cost, places: Places, best: Cost) -> bool:
        """Whether a part could be better, from its plain form, which no other form is cheaper
        than.
        """
        if self._pricing.minimize == "latency":
            return True
        plain = group.geometry(places)
        if plain is None:
            return False
        least = Cost(plain.weights, plain.macs(group.sizes[places[0]]), 1, 1)
        return self._order(rest + least) < self._order(best)

    def _piece(self, group: Group, places: Places) -> tuple[Piece | None, Cost]:
        """A single item as it is best, or several as one layer; None where they cannot be one."""
        if len(places) == 1:
            inside = self._best_within(group, places[0])
            if inside is not None:
                return Piece(places, inside=inside), inside.cost
            apart = self._pricing.apart(group.items[places[0]], group.sizes[places[0]])
            return Piece(places), apart
        if not has_effect(group, places):
            return None, Cost()
        found = self._pricing.answer(group, places)
        if isinstance(found, Rejected):
            return None, Cost()
        return Piece(places, merged=found), cost_merged(found)

    def _best_within(self, group: Group, place: int) -> Choice | None:
        """The best choice within an item that is a sum or a chain itself."""
        tree = group.items[place]
        if not isinstance(tree, Chain | Sum):
            return None
        key = (id(group), place)
        if key not in self._inside:
            self._inside[key] = self.best(Group.of(tree, group.sizes[place]))
        return self._inside[key]

    def with_drops(self, group: Group, best: Choice, given: Merged | Rejected) -> Choice:
        """The choice with what is dropped, which goes with its first merged part.

        Where no part is merged nothing is dropped, and that may cost more than the whole in one.
        """
        extra = self._pricing.dropped_weights
        parts = list(_merged(best))
        if not extra or any(one.part.whole for one in parts):
            return best
        if parts:
            return self._dropping(best, parts[0])
        left = replace(best, cost=best.cost + Cost(extra))
        if isinstance(given, Rejected):
            return left
        everything = tuple(range(len(group.items)))
        whole = Choice(cost_merged(given), (Piece(everything, merged=given),), group)
        return min((left, whole), key=lambda choice: self._order(choice.cost))

    def _dropping(self, choice: Choice, first: Merged) -> Choice:
        """The same choice, its first merged part with what is dropped."""
        drop, infos = self._pricing.request.drop, self._pricing.infos

        def changed(piece: Piece) -> Piece:
            if piece.merged is first:
                request = replace(first.part.request, drop=drop)
                keys = [k for given in drop for k in dropped_keys(given, infos)]
                merge = replace(
                    first.merge,
                    consumed=tuple(dict.fromkeys([*first.merge.consumed, *keys])),
                    weights_before=first.merge.weights_before + self._pricing.dropped_weights,
                )
                part = replace(first.part, request=request)
                return replace(piece, merged=replace(first, part=part, merge=merge))
            if piece.inside is None:
                return piece
            return replace(piece, inside=self._dropping(piece.inside, first))

        return replace(choice, pieces=tuple(map(changed, choice.pieces)))

    def boundaries(self, choice: Choice) -> Iterator[Rejected]:
        """Why neighbours in a chain, or groups of branches in a sum, are not one layer."""
        group = choice.group
        pieces = sorted(choice.pieces, key=lambda piece: piece.places)
        pairs = list(pairwise(pieces))
        if isinstance(group.tree, Sum) and len(group.items) <= MOST_BRANCHES:
            pairs = list(combinations(pieces, 2))
        for one, other in pairs:
            places = tuple(sorted((*one.places, *other.places)))
            if has_effect(group, places):
                yield self._why_apart(group, places, (one, other))
        for piece in pieces:
            if piece.inside is not None:
                yield from self.boundaries(piece.inside)

    def _why_apart(self, group: Group, places: Places, pieces: tuple[Piece, Piece]) -> Rejected:
        found = self._pricing.answer(group, places)
        if isinstance(found, Rejected):
            return found
        now = [self._piece(group, piece.places)[1] for piece in pieces]
        reason = _costs_more(now[0] + now[1], cost_merged(found), self._pricing.minimize)
        return Rejected(found.part, "cost", reason)


def _merged(choice: Choice) -> Iterator[Merged]:
    for piece in sorted(choice.pieces, key=lambda piece: piece.places):
        if piece.merged is not None:
            yield piece.merged
        elif piece.inside is not None:
            yield from _merged(piece.inside)


def _apart(choice: Choice) -> tuple[str, ...]:
    labels: list[str] = []
    for piece in sorted(choice.pieces, key=lambda piece: piece.places):
        if piece.inside is not None:
            labels += _apart(piece.inside)
        elif piece.merged is None:
            labels += (op.label for op in leaves(choice.group.items[piece.places[0]]))
    return tuple(labels)


def _costs_more(now: Cost, merged: Cost, minimize: Minimize) -> str:
    if minimize == "latency":
        saved = [-cost.nanoseconds / 1e6 for cost in (merged, now)]
        return f"would save {saved[0]:.3g} ms as one layer, {saved[1]:.3g} ms are saved as they are"
    what = {"weights": "weights", "macs": "multiplications"}[minimize]
    counts = [cost.under(minimize) for cost in (merged, now)]
    return f"would have {counts[0]:,} {what} as one layer, {counts[1]:,} as they are"
