"""One operator of a chain of them, composed in the order that takes the fewest multiplications.

Composition is associative, so links may be joined in any order that keeps their places: a norm goes
into the smaller of its neighbours, a narrow layer is met before a wide one. Knows operators.
"""

from collections.abc import Sequence
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
    if len(links) > LONGEST:
        return reduce(lambda inner, outer: outer @ inner, links)
    return _composed(links, cheapest_order(tuple(link.geometry for link in links)))


def _composed(links: Sequence[Conv], order: Order) -> Conv:
    if isinstance(order, int):
        return links[order]
    inner, outer = (_composed(links, part) for part in order)
    return outer @ inner


@lru_cache(maxsize=256)
def cheapest_order(links: tuple[Geometry, ...]) -> Order:
    """The order with the fewest multiplications among those that make the same geometry as
    composing one after the other.

    By dynamic programming over runs of links, as for a product of matrices (Cormen et al.,
    Introduction to Algorithms, 15.2).
    """
    one_by_one: Order = reduce(lambda inner, outer: (inner, outer), range(len(links)))  # type: ignore[arg-type,return-value]
    if not 2 < len(links) <= LONGEST:
        return one_by_one
    # cost, order and geometry of neighbouring links, by the first and the one behind the last
    best: dict[tuple[int, int], tuple[int, Order, Geometry]] = {
        (link, link + 1): (0, link, geometry) for link, geometry in enumerate(links)
    }
    runs = combinations(range(len(links) + 1), 2)
    for start, end in sorted(runs, key=lambda run: run[1] - run[0]):
        for middle in range(end - 1, start, -1):
            inner, outer = best.get((start, middle)), best.get((middle, end))
            if inner is None or outer is None:
                continue
            try:
                geometry = compose(outer[2], inner[2])
            except GeometryError:
                continue
            cost = inner[0] + outer[0] + _multiplications(outer[2], inner[2])
            if (start, end) not in best or cost < best[start, end][0]:
                best[start, end] = cost, (inner[1], outer[1]), geometry
    whole = best.get((0, len(links)))
    same = whole is not None and whole[2] == reduce(lambda a, b: compose(b, a), links)
    return whole[1] if whole is not None and same else one_by_one


def _multiplications(outer: Geometry, inner: Geometry) -> int:
    """Of one composition: of every pair of taps, for every channel in between with those that one
    group of each layer joins it to.
    """
    ins, outs = inner.in_channels // inner.groups, outer.out_channels // outer.groups
    return ins * inner.out_channels * outs * prod(inner.kernel_size) * prod(outer.kernel_size)
