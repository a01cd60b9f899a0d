"""Running border terms with torch: slabs of the input in, strips of the output added to.

For every set of axes the samples near the ends (a slab) go through one small convolution that
gives all wrong rows at once, as channels; on the other axes it is the merged one. Both ends of an
axis are one slab: where they do not meet its kernel is zero, which costs less than a call for each.
Knows tensors, axes and `corrections`, no modules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from convsqueeze.algebra.apply import apply_operator
from convsqueeze.algebra.corrections import (
    AxisCorrections,
    Corrections,
    SizeClass,
    Span,
    Subset,
    span_length,
)
from convsqueeze.algebra.geometry import Axis

Stored: TypeAlias = tuple[Tensor | None, Tensor | None]
"""Weight and bias of a set of axes, as grids: see `grid_of`."""


@dataclass(frozen=True)
class Table:
    """Where in the packed tables a strip's places find their border taps.

    `terms` rows of indices at `start`, then as many of factors, `count` places each. A table that
    takes the taps just as they stand needs neither.
    """

    start: int
    terms: int
    count: int
    as_they_stand: bool

    def expanded(self, grid: Tensor, dim: int, tables: Tensor, signs: bool = True) -> Tensor:
        """`grid` with a place for each entry, in the place of its taps on `dim`."""
        if self.as_they_stand:
            return grid
        length = self.terms * self.count
        index = tables[self.start : self.start + length].view(self.terms, self.count)
        factors = tables[self.start + length : self.start + 2 * length]
        if not signs:
            factors = factors.abs()
        shape = [1] * grid.ndim
        shape[dim] = self.count
        total: Tensor | None = None
        for term in range(self.terms):
            factor = factors[term * self.count : (term + 1) * self.count].to(grid.dtype)
            found = grid.index_select(dim, index[term]) * factor.view(shape)
            total = found if total is None else total + found
        return grid if total is None else total


@dataclass(frozen=True)
class Strip:
    """The rows that one axis has wrong for one class of sizes, and the samples that mend them."""

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]
    weights: Table | None
    biases: Table | None

    @property
    def row_count(self) -> int:
        return span_length(self.rows)

    @property
    def column_count(self) -> int:
        return span_length(self.columns)


def pack(corrections: Corrections) -> tuple[Tensor, tuple[dict[int, Strip], ...]]:
    """The tables of every axis and class in one tensor, int64, and the strips that point into it:
    for each axis by class size.
    """
    numbers: list[int] = []
    strips = tuple(
        {one.size: _strip(one, axis, numbers) for one in axis.classes} for axis in corrections.axes
    )
    return torch.tensor(numbers, dtype=torch.int64), strips


def _strip(one: SizeClass, axis: AxisCorrections, numbers: list[int]) -> Strip:
    rows, columns = one.row_spans, one.column_spans
    weights, biases = entries(one, rows, columns)
    return Strip(
        rows, columns, _table(weights, axis.taps, numbers), _table(biases, axis.bias_taps, numbers)
    )


Entry = list[tuple[int, int]]
"""What is added up at one place: (border tap, factor)."""


def entries(
    one: SizeClass, rows: Sequence[Span], columns: Sequence[Span]
) -> tuple[list[Entry], list[Entry]]:
    """What stands at every place of given spans: of weights row by row, rows * columns places; of
    biases, one place a row.
    """
    row_at = {place: index for index, place in enumerate(_places(rows))}
    column_at = {place: index for index, place in enumerate(_places(columns))}
    width = len(column_at)
    weights: list[Entry] = [[] for _ in range(len(row_at) * width)]
    for row, column, tap, factor in one.weights:
        weights[row_at[row] * width + column_at[column]].append((tap, factor))
    biases: list[Entry] = [[] for _ in row_at]
    for row, tap, factor in one.biases:
        biases[row_at[row]].append((tap, factor))
    return weights, biases


def _places(found: Sequence[Span]) -> list[int]:
    return [place for span in found for place in range(*span)]


def _table(found: list[Entry], taps: int, numbers: list[int]) -> Table | None:
    terms = max(map(len, found), default=0)
    if not terms:
        return None
    if [[(tap, 1)] for tap in range(taps)] == found:
        return Table(0, 1, taps, True)
    start = len(numbers)
    filled = [[*entry, *[(0, 0)] * (terms - len(entry))] for entry in found]
    for part in (0, 1):
        numbers += [entry[term][part] for term in range(terms) for entry in filled]
    return Table(start, terms, len(found), False)


def grid_of(stored: Tensor, shape: Sequence[int], absent: Sequence[int]) -> Tensor:
    """Stored border taps as their whole grid: (channels ..., *shape)."""
    if not absent:
        return stored
    count = torch.Size(shape).numel()
    kept = sorted(set(range(count)) - set(absent))
    whole = stored.new_zeros((*stored.shape[:-1], count))
    place = torch.tensor(kept, device=stored.device)
    return whole.index_copy(whole.ndim - 1, place, stored).unflatten(-1, tuple(shape))


def add_borders(
    y: Tensor,
    x: Tensor,
    stored: Mapping[Subset, Stored],
    strips: Sequence[Strip],
    tables: Tensor,
    axes: Sequence[Axis],
    groups: int,
    *,
    signs: bool = True,
) -> Tensor:
    """`y`, the plain merged operator's output for `x`, with every border term added in place.

    `strips` are those of the input's size, one an axis. With `signs` off all factors count as
    positive, for bounds.
    """
    for subset, (weight, bias) in stored.items():
        chosen = [strips[axis] for axis in subset]
        if not all(strip.rows for strip in chosen):
            continue
        value = _strip_bias(bias, subset, chosen, tables, signs)
        if weight is not None and all(strip.weights for strip in chosen):
            value = _strip_values(x, weight, value, subset, chosen, tables, axes, groups, signs)
        if value is not None:
            _add(y, value, subset, chosen)
    return y


def _strip_bias(
    bias: Tensor | None, subset: Subset, strips: Sequence[Strip], tables: Tensor, signs: bool
) -> Tensor | None:
    """The bias of each row of a strip: (out_channels, *rows), 1 on every other axis."""
    if bias is None or not all(strip.biases for strip in strips):
        return None
    for axis, strip in zip(subset, strips, strict=True):
        if strip.biases is not None:
            bias = strip.biases.expanded(bias, 1 + axis, tables, signs)
    return bias


def _strip_values(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    subset: Subset,
    strips: Sequence[Strip],
    tables: Tensor,
    axes: Sequence[Axis],
    groups: int,
    signs: bool,
) -> Tensor:
    """What is added to the rows of a strip: (batch, out_channels, *rows or output size)."""
    rows = [1] * len(axes)
    own = list(axes)
    for axis, strip in zip(subset, strips, strict=True):
        if strip.weights is not None:
            weight = strip.weights.expanded(weight, 2 + axis, tables, signs)
        rows[axis], own[axis] = strip.row_count, Axis(strip.column_count)
        x = slab(x, x.ndim - len(axes) + axis, strip.columns)
    return rows_of(x, weight, bias, rows, own, groups)


def rows_of(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Sequence[int],
    axes: Sequence[Axis],
    groups: int,
) -> Tensor:
    """A slab through kernels that give whole rows: `weight` has `rows * columns` taps on an axis at
    the border, and `rows` is 1 on every other. (batch, out_channels, *rows or output size).
    """
    rank, out_channels = len(axes), weight.shape[0]
    sizes = [n for count, axis in zip(rows, axes, strict=True) for n in (count, axis.kernel_size)]
    kernel = weight.reshape(*weight.shape[:2], *sizes)
    kernel = kernel.movedim(tuple(range(2, 2 + 2 * rank, 2)), tuple(range(1, 1 + rank)))
    kernel = kernel.flatten(0, rank)
    if bias is not None:
        bias = bias.expand(out_channels, *rows).flatten()
    found = apply_operator(x, kernel, bias, axes, groups).unflatten(1, (out_channels, *rows))
    order = [0, 1]
    for axis in range(rank):
        order += [2 + axis, 2 + rank + axis]
    found = found.permute(order)
    for axis in range(rank):  # of a row count and a size, one is 1
        found = found.flatten(2 + axis, 3 + axis)
    return found


def slab(x: Tensor, dim: int, columns: Sequence[Span]) -> Tensor:
    """The samples of some spans side by side, zeros where the image has none."""
    size = x.shape[dim]
    parts = []
    for start, stop in columns:
        low, high = _inside((start, stop), size)
        part = x.narrow(dim, low, high - low)
        missing = stop - start - (high - low)
        if missing:
            amounts = (0, missing) if start >= 0 else (missing, 0)
            part = F.pad(part, [0, 0] * (x.ndim - 1 - dim) + list(amounts))
        parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _inside(span: Span, count: int) -> Span:
    """The places of a span that are there, from the start."""
    start, stop = span
    if start >= 0:
        return min(start, count), min(stop, count)
    return max(count + start, 0), max(count + stop, 0)


def _add(y: Tensor, value: Tensor, subset: Subset, strips: Sequence[Strip]) -> None:
    rank = value.ndim - 1 if value.ndim < y.ndim else value.ndim - 2
    for choice in product(
        *(
            _placed(strip.rows, y.shape[y.ndim - rank + axis])
            for axis, strip in zip(subset, strips, strict=True)
        )
    ):
        here: list[Any] = [slice(None)] * rank
        there: list[Any] = [slice(None)] * rank
        for axis, (in_y, in_value) in zip(subset, choice, strict=True):
            here[axis], there[axis] = slice(*in_y), slice(*in_value)
        y[(..., *here)] += value[(..., *there)]


def _placed(rows: Sequence[Span], count: int) -> list[tuple[Span, Span]]:
    """Where each span of rows stands in the output, and where in the strip."""
    found = []
    offsets = accumulate((stop - start for start, stop in rows), initial=0)
    for (start, stop), offset in zip(rows, offsets, strict=False):
        low, high = _inside((start, stop), count)
        skipped = low - start if start >= 0 else low - (count + start)
        found.append(((low, high), (offset + skipped, offset + skipped + high - low)))
    return found
