"""One operator of a chain of them, composed in the order that takes the fewest multiplications.

Composition is associative, so links may be joined in any order that keeps their places: a norm goes
into the smaller of its neighbours, a narrow layer is met before a wide one. Knows operators.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce

import torch

from convsqueeze.algebra.conv import Conv, composed
from convsqueeze.algebra.geometry import Geometry, compose, merge_axes
from convsqueeze.algebra.ways import Sizes
from convsqueeze.errors import GeometryError

LONGEST = 24
"""Links of which every order is weighed; more are joined one after the other."""

Order = int | tuple["Order", "Order"]
"""A link by its number, or what is joined: (inner, outer)."""


def composed_chain(links: Sequence[Conv], *, stored: torch.dtype | None = None) -> Conv:
    """The links, in execution order, as one operator for a weight that will be rounded to `stored`.

    Raises GeometryError where they are not one.
    """
    geometries = tuple(link.geometry for link in links)
    narrow = stored is not None and stored != torch.float64
    return _joined(links, cheapest_order(geometries, narrow), stored)


def _joined(links: Sequence[Conv], order: Order, stored: torch.dtype | None) -> Conv:
    if isinstance(order, int):
        return links[order]
    inner, outer = (_joined(links, part, None) for part in order)
    return composed(outer, inner, stored=stored)


@dataclass(frozen=True)
class _Part:
    """Neighbouring links joined in some order, which takes so many multiplications."""

    order: Order
    geometry: Geometry
    cost: int


@lru_cache(maxsize=256)
def cheapest_order(links: tuple[Geometry, ...], narrow: bool) -> Order:
    """The order with the fewest multiplications among those that make the same geometry as joining
    one after the other; `narrow`: whether the last composition is rounded, and may take fewer.

    By dynamic programming over runs of links, as for a product of matrices (Cormen et al.,
    Introduction to Algorithms, 15.2).
    """
    count = len(links)
    one_by_one: Order = 0
    for link in range(1, count):
        one_by_one = one_by_one, link
    if not 2 < count <= LONGEST:
        return one_by_one
    best = {(i, i + 1): _Part(i, link, 0) for i, link in enumerate(links)}
    for length in range(2, count + 1):
        for start in range(count - length + 1):
            end = start + length
            splits = (
                (best.get((start, at)), best.get((at, end))) for at in range(end - 1, start, -1)
            )
            ways = (
                _join(inner, outer, narrow and length == count)
                for inner, outer in splits
                if inner is not None and outer is not None
            )
            found = [way for way in ways if way is not None]
            if found:
                best[start, end] = min(found, key=lambda way: way.cost)
    whole = best.get((0, count))
    same = whole is not None and whole.geometry == reduce(_after, links)
    return whole.order if whole is not None and same else one_by_one


def _after(inner: Geometry, outer: Geometry) -> Geometry:
    return compose(outer, inner)


def _join(inner: _Part, outer: _Part, rounded: bool) -> _Part | None:
    try:
        geometry = compose(outer.geometry, inner.geometry)
    except GeometryError:
        return None
    cost = inner.cost + outer.cost + _cost(outer.geometry, inner.geometry, rounded)
    return _Part((inner.order, outer.order), geometry, cost)


def _cost(outer: Geometry, inner: Geometry, rounded: bool) -> int:
    """Multiplications of one composition."""
    sizes = Sizes.of(outer, inner)
    merges = [merge_axes(o, i) for o, i in zip(outer.axes, inner.axes, strict=True)]
    fewer = sizes.fewer(merges) if rounded else None
    return sizes.multiplications if fewer is None else fewer[1]
