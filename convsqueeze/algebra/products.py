"""Sums of products of matrices over pairs of taps, in float64: what every merged kernel is.

    result[t] = sum over outer taps b of second[b] @ first[a(b, t)]

for cells of channels (see `groups.cells`). BLAS does the products, block by block of the result;
the blocks and the order of every sum do not depend on the threads.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import prod

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
GATHERED = 2000
"""Numbers of inner taps that are copied in the time of one small product."""
Run = tuple[int, int, int]
"""Places that follow each other and the inner taps that lead there: first ones and number."""


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
    cells, outs, cell, ins = *second.shape[:3], first.shape[2]
    inner = first.shape[3:]
    first = first.flatten(3) if tables else first.unsqueeze(3)
    second = second.reshape(cells, outs, cell, -1)
    pairs = prod(int((table >= 0).sum()) for table in tables)
    large = cells * outs * cell * ins * pairs >= LARGE
    large &= first.device.type == "cpu" and not (first.requires_grad or second.requires_grad)
    if all(one.equal(torch.arange(n)[None]) for one, n in zip(tables, inner, strict=True)):
        result = _one_outer_tap(second.squeeze(3), first, large)
    elif prod(inner) == 1 and all(one.equal(torch.eye(len(one)).long() - 1) for one in tables):
        result = _one_outer_tap(first.squeeze(3).mT, second.transpose(1, 2), large).transpose(1, 2)
    else:
        result = _tap_by_tap(second, first, tables, inner, large)
    return result.unflatten(3, [one.shape[1] for one in tables]) if tables else result.squeeze(3)


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


def _tap_by_tap(
    second: Tensor, first: Tensor, tables: Sequence[Tensor], inner_taps: Sequence[int], large: bool
) -> Tensor:
    """The result (cells, out, in, places) by products for each outer tap, which BLAS adds up: one
    for each run of inner taps, or one for all places where runs are many and short.
    """
    cells, outs, cell, _ = second.shape
    ins, places = first.shape[2], prod(table.shape[1] for table in tables)
    inner = first.new_empty((cells, cell, first.shape[3], ins), dtype=float64)

    def copy(rows: slice) -> None:
        inner.flatten(0, 1)[rows] = first.flatten(0, 1)[rows].mT

    in_parallel(copy, parts(cells * cell, -(-ROWS // 4)), large=large)
    result = inner.new_zeros((cells, outs, places * ins))
    rows = min(ROWS, max(-(-ROWS // 4), -(-outs // 2)))
    few = max(1, RESULT // max(1, min(outs, rows) * places * ins))
    blocks = list(product(parts(cells, few), parts(outs, rows)))
    gathered = cells * cell * ins * places * second.shape[3]
    if gathered < GATHERED * _count_runs(tables) * len(blocks):
        _gathered(result, second, inner, tables, inner_taps, large)
    else:
        _run_by_run(result, second, inner, _runs(tables, inner_taps), blocks, large)
    return result.unflatten(2, (places, ins)).transpose(2, 3)


def _run_by_run(
    result: Tensor,
    second: Tensor,
    inner: Tensor,
    runs: Sequence[Sequence[Run]],
    blocks: Sequence[tuple[slice, slice]],
    large: bool,
) -> None:
    """Adds to the result (cells, out, places * in) the runs of each outer tap; `inner` is (cells,
    cell, taps, in).
    """
    ins, inner = inner.shape[3], inner.flatten(2)

    def multiply(block: tuple[slice, slice]) -> None:
        right, sums = inner[block[0]], result[block]
        left = second[block].movedim(3, 0).to(float64, memory_format=contiguous_format)
        for matrix, found in zip(left, runs, strict=True):
            for place, tap, count in found:
                columns = right.narrow(2, tap * ins, count * ins)
                sums.narrow(2, place * ins, count * ins).baddbmm_(matrix, columns)

    in_parallel(multiply, blocks, large=large)


def _gathered(
    result: Tensor,
    second: Tensor,
    inner: Tensor,
    tables: Sequence[Tensor],
    inner_taps: Sequence[int],
    large: bool,
) -> None:
    """The same, with the inner taps of all places side by side for each outer tap."""
    cells, cell, taps, ins = inner.shape
    shape = [table.shape[1] for table in tables]
    inner = torch.cat((inner.new_zeros(cells, cell, 1, ins), inner), 2)  # the first leads nowhere
    steps = [
        torch.where(table >= 0, table * step, -taps).to(inner.device)
        for table, step in zip(tables, _strides(inner_taps), strict=True)
    ]
    left = second.movedim(3, 0).to(float64, memory_format=contiguous_format)

    def multiply(block: tuple[slice, slice]) -> None:
        some, part = block
        flat = torch.arange(part.start, part.stop, device=inner.device)
        places = [flat // step % n for step, n in zip(_strides(shape), shape, strict=True)]
        sums = result[some, :, part.start * ins : part.stop * ins]
        for matrix, rows in zip(left, product(*steps), strict=True):
            index = sum(row[place] for row, place in zip(rows, places, strict=True)) + 1
            there = inner[some].index_select(2, index.clamp_(min=0))
            sums.baddbmm_(matrix[some], there.flatten(2))

    width = max(1, RESULT // max(1, cell * ins))
    few = max(1, RESULT // max(1, cell * ins * min(width, prod(shape))))
    in_parallel(multiply, list(product(parts(cells, few), parts(prod(shape), width))), large=large)


def _strides(shape: Sequence[int]) -> list[int]:
    """How far apart neighbours along each axis lie in a contiguous tensor of that shape."""
    return [prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _runs(tables: Sequence[Tensor], inner_taps: Sequence[int]) -> list[list[Run]]:
    """The runs of each outer tap; taps of all axes are numbered in a row, the last fastest."""
    behind, places, taps = [[(0, 0, 1)]], 1, 1
    for table, count in zip(reversed(tables), reversed(inner_taps), strict=True):
        whole = places == taps and behind == [[(0, 0, places)]]
        axis = [_runs_of_axis(row) for row in table.tolist()]
        behind = [
            [
                (place * places + behind_place, tap * taps + behind_tap, some * number)
                for place, tap, some in (found if whole else _singly(found))
                for behind_place, behind_tap, number in one
            ]
            for found in axis
            for one in behind
        ]
        places, taps = places * table.shape[1], taps * count
    return behind


def _count_runs(tables: Sequence[Tensor]) -> int:
    """How many runs there are, or somewhat more."""
    *leading, last = tables
    runs = sum(len(_runs_of_axis(row)) for row in last.tolist())
    return runs * prod(int((table >= 0).sum()) for table in leading)


def _runs_of_axis(row: Sequence[int]) -> list[Run]:
    """Those of one outer tap, of whose `row` each place holds the inner tap that leads there."""
    found, start = [], 0
    for end in range(1, len(row) + 1):
        if end < len(row) and row[end] == row[end - 1] + 1 > 0:
            continue
        if row[start] >= 0:
            found.append((start, row[start], end - start))
        start = end
    return found


def _singly(runs: Sequence[Run]) -> list[Run]:
    """The same as runs of one place each."""
    return [(place + i, tap + i, 1) for place, tap, count in runs for i in range(count)]


def parts(count: int, size: int) -> list[slice]:
    """Slices of `size`, the last one shorter, of `count` in all."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
