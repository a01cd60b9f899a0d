"""ONNX nodes of border terms.

The ends of the input are cut out, and each goes through a small convolution. The results are added
to the ends of the output, which is cut and put together again, so that nothing of full size is
read beside the output itself. The nodes make the kernels from the stored tensors. Where all sizes
are of one kind, runtimes fold these nodes into constants. With strides the kernel is chosen by the
size at run time, so that every size from the smallest on gives what the layer gives.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from convsqueeze.algebra.border.corrections import BORDER, Span, Subset, span_length, term_name
from convsqueeze.algebra.geometry import Axis
from convsqueeze.export.ends import ends_of
from convsqueeze.export.nodes import TO_THE_END, Nodes, Operator, operator
from convsqueeze.module import SqueezedConv

LARGEST_CHOICE = 1 << 20
"""Numbers up to which every kind of size has a constant kernel of its own in the graph."""
NOT_FOUND = 1 << 20
"""An index beyond every table: looking it up fails."""


def add_borders(nodes: Nodes, y: str, x: str, layer: SqueezedConv) -> str:
    """`y`, the plain operator's output for `x`, made exact."""
    return _Borders(nodes, x, y, layer).with_terms(y, (), len(layer.axes))


class _Borders:
    """The border terms of one layer, one after the other."""

    def __init__(self, nodes: Nodes, x: str, y: str, layer: SqueezedConv) -> None:
        if layer.border is None:
            raise ValueError("a layer without corrections has no border terms")
        self.nodes, self.x, self.y = nodes, x, y
        self.corrections = layer.border.corrections
        self.ends = ends_of(layer)
        self.axes, self.groups = layer.border.axes, layer.border.groups
        self.out_channels, self.per_group = layer.geometry.weight_shape[:2]
        self.shapes = {name: tuple(t.shape) for name, t in layer.border_tensors().items()}
        self._slots: dict[int, str] = {}
        self._unguarded = [axis for axis in range(len(self.axes)) if self._needs_guard(axis)]

    def with_terms(self, y: str, subset: Subset, stop: int) -> str:
        """`y`, the whole output or the rows of a set of axes, with the terms of every larger set
        whose other axes are below `stop`.
        """
        for axis in range(stop):
            larger = tuple(sorted((*subset, axis)))
            if larger not in self.corrections.subsets:
                continue
            strip = self._term(larger)
            if strip is not None:
                y = self._added(y, self.with_terms(strip, larger, axis), axis, not subset)
        return y

    def _term(self, subset: Subset) -> str | None:
        """The rows of a set of axes: (batch or 1, out_channels, *rows or output size)."""
        rows, axes = [1] * len(self.axes), list(self.axes)
        for axis in subset:
            rows[axis] = span_length(self.ends[axis].rows)
            axes[axis] = Axis(max(span_length(self.ends[axis].columns), 1))
        outs = self.out_channels * prod(rows)
        kernel = [axis.kernel_size for axis in axes]
        shape = [outs, self.per_group, *kernel]
        if self._is_transposed(subset):
            shape = [self.groups * self.per_group, outs // self.groups, *kernel]
        bias = self._values(subset, "bias", [outs])
        weight = self._values(subset, "weight", shape)
        if weight is None:
            return None if bias is None else self._spread(bias, subset, rows)
        x = self.x
        for axis in subset:
            x = self._cut(x, 2 + axis, self.ends[axis].columns)
        doc = f"border of axes {list(subset)}"
        y = operator(self.nodes, x, Operator(weight, bias, tuple(axes), self.groups, doc))
        return y if prod(rows) == 1 else self._channels_as_rows(y, subset, rows)

    def _channels_as_rows(self, y: str, subset: Subset, rows: Sequence[int]) -> str:
        """(batch, out * rows, sizes) to (batch, out, *rows or sizes)."""
        nodes = self.nodes
        outer = [axis for axis in range(len(rows)) if axis not in subset]
        order = [0, 1, *(2 + axis for axis in (*subset, *outer))]
        counts = [rows[axis] for axis in subset]
        y = nodes.transposed(y, order)
        kept = [0] * len(outer)  # the sizes that stand there
        y = nodes.add("Reshape", y, nodes.integers([0, self.out_channels, *counts, *kept]))
        return nodes.transposed(y, np.argsort(order).tolist())

    def _spread(self, bias: str, subset: Subset, rows: Sequence[int]) -> str:
        """Rows that are the same for every input, as wide as the output where others follow."""
        nodes = self.nodes
        bias = nodes.add("Reshape", bias, nodes.integers([1, self.out_channels, *rows]))
        if all(self.corrections.axes[axis].is_empty for axis in range(subset[0])):
            return bias
        whole = [
            nodes.integers([n]) if axis in subset else nodes.size(self.y, 2 + axis)
            for axis, n in enumerate(rows)
        ]
        shape = nodes.add("Concat", nodes.integers([1, self.out_channels]), *whole, axis=0)
        return nodes.add("Expand", bias, shape)

    def _values(self, subset: Subset, role: str, shape: Sequence[int]) -> str | None:
        """The kernel or bias of a set of axes for the input's size; None where there is none.

        Where few kinds of sizes differ, each has its own constant and the size chooses one.
        Otherwise the size chooses where the stored numbers are looked up.
        """
        name, nodes = term_name(subset, role), self.nodes
        if name not in self.shapes:
            return None
        if not all(self.ends[axis].table(role).size for axis in subset):
            return None
        index, slot = self._index(subset, role)
        count = len(index)
        places: str = nodes.integers(index)
        late = count * prod(self.shapes[name]) > LARGEST_CHOICE
        if slot is not None and late:
            chosen = nodes.add("Reshape", slot, nodes.integers([1]))
            places, count = nodes.add("Gather", places, chosen, axis=0), 1
        made = self._looked_up(subset, role, places, count, index.shape[1:])
        if slot is None or count == 1:
            return nodes.add("Reshape", made, nodes.integers(shape))
        made = nodes.add("Reshape", made, nodes.integers([count, *shape]))
        return nodes.add("Gather", made, slot, axis=0)

    def _looked_up(
        self, subset: Subset, role: str, places: str, kinds: int, sizes: Sequence[int]
    ) -> str:
        """The stored numbers at `places` (kinds, terms, rows, columns) in the order of kernels.

        (kinds, groups, out_channels / groups, rows, in_channels / groups, columns), the channels
        the other way round for ConvTranspose; `sizes` are terms, rows and columns.
        """
        nodes, (terms, rows, columns) = self.nodes, sizes
        per_group = self.per_group if role == "weight" else 1
        value = f"{nodes.name}.{BORDER}.{term_name(subset, role)}"
        flat = nodes.add("Reshape", value, nodes.integers([self.out_channels, per_group, -1]))
        first = nodes.add("Slice", flat, *map(nodes.integers, ([0], [1], [2])))
        zero = nodes.add("Sub", first, first)
        signed = nodes.add("Concat", flat, nodes.add("Neg", flat), zero, axis=2)
        found = nodes.add("Gather", signed, places, axis=2)
        if terms > 1:
            found = nodes.add("ReduceSum", found, nodes.integers([3]), keepdims=0)
        outs = [self.groups, self.out_channels // self.groups, per_group]
        found = nodes.add("Reshape", found, nodes.integers([*outs, kinds, rows, columns]))
        by_inputs = role == "weight" and self._is_transposed(subset)
        order = [3, 0, 2, 1, 4, 5] if by_inputs else [3, 0, 1, 4, 2, 5]
        return nodes.transposed(found, order)

    def _index(self, subset: Subset, role: str) -> tuple["np.ndarray[Any, Any]", str | None]:
        """Where each place of a kernel or bias finds its stored numbers, for each kind of size:
        int64 (kinds, terms, rows, columns); and which kind the input is of, None for the only one.

        `number + i` is stored number `i` taken negatively, `2 * number` is zero.
        """
        rank, weights = len(self.axes), role == "weight"
        place, sign, slot = np.zeros((1,) * (4 * rank), np.int64), np.ones(1, np.int64), None
        grid = []
        for axis, one in enumerate(self.axes):
            count = one.kernel_size if weights else 1
            table = np.arange(1, count + 1).reshape(1, 1, 1, count)
            if axis in subset:
                count = self.ends[axis].taps(role)
                table, kind_of = np.unique(self.ends[axis].table(role), axis=0, return_inverse=True)
                slot = self._combined(slot, axis, kind_of.reshape(-1).tolist(), len(table))
            spread = table.reshape(
                [n if at == axis else 1 for n in table.shape for at in range(rank)]
            )
            place, sign = place * count + abs(spread) - 1, sign * np.sign(spread)
            grid.append(count)
        absent = dict(self.corrections.absent if weights else self.corrections.absent_biases)
        kept = np.ones(prod(grid), np.bool_)
        kept[list(absent.get(subset, ()))] = False
        place = place * abs(sign)
        sign, place, number = sign * kept[place], np.cumsum(kept)[place] - 1, int(kept.sum())
        index = np.where(sign > 0, place, np.where(sign < 0, number + place, 2 * number))
        four = [prod(index.shape[start : start + rank]) for start in range(0, 4 * rank, rank)]
        index = index.reshape(four)
        return (index[..., ::-1] if self._is_transposed(subset) else index), slot

    def _is_transposed(self, subset: Subset) -> bool:
        """Whether the strip of a set of axes goes through ConvTranspose, whose kernel is turned."""
        return any(axis.upsample > 1 for at, axis in enumerate(self.axes) if at not in subset)

    def _combined(
        self, slot: str | None, axis: int, kind_of: Sequence[int], kinds: int
    ) -> str | None:
        """Which kind of size the input has on all axes so far, this one included."""
        nodes = self.nodes
        if kinds == 1:
            return slot
        kind = nodes.add("Gather", nodes.integers(kind_of), self._slot(axis))
        if slot is None:
            return kind
        return nodes.add("Add", nodes.add("Mul", slot, nodes.integers(kinds)), kind)

    def _slot(self, axis: int) -> str:
        """Which class of sizes the input belongs to on an axis: int64 scalar."""
        if axis not in self._slots:
            nodes, ends = self.nodes, self.ends[axis]
            size = nodes.add("Gather", nodes.add("Shape", self.x), nodes.integers(2 + axis))
            past = nodes.add("Sub", size, nodes.integers(ends.found.settled))
            rest = nodes.add("Mod", past, nodes.integers(ends.found.period))
            there = {one.size - ends.found.settled: i for i, one in enumerate(ends.classes)}
            table = [there.get(n, NOT_FOUND) for n in range(ends.found.period)]
            self._slots[axis] = nodes.add("Gather", nodes.integers(table), rest)
        return self._slots[axis]

    def _cut(self, x: str, dim: int, columns: Sequence[Span]) -> str:
        """The samples of some spans side by side."""
        parts = [self._between(x, dim, start, stop or TO_THE_END) for start, stop in columns]
        return parts[0] if len(parts) == 1 else self.nodes.add("Concat", *parts, axis=dim)

    def _between(self, x: str, dim: int, start: int, stop: int) -> str:
        return self.nodes.add("Slice", x, *map(self.nodes.integers, ([start], [stop], [dim])))

    def _added(self, y: str, strip: str, axis: int, is_output: bool) -> str:
        """`y` with the rows of a strip added to its ends on an axis.

        Cutting the output fails, rather than anything else happening, where an image is too small.
        """
        nodes, dim = self.nodes, 2 + axis
        parts = _pieces(self.ends[axis].rows)
        fixed = sum(n for n, _ in parts if n is not None)
        middle = nodes.add("Sub", nodes.size(y, dim), nodes.integers([fixed]))
        while is_output and self._unguarded:
            middle = nodes.add("Add", middle, self._guard(self._unguarded.pop(0)))
        sizes = [middle if n is None else nodes.integers([n]) for n, _ in parts]
        cut = nodes.add_many("Split", len(parts), y, nodes.add("Concat", *sizes, axis=0), axis=dim)
        whole = len([span for _, span in parts if span]) == 1
        done = []
        for piece, (_, span) in zip(cut, parts, strict=True):
            if span is not None:
                rows = strip if whole else self._between(strip, dim, *span)
                piece = nodes.add("Add", piece, rows)
            done.append(piece)
        return nodes.add("Concat", *done, axis=dim)

    def _needs_guard(self, axis: int) -> bool:
        """Whether sizes that the graph is not for would go through on an axis."""
        ends = self.ends[axis]
        concerned = ends.leaves_sizes_out or not ends.found.is_empty
        return concerned and not ends.fails_by_itself

    def _guard(self, axis: int) -> str:
        """Zero, looked up at a place that sizes too small or of a kind left out do not have."""
        nodes, ends = self.nodes, self.ends[axis]
        given, known = nodes.size(self.x, 2 + axis), 1
        if ends.only is not None:
            place = nodes.add("Abs", nodes.add("Sub", given, nodes.integers(ends.only)))
        elif len(ends.classes) < ends.found.period:
            place, known = (
                nodes.add("Reshape", self._slot(axis), nodes.integers([1])),
                len(ends.classes),
            )
        else:
            missing = nodes.add("Sub", nodes.integers(ends.smallest), given)
            place = nodes.add("Max", missing, nodes.integers(0))
        return nodes.add("Gather", nodes.integers([0] * known), place)


Piece = tuple[int | None, Span | None]
"""A piece of an output cut along an axis: its length (None: all that is left), and the rows of the
strip that are added to it, if any.
"""


def _pieces(rows: Sequence[Span]) -> list[Piece]:
    low = [span for span in rows if span[0] >= 0]
    high = [span for span in rows if span[0] < 0]
    pieces: list[Piece] = []
    offset = place = 0
    for start, stop in low:
        pieces += [(start - place, None), (stop - start, (offset, offset + stop - start))]
        offset, place = offset + stop - start, stop
    pieces.append((None, None))
    for start, stop in high:
        pieces += [(stop - start, (offset, offset + stop - start)), (-stop, None)]
    return [piece for piece in pieces if piece[0] != 0]
