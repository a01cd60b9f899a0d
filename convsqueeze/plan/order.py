"""Layers given in the wrong order, where their channels tell: an order in which they would chain.

Knows how many channels enter and leave each link of a chain, nothing else of layers.
"""

from collections.abc import Iterator, Sequence
from itertools import permutations

Ends = tuple[int, int] | None
"""Channels that enter and leave; None for what takes any number and passes it on."""

MOST_PERMUTED = 7
"""Links of which every order is tried; of more, each moved to another place."""


def misfit(links: Sequence[Ends]) -> int | None:
    """The first link that cannot take the channels that leave before it, None if there is none."""
    leaving: int | None = None
    for index, ends in enumerate(links):
        if ends is None:
            continue
        if leaving is not None and ends[0] != leaving:
            return index
        leaving = ends[1]
    return None


def fitting_order(links: Sequence[Ends]) -> tuple[int, ...] | None:
    """The order nearest to the given one in which the links chain, None where there is none."""
    fitting = (o for o in _orders(len(links)) if misfit([links[i] for i in o]) is None)
    return min(fitting, key=_moved, default=None)


def _orders(count: int) -> Iterator[tuple[int, ...]]:
    if count <= MOST_PERMUTED:
        yield from permutations(range(count))
        return
    yield tuple(reversed(range(count)))
    for taken in range(count):
        rest = [index for index in range(count) if index != taken]
        for place in range(count):
            yield (*rest[:place], taken, *rest[place:])


def _moved(order: Sequence[int]) -> int:
    return sum(place != index for place, index in enumerate(order))
