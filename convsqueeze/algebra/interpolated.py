"""A merged kernel by evaluation and interpolation, rounded to its storage dtype as the exact one.

Which taps come from which products is in `points`. Interpolation loses digits of small taps beside
large ones, so every number gets a bound of its error, and counts only where both ends of the
interval around it round to the same number of the storage dtype (Ziv, "Fast evaluation of
elementary mathematical functions with correctly rounded last bit", ACM TOMS 17, 1991): what is
stored is then the exact sum rounded once. The others are summed directly.

The bound, in Higham's notation (Accuracy and Stability of Numerical Algorithms, 2002, 3.1 and 3.5;
for these products Barabasz et al., "Error analysis and improving the accuracy of Winograd
convolution for deep neural networks", ACM TOMS 46, 2020): with `u = 2^-53`, evaluated kernels `x`
of the inner and `y` of the outer layer, rows of `K1` and `K2` terms, sums of products of depth `P`
and a last sum of `S` terms, whose factors `c` are rounded,

    |error| <= u D sum over slots of |c| sum over pairs of (|y| + K2/D |Y|) (|x| + K1/D |X|)

with `D = P + S` and the rounded factors, `|x|` the norm over the channels in between (Cauchy and
Schwarz) and `|X|` a bound of that of the absolute terms that `x` sums up. The sum over slots and
pairs is at most the product of two roots of sums of squares, one for each layer (Cauchy and Schwarz
again).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import product
from math import lcm, prod

import torch
from torch import Tensor

from convsqueeze.algebra.geometry import AxisMerge, Geometry
from convsqueeze.algebra.points import Matrix, Scheme, schemes
from convsqueeze.algebra.precision import round_once
from convsqueeze.algebra.products import LARGE, parts, rows_of, summed_products
from convsqueeze.algebra.threads import Scratch, borrowed, one_thread, share

DEPTH = 32
"""Channels that BLAS sums at once: sums of sums are less deep, and lose less, than one long one."""
COLUMNS = 512
"""Input channels of a block, at most."""
SMALLEST = 32
"""Channels of either kind from which on interpolation is thought of."""
MOST_MIDDLE = 4
"""Channels in between for each of the others, at most: what is evaluated is as large as that."""
ONE_MATRIX = 1 << 9
"""Numbers of a matrix that evaluates all axes at once, at most."""
PIECE = 1 << 13
"""Numbers of one tap that are interpolated, bounded and rounded at once: near what a core holds."""
SUMMED_AT_ONCE = 1 << 18
"""Products that are summed one by one at once: 2 MiB."""
EVALUATE, INTERPOLATE = 60, 300
"""What evaluating one number and finishing one takes, in multiplications of a large product."""
MOST_SLOTS = 4
"""Slots for each merged tap at most, on all axes: what a block holds until it is interpolated."""
MOST_IN_ALL = 600
"""Slots at most, so that a block stays small beside memory; longer kernels are summed directly."""
MOST_ZEROS = 0.25
"""Share of zeros among the weights from which on exact zeros are likely among the merged ones."""
MOST_DOUBTED = 1 / 64
"""Share of a block's numbers that may be summed one by one; with more the block is done anew."""
UNIT = 2.0**-53
UNDERFLOW = 2.0**-400
"""Added to sums of squares, so that no bound is below all that underflow of a sum can come to."""


@dataclass(frozen=True, eq=False)
class Way:
    """A scheme for each axis, as matrices in float64; rows and slots of all axes are numbered in a
    row, the last axis fastest.

    `inner`, `outer` (for all axes at once where that is small) and `combine` as in `Scheme`, and
    `slots` of all axes. `inner_weights` (raw taps, rows of the inner kernel) of an axis are the
    sums of `|combine|` over the slots in which a row stands; `outer_weights` alike. `partners`
    (outer taps, raw taps) is the inner tap that makes a raw tap with an outer one, -1 where none.
    """

    inner: tuple[Tensor, ...]
    outer: tuple[Tensor, ...]
    combine: tuple[Tensor, ...]
    inner_weights: tuple[Tensor, ...]
    outer_weights: tuple[Tensor, ...]
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
        evaluated = self.ins * _rows(way.inner) + self.outs * _rows(way.outer)
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
        inner=_evaluation([_matrix(one.inner) for one in axes]),
        outer=_evaluation([_matrix(one.outer) for one in axes]),
        combine=tuple(_matrix(one.combine) for one in axes),
        inner_weights=tuple(_weights(one, 1) for one in axes),
        outer_weights=tuple(_weights(one, 0) for one in axes),
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


