"""Ways of merging two kernels with points: schemes of all axes, what they cost, which one pays.

Knows counts of channels and taps, and of the weights themselves only whether they hold zeros.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import product
from math import lcm, prod

import torch
from torch import Tensor

from convsqueeze.algebra.geometry import AxisMerge, Geometry
from convsqueeze.algebra.points import Matrix, Scheme, schemes
from convsqueeze.algebra.products import LARGE

SMALLEST = 32
"""Channels of either kind from which on interpolation is thought of."""
MOST_MIDDLE = 4
"""Channels in between for each of the others, at most: what is evaluated is as large as that."""
ONE_MATRIX, ONE_OF_WEIGHTS = 1 << 9, 1 << 12
"""Numbers of a matrix that evaluates all axes at once, at most, and of one of their weights."""
EVALUATE, INTERPOLATE = 60, 300
"""What evaluating one number and finishing one takes, in multiplications of a large product."""
MOST_SLOTS = 4
"""Slots for each merged tap at most, on all axes: what a block holds until it is interpolated."""
MOST_IN_ALL = 600
"""Slots at most, so that a block stays small beside memory; longer kernels are summed directly."""
MOST_ZEROS = 0.25
"""Share of zeros among the weights from which on exact zeros are likely among the merged ones."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A layer's kernel at the points of all axes: matrices (rows, taps) in float64, one for each
    axis, or one for all where that is small; rows of all axes are numbered in a row, the last axis
    fastest.

    `absolute` are those without signs. `weights` (raw taps, rows) are the sums of `|combine|` over
    the slots in which a row stands.
    """

    matrices: tuple[Tensor, ...]
    absolute: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    terms: int
    """Numbers that a row adds up on one axis, summed over the axes."""

    @property
    def rows(self) -> int:
        return prod(map(len, self.matrices))


@dataclass(frozen=True, eq=False)
class Way:
    """A scheme for each axis, as matrices in float64; slots of all axes are numbered as rows.

    `combine` as in `Scheme`, and `slots` of all axes. `partners` (outer taps, raw taps) is the
    inner tap that makes a raw tap with an outer one, -1 where none.
    """

    inner: Evaluation
    outer: Evaluation
    combine: tuple[Tensor, ...]
    slots: tuple[tuple[tuple[int, int], ...], ...]
    partners: Tensor

    @property
    def products(self) -> int:
        return sum(map(len, self.slots))

    @property
    def last_roundings(self) -> int:
        """From slots to taps: the terms of each sum, and each factor."""
        return sum(_terms(matrix) + 1 for matrix in self.combine)


@dataclass(frozen=True)
class Sizes:
    """Of the operands of `products.summed_products`: channels of a cell, and taps on each axis."""

    cells: int
    outs: int
    cell: int
    ins: int
    outer_taps: tuple[int, ...]
    inner_taps: tuple[int, ...]

    @classmethod
    def of(cls, outer: Geometry, inner: Geometry) -> "Sizes":
        """Of the composition of two layers; see `groups.cells`."""
        cells = lcm(outer.groups, inner.groups)
        return cls(
            cells,
            outer.out_channels // outer.groups,
            inner.out_channels // cells,
            inner.in_channels // inner.groups,
            outer.kernel_size,
            inner.kernel_size,
        )

    @property
    def multiplications(self) -> int:
        """Of the direct sum."""
        channels = self.cells * self.outs * self.cell * self.ins
        return channels * prod(self.outer_taps) * prod(self.inner_taps)

    def fewer(self, merges: Sequence[AxisMerge]) -> tuple[Way, int] | None:
        """A way with points and its cost in multiplications, if that is less than directly."""
        smallest = min(self.outs, self.ins)
        if self.multiplications < LARGE or min(smallest, self.cell) < SMALLEST:
            return None
        if self.cell > MOST_MIDDLE * smallest:
            return None
        way = way_by_points(tuple(merges), self.outer_taps, self.inner_taps)
        if way is None:
            return None
        evaluated = self.ins * way.inner.rows + self.outs * way.outer.rows
        cost = way.products * self.outs * self.cell * self.ins + EVALUATE * self.cell * evaluated
        cost = self.cells * (cost + INTERPOLATE * self.outs * self.ins * len(way.slots))
        return (way, cost) if cost < self.multiplications else None


def way_for(
    second: Tensor, first: Tensor, merges: Sequence[AxisMerge], dtype: torch.dtype | None
) -> Way | None:
    """A way with points if it costs less than the direct sum and its results are rounded: in
    float64 the direct sum is as good as it gets.
    """
    if dtype is None or dtype == torch.float64 or first.device.type != "cpu":
        return None
    if torch.is_grad_enabled() and (first.requires_grad or second.requires_grad):
        return None
    cells, outs, cell = second.shape[:3]
    sizes = Sizes(cells, outs, cell, first.shape[2], second.shape[3:], first.shape[3:])
    found = sizes.fewer(merges)
    if found is None or max(_zeros(second), _zeros(first)) > MOST_ZEROS:
        return None
    return found[0]


def _zeros(weight: Tensor) -> float:
    """The share of zeros among about a thousand weights."""
    flat = weight.flatten()
    some = flat[:: max(1, len(flat) // 1009)]
    return 1 - int(some.count_nonzero()) / len(some)


@lru_cache(maxsize=64)
def way_by_points(
    merges: tuple[AxisMerge, ...], outer_taps: tuple[int, ...], inner_taps: tuple[int, ...]
) -> Way | None:
    """The way with the fewest products in which an axis is interpolated, if there is one."""
    axes = [list(schemes(*axis)) for axis in zip(merges, outer_taps, inner_taps, strict=True)]
    direct = [options[0] for options in axes]
    most = min(MOST_IN_ALL, MOST_SLOTS * prod(len(one.slots) for one in direct))
    choices = [
        choice
        for choice in product(*axes)
        if list(choice) != direct and prod(len(one.slots) for one in choice) <= most
    ]
    if not choices:
        return None
    best = min(choices, key=lambda choice: prod(one.products for one in choice))
    return _way(best, _partners(direct))


def _way(axes: Sequence[Scheme], partners: Tensor) -> Way:
    return Way(
        inner=_evaluation([_matrix(one.inner) for one in axes], [_weights(one, 1) for one in axes]),
        outer=_evaluation([_matrix(one.outer) for one in axes], [_weights(one, 0) for one in axes]),
        combine=tuple(_matrix(one.combine) for one in axes),
        slots=_numbered(axes),
        partners=partners,
    )


def _partners(direct: Sequence[Scheme]) -> Tensor:
    slots = _numbered(direct)
    partners = torch.full((prod(len(one.outer) for one in direct), len(slots)), -1)
    for tap, pairs in enumerate(slots):
        for b, a in pairs:
            partners[b, tap] = a
    return partners


def _matrix(rows: Matrix) -> Tensor:
    return torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)


def _evaluation(axes: Sequence[Tensor], weights: Sequence[Tensor]) -> Evaluation:
    matrices = _for_all(axes, ONE_MATRIX)
    return Evaluation(
        matrices=matrices,
        absolute=tuple(matrix.abs() for matrix in matrices),
        weights=_for_all(weights, ONE_OF_WEIGHTS),
        terms=sum(map(_terms, matrices)),
    )


def _for_all(axes: Sequence[Tensor], most: int) -> tuple[Tensor, ...]:
    """One matrix for all axes where that is small: one product is faster than one for each axis."""
    if prod(matrix.numel() for matrix in axes) > most:
        return tuple(axes)
    return (reduce(torch.kron, axes),)


def _weights(axis: Scheme, side: int) -> Tensor:
    sizes = _matrix(axis.combine).abs()
    weights = sizes.new_zeros(len(sizes), len((axis.outer, axis.inner)[side]))
    for slot, pairs in enumerate(axis.slots):
        for pair in pairs:
            weights[:, pair[side]] += sizes[:, slot]
    return weights


def _numbered(axes: Sequence[Scheme]) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The slots of all axes in a row: pairs of the numbers of their rows."""
    slots: tuple[tuple[tuple[int, int], ...], ...] = (((0, 0),),)
    for one in axes:
        outer, inner = len(one.outer), len(one.inner)
        slots = tuple(
            tuple((outer * j + q, inner * i + p) for (j, i), (q, p) in product(some, others))
            for some, others in product(slots, one.slots)
        )
    return slots


def _terms(matrix: Tensor) -> int:
    """Numbers that a row of the matrix adds up, at most."""
    return int((matrix != 0).sum(1).max())
