"""What must be added to a plain merged operator so that it is exact at every border.

On one axis let row `i` of `R` say what every combination of the layers' taps really reads for
output `i` (see `trace`), and `Q` what it reads in the merged kernel: `D = R - Q` is not zero in a
few rows near the ends only. Axes being independent, with `W` the products of the layers' weights,

    W (R0 x R1) = W (Q0 x Q1) + W (D0 x Q1) + W (Q0 x D1) + W (D0 x D1)

and likewise for any number of axes: the merged kernel, and for every set of axes (faces, edges,
corners) one term that maps the few samples near the ends to the few wrong rows. An entry of `D` is
a sum of combinations of taps. Such sums recur from row to row and from size to size, so that each
axis has a few *border taps*, linearly independent sums of which all of them are made (see
`taps`). What is stored is the merged kernel with these in the place of its own taps on the
axes of the set: 49 taps in all for two 3x3 layers with padding 1. The same goes for biases, where a
row says which combinations carry a layer's bias to an output.

This module knows what is stored and for which sizes, in whole numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import prod

from convsqueeze.algebra.geometry import Geometry
from convsqueeze.errors import GeometryError

Subset = tuple[int, ...]
"""Axes on which a term is at the border: (0,) a face, (0, 1) a corner of an image."""
Span = tuple[int, int]
"""Places from the first to before the last; both below one: counted from the end."""
Absent = tuple[tuple[Subset, tuple[int, ...]], ...]


BORDER = "border"
"""What the correction tensors of a layer are stored under, behind its name."""
LARGEST_FACTOR = 1 << 10
MOST_PLACES = 1 << 20
"""Rows times columns of a strip beyond which a recipe is not believed."""


def digits(subset: Subset) -> str:
    """`01`: what the tensors of a set of axes are stored under."""
    return "".join(map(str, subset))


def term_name(subset: Subset, role: str) -> str:
    """`01.weight`: what a tensor of a set of axes is called."""
    return f"{digits(subset)}.{role}"


@dataclass(frozen=True)
class SizeClass:
    """The entries of `D` on one axis for input sizes of one kind.

    `weights` are (row, column, border tap, factor): output `row` takes `factor` times what `tap`
    makes of input `column`. `biases` are (row, border tap, factor). Rows and columns below zero
    are counted from the end; one that an image is too small for is no entry.
    """

    size: int
    weights: tuple[tuple[int, int, int, int], ...] = ()
    biases: tuple[tuple[int, int, int], ...] = ()

    @property
    def rows(self) -> tuple[int, ...]:
        """Every row that is corrected: from the start, then from the end."""
        return _in_order({row for row, *_ in self.weights} | {row for row, *_ in self.biases})

    @property
    def columns(self) -> tuple[int, ...]:
        """Every sample that a correction reads."""
        return _in_order({column for _, column, *_ in self.weights})

    @property
    def row_spans(self) -> tuple[Span, ...]:
        return _spans(self.rows)

    @property
    def column_spans(self) -> tuple[Span, ...]:
        return _spans(self.columns)


def _in_order(places: set[int]) -> tuple[int, ...]:
    return (*sorted(p for p in places if p >= 0), *sorted(p for p in places if p < 0))


def _spans(places: Sequence[int]) -> tuple[Span, ...]:
    """The span from the start and the one from the end that hold the places."""
    low, high = [p for p in places if p >= 0], [p for p in places if p < 0]
    return tuple((min(part), max(part) + 1) for part in (low, high) if part)


def hull(places: Sequence[Sequence[int]]) -> tuple[Span, ...]:
    """The spans that hold all of several lists of places."""
    return _spans(_in_order({place for some in places for place in some}))


def span_length(spans: Sequence[Span]) -> int:
    """Places that spans hold."""
    return sum(stop - start for start, stop in spans)


@dataclass(frozen=True)
class AxisCorrections:
    """All that is to be corrected on one axis, for every input size that has a class.

    A size below `settled` is its own class, any other that of `settled + (size - settled) %
    period`. `taps` and `bias_taps` count the border taps.
    """

    settled: int
    period: int
    taps: int
    bias_taps: int
    classes: tuple[SizeClass, ...]

    def class_size(self, size: int) -> int:
        """The size that stands for the class of `size`."""
        if size < self.settled:
            return size
        if self.period == 1:
            return self.settled
        return self.settled + int((size - self.settled) % self.period)

    @cached_property
    def _by_size(self) -> dict[int, SizeClass]:
        return {one.size: one for one in self.classes}

    def of(self, size: int) -> SizeClass:
        """The class of an input size. Raises GeometryError for one that the layers do not take, or
        that was left out because the manifest fixes another.
        """
        found = self._by_size.get(self.class_size(size))
        if found is None:
            raise GeometryError(self.not_for(size))
        return found

    def not_for(self, size: int) -> str:
        """Why an input of `size` has no class."""
        return (
            f"the border of this layer is corrected for inputs of {self.described_sizes} samples "
            f"on an axis, not for {size}"
        )

    @property
    def described_sizes(self) -> str:
        """The sizes that have a class, in words."""
        small = [one.size for one in self.classes if one.size < self.settled]
        rests = [one.size for one in self.classes if one.size >= self.settled]
        parts = [", ".join(map(str, small))] if small else []
        if len(rests) == self.period:
            parts.append(f"{self.settled} and more")
        elif rests:
            shown = ", ".join(map(str, rests))
            parts.append(f"{shown} and any multiple of {self.period} more")
        return "; ".join(parts) or "no number of"

    @property
    def is_empty(self) -> bool:
        return not self.taps and not self.bias_taps

    def check(self) -> None:
        """Raises GeometryError unless every number refers to something that there is."""
        impossible = self.period < 1 or min(self.taps, self.bias_taps) < 0
        if impossible or len(self._by_size) != len(self.classes):
            raise GeometryError("corrections of an axis with impossible counts")
        if not self.classes and not self.is_empty:
            raise GeometryError("an axis that is corrected for inputs of no size at all")
        for one in self.classes:
            taps = {tap for _, _, tap, _ in one.weights}, {tap for _, tap, _ in one.biases}
            for used, count in zip(taps, (self.taps, self.bias_taps), strict=True):
                if any(not 0 <= tap < count for tap in used):
                    raise GeometryError(f"a border tap is none of the {count} that are stored")
            if one.size < 1 or self.class_size(one.size) != one.size:
                raise GeometryError(f"{one.size} is no size that stands for a class")
            factors = [entry[-1] for entry in (*one.weights, *one.biases)]
            if max(map(abs, factors), default=0) > LARGEST_FACTOR:
                raise GeometryError("a border tap is taken impossibly often")
            places = span_length(one.row_spans) * max(span_length(one.column_spans), 1)
            if places > MOST_PLACES:
                raise GeometryError("a correction is impossibly far from the border")


@dataclass(frozen=True)
class Corrections:
    """The border terms of a merged operator.

    `absent` and `absent_biases` name, for each set of axes, the places of its grid of taps that no
    branch of a sum has on all axes at once: flat indices, nothing is stored for them.
    """

    axes: tuple[AxisCorrections, ...]
    absent: Absent = ()
    absent_biases: Absent = ()

    @property
    def subsets(self) -> tuple[Subset, ...]:
        """Every set of axes at whose borders something may be stored, faces first."""
        corrected = [index for index, axis in enumerate(self.axes) if not axis.is_empty]
        return tuple(
            subset
            for count in range(1, len(corrected) + 1)
            for subset in combinations(corrected, count)
        )

    def grid(self, subset: Subset, kernel_size: Sequence[int]) -> tuple[int, ...]:
        """Taps on each axis: border taps on the axes of the set, the merged kernel's elsewhere."""
        return tuple(
            self.axes[axis].taps if axis in subset else taps
            for axis, taps in enumerate(kernel_size)
        )

    def bias_grid(self, subset: Subset) -> tuple[int, ...]:
        """Border taps of the biases on the axes of the set, one on the others."""
        return tuple(
            axis.bias_taps if index in subset else 1 for index, axis in enumerate(self.axes)
        )

    def shapes(self, geometry: Geometry) -> dict[str, tuple[int, ...]]:
        """Name and shape of each stored tensor, for the merged operator's geometry: `0.weight`,
        `01.bias`, the digits being the axes of the set.

        Weights are (out_channels, in_channels / groups, *grid), biases (out_channels, *bias_grid);
        where places of a grid are absent one number, of those that are not, stands for it.
        """
        found = {}
        for subset in self.subsets:
            taps = self.grid(subset, geometry.kernel_size)
            for role, channels, grid, absent in (
                ("weight", geometry.weight_shape[:2], taps, self.absent),
                ("bias", (geometry.out_channels,), self.bias_grid(subset), self.absent_biases),
            ):
                places = dict(absent).get(subset)
                stored = (prod(grid) - len(places),) if places else grid
                if prod(stored):
                    found[term_name(subset, role)] = (*channels, *stored)
        return found

    def weights(self, geometry: Geometry) -> int:
        """Numbers to store beside those of the merged operator, whose geometry is given."""
        return sum(prod(shape) for shape in self.shapes(geometry).values())

    def macs(self, geometry: Geometry, size: Sequence[int]) -> int:
        """Multiplications of all border terms for one image of `size`."""
        total = 0
        classes = [axis.of(n) for axis, n in zip(self.axes, size, strict=True)]
        for subset in self.subsets:
            positions = 1
            for index, (axis, n) in enumerate(zip(geometry.axes, size, strict=True)):
                if index in subset:
                    positions *= span_length(classes[index].row_spans)
                    positions *= span_length(classes[index].column_spans)
                else:
                    outputs = n if axis.upsample > 1 else axis.output_size(n)
                    positions *= outputs * axis.kernel_size
            total += positions * prod(geometry.weight_shape[:2])
        return total

    def check(self, kernel_size: Sequence[int]) -> None:
        """Raises GeometryError unless every number refers to something that there is."""
        if len(self.axes) != len(kernel_size):
            raise GeometryError(f"corrections of {len(self.axes)} axes, {len(kernel_size)} needed")
        for axis in self.axes:
            axis.check()
        for places, grid in (
            (self.absent, lambda subset: self.grid(subset, kernel_size)),
            (self.absent_biases, self.bias_grid),
        ):
            for subset, flat in places:
                whole = subset in self.subsets and list(flat) == sorted(set(flat))
                if not whole or not all(0 <= place < prod(grid(subset)) for place in flat):
                    raise GeometryError(f"absent places of {list(subset)} are not in its grid")

    @property
    def only_biases(self) -> bool:
        """Whether what is added does not depend on the input's values."""
        return not any(axis.taps for axis in self.axes)
