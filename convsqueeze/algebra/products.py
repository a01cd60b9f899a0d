"""Sums of products of matrices over pairs of taps, in float64: what every merged kernel is.

    result[t] = sum over outer taps b of second[b] @ first[a(b, t)]

for cells of channels (see `groups.cells`). BLAS does the products, block by block of the result;
the blocks and the order of every sum do not depend on the threads.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from convsqueeze.algebra.geometry import AxisMerge
from convsqueeze.algebra.threads import in_parallel

LARGE = 20_000_000
"""Multiplications from which on threads share them: about a millisecond of one."""
ROWS, COLUMNS = 256, 512
"""Rows and columns of a matrix that is multiplied at once, at most."""
RESULT = 1 << 17
"""Numbers of the result of a block that holds several cells, at most: 1 MiB."""
CALL = 1 << 12
"""Numbers that are copied in the time that one product of small matrices takes to be called."""
COPIED = 1 << 18
"""Numbers of the inner kernel that are copied at once, once for every pair of taps: 2 MiB."""
CACHE_LINE, TOO_REGULAR = 8, 64
"""Float64 numbers of a line of a processor's cache, and how far apart rows share too few lines."""


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
    outer_taps, places = table.shape
    second = second.reshape(cells, outs, cell, outer_taps)
    first = first.reshape(cells, cell, ins, -1)
    inner_taps, pairs = first.shape[3], int((table >= 0).sum())
    large = cells * outs * cell * ins * pairs >= LARGE
    large &= first.device.type == "cpu" and not (first.requires_grad or second.requires_grad)
    if outer_taps == 1 and table[0].equal(torch.arange(inner_taps)):
        result = _one_outer_tap(second.squeeze(3), first, large)
    elif inner_taps == 1 and table.equal(torch.eye(outer_taps, dtype=torch.int64) - 1):
        swapped = _one_outer_tap(first.squeeze(3).mT, second.transpose(1, 2), large)
        result = swapped.transpose(1, 2)
    elif cells * outer_taps * cell * ins * places <= CALL * pairs:
        result = _all_pairs(second, first, table, large)
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
        for part in parts(inner.shape[1], COLUMNS):
            right = inner[some, part, columns].to(
                torch.float64, memory_format=torch.contiguous_format
            )
            beta = min(part.start, 1)
            sums.baddbmm_(left[some, rows, part], right.flatten(2), beta=beta)

    width = max(1, COLUMNS // max(1, taps))
    few = max(1, RESULT // max(1, min(outs, COLUMNS) * min(ins, width) * taps))
    blocks = product(*map(parts, result.shape, (few, COLUMNS, width)))
    in_parallel(multiply, list(blocks), large=large)
    return result


def _all_pairs(second: Tensor, first: Tensor, table: Tensor, large: bool) -> Tensor:
    """The result (cells, out, in, places) by one product for each cell, also of zeros where no
    pair of taps meets.
    """
    cells, outs, cell, outer_taps = second.shape
    ins, inner_taps = first.shape[2:]
    inner = first.new_zeros((inner_taps + 1, cells, cell, ins), dtype=torch.float64)
    inner[:-1] = first.movedim(3, 0)
    result = inner.new_empty((cells, outs, ins, table.shape[1]))

    def multiply(block: tuple[slice, slice]) -> None:
        some, places = block
        left = second[some].double().transpose(2, 3).flatten(2)
        right = inner[:, some][table[:, places]].permute(2, 0, 3, 1, 4)
        sums = torch.bmm(left, right.flatten(3).flatten(1, 2))
        result[some, :, :, places] = sums.unflatten(2, right.shape[3:]).transpose(2, 3)

    copied = max(1, outer_taps * cell * ins)
    few = max(1, min(table.shape[1], COPIED // copied))
    blocks = product(parts(cells, max(1, COPIED // (copied * few))), parts(table.shape[1], few))
    in_parallel(multiply, list(blocks), large=large)
    return result


def _run_by_run(second: Tensor, first: Tensor, table: Tensor, large: bool) -> Tensor:
    """The result (cells, out, in, places) by one product for each outer tap and run of inner
    taps, which BLAS adds up.
    """
    cells, outs, cell, outer_taps = second.shape
    ins, inner_taps = first.shape[2:]
    places = table.shape[1]
    inner = _spaced(first, cells, cell, inner_taps * ins).unflatten(2, (inner_taps, ins))

    def copy(rows: slice) -> None:
        inner.flatten(0, 1)[rows] = first.flatten(0, 1)[rows].mT

    in_parallel(copy, parts(cells * cell, -(-ROWS // 4)), large=large)
    runs = _runs(table)
    begun = {place for run in runs if not run.adds for place in range(places)[run.places]}
    empty = sorted(set(range(places)) - begun)
    result = inner.new_empty((cells, outs, places, ins))

    def multiply(block: tuple[slice, slice]) -> None:
        part, right, sums = second[block], inner[block[0]], result[block]
        left = _spaced(part, outer_taps, *part.shape[:3]).copy_(part.movedim(3, 0))
        sums[:, :, empty] = 0
        for outer_tap, there, taps, adds in runs:
            columns = right[:, :, taps].flatten(2)
            sums[:, :, there].flatten(2).baddbmm_(left[outer_tap], columns, beta=int(adds))

    rows = min(ROWS, max(-(-ROWS // 4), -(-outs // 2)))
    few = max(1, RESULT // max(1, min(outs, rows) * places * ins))
    in_parallel(multiply, list(product(parts(cells, few), parts(outs, rows))), large=large)
    return result.transpose(2, 3)


class _Run(NamedTuple):
    """Places that follow each other, and the taps that lead there; whether anything did before."""

    outer_tap: int
    places: slice
    inner_taps: slice
    adds: bool


def _runs(table: Tensor) -> list[_Run]:
    found, begun = [], set[int]()
    for outer_tap, row in enumerate(table.tolist()):
        start = 0
        for end in range(1, len(row) + 1):
            if end < len(row) and row[end] == row[end - 1] + 1 > 0:
                continue
            if row[start] >= 0:
                places = range(start, end)
                taps = slice(row[start], row[start] + len(places))
                adds = not begun.isdisjoint(places)
                found.append(_Run(outer_tap, slice(start, end), taps, adds))
                begun.update(places)
            start = end
    return found


def _spaced(like: Tensor, *shape: int) -> Tensor:
    """Empty, float64. Rows a power of two apart would push each other out of the cache, which
    takes BLAS a tenth.
    """
    *before, width = shape
    wider = width + CACHE_LINE if width % TOO_REGULAR == 0 else width
    return like.new_empty((*before, wider), dtype=torch.float64)[..., :width]


def parts(count: int, size: int) -> list[slice]:
    """Slices of `size`, the last one shorter, of `count` in all."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
