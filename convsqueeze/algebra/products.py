"""Sums of products of matrices over pairs of taps, in float64: what every merged kernel is.

    result[t] = sum over outer taps b of second[b] @ first[a(b, t)]

for cells of channels (see `groups.cells`). BLAS does the products, block by block of the result;
the blocks and the order of every sum do not depend on the threads.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor, contiguous_format, float64

from convsqueeze.algebra.geometry import AxisMerge
from convsqueeze.algebra.threads import in_parallel

LARGE = 20_000_000
"""Multiplications from which on threads share them: about a millisecond of one."""
ROWS, COLUMNS = 256, 512
"""Rows and columns of a matrix that is multiplied at once, at most."""
RESULT = 1 << 17
"""Numbers of the result of a block that holds several cells, at most: 1 MiB."""


@lru_cache(maxsize=1024)
def tap_table(merge: AxisMerge, outer_taps: int, inner_taps: int) -> Tensor:
    """For each outer tap and each kept tap of the merged axis the inner tap that leads there, or
    -1: int64 (outer_taps, kept). A merged axis that keeps none has one tap, to which none leads.
    """
    places = torch.tensor(merge.kept if merge.kept else [-1])
    distance = places - merge.outer_step * torch.arange(outer_taps).unsqueeze(1)
    inner = distance // merge.inner_step
    leads = (distance % merge.inner_step == 0) & (inner >= 0) & (inner < inner_taps)
    return torch.where(leads, inner, -1)


def summed_products(second: Tensor, first: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """The result (cells, out, in, *places), float64, of `second` (cells, out, cell, *k2) and
    `first` (cells, cell, in, *k1), with a table of taps for each axis as `tap_table` gives it.
    """
    table = _table_of_all_axes(tables, first.shape[3:])
    cells, outs, cell, ins = *second.shape[:3], first.shape[2]
    first = first.flatten(3) if tables else first.unsqueeze(3)
    outer_taps, inner_taps = len(table), first.shape[3]
    second = second.reshape(cells, outs, cell, outer_taps)
    large = cells * outs * cell * ins * int((table >= 0).sum()) >= LARGE
    large &= first.device.type == "cpu" and not (first.requires_grad or second.requires_grad)
    if outer_taps == 1 and table[0].equal(torch.arange(inner_taps)):
        result = _one_outer_tap(second.squeeze(3), first, large)
    elif inner_taps == 1 and table.equal(torch.eye(outer_taps, dtype=torch.int64) - 1):
        result = _one_outer_tap(first.squeeze(3).mT, second.transpose(1, 2), large).transpose(1, 2)
    else:
        result = _run_by_run(second, first, table, large)
    return result.unflatten(3, [one.shape[1] for one in tables]) if tables else result.squeeze(3)


def _table_of_all_axes(tables: Sequence[Tensor], inner_taps: Sequence[int]) -> Tensor:
    """Of the taps of all axes, numbered in a row, the last axis fastest."""
    whole = torch.zeros(1, 1, dtype=torch.int64)
    for table, count in zip(tables, inner_taps, strict=True):
        left, right = whole[:, None, :, None], table[None, :, None, :]
        both = torch.where((left >= 0) & (right >= 0), left * count + right, -1)
        whole = both.flatten(2, 3).flatten(0, 1)
    return whole


def _one_outer_tap(outer: Tensor, inner: Tensor, large: bool) -> Tensor:
    """The result (cells, out, in, taps) of `outer` (cells, out, cell) and `inner` (cells, cell,
    in, taps): the inner taps are columns of one product.
    """
    cells, outs, _ = outer.shape
    ins, taps = inner.shape[2:]
    left = outer.double()
    result = left.new_empty((cells, outs, ins, taps))

    def multiply(block: tuple[slice, ...]) -> None:
        some, rows, columns = block
        sums = result[block].flatten(2)
        for part in parts(max(1, inner.shape[1]), COLUMNS):
            right = inner[some, part, columns].to(float64, memory_format=contiguous_format)
            sums.baddbmm_(left[some, rows, part], right.flatten(2), beta=min(part.start, 1))

    width = max(1, COLUMNS // max(1, taps))
    few = max(1, RESULT // max(1, min(outs, COLUMNS) * min(ins, width) * taps))
    blocks = product(*map(parts, result.shape, (few, COLUMNS, width)))
    in_parallel(multiply, list(blocks), large=large)
    return result


def _run_by_run(second: Tensor, first: Tensor, table: Tensor, large: bool) -> Tensor:
    """The result (cells, out, in, places) by one product for each outer tap and run of inner
    taps, which BLAS adds up.
    """
    cells, outs, cell, _ = second.shape
    ins, inner_taps = first.shape[2:]
    places = table.shape[1]
    inner = first.new_empty((cells, cell, inner_taps, ins), dtype=float64)

    def copy(rows: slice) -> None:
        inner.flatten(0, 1)[rows] = first.flatten(0, 1)[rows].mT

    in_parallel(copy, parts(cells * cell, -(-ROWS // 4)), large=large)
    runs = list(_runs(table))
    result = inner.new_empty((cells, outs, places, ins))

    def multiply(block: tuple[slice, slice]) -> None:
        part, right, sums = second[block], inner[block[0]], result[block].zero_()
        left = part.movedim(3, 0).to(float64, memory_format=contiguous_format)
        for outer_tap, there, taps in runs:
            columns = right[:, :, taps].flatten(2)
            sums[:, :, there].flatten(2).baddbmm_(left[outer_tap], columns)

    rows = min(ROWS, max(-(-ROWS // 4), -(-outs // 2)))
    few = max(1, RESULT // max(1, min(outs, rows) * places * ins))
    in_parallel(multiply, list(product(parts(cells, few), parts(outs, rows))), large=large)
    return result.transpose(2, 3)


def _runs(table: Tensor) -> Iterator[tuple[int, slice, slice]]:
    """Each outer tap with places that follow each other and the inner taps that lead there."""
    for outer_tap, row in enumerate(table.tolist()):
        start = 0
        for end in range(1, len(row) + 1):
            if end < len(row) and row[end] == row[end - 1] + 1 > 0:
                continue
            if row[start] >= 0:
                first = row[start]
                yield outer_tap, slice(start, end), slice(first, first + end - start)
            start = end


def parts(count: int, size: int) -> list[slice]:
    """Slices of `size`, the last one shorter, of `count` in all."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
