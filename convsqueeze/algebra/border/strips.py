"""Running border terms with torch: slabs of the input in, strips of the output added to.

For every set of axes the samples near the ends (a slab) go through one small convolution over the
other axes, on which it is the merged one. The samples of the slab are its input channels, and all
wrong rows at once are its output channels. Both ends of an axis are one slab: where they do not
meet its kernel is zero, which costs less than a call for each.
Knows tensors, axes and `corrections`, no modules.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import prod
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from convsqueeze.algebra.apply import apply_operator
from convsqueeze.algebra.border.corrections import (
    Absent,
    Corrections,
    SizeClass,
    Span,
    Subset,
    span_length,
)
from convsqueeze.algebra.geometry import Axis

AT_ONCE = 1 << 22
"""Numbers of all terms of a kernel that are looked up together."""

Stored: TypeAlias = tuple[Tensor | None, Tensor | None]
"""Weight and bias of a set of axes, as they are stored."""


@dataclass(frozen=True)
class Table:
    """Where the packed tables say which border taps a strip adds up at each of its places: indices
    from `start` on, then as many factors, (terms, rows, columns) each.
    """

    start: int
    terms: int
    rows: int
    columns: int

    def of(self, tables: Tensor) -> Tensor:
        """Indices and factors: int64 (2, terms, rows, columns)."""
        stop = self.start + 2 * self.terms * self.rows * self.columns
        return tables[self.start : stop].view(2, self.terms, self.rows, self.columns)


@dataclass(frozen=True)
class Strip:
    """The rows that one axis has wrong for one class of sizes, and the samples that mend them."""

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]
    weights: Table | None
    biases: Table | None


def pack(corrections: Corrections) -> tuple[Tensor, tuple[dict[int, Strip], ...]]:
    """The tables of every axis and class in one tensor, int64, and the strips that point into it:
    for each axis by class size.
    """
    numbers: list[int] = []
    strips = tuple(
        {one.size: _strip(one, numbers) for one in axis.classes} for axis in corrections.axes
    )
    return torch.tensor(numbers, dtype=torch.int64), strips


def _strip(one: SizeClass, numbers: list[int]) -> Strip:
    rows, columns = one.row_spans, one.column_spans
    weights, biases = entries(one, rows, columns)
    tables = _table(weights, span_length(columns), numbers), _table(biases, 1, numbers)
    return Strip(rows, columns, *tables)


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


def _table(found: list[Entry], columns: int, numbers: list[int]) -> Table | None:
    terms = max(map(len, found), default=0)
    if not terms:
        return None
    start = len(numbers)
    filled = [[*entry, *[(0, 0)] * (terms - len(entry))] for entry in found]
    for part in (0, 1):
        numbers += [entry[term][part] for term in range(terms) for entry in filled]
    return Table(start, terms, len(found) // columns, columns)


@dataclass(frozen=True, eq=False)
class Lookup:
    """How a kernel is made of stored numbers: the sum over terms of those at `index` times
    `factors`, (terms, rows, columns) each, all axes of rows and of columns in one.
    """

    index: Tensor
    factors: Tensor

    @classmethod
    def of(
        cls,
        tables: Sequence[Tensor | None],
        grid: Sequence[int],
        absent: Sequence[int],
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> "Lookup":
        """`tables` are those of `Table.of` for each axis, None where a kernel has the taps of the
        grid as they are; `absent` are the places of the grid that are not stored.
        """
        index = torch.zeros(1, 1, 1, dtype=torch.int64, device=device)
        factors = torch.ones_like(index)
        for count, table in zip(grid, tables, strict=True):
            taps = torch.arange(count, device=device).view(1, 1, -1)
            more, factor = (taps, torch.ones_like(taps)) if table is None else table
            index = _outer(index * count, more, torch.add)
            factors = _outer(factors, factor, torch.mul)
        if absent:
            there = torch.ones(prod(grid), dtype=torch.int64, device=device)
            there = there.index_fill(0, torch.tensor(absent, device=device), 0)
            place = (there.cumsum(0) - 1).clamp(min=0)
            index, factors = place[index], factors * there[index]
        return cls(index, factors.to(dtype))

    def __call__(self, stored: Tensor) -> Tensor:
        """(out_channels, channels, places) to (out_channels * rows, channels, columns)."""
        if self.index.numel() * stored.shape[0] * stored.shape[1] > AT_ONCE:
            terms = zip(self.index, self.factors, strict=True)
            summed = reduce(Tensor.add_, (stored[:, :, i].mul_(f) for i, f in terms))
        else:
            found = stored[:, :, self.index].mul_(self.factors)  # far faster than index_select
            summed = found.squeeze(2) if self.index.shape[0] == 1 else found.sum(2)
        return summed.transpose(1, 2).flatten(0, 1)


def _outer(one: Tensor, other: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Every pair, dimension by dimension: (a, b, c) and (d, e, f) to (a * d, b * e, c * f)."""
    both = combine(one[:, None, :, None, :, None], other[None, :, None, :, None, :])
    return both.flatten(4, 5).flatten(2, 3).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class KernelPlan:
    """How the kernel of a set of axes is made for one kind of size.

    It has `rows` and taps (`kernel_size`) on each axis: 1 row on those that are not in the set,
    which are the `axes` that it is run on.
    """

    subset: Subset
    strips: tuple[Strip, ...]
    rows: tuple[int, ...]
    kernel_size: tuple[int, ...]
    axes: tuple[Axis, ...]
    weight: Lookup | None
    bias: Lookup | None

    def __call__(self, stored: Stored) -> "Kernel":
        """The kernel with values."""
        weight, bias = stored
        if weight is None or self.weight is None:
            weight = None
        else:
            weight = self.weight(weight.flatten(2)).unflatten(2, self.kernel_size)
            weight = self.to_channels(weight)
        if bias is None or self.bias is None:
            bias = None
        else:
            bias = self.bias(bias.flatten(1).unsqueeze(1)).flatten()
            bias = bias.unflatten(0, (-1, *self.rows)) if weight is None else bias
        return Kernel(self, weight, bias)

    def to_channels(self, tensor: Tensor) -> Tensor:
        """(n, channels, *sizes) with the axes of the set among the channels: (n, channels * some
        sizes, *others).
        """
        order = [0, 1, *(2 + axis for axis in (*self.subset, *self.others))]
        return tensor.permute(order).flatten(1, 1 + len(self.subset))

    @property
    def others(self) -> list[int]:
        """The axes that are not in the set."""
        return [axis for axis in range(len(self.rows)) if axis not in self.subset]