def _evaluation(axes: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One matrix for all axes where that is small: one product is faster than one for each axis."""
    if prod(matrix.numel() for matrix in axes) > ONE_MATRIX:
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


def _rows(matrices: Sequence[Tensor]) -> int:
    return prod(map(len, matrices))


def _terms(matrix: Tensor) -> int:
    """Numbers that a row of the matrix adds up, at most."""
    return int((matrix != 0).sum(1).max())


def interpolated_products(
    second: Tensor, first: Tensor, merges: Sequence[AxisMerge], way: Way, dtype: torch.dtype
) -> Tensor:
    """The raw kernel of `products.summed_products`, each number of which rounds to `dtype` as the
    exact sum does, or is summed directly.
    """
    with one_thread(), borrowed(1) as (own,):
        return _Interpolated(second, first, merges, way, dtype, own).run()


class _Interpolated:
    """The operands, the inner one at every point, and the result while its blocks are made."""

    def __init__(
        self,
        second: Tensor,
        first: Tensor,
        merges: Sequence[AxisMerge],
        way: Way,
        dtype: torch.dtype,
        own: Scratch,
    ) -> None:
        self.second, self.first, self.merges = second, first, merges
        self.way, self.dtype = way, dtype
        cells, outs, self.cell = second.shape[:3]
        ins, rows, taps = first.shape[2], _rows(way.inner), prod(first.shape[3:])
        raw_taps = [merge.raw_taps for merge in merges]
        self.raw = torch.empty((cells, outs, ins, *raw_taps), dtype=torch.float64)
        self.depths = parts(self.cell, DEPTH)
        self.inner = own.numbers("inner", cells, rows, self.cell, ins)
        self.inner_squares = self.raw.new_empty((cells, len(self.depths), rows, ins))
        self.tap_squares = self.raw.new_empty((cells, len(self.depths), taps, ins))
        self.inner_taps = first.new_empty((cells, taps, ins, self.cell))
        self.is_plain = all(pairs == ((slot, slot),) for slot, pairs in enumerate(way.slots))
        sums = max(map(len, way.slots)) * len(self.depths)
        self.roundings = DEPTH + sums + way.last_roundings + 4

    def run(self) -> Tensor:
        """Evaluates the inner kernel, then makes the result block by block."""
        cells, outs, ins = self.raw.shape[:3]
        share(self._evaluate, list(product(range(cells), range(len(self.depths)))), large=True)
        self.inner_bounds = [self._inner_bound(group) for group in range(cells)]
        blocks = product(range(cells), parts(outs, rows_of(outs)), parts(ins, COLUMNS))
        share(self._make, list(blocks), large=True)
        return self.raw

    def _evaluate(self, block: tuple[int, int], scratch: Scratch) -> Iterator[None]:
        """Some channels of the inner kernel at every point, and their squares."""
        group, index = block
        depth = self.depths[index]
        stored = self.first[group, depth].flatten(2)
        self.inner_taps[group, :, :, depth] = stored.permute(2, 1, 0)
        taps = scratch.copied("taps", stored.permute(2, 0, 1))
        values = self.inner[group][:, depth]
        _along_axes(self.way.inner, taps, values, scratch)
        _sum_squares(values, 1, self.inner_squares[group, index], scratch)
        _sum_squares(taps, 1, self.tap_squares[group, index], scratch)
        yield

    def _inner_bound(self, group: int) -> Tensor:
        """(raw taps, in): the inner layer's factor of the bound, and what both have in common."""
        squares = self.inner_squares[group].sum(0), self.tap_squares[group].sum(0)
        bound = self._bound(*squares, self.way.inner, self.way.inner_weights)
        return bound * (1.1 * UNIT * self.roundings)

    def _bound(
        self,
        squares: Tensor,
        tap_squares: Tensor,
        evaluation: Sequence[Tensor],
        weights: Sequence[Tensor],
    ) -> Tensor:
        """The root of the weighted sum of squares of `|x| + K/D |X|`, for each channel."""
        share_of_all = sum(map(_terms, evaluation)) / self.roundings
        absolute = _applied([matrix.abs() for matrix in evaluation], _root(tap_squares))
        norms = _root(squares) + share_of_all * absolute
        return _applied(weights, norms.square_()).sqrt_()

    def _make(self, block: tuple[int, slice, slice], scratch: Scratch) -> Iterator[None]:
        """One block of the result: its products, then all that follows a few rows at a time."""
        group, rows, columns = block
        stored = self.second[group, rows].flatten(2)
        count, width = len(stored), columns.stop - columns.start
        taps = scratch.copied("taps", stored.permute(2, 0, 1))
        outer = scratch.numbers("outer", _rows(self.way.outer), count, self.cell)
        _along_axes(self.way.outer, taps, outer, scratch)
        bounds = self._outer_bound(outer, taps, scratch), self.inner_bounds[group][:, columns]
        yield
        held = scratch.numbers("slots", len(self.way.slots), count, width)
        inner = self.inner[group][..., columns]
        for depth in self.depths:
            self._add_products(held, outer[..., depth], inner[:, depth], anew=depth.start == 0)
            yield
        doubted = []
        for piece in parts(count, max(1, PIECE // width)):
            here = slice(rows.start + piece.start, rows.start + piece.stop)
            sums = scratch.numbers(
                "sums", len(self.way.partners[0]), piece.stop - piece.start, width
            )
            _along_axes(self.way.combine, held[:, piece], sums, scratch)
            places = self._doubted(sums, bounds[0][:, piece], bounds[1], scratch)
            target = self.raw[group, here, columns]
            if len(places) > MOST_DOUBTED * sums.numel():
                second, first = self.second[group, here], self.first[group, :, columns]
                target.copy_(summed_products(second[None], first[None], self.merges)[0])
            else:
                target.flatten(2).copy_(sums.permute(1, 2, 0))
                places[:, 1] += piece.start
                doubted.append(places)
            yield
        if doubted:
            target = self.raw[group, rows, columns].flatten(2)
            inner_taps = self.inner_taps[group][:, columns]
            for places in torch.cat(doubted).split(max(1, SUMMED_AT_ONCE // self.cell)):
                self._sum_directly(target, places, taps, inner_taps)
                yield

    def _add_products(self, held: Tensor, outer: Tensor, inner: Tensor, *, anew: bool) -> None:
        """The products of some channels, of every slot; `anew` overwrites what is held."""
        if self.is_plain:
            torch.baddbmm(held, outer, inner, beta=0 if anew else 1, out=held)
            return
        for slot, pairs in zip(held, self.way.slots, strict=True):
            for number, (j, i) in enumerate(pairs):
                beta = 0 if anew and number == 0 else 1
                torch.addmm(slot, outer[j], inner[i], beta=beta, out=slot)

    def _outer_bound(self, outer: Tensor, taps: Tensor, scratch: Scratch) -> Tensor:
        """(raw taps, out): the outer layer's factor of the bound."""
        squares, tap_squares = outer.new_empty(outer.shape[:2]), taps.new_empty(taps.shape[:2])
        _sum_squares(outer, 2, squares, scratch)
        _sum_squares(taps, 2, tap_squares, scratch)
        return self._bound(squares, tap_squares, self.way.outer, self.way.outer_weights)

    def _doubted(
        self, sums: Tensor, outer_bound: Tensor, inner_bound: Tensor, scratch: Scratch
    ) -> Tensor:
        """The places (n, 3) of sums whose error might change what they round to."""
        found = []
        step = max(1, 4 * PIECE // sums[0].numel())
        for tap in range(0, len(sums), step):
            here = sums[tap : tap + step]
            factors = outer_bound[tap : tap + step, :, None], inner_bound[tap : tap + step, None]
            ends = []
            for sign in (-1, 1):
                end = scratch.numbers("end", *here.shape)
                torch.addcmul(here, *factors, value=sign, out=end)
                ends.append(round_once(end, self.dtype))
            places = torch.ne(*ends).nonzero()
            places[:, 0] += tap
            found.append(places)
        return torch.cat(found)

    def _sum_directly(self, raw: Tensor, places: Tensor, outer: Tensor, inner: Tensor) -> None:
        """Sets numbers of `raw` (out, in, taps) at places (tap, out, in); `outer` is (taps, out,
        cell), `inner` (taps, in, cell).
        """
        taps, rows, columns = places.unbind(1)
        totals = raw.new_zeros(len(places))
        for tap, partners in zip(outer, self.way.partners, strict=True):
            partner = partners[taps]
            there = (partner >= 0).nonzero().flatten()
            left = tap.index_select(0, rows[there])
            right = inner[partner[there], columns[there]]
            totals.index_add_(0, there, (left * right).sum(1))
        raw.index_put_((rows, columns, taps), totals)


def _along_axes(matrices: Sequence[Tensor], values: Tensor, out: Tensor, scratch: Scratch) -> None:
    """`values` (columns of all matrices, *rest) to `out` (rows of all, *rest)."""
    before, leading = values.flatten(1), 1
    for number, matrix in enumerate(matrices):
        rows, columns = matrix.shape
        if number == len(matrices) - 1:
            after = out.flatten(1)
        else:
            rest = len(before) // (leading * columns)
            after = scratch.numbers(f"axis {number}", leading * rows * rest, before.shape[1])
        sources = before.unflatten(0, (leading, columns, -1))
        targets = after.unflatten(0, (leading, rows, -1))
        for lead, other in product(range(leading), range(sources.shape[2])):
            torch.mm(matrix, sources[lead, :, other], out=targets[lead, :, other])
        before, leading = after, leading * rows


def _sum_squares(values: Tensor, dim: int, out: Tensor, scratch: Scratch) -> None:
    square = scratch.numbers("square", *values.shape)
    torch.sum(torch.mul(values, values, out=square), dim, out=out)


def _applied(matrices: Sequence[Tensor], values: Tensor) -> Tensor:
    """`values` (columns of all matrices, n) to (rows of all, n)."""
    values = values.unflatten(0, [matrix.shape[1] for matrix in matrices])
    for dim, matrix in enumerate(matrices):
        values = torch.tensordot(matrix, values, dims=([1], [dim])).movedim(0, dim)
    return values.flatten(0, -2)


def _root(squares: Tensor) -> Tensor:
    """Norms from sums of squares, a bit too large."""
    return (squares + UNDERFLOW).sqrt_().mul_(1.001)
