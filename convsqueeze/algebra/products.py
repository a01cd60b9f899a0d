"""The sum over pairs of taps of products of matrices that a merged kernel is, in float64.

    raw[t] = sum over a, b with inner_step*a + outer_step*b = t of second[b] @ first[a]

on every axis, for cells of channels (see `groups.cells`): `second` (cells, out, cell, *k2), `first`
(cells, cell, in, *k1), `raw` (cells, out, in, *raw_taps). Taps are moved outwards, products added
where they belong by BLAS, and taps moved back, block by block: no copy larger than an operand is
made, and none is padded. Blocks and the order of every sum do not depend on the threads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from convsqueeze.algebra.geometry import AxisMerge
from convsqueeze.algebra.threads import Scratch, borrowed, one_thread, share

LARGE = 20_000_000
"""Multiplications from which on threads share them: a millisecond for one, less of small cells."""
MANY = 1_000_000
"""Numbers from which on threads share copying them."""
SMALL = 3_000_000
"""Multiplications up to which few operations count for more than where numbers lie."""
SMALL_PRODUCT = 1 << 16
"""Multiplications of one product of matrices below which calling BLAS costs more than a copy."""
EVERY: Any = slice(None)
ROWS, COLUMNS = 64, 512
"""Output and input channels of a block, more or less."""
SCRATCH = 1 << 17
"""Numbers that a block of many small products adds up in: 1 MiB, near what a core keeps at hand."""


def summed_products(second: Tensor, first: Tensor, merges: Sequence[AxisMerge]) -> Tensor:
    """The raw kernel (cells, out, in, *raw_taps), float64; see the module."""
    sizes = _Sizes.of(second, first, merges)
    if torch.is_grad_enabled() and (first.requires_grad or second.requires_grad):
        return _tap_by_tap(second, first, sizes)
    if first.device.type != "cpu":
        return _tap_by_tap(second, first, sizes)
    if sizes.cells == 1 and sizes.multiplications <= SMALL:
        with one_thread():
            return _tap_by_tap(second, first, sizes)
    raw = torch.empty(
        (sizes.cells, sizes.outs, sizes.ins, *sizes.raw), dtype=torch.float64, device=first.device
    )
    if raw.numel() == 0 or sizes.cell == 0:
        return raw.zero_()
    if sizes.cells >= 16 and sizes.cell <= 2:
        _elementwise(raw, second, first, sizes)
    elif sizes.cells > 1 and sizes.outs * sizes.cell * sizes.ins <= SMALL_PRODUCT:
        _batched(raw, second, first, sizes)
    else:
        _one_by_one(raw, second, first, sizes)
    return raw


@dataclass(frozen=True)
class _Sizes:
    """Counts of channels and taps, and where taps land."""

    cells: int
    outs: int
    cell: int
    ins: int
    outer: tuple[int, ...]
    inner: tuple[int, ...]
    raw: tuple[int, ...]
    outer_steps: tuple[int, ...]
    inner_steps: tuple[int, ...]

    @classmethod
    def of(cls, second: Tensor, first: Tensor, merges: Sequence[AxisMerge]) -> "_Sizes":
        cells, outs, cell = second.shape[:3]
        return cls(
            cells,
            outs,
            cell,
            first.shape[2],
            tuple(second.shape[3:]),
            tuple(first.shape[3:]),
            tuple(merge.raw_taps for merge in merges),
            tuple(merge.outer_step for merge in merges),
            tuple(merge.inner_step for merge in merges),
        )

    @property
    def multiplications(self) -> int:
        taps = prod(self.outer) * prod(self.inner)
        return self.cells * self.outs * self.cell * self.ins * taps

    @property
    def is_large(self) -> bool:
        return self.multiplications >= LARGE

    def outer_taps(self) -> Iterator[tuple[int, ...]]:
        return product(*map(range, self.outer))

    def window(self, tap: Sequence[int]) -> tuple[Any, ...]:
        """The raw taps on which the inner kernel lands for one tap of the outer one."""
        places = zip(tap, self.outer_steps, self.inner_steps, self.inner, strict=True)
        return tuple(slice(b * s, b * s + t * (k - 1) + 1, t) for b, s, t, k in places)


def _tap_by_tap(second: Tensor, first: Tensor, sizes: _Sizes) -> Tensor:
    """One product for each outer tap, on any device, by few operations that autograd follows."""
    inner = first.double()
    if prod(sizes.outer) == 1 and sizes.inner == sizes.raw:
        term = second.double().flatten(2) @ inner.flatten(2)
        return term.unflatten(2, first.shape[2:])
    raw = inner.new_zeros((sizes.cells, sizes.outs, sizes.ins, *sizes.raw))
    for tap in sizes.outer_taps():
        here: tuple[Any, ...] = (..., *tap)
        term = second[here].double() @ inner.flatten(2)
        raw[(..., *sizes.window(tap))] += term.unflatten(2, first.shape[2:])
    return raw


def _one_by_one(raw: Tensor, second: Tensor, first: Tensor, sizes: _Sizes) -> None:
    """Each product by itself, with all inner taps of a row at once, added in place by BLAS."""
    taps = len(sizes.raw)
    order = (0, *range(2, 2 + taps), 1)
    outer_order = (*range(2, 2 + taps), 0, 1)

    def turn(block: tuple[int, slice], _: Scratch) -> Iterator[None]:
        group, rows = block
        inner[group, rows] = first[group, rows].permute(order)
        yield

    def multiply(block: tuple[int, slice, slice], scratch: Scratch) -> Iterator[None]:
        group, rows, columns = block
        outer = scratch.copied("outer", second[group, rows].permute(outer_order))
        width = columns.stop - columns.start
        sums = scratch.numbers("sums", rows.stop - rows.start, *sizes.raw, width).zero_()
        for tap in sizes.outer_taps():
            window: Tensor = sums[EVERY, *sizes.window(tap)]
            yield from _add_product(window, outer[tap], inner[group][..., columns])
        raw[group, rows, columns] = sums.permute(0, taps + 1, *range(1, taps + 1))

    def multiply_alone(block: tuple[int, slice, slice], scratch: Scratch) -> Iterator[None]:
        """Where the inner kernel has one tap each product is a tap of the result, by itself: one
        product has them all as columns, more than a product for each would have.
        """
        group, rows, columns = block
        stored = second[group, rows].reshape(-1, sizes.cell, prod(sizes.outer)).transpose(0, 1)
        outer = scratch.spread("outer", *stored.shape).copy_(stored)
        pointwise = inner[group].flatten(1)[:, columns].T
        sums = scratch.numbers("sums", len(pointwise), *stored.shape[1:])
        torch.mm(pointwise, outer.flatten(1), out=sums.flatten(1))
        by_taps = raw.view(*raw.shape[:3], -1)
        by_taps[group, rows, columns] = sums.transpose(0, 1)
        yield

    alone = prod(sizes.inner) == 1 and sizes.raw == sizes.outer
    groups = range(sizes.cells)
    rows = parts(sizes.outs, min(ROWS, rows_of(sizes.outs)) if alone else rows_of(sizes.outs))
    columns = parts(sizes.ins, COLUMNS)
    with borrowed(1) as (own,):
        inner = own.spread("inner", sizes.cells * sizes.cell, *sizes.inner, sizes.ins)
        inner = inner.unflatten(0, (sizes.cells, sizes.cell))
        turned = list(product(groups, parts(sizes.cell, ROWS)))
        share(turn, turned, large=inner.numel() >= MANY)
        work = multiply_alone if alone else multiply
        share(work, list(product(groups, rows, columns)), large=sizes.is_large)


def rows_of(outs: int) -> int:
    """Output channels of a block: few enough for several blocks, many enough for BLAS."""
    return min(2 * ROWS, max(ROWS // 2, -(-outs // 2)))


def _add_product(window: Tensor, outer: Tensor, inner: Tensor) -> Iterator[None]:
    """`window` (out, *taps, in) plus `outer` (out, cell) @ `inner` (cell, *taps, in), where taps
    that lie next to each other in both are columns of one product.
    """
    folded = window.ndim - 1
    while folded > 1 and _is_one_run(window, folded - 1) and _is_one_run(inner, folded - 1):
        folded -= 1
    window, inner = window.flatten(folded).movedim(0, -2), inner.flatten(folded).movedim(0, -2)
    if window.ndim == 2:
        window, inner = window[None], inner[None]
    for row in product(*map(range, window.shape[:-3])):  # the taps of a row in one call of BLAS
        sums, right = window[row], inner[row]
        torch.baddbmm(sums, outer.expand(len(right), *outer.shape), right, out=sums)
        yield


def _is_one_run(tensor: Tensor, start: int) -> bool:
    """Whether the dimensions from `start` on are one without a copy."""
    expected = 1
    for size, stride in zip(
        reversed(tensor.shape[start:]), reversed(tensor.stride()[start:]), strict=True
    ):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _batched(raw: Tensor, second: Tensor, first: Tensor, sizes: _Sizes) -> None:
    """Products of many cells in one call for each outer tap, then added where they belong."""
    taps = len(sizes.raw)

    def multiply(cells: slice, scratch: Scratch) -> Iterator[None]:
        outer = scratch.copied("outer", second[cells].permute(*range(3, 3 + taps), 0, 1, 2))
        inner = scratch.copied("inner", first[cells].permute(0, 1, *range(3, 3 + taps), 2))
        block = scratch.numbers("sums", len(inner), sizes.outs, *sizes.raw, sizes.ins).zero_()
        term = scratch.numbers("term", len(inner), sizes.outs, *sizes.inner, sizes.ins)
        for tap in sizes.outer_taps():
            torch.bmm(outer[tap], inner.flatten(2), out=term.flatten(2))
            block[(EVERY, EVERY, *sizes.window(tap))] += term
            yield
        raw[cells] = block.permute(0, 1, 2 + taps, *range(2, 2 + taps))

    each = sizes.outs * sizes.ins * prod(sizes.raw)
    share(multiply, parts(sizes.cells, max(1, SCRATCH // each)), large=sizes.is_large)


def _elementwise(raw: Tensor, second: Tensor, first: Tensor, sizes: _Sizes) -> None:
    """Cells of one or two channels: multiplied number by number, many cells side by side."""
    taps = len(sizes.raw)
    spread: tuple[Any, ...] = (EVERY, None, *(None,) * taps)

    def multiply(block: tuple[slice, slice, slice], scratch: Scratch) -> Iterator[None]:
        cells, rows, columns = block
        order = range(3, 3 + taps)
        outer = scratch.copied("outer", second[cells, rows].permute(2, *order, 1, 0))
        inner = scratch.copied("inner", first[cells, :, columns].permute(1, 2, *order, 0))
        shape = outer.shape[-2], inner.shape[1], *sizes.raw, outer.shape[-1]
        sums = scratch.numbers("sums", *shape).zero_()
        for tap in sizes.outer_taps():
            window = sums[(EVERY, EVERY, *sizes.window(tap))]
            for channel in range(sizes.cell):
                window.addcmul_(outer[(channel, *tap)][spread], inner[channel])
            yield
        raw[cells, rows, columns] = sums.permute(taps + 2, *range(taps + 2))

    side = parts(sizes.cells, 128)
    each = prod(sizes.raw) * (side[0].stop - side[0].start)
    columns = parts(sizes.ins, max(1, SCRATCH // each))
    each *= columns[0].stop - columns[0].start
    rows = parts(sizes.outs, max(1, SCRATCH // each))
    share(multiply, list(product(side, rows, columns)), large=sizes.is_large)


def parts(count: int, size: int) -> list[slice]:
    """Slices of `size`, the last one shorter, of `count` in all."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
