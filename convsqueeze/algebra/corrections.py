"""What must be added to a plain merged operator so that it is exact at every border.

On one axis let row `i` of `R` say what every combination of the layers' taps really reads for
output `i` (see `trace`), and `Q` what it reads in the merged kernel: `D = R - Q` is not zero in a
few rows near the ends only. Axes being independent, with `W` the products of the layers' weights,

    W (R0 x R1) = W (Q0 x Q1) + W (D0 x Q1) + W (Q0 x D1) + W (D0 x D1)

and likewise for any number of axes: the merged kernel, and for every set of axes (faces, edges,
corners) one term that maps the few samples near the ends to the few wrong rows. An entry of `D` is
a sum of combinations of taps. Such sums recur from row to row and from size to size, so that each
axis has a few *border taps*, linearly independent sums of which all of them are made (see
`border_taps`). What is stored is the merged kernel with these in the place of its own taps on the
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
Absent = tuple[tuple[Subset, tuple[int, ...]], ...]


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
    def is_empty(self) -> bool:
        return not self.weights and not self.biases

    @property
    def rows(self) -> tuple[int, ...]:
        """Every row that is corrected: from the start, then from the end."""
        return _in_order({row for row, *_ in self.weights} | {row for row, *_ in self.biases})

    @property
    def columns(self) -> tuple[int, ...]:
        """Every sample that a correction reads."""
        return _in_order({column for _, column, *_ in self.weights})


def _in_order(places: set[int]) -> tuple[int, ...]:
    return (*sorted(p for p in places if p >= 0), *sorted(p for p in places if p < 0))


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
            raise GeometryError(
                f"an input of {size} samples on an axis is not among the sizes whose border this "
                f"layer corrects ({self.told})"
            )
        return found

    @property
    def told(self) -> str:
        """The sizes that have a class, in words."""
        small = [one.size for one in self.classes if one.size < self.settled]
        rests = [one.size for one in self.classes if one.size >= self.settled]
        parts = [", ".join(map(str, small))] if small else []
        if len(rests) == self.period:
            parts.append(f"{self.settled} and more")
        elif rests:
            shown = ", ".join(map(str, rests))
            parts.append(f"{shown} and any multiple of {self.period} more")
        return "; ".join(parts)

    @property
    def is_empty(self) -> bool:
        return not self.taps and not self.bias_taps


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
        leaking = [index for index, axis in enumerate(self.axes) if not axis.is_empty]
        return tuple(
            subset
            for count in range(1, len(leaking) + 1)
            for subset in combinations(leaking, count)
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

    def stored_taps(self, subset: Subset, kernel_size: Sequence[int]) -> int:
        """How many matrices (out_channels, in_channels / groups) the set stores."""
        return prod(self.grid(subset, kernel_size)) - len(dict(self.absent).get(subset, ()))

    def stored_biases(self, subset: Subset) -> int:
        """How many vectors (out_channels,) the set stores."""
        return prod(self.bias_grid(subset)) - len(dict(self.absent_biases).get(subset, ()))

    def weights(self, geometry: Geometry) -> int:
        """Numbers to store beside those of the merged operator, whose geometry is given."""
        channels = prod(geometry.weight_shape[:2])
        return sum(
            self.stored_taps(subset, geometry.kernel_size) * channels
            + self.stored_biases(subset) * geometry.out_channels
            for subset in self.subsets
        )

    @property
    def only_biases(self) -> bool:
        """Whether what is added does not depend on the input's values."""
        return not any(axis.taps for axis in self.axes)
