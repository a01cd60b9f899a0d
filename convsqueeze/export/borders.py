"""ONNX nodes of border terms: the ends of the input are cut out, go through a small convolution
each, and are added to the ends of the output, which is cut and put together again.

Only ends are added to, so that nothing of full size is read beside the output itself. The kernels
are made in the graph from the stored tensors, by nodes that runtimes fold into constants where one
kind of size is all there is. With strides the kernel is looked up by the size at run time, so that
every size from the smallest on gives what the layer gives.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import prod

from onnx import TensorProto

from convsqueeze.algebra.border.corrections import (
    BORDER,
    Span,
    Subset,
    span_length,
    term_name,
)
from convsqueeze.algebra.geometry import Axis
from convsqueeze.export.ends import Terms, ends_of
from convsqueeze.export.nodes import TO_THE_END, Nodes, Operator, operator
from convsqueeze.module import SqueezedConv

LARGEST_CHOICE = 1 << 20
"""Numbers up to which every kind of size has a constant kernel of its own in the graph."""


def add_borders(nodes: Nodes, y: str, x: str, layer: SqueezedConv) -> str:
    """`y`, the plain operator's output for `x`, made exact."""
    return _Borders(nodes, x, y, layer).finished()


class _Borders:
    """The border terms of one layer, one after the other."""

    def __init__(self, nodes: Nodes, x: str, y: str, layer: SqueezedConv) -> None:
        if layer.border is None:
            raise ValueError("a layer without corrections has no border terms")
        self.nodes, self.x, self.y = nodes, x, y
        self.corrections = layer.border.corrections
        self.ends = ends_of(layer.border)
        self.axes, self.groups = layer.border.axes, layer.border.groups
        self.geometry = layer.geometry
        self.shapes = {name: tuple(t.shape) for name, t in layer.border_tensors().items()}
        self._slots: dict[int, str] = {}

    def finished(self) -> str:
        """The output with every term added."""
        return self._with_terms(self.y, (), len(self.axes))

    def _with_terms(self, y: str, subset: Subset, stop: int) -> str:
        """`y`, the whole output or the rows of a set of axes, with the terms of every larger set
        whose other axes are below `stop`.
        """
        for axis in range(stop):
            larger = tuple(sorted((*subset, axis)))
            if larger not in self.corrections.subsets:
                continue
            strip = self._term(larger)
            if strip is not None:
                y = self._added(y, self._with_terms(strip, larger, axis), axis, not subset)
        return y

    def _term(self, subset: Subset) -> str | None:
        """The rows of a set of axes: (batch or 1, out_channels, *rows or output size)."""
        rows = [
            span_length(self.ends[axis].rows) if axis in subset else 1
            for axis in range(len(self.axes))
        ]
        own = list(self.axes)
        for axis in subset:
            own[axis] = Axis(max(span_length(self.ends[axis].columns), 1))
        flat = self.nodes.integers([-1])
        full = self.nodes.integers([self._outs, *rows])
        bias = self._for_this_size(
            subset,
            "bias",
            lambda grown: self.nodes.add("Reshape", self.nodes.add("Expand", grown, full), flat),
        )
        weight = self._for_this_size(
            subset, "weight", lambda grown: self._as_kernel(grown, rows, own)
        )
        if weight is not None:
            return self._convolved(subset, weight, bias, rows, own)
        return None if bias is None else self._spread(bias, subset, rows)

    def _spread(self, bias: str, subset: Subset, rows: Sequence[int]) -> str:
        """Rows that are the same for every input, as wide as the output where others follow."""
        nodes = self.nodes
        bias = nodes.add("Reshape", bias, nodes.integers([1, self._outs, *rows]))
        if not any(axis < subset[0] for axis in range(len(rows)) if self._leaks(axis)):
            return bias
        whole = [
            nodes.integers([n]) if axis in subset else nodes.size(self.y, 2 + axis)
            for axis, n in enumerate(rows)
        ]
        shape = nodes.add("Concat", nodes.integers([1, self._outs]), *whole, axis=0)
        return nodes.add("Expand", bias, shape)

    def _leaks(self, axis: int) -> bool:
        return not self.corrections.axes[axis].is_empty

    @property
    def _outs(self) -> int:
        return self.geometry.out_channels

    def _for_this_size(
        self, subset: Subset, role: str, finished: Callable[[str], str]
    ) -> str | None:
        """A stored tensor with a place for each entry in the place of its border taps, `finished`.

        Where few kinds of sizes differ each has its own constant, chosen by the size; otherwise
        the places are looked up one by one.
        """
        name = term_name(subset, role)
        tables = {axis: self._choices(axis, role) for axis in subset}
        if name not in self.shapes or not all(map(len, (t[0] for t in tables.values()))):
            return None
        grid = self._grid(subset, role, f"{self.nodes.name}.{BORDER}.{name}")
        kinds = {axis: list(dict.fromkeys(table)) for axis, table in tables.items()}
        every = list(product(*kinds.values()))
        if len(every) > 1 and len(every) * prod(self.shapes[name]) > LARGEST_CHOICE:
            indices = {axis: self._of_this_size(axis, table) for axis, table in tables.items()}
            return finished(self._looked_up(grid, role, indices))
        made = []
        for choice in every:
            terms = dict(zip(kinds, choice, strict=True))
            indices = {a: [self.nodes.integers(list(c)) for c in cs] for a, cs in terms.items()}
            made.append(finished(self._looked_up(grid, role, indices)))
        return self._chosen(made, tables, kinds)

    def _chosen(
        self,
        made: list[str],
        tables: Mapping[int, Sequence[Terms]],
        kinds: Mapping[int, Sequence[Terms]],
    ) -> str:
        """Of values for every combination of kinds, the one for the input's size."""
        if len(made) == 1:
            return made[0]
        nodes, step = self.nodes, len(made)
        place: str | None = None
        for axis, table in tables.items():
            step //= len(kinds[axis])
            if len(kinds[axis]) > 1:
                steps = [step * kinds[axis].index(terms) for terms in table]
                own = nodes.add("Gather", nodes.integers(steps), self._slot(axis))
                place = own if place is None else nodes.add("Add", place, own)
        stack = nodes.add(
            "Concat", *(nodes.add("Unsqueeze", one, nodes.integers([0])) for one in made), axis=0
        )
        return stack if place is None else nodes.add("Gather", stack, place, axis=0)

    def _choices(self, axis: int, role: str) -> list[Terms]:
        """For every kind of size the tap at each place, as many times as a place adds up taps."""
        ends = self.ends[axis]
        of_kind = [ends.choices(one, role) for one in ends.classes]
        taps = ends.found.taps if role == "weight" else ends.found.bias_taps
        places = span_length(ends.rows) * (span_length(ends.columns) if role == "weight" else 1)
        terms = max(map(len, of_kind), default=0)
        zeros = (2 * taps,) * places
        return [
            tuple((*(tuple(one) for one in found), *(zeros,) * terms)[:terms]) for found in of_kind
        ]

    def _grid(self, subset: Subset, role: str, value: str) -> str:
        """A stored tensor as its whole grid of taps, zeros where none are stored."""
        weights = role == "weight"
        absent = self.corrections.absent if weights else self.corrections.absent_biases
        places = dict(absent).get(subset, ())
        if not places:
            return value
        nodes = self.nodes
        channels = list(self.geometry.weight_shape[:2]) if weights else [self._outs]
        grid = (
            self.corrections.grid(subset, self.geometry.kernel_size)
            if weights
            else self.corrections.bias_grid(subset)
        )
        stored = self.shapes[term_name(subset, role)][-1]
        pads = nodes.integers([0] * (2 * len(channels) + 1) + [1])
        padded = nodes.add("Pad", value, pads)
        order = iter(range(stored))
        index = [stored if p in places else next(order) for p in range(stored + len(places))]
        dim = len(channels)
        spread = nodes.add("Gather", padded, nodes.integers(index), axis=dim)
        return nodes.add("Reshape", spread, nodes.integers([*channels, *grid]))

    def _looked_up(self, value: str, role: str, indices: Mapping[int, Sequence[str]]) -> str:
        """A grid with the taps that the places of each axis take."""
        nodes = self.nodes
        for axis, terms in indices.items():
            dim = axis + (2 if role == "weight" else 1)
            first = nodes.add("Slice", value, *map(nodes.integers, ([0], [1], [dim])))
            zero = nodes.add("Sub", first, first)
            signed = nodes.add("Concat", value, nodes.add("Neg", value), zero, axis=dim)
            found = [nodes.add("Gather", signed, index, axis=dim) for index in terms]
            value = found[0]
            for one in found[1:]:
                value = nodes.add("Add", value, one)
        return value

    def _of_this_size(self, axis: int, table: Sequence[Terms]) -> list[str]:
        """The rows of tables that the input's size on an axis chooses: int64 (places,) each."""
        nodes = self.nodes
        found = []
        for choices in zip(*table, strict=True):
            flat = nodes.integers([tap for choice in choices for tap in choice])
            shape = nodes.integers([len(choices), len(choices[0])])
            rows = nodes.add("Reshape", flat, shape)
            found.append(nodes.add("Gather", rows, self._slot(axis), axis=0))
        return found

    def _slot(self, axis: int) -> str:
        """Which kind of size the input has on an axis: int64 scalar, beyond all for none."""
        if axis not in self._slots:
            nodes, found = self.nodes, self.ends[axis].found
            size = nodes.add("Gather", nodes.add("Shape", self.x), nodes.integers(2 + axis))
            past = nodes.add("Sub", size, nodes.integers(found.settled))
            rest = nodes.add("Mod", past, nodes.integers(found.period))
            there = {one.size - found.settled: i for i, one in enumerate(self.ends[axis].classes)}
            table = [there.get(n, 1 << 20) for n in range(found.period)]
            self._slots[axis] = nodes.add("Gather", nodes.integers(table), rest)
        return self._slots[axis]

    def _convolved(
        self,
        subset: Subset,
        kernel: str,
        bias: str | None,
        rows: Sequence[int],
        own: Sequence[Axis],
    ) -> str:
        """A slab through its kernel, and the rows that it gives as channels put in their place."""
        x = self.x
        for axis in subset:
            x = self._cut(x, 2 + axis, self.ends[axis].columns)
        doc = f"border of axes {list(subset)}"
        y = operator(self.nodes, x, Operator(kernel, bias, tuple(own), self.groups, doc))
        return y if all(n == 1 for n in rows) else self._in_place(y, subset, rows)

    def _as_kernel(self, weight: str, rows: Sequence[int], own: Sequence[Axis]) -> str:
        """(out, in / groups, rows * columns, ...) to (out * rows, in / groups, columns, ...)."""
        nodes, rank = self.nodes, len(own)
        per_group = self.geometry.in_channels // self.groups
        sizes = [
            n for count, axis in zip(rows, own, strict=True) for n in (count, axis.kernel_size)
        ]
        outs = self._outs
        for n in rows:
            outs *= n
        if any(n > 1 for n in rows):
            apart = nodes.add("Reshape", weight, nodes.integers([self._outs, per_group, *sizes]))
            order = [0, *range(2, 2 + 2 * rank, 2), 1, *range(3, 3 + 2 * rank, 2)]
            weight = nodes.add("Transpose", apart, perm=order)
        kernel = [axis.kernel_size for axis in own]
        if not any(axis.upsample > 1 for axis in own):
            return nodes.add("Reshape", weight, nodes.integers([outs, per_group, *kernel]))
        grouped = [self.groups, outs // self.groups, per_group, *kernel]
        apart = nodes.add("Reshape", weight, nodes.integers(grouped))
        swapped = nodes.add("Transpose", apart, perm=[0, 2, 1, *range(3, 3 + rank)])
        shape = [self.groups * per_group, outs // self.groups, *kernel]
        whole = nodes.add("Reshape", swapped, nodes.integers(shape))
        ends = ([-1] * rank, [-TO_THE_END] * rank, [*range(2, 2 + rank)], [-1] * rank)
        return nodes.add("Slice", whole, *map(nodes.integers, ends))

    def _in_place(self, y: str, subset: Subset, rows: Sequence[int]) -> str:
        """(batch, out * rows, sizes) to (batch, out, *rows or sizes)."""
        nodes = self.nodes
        outer = [axis for axis in range(len(rows)) if axis not in subset]
        counts = [rows[axis] for axis in subset]
        # 0 keeps a size that stays at its place, one other may be -1
        kept = [0 if 2 + len(subset) + i == 2 + axis else -1 for i, axis in enumerate(outer)]
        if kept.count(-1) < 2:
            shape = nodes.integers([0, self._outs, *counts, *kept])
        else:
            sizes = [nodes.size(y, 2 + axis) for axis in outer]
            shape = nodes.add("Concat", nodes.integers([0, self._outs, *counts]), *sizes, axis=0)
        apart = nodes.add("Reshape", y, shape)
        order = [0, 1, *(2 + [*subset, *outer].index(axis) for axis in range(len(rows)))]
        return apart if order == sorted(order) else nodes.add("Transpose", apart, perm=order)

    def _cut(self, x: str, dim: int, columns: Sequence[Span]) -> str:
        """The samples of some spans side by side."""
        parts = [self._between(x, dim, *span) for span in columns]
        return parts[0] if len(parts) == 1 else self.nodes.add("Concat", *parts, axis=dim)

    def _between(self, x: str, dim: int, start: int, stop: int) -> str:
        end = TO_THE_END if stop == 0 else stop
        return self.nodes.add("Slice", x, *map(self.nodes.integers, ([start], [end], [dim])))

    def _added(self, y: str, strip: str, axis: int, is_output: bool) -> str:
        """`y` with the rows of a strip added to its ends on an axis. Cutting the output fails,
        rather than anything else happening, where an image is too small.
        """
        nodes, dim = self.nodes, 2 + axis
        parts = _pieces(self.ends[axis].rows)
        fixed = sum(n for n, _ in parts if n is not None)
        middle = nodes.add("Sub", nodes.size(y, dim), nodes.integers([fixed]))
        if is_output:
            for guarded in self._guarded_with(axis):
                middle = nodes.add("Add", middle, self._checked(guarded))
        sizes = [middle if n is None else nodes.integers([n]) for n, _ in parts]
        cut = nodes.add_many("Split", len(parts), y, nodes.add("Concat", *sizes, axis=0), axis=dim)
        whole = len([span for _, span in parts if span]) == 1
        done = []
        for piece, (_, span) in zip(cut, parts, strict=True):
            if span is None:
                done.append(piece)
                continue
            own = strip if whole else self._rows(strip, dim, span)
            done.append(nodes.add("Add", piece, own))
        return nodes.add("Concat", *done, axis=dim)

    def _guarded_with(self, axis: int) -> list[int]:
        """The axes whose sizes are checked where the output is cut along one: that one, and with
        the first also those that are not cut but for which only some sizes are right.
        """
        leaking = [a for a in range(len(self.axes)) if self._leaks(a)]
        uncut = [
            a for a, ends in enumerate(self.ends) if not self._leaks(a) and ends.leaves_sizes_out
        ]
        own = [] if self.ends[axis].fails_by_itself else [axis]
        return own + (uncut if axis == leaking[0] else [])

    def _rows(self, strip: str, dim: int, span: Span) -> str:
        nodes = self.nodes
        return nodes.add("Slice", strip, *map(nodes.integers, ([span[0]], [span[1]], [dim])))

    def _checked(self, axis: int) -> str:
        """Zero, looked up at a place that sizes too small or of a kind left out do not have."""
        nodes, ends = self.nodes, self.ends[axis]
        given = nodes.size(self.x, 2 + axis)
        if ends.only is not None:
            off = nodes.add("Abs", nodes.add("Sub", given, nodes.integers(ends.only)))
            return nodes.add("Gather", nodes.integers([0]), off)
        if len(ends.classes) < ends.found.period:
            zeros = nodes.integers([0] * len(ends.classes))
            slot = nodes.add("Reshape", self._slot(axis), nodes.integers([1]))
            return nodes.add("Gather", zeros, slot)
        zeros = nodes.add("ConstantOfShape", given)
        found = nodes.add("Gather", zeros, nodes.integers([ends.smallest - 1]))
        return nodes.add("Cast", found, to=TensorProto.INT64)


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
