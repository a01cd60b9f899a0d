"""Which runs of a chain, and which branches of a sum, are best merged to one layer each.

What a part costs as one layer does not depend on what becomes of the rest, so the cheapest
partition of a chain's first `j` links ends in some run `i .. j` behind the cheapest partition of
the first `i` (dynamic programming over prefixes, Bellman 1957); that of a set of branches holds the
first of them in some group, beside the cheapest partition of the others (over subsets). A sum among
the links is either part of a run, or stays a sum whose branches are partitioned for themselves.

Knows names, shapes and geometry; what a part computes, is refused for and costs is asked of
`candidates`, which plans it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise

from convsqueeze.algebra.tree import Chain, Sum
from convsqueeze.manifest import Border, Entry, flat
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
    Place,
    Rejected,
    layer_labels,
)
from convsqueeze.plan.pricing import (
    Asked,
    Choice,
    Group,
    Piece,
    answer,
    cost_apart,
    cost_merged,
    dropped_weights,
    group_of,
    has_effect,
    input_size,
    items_of,
    owners_of,
    plain_cost,
    sound_tree,
)

MOST_BRANCHES = 8
"""Of a sum whose every subset is looked at; of more, only neighbours are put together."""


def nothing_against(part: Part) -> None:
    """Allows every part."""


def as_given(part: Part) -> None:
    """Leaves `into` as it is: the entry's for the whole, else the first named layer's."""


def best_partition(
    entry: Entry,
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
    """The partition of an entry's layers that costs least under `minimize`.

    `entry` has no placeholders; its layers need not make one convolution. `border` overrides its
    own policy (else `exact`); a part that grows is none unless `growth` is `allow`. Multiplications
    are counted, and `latency` is asked, for an image of `size` at the entry's input (by default its
    `input`, else the nominal size). `allowed` may veto a part with a reason, before it is planned;
    `name` may give another `into`. `latency` gets the planned merge of each part.

    Raises PlanError where the layers themselves are not sound: a missing tensor, channels that do
    not chain, an input too small.
    """
    if minimize == "latency" and latency is None:
        raise ValueError("latency is minimised by a function that measures it, none was given")
    policy = border or entry.border or "exact"
    whole = flat(entry)
    tree = sound_tree(whole, infos, size, place)
    given = input_size(whole, tree, size, place)
    asked = Asked(
        *(whole, tree, infos, place, policy, growth, minimize, given, allowed, name, latency),
        owners=owners_of(tree),
    )
    group = group_of((), items_of(whole), tree, given)
    best = _best(asked, group)
    everything = tuple(range(len(group.items)))
    whole_answer = answer(asked, group, everything)
    best = _with_drops(asked, group, best, whole_answer)
    merged = tuple(_merged(best))
    return Partition(
        entry=whole,
        minimize=minimize,
        size=given,
        merged=merged,
        apart=_apart(best),
        before=cost_apart(asked, tree, given) + Cost(dropped_weights(asked)),
        after=best.cost,
        given=whole_answer,
        kept_apart=tuple(_boundaries(asked, best)),
        rejected=tuple(one for one in asked.known.values() if isinstance(one, Rejected)),
        notes=tuple(dict.fromkeys(asked.notes)),
    )


# The choice.


def _best(asked: Asked, group: Group) -> Choice:
    if isinstance(group.tree, Sum) and len(group.items) <= MOST_BRANCHES:
        return _best_subsets(asked, group)
    if isinstance(group.tree, Sum):
        asked.notes.append(
            f"a sum of {len(group.items)} branches: only neighbours are put together, of up to "
            f"{MOST_BRANCHES} every subset would be looked at"
        )
    return _best_runs(asked, group)


def _best_runs(asked: Asked, group: Group) -> Choice:
    """Over prefixes: the last piece is a single item or a run."""
    best = [Choice(Cost(), (), group)]
    for end in range(1, len(group.items) + 1):
        options = ((best[start], tuple(range(start, end))) for start in range(end - 1, -1, -1))
        best.append(_cheapest(asked, group, options))
    return best[-1]


def _best_subsets(asked: Asked, group: Group) -> Choice:
    """Over subsets: the first branch of a subset is in a group with some of the others."""
    best: dict[Place, Choice] = {(): Choice(Cost(), (), group)}
    everything = range(len(group.items))
    for count in range(1, len(group.items) + 1):
        for subset in combinations(everything, count):
            options = (
                (best[tuple(i for i in subset if i not in beside and i != subset[0])], indices)
                for others in range(count)
                for beside in combinations(subset[1:], others)
                for indices in [(subset[0], *beside)]
            )
            best[subset] = _cheapest(asked, group, options)
    return best[tuple(everything)]


def _cheapest(asked: Asked, group: Group, options: Iterator[tuple[Choice, Place]]) -> Choice:
    """The cheapest way to add one piece; the first option is that of a single item."""
    best: Choice | None = None
    for rest, indices in options:
        if best is not None and not _may_win(asked, group, rest.cost, indices, best.cost):
            continue
        piece, cost = _piece(asked, group, indices)
        if piece is None:
            continue
        choice = Choice(rest.cost + cost, (*rest.pieces, piece), group)
        if best is None or choice.cost.order(asked.minimize) < best.cost.order(asked.minimize):
            best = choice
    if best is None:
        raise AssertionError("a single item is always a piece")
    return best


def _may_win(asked: Asked, group: Group, rest: Cost, indices: Place, best: Cost) -> bool:
    """Whether a part could be better, from its plain form, which no other form is cheaper than."""
    if asked.minimize == "latency":
        return True
    least = plain_cost(group, indices)
    return least is not None and (rest + least).order(asked.minimize) < best.order(asked.minimize)


def _piece(asked: Asked, group: Group, indices: Place) -> tuple[Piece | None, Cost]:
    """A single item as it is best, or several as one layer; None where they cannot be one."""
    if len(indices) == 1:
        inside = _inside(asked, group, indices[0])
        if inside is not None:
            return Piece(indices, inside=inside), inside.cost
        apart = cost_apart(asked, group.trees[indices[0]], group.sizes[indices[0]])
        return Piece(indices), apart
    if not has_effect(group, indices):
        return None, Cost()
    found = answer(asked, group, indices)
    if isinstance(found, Rejected):
        return None, Cost()
    return Piece(indices, merged=found), cost_merged(found)


def _inside(asked: Asked, group: Group, index: int) -> Choice | None:
    """The best choice within an item that is a sum or a chain itself."""
    tree = group.trees[index]
    if not isinstance(tree, Chain | Sum):
        return None
    place = (*group.within, index)
    if place in asked.inside:
        return asked.inside[place]
    asked.inside[place] = best = _best(
        asked, group_of(place, items_of(group.items[index]), tree, group.sizes[index])
    )
    return best


# The outcome.


def _merged(choice: Choice) -> Iterator[Merged]:
    for piece in sorted(choice.pieces, key=lambda piece: piece.indices):
        if piece.merged is not None:
            yield piece.merged
        elif piece.inside is not None:
            yield from _merged(piece.inside)


def _apart(choice: Choice) -> tuple[str, ...]:
    labels: list[str] = []
    for piece in sorted(choice.pieces, key=lambda piece: piece.indices):
        if piece.inside is not None:
            labels += _apart(piece.inside)
        elif piece.merged is None and choice.group is not None:
            labels += layer_labels(choice.group.items[piece.indices[0]])
    return tuple(labels)


def _with_drops(asked: Asked, group: Group, best: Choice, given: Merged | Rejected) -> Choice:
    """The choice with what the entry drops, which goes with its first merged part.

    Where no part is merged nothing is dropped, and that may cost more than the whole in one.
    """
    extra = dropped_weights(asked)
    parts = list(_merged(best))
    if not extra or any(one.part.whole for one in parts):
        return best
    if parts:
        return _dropping(asked, best, parts[0])
    left = replace(best, cost=best.cost + Cost(extra))
    if isinstance(given, Rejected):
        return left
    everything = tuple(range(len(group.items)))
    whole = Choice(cost_merged(given), (Piece(everything, merged=given),), group)
    return min((left, whole), key=lambda choice: choice.cost.order(asked.minimize))


def _dropping(asked: Asked, choice: Choice, first: Merged) -> Choice:
    """The same choice, its first merged part with the entry's `drop`."""

    def changed(piece: Piece) -> Piece:
        if piece.merged is first:
            part = first.part
            entry = part.entry.model_copy(update={"drop": asked.entry.drop})
            found = first.merge
            keys = [k for given in entry.drop for k in dropped_keys(given, asked.infos)]
            merge = replace(
                found,
                consumed=tuple(dict.fromkeys([*found.consumed, *keys])),
                weights_before=found.weights_before + dropped_weights(asked),
            )
            return replace(
                piece, merged=replace(first, part=replace(part, entry=entry), merge=merge)
            )
        if piece.inside is None:
            return piece
        return replace(piece, inside=_dropping(asked, piece.inside, first))

    return replace(choice, pieces=tuple(map(changed, choice.pieces)))


