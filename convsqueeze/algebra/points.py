"""Products of polynomials with fewer multiplications: evaluation, products, interpolation.

The taps of two layers on one axis are the coefficients of polynomials, and the merged taps those
of their product, which its values at `k1 + k2 - 1` points give (Toom-Cook; with two taps each,
Karatsuba): as many products of matrices, where the sum of all pairs takes `k1 * k2`. Longer kernels
are cut into parts of at most three taps: more points would cost digits. In exact fractions; knows
no tensors and no rounding.

Sources: Knuth, The Art of Computer Programming 2, 4.3.3; Bodrato and Zanoni, "Integer and
polynomial multiplication: towards optimal Toom-Cook matrices", ISSAC 2007; Winograd, Arithmetic
Complexity of Computations, SIAM 1980.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import product
from typing import TypeVar

from convsqueeze.algebra.geometry import AxisMerge

Entry = TypeVar("Entry")
Matrix = tuple[tuple[Fraction, ...], ...]

INFINITY = None
POINTS = (0, INFINITY, 1, -1, 2)
"""Whole numbers and a power of two: evaluating multiplies without rounding or underflow."""
LONGEST_PART = 3
MOST_SLOTS = 2
"""Slots for each merged tap at most: the products that are held until they are interpolated."""


@dataclass(frozen=True)
class Scheme:
    """How the merged taps of one axis come from products.

    `inner` (rows, k1) and `outer` (rows, k2) evaluate the kernels; slot `s` is the sum of the
    products of the pairs of rows `slots[s]`, (outer, inner) each; `combine` (raw_taps, slots) makes
    taps of slots.
    """

    inner: Matrix
    outer: Matrix
    slots: tuple[tuple[tuple[int, int], ...], ...]
    combine: Matrix

    @property
    def products(self) -> int:
        return sum(map(len, self.slots))


def direct(merge: AxisMerge, outer_taps: int, inner_taps: int) -> Scheme:
    """Every pair of taps is a product, every merged tap a slot."""
    slots: list[list[tuple[int, int]]] = [[] for _ in range(merge.raw_taps)]
    for b, a in product(range(outer_taps), range(inner_taps)):
        slots[merge.outer_step * b + merge.inner_step * a].append((b, a))
    return Scheme(
        _identity(inner_taps), _identity(outer_taps), _frozen(slots), _identity(merge.raw_taps)
    )


@lru_cache(maxsize=256)
def by_points(outer_taps: int, inner_taps: int, outer_part: int, inner_part: int) -> Scheme:
    """Taps with steps of one, by points of parts of the kernels; parts that end at the same tap
    add up before they are interpolated.
    """
    count = outer_part + inner_part - 1
    values = POINTS[:count]
    interpolate = _inverse([_powers(point, count) for point in values])
    inner = _evaluation(inner_taps, inner_part, values)
    outer = _evaluation(outer_taps, outer_part, values)
    pairs: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (j, (outer_at, outer_point, _)), (i, (inner_at, inner_point, _)) in product(
        enumerate(outer), enumerate(inner)
    ):
        if outer_point == inner_point:
            pairs.setdefault((outer_at + inner_at, outer_point), []).append((j, i))
    raw_taps = outer_taps + inner_taps - 1
    combine = [[Fraction(0)] * len(pairs) for _ in range(raw_taps)]
    for slot, (start, point) in enumerate(pairs):
        for tap in range(start, min(start + count, raw_taps)):
            combine[tap][slot] = interpolate[tap - start][point]
    return Scheme(
        tuple(row for _, _, row in inner),
        tuple(row for _, _, row in outer),
        _frozen(list(pairs.values())),
        _frozen(combine),
    )


def schemes(merge: AxisMerge, outer_taps: int, inner_taps: int) -> Iterator[Scheme]:
    """The direct scheme of an axis, and the one by points with the fewest products if there is."""
    yield direct(merge, outer_taps, inner_taps)
    if min(outer_taps, inner_taps) == 1 or merge.outer_step != 1 or merge.inner_step != 1:
        return
    parts = product(*(range(2, min(LONGEST_PART, n) + 1) for n in (outer_taps, inner_taps)))
    found = [by_points(outer_taps, inner_taps, *part) for part in parts]
    found = [one for one in found if len(one.slots) <= MOST_SLOTS * merge.raw_taps]
    if found:
        yield min(found, key=lambda one: (one.products, len(one.slots)))


def _evaluation(
    taps: int, part: int, points: Sequence[int | None]
) -> list[tuple[int, int, tuple[Fraction, ...]]]:
    """Each part at each point: (first tap, index of the point, factors of all taps)."""
    found = []
    for start in range(0, taps, part):
        for index, point in enumerate(points):
            row = [Fraction(0)] * taps
            for tap, power in zip(range(start, taps), _powers(point, part), strict=False):
                row[tap] = power
            if any(row):  # at infinity a shorter last part is zero
                found.append((start, index, tuple(row)))
    return found


def _powers(point: int | None, count: int) -> list[Fraction]:
    """`1, x, x^2, ...`; at infinity the last coefficient alone."""
    if point is INFINITY:
        return [Fraction(power == count - 1) for power in range(count)]
    return [Fraction(point) ** power for power in range(count)]


def _inverse(rows: list[list[Fraction]]) -> Matrix:
    """By Gauss and Jordan."""
    size = len(rows)
    work = [[*row, *unit] for row, unit in zip(rows, _identity(size), strict=True)]
    for pivot in range(size):
        swap = next(row for row in range(pivot, size) if work[row][pivot])
        work[pivot], work[swap] = work[swap], work[pivot]
        work[pivot] = [value / work[pivot][pivot] for value in work[pivot]]
        for row in range(size):
            if row != pivot:
                factor = work[row][pivot]
                work[row] = [a - factor * b for a, b in zip(work[row], work[pivot], strict=True)]
    return _frozen([row[size:] for row in work])


def _identity(size: int) -> Matrix:
    return tuple(tuple(Fraction(i == j) for j in range(size)) for i in range(size))


def _frozen(rows: Sequence[Sequence[Entry]]) -> tuple[tuple[Entry, ...], ...]:
    return tuple(tuple(row) for row in rows)
