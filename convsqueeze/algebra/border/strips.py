"""Running border terms with torch: slabs of the input in, strips of the output added to.

For every set of axes the samples near the ends (a slab) go through one small convolution that
gives all wrong rows at once, as channels; on the other axes it is the merged one. Both ends of an
axis are one slab: where they do not meet its kernel is zero, which costs less than a call for each.
Knows tensors, axes and `corrections`, no modules.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from convsqueeze.algebra.apply import apply_operator
from convsqueeze.algebra.border.corrections import (
    AxisCorrections,
    Corrections,
    SizeClass,
    Span,
    Subset,
    span_length,
)
from convsqueeze.algebra.geometry import Axis

Stored: TypeAlias = tuple[Tensor | None, Tensor | None]
"""Weight and bias of a set of axes, as they are stored or as grids: see `grid_of`."""


@dataclass(frozen=True)
class Table:
    """Where in the packed tables a strip's places find their border taps.

    `terms` rows of indices at `start`, then as many of factors, `count` places each. A table that
    takes the taps just as they stand needs neither. One that `chooses` has a single tap at each
    place, one taken negatively, or nothing.
    """

    start: int
    terms: int
    count: int
    as_they_stand: bool
    chooses: bool

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
        return Table(0, 1, taps, True, True)
    start = len(numbers)
    filled = [[*entry, *[(0, 0)] * (terms - len(entry))] for entry in found]
    for part in (0, 1):
        numbers += [entry[term][part] for term in range(terms) for entry in filled]
    chooses = all(abs(factor) == 1 for entry in found for _, factor in entry) and terms == 1
    return Table(start, terms, len(found), False, chooses)


def grid_of(stored: Tensor, shape: Sequence[int], absent: Sequence[int]) -> Tensor:
    """Stored border taps as their whole grid: (channels ..., *shape)."""
    if not absent:
        return stored
    count = torch.Size(shape).numel()
    kept = sorted(set(range(count)) - set(absent))
    whole = stored.new_zeros((*stored.shape[:-1], count))
    place = torch.tensor(kept, device=stored.device)
    return whole.index_copy(whole.ndim - 1, place, stored).unflatten(-1, tuple(shape))


@dataclass(frozen=True, eq=False)
class Kernel:
    """What a set of axes adds for inputs of one kind, ready to run.

    With a `weight`, (out_channels * rows, in_channels / groups, *columns or kernel_size) over
    `axes`, the slab goes through it and `bias` is (out_channels * rows,); else `bias` is all that
    is added, (out_channels, *rows). `rows` is 1 on axes that are not in the set.
    """

    subset: Subset
    strips: tuple[Strip, ...]
    rows: tuple[int, ...]
    axes: tuple[Axis, ...]
    weight: Tensor | None
    bias: Tensor | None


def kernels(
    stored: Mapping[Subset, Stored],
    strips: Sequence[Strip],
    tables: Tensor,
    axes: Sequence[Axis],
    *,
    signs: bool = True,
) -> list[Kernel]:
    """The kernels of every set of axes for the kind of size that has these strips, one an axis.

    With `signs` off all factors count as positive, for bounds.
    """
    found = []
    for subset, (weight, bias) in stored.items():
        chosen = tuple(strips[axis] for axis in subset)
        if bias is not None:
            bias = _expanded(bias, subset, [strip.biases for strip in chosen], tables, 1, signs)
        if weight is not None:
            weight = _expanded(
                weight, subset, [strip.weights for strip in chosen], tables, 2, signs
            )
        rows, own = [1] * len(axes), list(axes)
        for axis, strip in zip(subset, chosen, strict=True):
            rows[axis], own[axis] = strip.row_count, Axis(max(strip.column_count, 1))
        if weight is not None:
            if bias is not None:
                bias = bias.expand(weight.shape[0], *rows).flatten()
            weight = _rows_as_channels(weight, rows, own)
        if weight is not None or bias is not None:
            found.append(Kernel(subset, chosen, tuple(rows), tuple(own), weight, bias))
    return found


def _expanded(
    grid: Tensor,
    subset: Subset,
    tables_of: Sequence[Table | None],
    tables: Tensor,
    first: int,
    signs: bool,
) -> Tensor | None:
    """A grid with a place for each entry on the axes of the set; None where there is no entry."""
    whole: Tensor | None = grid
    for axis, table in zip(subset, tables_of, strict=True):
        if table is None or whole is None:
            return None
        whole = table.expanded(whole, first + axis, tables, signs)
    return whole


def _rows_as_channels(weight: Tensor, rows: Sequence[int], axes: Sequence[Axis]) -> Tensor:
    """(out, in / groups, rows * columns, ...) to (out * rows, in / groups, columns, ...)."""
    if all(count == 1 for count in rows):
        return weight
    rank = len(axes)
    sizes = [n for count, axis in zip(rows, axes, strict=True) for n in (count, axis.kernel_size)]
    apart = weight.reshape(*weight.shape[:2], *sizes)
    moved = apart.movedim(tuple(range(2, 2 + 2 * rank, 2)), tuple(range(1, 1 + rank)))
    return moved.flatten(0, rank)


@dataclass(frozen=True, eq=False)
class Shortcut:
    """A kernel as a choice of stored numbers, for one kind of size: (index, factors) of its weight
    and of its bias, None where it has none. `kernel` holds places instead of values.
    """

    kernel: Kernel
    weight: tuple[Tensor, Tensor] | None
    bias: tuple[Tensor, Tensor] | None

    def __call__(self, stored: Stored) -> Kernel:
        """The kernel with values."""
        weight, bias = stored
        skeleton = self.kernel
        if weight is not None and self.weight is not None and skeleton.weight is not None:
            index, factors = self.weight
            weight = weight.flatten(2)[:, :, index].mul_(factors)  # far faster than index_select
            rows, _, *columns = skeleton.weight.shape
            outs, per_group = weight.shape[:2]
            if rows > 1:
                weight = weight.view(outs, per_group, rows, -1).transpose(1, 2)
            weight = weight.reshape(outs * rows, per_group, *columns)
        else:
            weight = None
        if bias is not None and self.bias is not None:
            index, factors = self.bias
            bias = bias.flatten(1)[:, index].mul_(factors)
            bias = bias.unflatten(1, skeleton.rows) if weight is None else bias.flatten()
        else:
            bias = None
        return replace(skeleton, weight=weight, bias=bias)


def shortcuts(
    stored: Mapping[Subset, Stored],
    gridded: Callable[[Subset, Stored], Stored],
    strips: Sequence[Strip],
    tables: Tensor,
    axes: Sequence[Axis],
    *,
    signs: bool = True,
) -> list[Shortcut] | None:
    """The kernels of `kernels` as choices of stored numbers; None where some place adds up several
    or takes one more than once.

    Found by making kernels of the numbers' places, counted from one; `gridded` is `grid_of`.
    """
    made = [table for strip in strips for table in (strip.weights, strip.biases)]
    if any(table is not None and not table.chooses for table in made):
        return None
    like = next(t for pair in stored.values() for t in pair if t is not None)
    places = {
        subset: gridded(subset, (_counted(weight, 2), _counted(bias, 1)))
        for subset, (weight, bias) in stored.items()
    }
    found = []
    for kernel in kernels(places, strips, tables, axes, signs=signs):
        weight = None if kernel.weight is None else _choice(kernel.weight, like)
        bias = None if kernel.bias is None else _choice(kernel.bias, like)
        found.append(Shortcut(kernel, weight, bias))
    return found


def _counted(tensor: Tensor | None, skipped: int) -> Tensor | None:
    """The places of stored numbers from one on, in the shape of one channel of them."""
    if tensor is None:
        return None
    shape = (*(1,) * skipped, *tensor.shape[skipped:])
    count = torch.Size(shape).numel()
    return torch.arange(1, count + 1, dtype=torch.float64, device=tensor.device).view(shape)


def _choice(places: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Index and factor of signed places; zero is no place."""
    flat = places.flatten()
    index = flat.abs().to(torch.int64) - 1
    return index.clamp(min=0), flat.sign().to(like.dtype)