def _boundaries(asked: Asked, choice: Choice) -> Iterator[Rejected]:
    """Why neighbours in a chain, or groups of branches in a sum, are not one layer."""
    group = choice.group
    if group is None:
        return
    pieces = sorted(choice.pieces, key=lambda piece: piece.indices)
    pairs = list(pairwise(pieces))
    if isinstance(group.tree, Sum) and len(group.items) <= MOST_BRANCHES:
        pairs = list(combinations(pieces, 2))
    for one, other in pairs:
        indices = tuple(sorted((*one.indices, *other.indices)))
        if has_effect(group, indices):
            yield _why_apart(asked, group, indices, (one, other))
    for piece in pieces:
        if piece.inside is not None:
            yield from _boundaries(asked, piece.inside)


def _why_apart(asked: Asked, group: Group, indices: Place, pieces: tuple[Piece, Piece]) -> Rejected:
    found = answer(asked, group, indices)
    if isinstance(found, Rejected):
        return found
    now = [_piece(asked, group, piece.indices)[1] for piece in pieces]
    reason = _costs_more(now[0] + now[1], cost_merged(found), asked.minimize)
    return Rejected(found.part, "cost", reason)


def _costs_more(now: Cost, merged: Cost, minimize: Minimize) -> str:
    if minimize == "latency":
        saved = [-cost.nanoseconds / 1e6 for cost in (merged, now)]
        return f"would save {saved[0]:.3g} ms as one layer, {saved[1]:.3g} ms are saved as they are"
    what = {"weights": "weights", "macs": "multiplications"}[minimize]
    counts = [cost.under(minimize) for cost in (merged, now)]
    return f"would have {counts[0]:,} {what} as one layer, {counts[1]:,} as they are"