@dataclass(frozen=True, eq=False)
class Kernel:
    """What a set of axes adds for inputs of one kind, ready to run.

    With a `weight`, (out_channels * rows, in_channels / groups * columns, *kernel_size), a slab of
    the input goes through it and `bias` is (out_channels * rows,); else `bias` is all that is
    added, (out_channels, *rows).
    """

    plan: KernelPlan
    weight: Tensor | None
    bias: Tensor | None


def kernel_plan(
    corrections: Corrections,
    subset: Subset,
    strips: Sequence[Strip],
    tables: Tensor,
    axes: Sequence[Axis],
    dtype: torch.dtype,
    *,
    signs: bool = True,
) -> KernelPlan:
    """Of a set of axes, for the kind of size that has these strips, one an axis.

    With `signs` off all factors count as positive, for bounds.
    """
    chosen = tuple(strips[axis] for axis in subset)
    rows, taps = [1] * len(axes), [axis.kernel_size for axis in axes]
    grid = corrections.grid(subset, taps)
    for axis, strip in zip(subset, chosen, strict=True):
        rows[axis] = span_length(strip.rows)
        taps[axis] = max(span_length(strip.columns), 1)

    def lookup(found: Sequence[Table | None], grid: Sequence[int], absent: Absent) -> Lookup | None:
        of_axes: list[Tensor | None] = [None] * len(axes)
        for axis, table in zip(subset, found, strict=True):
            if table is None:
                return None
            of_axes[axis] = table.of(tables) if signs else table.of(tables).abs()
        places = dict(absent).get(subset, ())
        return Lookup.of(of_axes, grid, places, device=tables.device, dtype=dtype)

    return KernelPlan(
        subset,
        chosen,
        tuple(rows),
        tuple(taps),
        tuple(axis for number, axis in enumerate(axes) if number not in subset),
        lookup([strip.weights for strip in chosen], grid, corrections.absent),
        lookup(
            [strip.biases for strip in chosen],
            corrections.bias_grid(subset),
            corrections.absent_biases,
        ),
    )


def add_borders(y: Tensor, x: Tensor, found: Sequence[Kernel], groups: int) -> Tensor:
    """`y`, the plain merged operator's output for `x`, with every border term added in place.

    Both (batch, channels, *size).
    """
    for kernel in found:
        value = kernel.bias
        if kernel.weight is not None:
            value = _rows_of(x, kernel.plan, kernel.weight, kernel.bias, groups)
        if value is not None:
            _add(y, value, kernel.plan)
    return y


def _rows_of(
    x: Tensor, plan: KernelPlan, weight: Tensor, bias: Tensor | None, groups: int
) -> Tensor:
    """The slab through its kernel: (batch, out_channels, *rows or output size)."""
    for axis, strip in zip(plan.subset, plan.strips, strict=True):
        x = slab(x, 2 + axis, strip.columns)
    found = apply_operator(plan.to_channels(x), weight, bias, plan.axes, groups)
    counts = [plan.rows[axis] for axis in plan.subset]
    found = found.unflatten(1, (-1, *counts))
    order = sorted(range(len(plan.rows)), key=[*plan.subset, *plan.others].__getitem__)
    return found.permute(0, 1, *(2 + place for place in order))


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


def _add(y: Tensor, value: Tensor, plan: KernelPlan) -> None:
    """Each part of a strip added to the rows of `y` that it is for."""
    rank = len(plan.rows)
    placed = [
        _placed(strip.rows, y.shape[2 + axis])
        for axis, strip in zip(plan.subset, plan.strips, strict=True)
    ]
    for choice in product(*placed):
        here: list[Any] = [slice(None)] * rank
        there: list[Any] = [slice(None)] * rank
        for axis, (start, offset, length) in zip(plan.subset, choice, strict=True):
            here[axis] = slice(start, start + length)
            there[axis] = slice(offset, offset + length)
        y[(..., *here)].add_(value[(..., *there)])


def _placed(rows: Sequence[Span], count: int) -> list[tuple[int, int, int]]:
    """Where each span of rows that is there starts in the output and in the strip, and how long."""
    found = []
    offset = 0
    for start, stop in rows:
        low, high = _inside((start, stop), count)
        skipped = low - start if start >= 0 else low - (count + start)
        if low < high:
            found.append((low, offset + skipped, high - low))
        offset += stop - start
    return found