def add_borders(y: Tensor, x: Tensor, found: Sequence[Kernel], groups: int) -> Tensor:
    """`y`, the plain merged operator's output for `x`, with every border term added in place.

    Both (batch, channels, *size).
    """
    for kernel in found:
        value = kernel.bias if kernel.weight is None else _rows_of(x, kernel, groups)
        if value is not None:
            _add(y, value, kernel)
    return y


def _rows_of(x: Tensor, kernel: Kernel, groups: int) -> Tensor:
    """The slab through its kernel: (batch, out_channels, *rows or output size)."""
    if kernel.weight is None:
        raise ValueError("a kernel without a weight has no slab")
    rank = len(kernel.axes)
    for axis, strip in zip(kernel.subset, kernel.strips, strict=True):
        x = slab(x, 2 + axis, strip.columns)
    found = apply_operator(x, kernel.weight, kernel.bias, kernel.axes, groups)
    if all(count == 1 for count in kernel.rows):
        return found
    outer = [axis for axis in range(rank) if axis not in kernel.subset]
    counts = [kernel.rows[axis] for axis in kernel.subset]
    sizes = [found.shape[2 + axis] for axis in outer]
    out_channels = found.shape[1] // prod(counts)
    found = found.reshape(found.shape[0], out_channels, *counts, *sizes)
    order = [[*kernel.subset, *outer].index(axis) for axis in range(rank)]
    return found if order == sorted(order) else found.permute(0, 1, *(2 + o for o in order))


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


def _add(y: Tensor, value: Tensor, kernel: Kernel) -> None:
    """Each part of a strip added to the rows of `y` that it is for."""
    rank = len(kernel.rows)
    placed = [
        _placed(strip.rows, y.shape[2 + axis])
        for axis, strip in zip(kernel.subset, kernel.strips, strict=True)
    ]
    for choice in product(*placed):
        here: list[Any] = [slice(None)] * rank
        there: list[Any] = [slice(None)] * rank
        for axis, (start, offset, length) in zip(kernel.subset, choice, strict=True):
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
