"""Finding the border taps of an axis: what a merged kernel gets wrong, for every input size.

For each size the table of what the layers read (`trace.reads`) is held against that of the merged
kernel; what differs are the entries of `D` (see `corrections`), each a sum of combinations of taps.
Sizes that are large enough and equal modulo the strides have the same entries, counted from the
nearer end; so do most small ones, an image too small for an entry losing it. The others are classes
of their own. A set of linearly independent entries, found by elimination in rational numbers, makes
all the others: no storage with fewer taps can serve every size. Whole numbers only.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from convsqueeze.algebra.border.corrections import (
    Absent,
    AxisCorrections,
    Corrections,
    SizeClass,
    Subset,
)
from convsqueeze.algebra.border.trace import (
    NOTHING,
    axis_paths,
    check_ways,
    merged_sources,
    reads,
)
from convsqueeze.algebra.geometry import Axis
from convsqueeze.algebra.sizes import (
    GeometryTree,
    along,
    merged,
    output_size,
    period,
    reach,
    smallest_size,
)
from convsqueeze.errors import GeometryError, TooLargeError

Place = tuple[int, ...]
Vector = tuple[tuple[int, int], ...]
"""A sum of combinations: (combination, factor) in order, no factor zero."""
Entries = tuple[Tensor, Tensor]
"""Of weights, int64 (entries, 4): row, column, combination and factor; of biases without a column.
No factor is zero; `_in_order` has each combination once at a place.
"""
LARGEST_SEARCH = 1 << 27
"""Places of the tables of all sizes of an axis together that are looked at: some ten seconds."""


@dataclass(frozen=True, eq=False)
class AxisTaps:
    """Taps of one axis as sums of combinations: factors, float64.

    `kernel` (merged kernel's taps, combinations) and `border` (border taps, combinations) have the
    columns of `trace.reads` for all paths side by side, each as many as `widths` says. `bias`
    (1, columns) and `border_bias` (border taps of biases, columns) have those of `trace.reads`
    for all biased layers of all paths, as `bias_widths` says.
    """

    kernel: Tensor
    border: Tensor
    bias: Tensor
    border_bias: Tensor
    widths: tuple[int, ...]
    bias_widths: tuple[int, ...]


def corrections(tree: GeometryTree, size: Sequence[int] | None = None) -> Corrections | None:
    """What makes the plain merge of `tree` exact; None where it is exact as it is.

    With `size` (one number an axis) only for inputs of its kind, otherwise for every size that the
    layers accept. Raises GeometryError where the layers do not make one operator, or make too many
    combinations of taps to enumerate.
    """
    analyses = _analyses(tree, size)
    found = Corrections(tuple(table for table, _ in analyses))
    if not found.subsets:
        return None
    taps = [one for _, one in analyses]
    return Corrections(
        found.axes, _absent(found.subsets, taps, "weights"), _absent(found.subsets, taps, "biases")
    )


def axis_taps(tree: GeometryTree, size: Sequence[int] | None = None) -> tuple[AxisTaps, ...]:
    """What the taps of `corrections(tree, size)` are sums of, for each axis."""
    return tuple(taps for _, taps in _analyses(tree, size))


def _analyses(
    tree: GeometryTree, size: Sequence[int] | None
) -> list[tuple[AxisCorrections, AxisTaps]]:
    fixed = [None] * len(merged(tree).axes) if size is None else size
    return [_analysis(along(tree, axis), 0, n) for axis, n in enumerate(fixed)]


def _absent(subsets: Sequence[Subset], axes: Sequence[AxisTaps], what: str) -> Absent:
    """The places of each grid that are zero whatever the weights are."""
    found = []
    for subset in subsets:
        there = torch.zeros((), dtype=torch.bool)
        for index, axis in enumerate(axes):
            at_border = index in subset
            if what == "weights":
                taps, widths = (axis.border if at_border else axis.kernel), axis.widths
            else:
                taps, widths = (axis.border_bias if at_border else axis.bias), axis.bias_widths
            # (taps, parts): whether a tap has anything of a part, a path or a layer of one
            parts = torch.zeros(taps.shape[0], len(widths), dtype=torch.bool)
            for part, values in enumerate(taps.split(widths, 1) if widths else ()):
                parts[:, part] = values.any(1)
            there = parts if index == 0 else there.unsqueeze(1).logical_and(parts).flatten(0, 1)
        places = (~there.any(1)).nonzero().flatten().tolist()
        if places:
            found.append((subset, tuple(places)))
    return tuple(found)


@lru_cache(maxsize=1024)
def _analysis(tree: GeometryTree, axis: int, fixed: int | None) -> tuple[AxisCorrections, AxisTaps]:
    comparison = _Comparison(tree, axis)
    classes, settled, repeat = _classes(comparison)
    if fixed is not None:
        wanted = fixed if fixed < settled else settled + (fixed - settled) % repeat
        classes = {wanted: classes[wanted]}
    weights, biases = _Basis(), _Basis()
    vectors = {n: (_by_place(found[0]), _by_place(found[1])) for n, found in classes.items()}
    for basis, index in ((weights, 0), (biases, 1)):
        every = {v for found in vectors.values() for v in found[index].values()}
        for vector in sorted(every, key=lambda v: (len(v), v)):
            basis.include(vector)
    table = AxisCorrections(
        settled,
        repeat,
        len(weights.vectors),
        len(biases.vectors),
        tuple(_class(size, *found, weights, biases) for size, found in vectors.items()),
    )
    taps = AxisTaps(
        comparison.kernel,
        weights.matrix(sum(comparison.widths)),
        comparison.bias,
        biases.matrix(comparison.bias.shape[1]),
        comparison.widths,
        comparison.bias_widths,
    )
    return table, taps


def _class(
    size: int,
    weights: Mapping[Place, Vector],
    biases: Mapping[Place, Vector],
    basis: "_Basis",
    bias_basis: "_Basis",
) -> SizeClass:
    """The entries of a size as combinations of border taps."""
    return SizeClass(
        size,
        tuple(
            (place[0], place[1], tap, factor)
            for place, vector in weights.items()
            for tap, factor in basis.made_of(vector)
        ),
        tuple(
            (place[0], tap, factor)
            for place, vector in biases.items()
            for tap, factor in bias_basis.made_of(vector)
        ),
    )


class _Comparison:
    """The layers of a tree on one axis against their merged kernel, size by size."""

    def __init__(self, tree: GeometryTree, axis: int) -> None:
        self.whole = merged(tree).axes[axis]
        self.first = smallest_size(tree, axis)
        self.period = period(tree, axis)
        self._tree, self._axis = tree, axis
        margin = reach(tree, axis) + self.whole.extent + abs(self.whole.before)
        self.large = self.first + 2 * (margin + abs(self.whole.after) + self.period)
        check_ways(tree, self.large + 2 * self.period - self.first)
        self.paths = axis_paths(tree, axis)
        tables, there = self._reads(self.large)
        self.widths = tuple(table.shape[1] for table in tables)
        table = torch.cat(tables, 1)
        self._check_amount(table.numel())
        self._positions, self._seen = _positions(table, self.whole)
        self.kernel = _kernel_taps(self._positions, self._seen, self.whole)
        self.bias_widths = tuple(table.shape[1] for table in there)
        self.bias = _middle_bias(_side_by_side(there))

    def _check_amount(self, places: int) -> None:
        sizes = self.large - self.first + 2 * self.period
        if sizes * places > LARGEST_SEARCH:
            raise TooLargeError(
                f"{sum(self.widths):,} combinations of taps on one axis, at {sizes:,} input sizes, "
                "are too many to correct; merge fewer layers at once"
            )

    def outputs(self, size: int) -> int:
        return output_size(self._tree, self._axis, size) or 0

    def _reads(self, size: int) -> tuple[list[Tensor], list[Tensor]]:
        """Of all paths."""
        found = [reads(path, size) for path in self.paths]
        return [one for one, _ in found], [one for _, biases in found for one in biases]

    def entries(self, size: int) -> Entries:
        """`D` for one input size; rows and columns from the start."""
        tables, biased = self._reads(size)
        real = torch.cat(tables, 1)
        implied = merged_sources(self.whole, self._positions, size, real.shape[0])
        implied = torch.where(self._seen, implied, NOTHING)
        places = (real != implied).nonzero().unbind(1)
        found = [
            torch.stack((places[0], columns, places[1], torch.full_like(columns, factor)), 1)
            for columns, factor in ((real[places], 1), (implied[places], -1))
        ]
        weights = torch.cat([one[one[:, 1] != NOTHING] for one in found])
        there = _side_by_side(biased)
        rows, columns = (there != self.bias.bool()).nonzero().unbind(1)
        biases = torch.stack((rows, columns, 2 * there[rows, columns].long() - 1), 1)
        return _in_order(weights), _in_order(biases)


def _positions(table: Tensor, whole: Axis) -> tuple[Tensor, Tensor]:
    """Where each combination stands in the merged kernel, relative to `stride * row`, and whether
    it is seen at all: read off the rows in the middle, which no padding touches.
    """
    rows = torch.arange(table.shape[0]).unsqueeze(1)
    middle = slice(table.shape[0] // 3, -(table.shape[0] // 3))
    offsets = (whole.upsample * table - whole.stride * rows)[middle]
    met = (table != NOTHING)[middle]
    lowest = torch.where(met, offsets, torch.iinfo(torch.int64).max).amin(0)
    highest = torch.where(met, offsets, torch.iinfo(torch.int64).min).amax(0)
    seen = met.any(0)
    if bool((lowest != highest)[seen].any()):
        raise GeometryError("these layers are not one convolution away from the border")
    return torch.where(seen, lowest, 0), seen


def _kernel_taps(positions: Tensor, seen: Tensor, whole: Axis) -> Tensor:
    """The merged kernel's taps as sums of combinations: (taps, combinations)."""
    places = torch.tensor(list(whole.taps)).unsqueeze(1)
    return ((places == positions) & seen).double()


def _side_by_side(tables: list[Tensor]) -> Tensor:
    return torch.cat(tables, 1) if tables else torch.zeros(0, 0, dtype=torch.bool)


def _middle_bias(there: Tensor) -> Tensor:
    """Which biases reach the outputs away from the border: (1, columns)."""
    middle = there[there.shape[0] // 3 : -(there.shape[0] // 3)]
    if not there.shape[1]:
        return torch.zeros(1, 0, dtype=torch.float64)
    if bool((middle != middle[:1]).any()):
        raise GeometryError("the bias of these layers depends on the output phase")
    return middle[:1].double()


def _in_order(table: Tensor) -> Tensor:
    """A table of entries in order, what it has of one combination at a place added up."""
    if not len(table):
        return table
    keys = torch.zeros(len(table), dtype=torch.int64)
    for column in table[:, :-1].unbind(1):
        lowest = column.min()
        keys = keys * (column.max() - lowest + 1) + column - lowest
    keys, order = keys.sort()
    table, is_first = table[order], torch.ones(len(table), dtype=torch.bool)
    is_first[1:] = keys[1:] != keys[:-1]
    factors = torch.zeros(int(is_first.sum()), dtype=torch.int64)
    factors.index_add_(0, is_first.cumsum(0) - 1, table[:, -1])
    table = torch.cat((table[is_first, :-1], factors.unsqueeze(1)), 1)
    return table[factors != 0]


def _by_place(table: Tensor) -> dict[Place, Vector]:
    """The vectors of a table of entries, by row and column."""
    found: dict[Place, list[tuple[int, int]]] = defaultdict(list)
    for *place, key, factor in table.tolist():
        found[tuple(place)].append((key, factor))
    return {place: tuple(vector) for place, vector in found.items()}


def _same(one: Entries, other: Entries) -> bool:
    """Whether they add up to the same, in whatever order, which mostly is one and the same."""
    return all(
        a.equal(b) or _in_order(a).equal(_in_order(b)) for a, b in zip(one, other, strict=True)
    )


def _classes(comparison: _Comparison) -> tuple[dict[int, Entries], int, int]:
    """The entries of every kind of size, the size from which kinds repeat, and their period."""
    repeat = comparison.period
    far = range(comparison.large, comparison.large + repeat)
    settled_entries: dict[int, Entries] = {}
    for size in far:
        found = _from_the_ends(comparison, size)
        if not _same(found, _from_the_ends(comparison, size + repeat)):
            raise GeometryError("what happens at the border of these layers does not repeat")
        settled_entries[size % repeat] = found
    small: dict[int, Entries] = {}
    settled = comparison.first
    for size in range(comparison.first, comparison.large):
        real, outputs = comparison.entries(size), comparison.outputs(size)
        weights, biases = settled_entries[size % repeat]
        if not _same(real, (_at(weights, size, outputs), _at(biases, size, outputs))):
            settled, small[size] = size + 1, real
    if all(_same(one, settled_entries[0]) for one in settled_entries.values()):
        settled_entries, repeat = {0: settled_entries[0]}, 1
    sizes = range(comparison.first, settled)
    kinds = {n: small.get(n) or comparison.entries(n) for n in sizes}
    for size in range(settled, settled + repeat):
        kinds[size] = settled_entries[size % repeat]
    return kinds, settled, repeat


def _from_the_ends(comparison: _Comparison, size: int) -> Entries:
    """The entries of a large size in their order there, what is nearer the end counted from it."""
    counts = torch.tensor((comparison.outputs(size), size))

    def moved(table: Tensor) -> Tensor:
        places, n = table[:, :-2], counts[: table.shape[1] - 2]
        places = places.where(2 * places < n, places - n)
        return torch.cat((places, table[:, -2:]), 1)

    weights, biases = comparison.entries(size)
    return moved(weights), moved(biases)


def _at(table: Tensor, size: int, outputs: int) -> Tensor:
    """What entries counted from the ends are for a size: those that it has room for."""
    counts = torch.tensor((outputs, size))[: table.shape[1] - 2]
    places = table[:, :-2]
    places = places.where(places >= 0, places + counts)
    fits = ((places >= 0) & (places < counts)).all(1)
    return torch.cat((places, table[:, -2:]), 1)[fits]


Numbers = dict[int, int | Fraction]
"""By place in a vector."""


def _over(value: int | Fraction, scale: int | Fraction) -> int | Fraction:
    """The exact quotient, nearly always by 1 or -1, which stays a whole number."""
    return value * scale if scale in (1, -1) else Fraction(value) / scale


class _Basis:
    """Linearly independent vectors, and how others are made of them with whole factors."""

    def __init__(self) -> None:
        self.vectors: list[Vector] = []
        self._made: dict[Vector, tuple[tuple[int, int], ...]] = {}
        self._reduced: list[tuple[int, Numbers, Numbers]] = []

    def include(self, vector: Vector) -> None:
        rest, factors = self._eliminated(vector)
        whole = all(factor.denominator == 1 for factor in factors.values())
        if not rest and whole:
            self._made[vector] = tuple(sorted((k, int(f)) for k, f in factors.items() if f))
            return
        index = len(self.vectors)
        self.vectors.append(vector)
        self._made[vector] = ((index, 1),)
        if rest:  # else it depends on others by fractions, and is kept as it is
            pivot = min(rest)
            scale = rest[pivot]
            row = {key: _over(value, scale) for key, value in rest.items()}
            made = {key: _over(-value, scale) for key, value in factors.items()}
            made[index] = _over(1, scale)
            self._reduced.append((pivot, row, made))

    def _eliminated(self, vector: Vector) -> tuple[Numbers, Numbers]:
        """What is left of a vector, and the factors of the basis vectors taken out of it."""
        rest: Numbers = defaultdict(int, vector)
        factors: Numbers = defaultdict(int)
        for pivot, row, made in self._reduced:
            if share := rest[pivot]:
                for key, value in row.items():
                    rest[key] -= share * value
                for key, value in made.items():
                    factors[key] += share * value
        return {key: value for key, value in rest.items() if value}, factors

    def made_of(self, vector: Vector) -> tuple[tuple[int, int], ...]:
        """(border tap, factor) for each basis vector in it."""
        return self._made[vector]

    def matrix(self, width: int) -> Tensor:
        """The basis, float64 (vectors, width)."""
        found = torch.zeros(len(self.vectors), width, dtype=torch.float64)
        for index, vector in enumerate(self.vectors):
            for key, factor in vector:
                found[index, key] = factor
        return found
