"""Sums of products of matrices over pairs of taps, in float64: what every merged kernel is.

    result[t] = sum over outer taps b of second[b] @ first[a(b, t)]

for cells of channels (see `groups.cells`). BLAS does the products, block by block of the result;
the blocks and the order of every sum do not depend on the threads.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from convsqueeze.algebra.geometry import AxisMerge
from convsqueeze.algebra.threads import in_parallel

LARGE = 20_000_000
"""Multiplications from which on threads share them: about a millisecond of one."""
ROWS, COLUMNS, PLACES = 256, 512, 9
"""Output channels, input channels and taps of the result that a block holds, at most: 9 MiB."""
READ = 1 << 16
"""Numbers of a weight that are copied at once, rows with all their taps."""
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
    cells, outs, cell = second.shape[:3]
    ins = first.shape[2]
    table = _table_of_all_axes(tables, first.shape[3:])
    outer_taps, places = table.shape
    outer = second.reshape(cells, outs, cell, outer_taps)
    pairs = int((table >= 0).sum())
    large = cells * outs * cell * ins * pairs >= LARGE
    large &= first.device.type == "cpu" and not (first.requires_grad or second.requires_grad)
    inner = _inner_taps(first, large)
    copied = max(1, outer_taps * cell * ins)
    if cells * copied * places <= CALL * pairs:
        result = inner.new_empty((cells, outs, ins, places))
        products = _all_pairs
        taps = max(1, min(places, COPIED // copied))
        sizes = max(1, COPIED // (copied * taps)), max(1, outs), max(1, ins), taps
    else:
        result = inner.new_empty((places, cells, outs, ins)).permute(1, 2, 3, 0)
        products = _pair_by_pair
        few = max(1, ROWS * COLUMNS // max(1, min(outs, ROWS) * min(ins, COLUMNS)))
        sizes = few, ROWS, COLUMNS, PLACES

    def multiply(block: tuple[slice, ...]) -> None:
        some, rows, columns, taps = block
        part = outer[some, rows]
        left = part.new_empty((outer_taps, *part.shape[:3]), dtype=torch.float64)
        _copy_taps_first(left.flatten(1, 2), part.flatten(0, 1))
        products(result[block], left, inner[:, some, :, columns], table[:, taps])

    blocks = product(*map(parts, result.shape, sizes))
    in_parallel(multiply, list(blocks), large=large)
    return result.unflatten(3, [one.shape[1] for one in tables]) if tables else result.squeeze(3)


def _table_of_all_axes(tables: Sequence[Tensor], inner_taps: Sequence[int]) -> Tensor:
    """Of the taps of all axes, numbered in a row, the last axis fastest."""
    whole = torch.zeros(1, 1, dtype=torch.int64)
    for table, count in zip(tables, inner_taps, strict=True):
        left, right = whole[:, None, :, None], table[None, :, None, :]
        both = torch.where((left >= 0) & (right >= 0), left * count + right, -1)
        whole = both.flatten(2, 3).flatten(0, 1)
    return whole


def _inner_taps(first: Tensor, large: bool) -> Tensor:
    """`first` as (taps, cells, cell, in), and a tap of zeros as the last, at -1."""
    cells, cell, ins = first.shape[:3]
    first = first.reshape(cells * cell, ins, -1)
    # rows a power of two apart push each other out of the cache, which takes BLAS a tenth
    width = ins + CACHE_LINE if ins % TOO_REGULAR == 0 else ins
    inner = first.new_empty((first.shape[2] + 1, cells * cell, width), dtype=torch.float64)
    inner[-1] = 0

    def copy(rows: slice) -> None:
        _copy_taps_first(inner[:-1, rows, :ins], first[rows])

    in_parallel(copy, parts(cells * cell, ROWS), large=large)
    return inner[..., :ins].unflatten(1, (cells, cell))


def _copy_taps_first(target: Tensor, weight: Tensor) -> None:
    """`target` (taps, channels, ...) is given the numbers of `weight` (channels, ..., taps), a few
    rows at a time: what lies taps apart is still in the cache when its neighbour is read.
    """
    for rows in parts(len(weight), max(1, READ // max(1, weight[0].numel()))):
        target[:, rows] = weight[rows].movedim(-1, 0)


def _all_pairs(result: Tensor, outer: Tensor, inner: Tensor, table: Tensor) -> None:
    """The result (cells, out, in, places) of `outer` (taps, cells, out, cell) and `inner` (taps,
    cells, cell, in), by one product for each cell, also of zeros where no pair meets.
    """
    left = outer.permute(1, 2, 0, 3).flatten(2)
    right = inner[table].permute(2, 0, 3, 1, 4)  # cells, outer taps, cell, places, in
    sums = torch.bmm(left, right.flatten(3).flatten(1, 2))
    result.copy_(sums.unflatten(2, right.shape[3:]).transpose(2, 3))


def _pair_by_pair(result: Tensor, outer: Tensor, inner: Tensor, table: Tensor) -> None:
    """As `_all_pairs`, by one product for each pair of taps, which BLAS adds up."""
    for place, taps in enumerate(table.T.tolist()):
        pairs = [(b, a) for b, a in enumerate(taps) if a >= 0]
        sums = result[..., place]
        if not pairs:
            sums.zero_()
        for count, (b, a) in enumerate(pairs):
            sums.baddbmm_(outer[b], inner[a], beta=min(count, 1))


def parts(count: int, size: int) -> list[slice]:
    """Slices of `size`, the last one shorter, of `count` in all."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
