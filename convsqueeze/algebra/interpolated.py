"""A merged kernel by evaluation and interpolation, rounded to its storage dtype as the exact one.

Which taps come from which products is in `points` and `ways`. Interpolation loses digits of small
taps beside large ones, so every number gets a bound of its error, and counts only where both ends
of the interval around it round to the same number of the storage dtype (Ziv, "Fast evaluation of
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

from collections.abc import Generator, Iterator, Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor

from convsqueeze.algebra.geometry import AxisMerge
from convsqueeze.algebra.precision import round_once
from convsqueeze.algebra.products import parts, rows_of, summed_products
from convsqueeze.algebra.threads import Scratch, apart, borrowed, one_thread, share
from convsqueeze.algebra.ways import Evaluation, Way

DEPTH = 32
"""Channels that BLAS sums at once: sums of sums are less deep, and lose less, than one long one."""
EVALUATED = 64
"""Channels that are evaluated at once: near what a core keeps at hand. A multiple of `DEPTH`."""
ROWS, COLUMNS = 128, 512
"""Output and input channels of a block, at most: it holds every slot."""
MOST_EVALUATED = 1 << 23
"""Numbers of the inner kernel at every point that are held: 64 MiB, or more for many channels."""
PIECE = 1 << 15
"""Numbers of one tap that are interpolated, bounded and rounded at once: near what a core holds,
and enough that threads seldom wait for the interpreter.
"""
SUMMED_AT_ONCE = 1 << 17
"""Products that are summed one by one at once: 1 MiB."""
MOST_DOUBTED = 1 / 64
"""Share of a block's numbers that may be summed one by one; with more the block is done anew."""
UNIT = 2.0**-53
UNDERFLOW = 2.0**-400
"""Added to sums of squares, so that no bound is below all that underflow of a sum can come to."""


def interpolated_products(
    second: Tensor, first: Tensor, merges: Sequence[AxisMerge], way: Way, dtype: torch.dtype
) -> Tensor:
    """The raw kernel of `products.summed_products`, each number of which rounds to `dtype` as the
    exact sum does, or is summed directly.
    """
    raw_taps = [merge.raw_taps for merge in merges]
    raw = torch.empty((*second.shape[:2], first.shape[2], *raw_taps), dtype=torch.float64)
    with one_thread(), borrowed(1) as (own,):
        for columns in parts(first.shape[2], _columns(first, way)):
            some = first[:, :, columns], raw[:, :, columns]
            _Interpolated(second, *some, merges, way, dtype, own).run()
    return raw


