"""One operator of a chain of them, composed in the order that takes the fewest multiplications.

Composition is associative, so links may be joined in any order that keeps their places: a norm goes
into the smaller of its neighbours, a narrow layer is met before a wide one. Knows operators.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import combinations
from math import prod

from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import Geometry, compose
from convsqueeze.errors import GeometryError

LONGEST = 24
"""Links of which every order is weighed; more are joined one after the other."""

Order = int | tuple["Order", "Order"]
"""A link by its number, or what is joined: (inner, outer)."""


def composed_chain(links: Sequence[Conv]) -> Conv:
    """The links, in execution order, as one operator.

    Raises GeometryError where they are not one.
    """
    return _composed(links, cheapest_order(tuple(link.geometry for link in links)))


def _composed(links: Sequence[Conv], order: Order) -> Conv:
    if isinstance(order, int):
        return links[order]
    inner, outer = (_composed(links, part) for part in order)
    return outer @ inner


@dataclass(frozen=True)
class _Run:
    """Neighbouring links composed in some order, which takes so many multiplications."""

    order: Order
    geometry: Geometry
    cost: int


@lru_cache(maxsize=256)
def cheapest_order(links: tuple[Geometry, ...]) -> Order:
    """The order with the fewest multiplications among those that make the same geometry as
    composing one after the other.

    By dynamic programming over runs of links, as for a product of matrices (Cormen et al.,
    Introduction to Algorithms, 15.2).
    """
    one_by_one: Order = 0
    for link in range(1, len(links)):
        one_by_one = one_by_one, link
    if not 2 < len(links) <= LONGEST:
        return one_by_one
    best: dict[tuple[int, int], _Run] = {(i, i + 1): _Run(i, g, 0) for i, g in enumerate(links)}
    for start, end in sorted(
        combinations(range(len(links) + 1), 2), key=lambda run: run[1] - run[0]
    ):
        halves = ((best.get((start, at)), best.get((at, end))) for at in range(end - 1, start, -1))
        runs = [_composition(*both) for both in halves]
        if found := [run for run in runs if run is not None]:
            best[start, end] = min(found, key=lambda run: run.cost)
    whole = best.get((0, len(links)))
    same = whole is not None and whole.geometry == reduce(_after, links)
    return whole.order if whole is not None and same else one_by_one


def _after(inner: Geometry, outer: Geometry) -> Geometry:
    return compose(outer, inner)


def _composition(inner: _Run | None, outer: _Run | None) -> _Run | None:
    """None where they are not one operator."""
    if inner is None or outer is None:
        return None
    try:
        geometry = compose(outer.geometry, inner.geometry)
    except GeometryError:
        return None
    cost = inner.cost + outer.cost + _multiplications(outer.geometry, inner.geometry)
    return _Run((inner.order, outer.order), geometry, cost)


def _multiplications(outer: Geometry, inner: Geometry) -> int:
    """Of one composition: of every pair of taps, for every channel in between with those that one
    group of each layer joins it to.
    """
    ins, outs = inner.in_channels // inner.groups, outer.out_channels // outer.groups
    return ins * inner.out_channels * outs * prod(inner.kernel_size) * prod(outer.kernel_size)