def _columns(first: Tensor, way: Way) -> int:
    """Input channels that are taken at once: as many as fit into memory at every point."""
    cells, cell = first.shape[:2]
    fitting = MOST_EVALUATED // (cells * cell * way.inner.rows)
    return min(COLUMNS, max(fitting // ROWS * ROWS, ROWS))


class _Interpolated:
    """The operands, the inner one at every point, while blocks of the result are made.

    `second` (cells, out, cell, *k2), `first` (cells, cell, in, *k1), `raw` (cells, out, in,
    *raw_taps). `turned` (cells, in, taps, cell) is `first` with the channels that are summed last.
    """

    def __init__(
        self,
        second: Tensor,
        first: Tensor,
        raw: Tensor,
        merges: Sequence[AxisMerge],
        way: Way,
        dtype: torch.dtype,
        own: Scratch,
    ) -> None:
        self.second, self.first, self.raw = second, first, raw
        self.merges, self.way, self.dtype = merges, way, dtype
        cells, self.cell, ins = first.shape[:3]
        rows, taps = way.inner.rows, prod(first.shape[3:])
        self.depths = parts(self.cell, EVALUATED)
        self.inner = own.numbers("inner", cells, rows, self.cell, apart(ins))
        self.turned = own.numbers("turned", cells, ins, taps, self.cell)
        self.inner_squares = self.inner.new_empty((cells, len(self.depths), rows, apart(ins)))
        self.tap_squares = self.inner.new_empty((cells, len(self.depths), taps, apart(ins)))
        self.is_plain = all(pairs == ((slot, slot),) for slot, pairs in enumerate(way.slots))
        sums = max(map(len, way.slots)) * -(-self.cell // DEPTH)
        self.roundings = DEPTH + sums + way.last_roundings + 4

    def run(self) -> None:
        """Evaluates the inner kernel, then makes the result block by block."""
        cells, outs, ins = self.raw.shape[:3]
        share(self._evaluate, list(product(range(cells), range(len(self.depths)))), large=True)
        self.inner_bounds = [self._inner_bound(group)[:, :ins] for group in range(cells)]
        blocks = product(range(cells), parts(outs, min(ROWS, rows_of(outs))))
        share(self._make, list(blocks), large=True)

    def _evaluate(self, block: tuple[int, int], scratch: Scratch) -> Iterator[None]:
        """Some channels of the inner kernel at every point, and their squares."""
        group, index = block
        depth = self.depths[index]
        given = self.first[group, depth].flatten(2).permute(2, 0, 1)
        self.turned[group, ..., depth].copy_(given.permute(2, 0, 1))
        stored = scratch.numbers("stored", *given.shape[:2], self.inner.shape[-1])
        stored[..., : given.shape[2]].copy_(given)
        stored[..., given.shape[2] :].zero_()
        values = self.inner[group][:, depth]
        _along_axes(self.way.inner.matrices, stored, values, scratch)
        _sum_squares(values, 1, self.inner_squares[group, index], scratch)
        _sum_squares(stored, 1, self.tap_squares[group, index], scratch)
        yield

    def _inner_bound(self, group: int) -> Tensor:
        """(raw taps, in): the inner layer's factor of the bound, and what both have in common."""
        squares = self.inner_squares[group].sum(0), self.tap_squares[group].sum(0)
        bound = self._bound(*squares, self.way.inner)
        return bound * (1.1 * UNIT * self.roundings)

    def _bound(self, squares: Tensor, tap_squares: Tensor, layer: Evaluation) -> Tensor:
        """The root of the weighted sum of squares of `|x| + K/D |X|`, for each channel."""
        norms = _applied(layer.absolute, _root(tap_squares))
        norms = norms.mul_(layer.terms / self.roundings).add_(_root(squares))
        return _applied(layer.weights, norms.square_()).sqrt_()

    def _make(self, block: tuple[int, slice], scratch: Scratch) -> Iterator[None]:
        """One block of the result: its products, then all that follows a few rows at a time."""
        group, rows = block
        second, first = self.second[group, rows], self.first[group]
        raw, width = self.raw[group, rows], first.shape[1]
        inner, inner_bound = self.inner[group][..., :width], self.inner_bounds[group]
        held, outer_bound = yield from self._held(second.flatten(2), inner, scratch)
        doubted = []
        for piece in parts(len(second), max(1, PIECE // width)):
            sums = scratch.numbers("sums", raw[0, 0].numel(), piece.stop - piece.start, width)
            _along_axes(self.way.combine, held[:, piece], sums, scratch)
            places = self._doubted(sums, outer_bound[:, piece], inner_bound, scratch)
            if len(places) > MOST_DOUBTED * sums.numel():
                raw[piece] = summed_products(second[None, piece], first[None], self.merges)[0]
            else:
                raw[piece].flatten(2).copy_(sums.permute(1, 2, 0))
                places[:, 1] += piece.start
                doubted.append(places)
            yield
        if doubted:
            places = torch.cat(doubted)
            outer = scratch.copied("turned", second.flatten(2).transpose(1, 2))
            yield from self._sum_directly(raw, places, outer, self.turned[group], scratch)

    def _held(
        self, second: Tensor, inner: Tensor, scratch: Scratch
    ) -> Generator[None, None, tuple[Tensor, Tensor]]:
        """The products of every slot (slots, out, in) of `second` (out, cell, taps) and `inner`
        (rows, cell, in), and the outer layer's factor of the bound (raw taps, out).
        """
        way, count = self.way, len(second)
        held = scratch.numbers("slots", len(way.slots), count, inner.shape[-1])
        squares = held.new_zeros(way.outer.rows, count)
        tap_squares = held.new_zeros(count, second.shape[2])
        for depth in self.depths:
            stored = scratch.copied("stored", second[:, depth])
            outer = scratch.numbers("outer", len(squares), count, stored.shape[1])
            _along_axes(way.outer.matrices, stored.permute(2, 0, 1), outer, scratch)
            squares += torch.linalg.vector_norm(outer, dim=2).square_()
            tap_squares += _sum_squares(stored, 1, torch.empty_like(tap_squares), scratch)
            for some in parts(stored.shape[1], DEPTH):
                anew = depth.start == some.start == 0
                self._add_products(held, outer[:, :, some], inner[:, depth][:, some], anew=anew)
            yield
        return held, self._bound(squares, tap_squares.T, way.outer)

    def _add_products(self, held: Tensor, outer: Tensor, inner: Tensor, *, anew: bool) -> None:
        """The products of some channels, of every slot; `anew` overwrites what is held."""
        if self.is_plain:
            torch.baddbmm(held, outer, inner, beta=0 if anew else 1, out=held)
            return
        for slot, pairs in zip(held, self.way.slots, strict=True):
            for number, (j, i) in enumerate(pairs):
                beta = 0 if anew and number == 0 else 1
                torch.addmm(slot, outer[j], inner[i], beta=beta, out=slot)

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

    def _sum_directly(
        self, raw: Tensor, places: Tensor, outer: Tensor, inner: Tensor, scratch: Scratch
    ) -> Iterator[None]:
        """Sets numbers of `raw` (out, in, *raw_taps) at places (tap, out, in), of the kernels
        `outer` (out, taps, cell) and `inner` (in, taps, cell).
        """
        taps, rows, columns = places.unbind(1)
        partners = self.way.partners[:, taps]
        tap, place = (partners >= 0).nonzero(as_tuple=True)
        lefts = rows[place] * outer.shape[1] + tap
        rights = columns[place] * inner.shape[1] + partners[tap, place]
        totals = raw.new_zeros(len(places))
        for some in parts(len(tap), max(1, SUMMED_AT_ONCE // self.cell)):
            left = _gathered(outer, lefts[some], scratch, "left")
            right = _gathered(inner, rights[some], scratch, "right")
            totals.index_add_(0, place[some], left.mul_(right).sum(1))
            yield
        raw.flatten(2).index_put_((rows, columns, taps), totals)


def _gathered(kernel: Tensor, rows: Tensor, scratch: Scratch, name: str) -> Tensor:
    """Some rows, numbered over channels and taps, of a kernel (channels, taps, cell)."""
    out = scratch.numbers(name, len(rows), kernel.shape[2])
    return torch.index_select(kernel.flatten(0, 1), 0, rows, out=out)


def _along_axes(matrices: Sequence[Tensor], values: Tensor, out: Tensor, scratch: Scratch) -> None:
    """`values` (columns of all matrices, *rest) to `out` (rows of all, *rest)."""
    if len(matrices) > 1:
        values = scratch.copied("in order", values)
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


def _sum_squares(values: Tensor, dim: int, out: Tensor, scratch: Scratch) -> Tensor:
    square = scratch.numbers("square", *values.shape)
    return torch.sum(torch.mul(values, values, out=square), dim, out=out)


def _applied(matrices: Sequence[Tensor], values: Tensor) -> Tensor:
    """`values` (columns of all matrices, n) to (rows of all, n)."""
    if len(matrices) == 1:
        return matrices[0] @ values
    values = values.unflatten(0, [matrix.shape[1] for matrix in matrices])
    for dim, matrix in enumerate(matrices):
        values = torch.tensordot(matrix, values, dims=([1], [dim])).movedim(0, dim)
    return values.flatten(0, -2)


def _root(squares: Tensor) -> Tensor:
    """Norms from sums of squares, a bit too large."""
    return (squares + UNDERFLOW).sqrt_().mul_(1.001)
