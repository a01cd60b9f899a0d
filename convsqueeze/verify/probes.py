"""Which inputs show a difference if there is one: sizes, random images and impulses.

Knows geometry and the border; no values of weights.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from convsqueeze.algebra.border.corrections import AxisCorrections, Corrections, SizeClass
from convsqueeze.algebra.border.leaks import wrong_rows
from convsqueeze.algebra.border.taps import corrections
from convsqueeze.algebra.geometry import Axis, Geometry
from convsqueeze.algebra.sizes import merged, output_size, period, reach, smallest_size
from convsqueeze.algebra.tree import Tree, leaves
from convsqueeze.errors import GeometryError

Size = tuple[int, ...]
_CHUNK_NUMBERS = 1 << 22
_OUTPUTS_SHOWN = {1: 64, 2: 32, 3: 16}


@dataclass(frozen=True)
class Impulses:
    """Impulses at every combination of `positions` on the axes of images of `size`."""

    size: Size
    positions: tuple[tuple[int, ...], ...]


def sizes(tree: Tree[Geometry], fixed: Size | None) -> list[Size]:
    """Input sizes to try: the smallest legal one; one that is a multiple of the strides and one
    that is not, both past every kernel; one larger; and one small on the first axis alone.

    With a `fixed` input only that size, or the smallest that meets the border in the same way.
    """
    rank = len(merged(tree).axes)
    if rank == 0:
        return [()]
    if fixed is not None:
        return [tuple(_equivalent(tree, axis, n) for axis, n in enumerate(fixed))]
    smallest = tuple(smallest_size(tree, axis) for axis in range(rank))
    multiple = tuple(_multiple(tree, axis) for axis in range(rank))
    odd = tuple(n + 1 for n in multiple)
    larger = tuple(n + 3 + merged(tree).axes[a].extent for a, n in enumerate(multiple))
    mixed = (smallest[0], *odd[1:])
    return list(dict.fromkeys([smallest, multiple, odd, larger, mixed]))


def _multiple(tree: Tree[Geometry], axis: int) -> int:
    repeat, enough = period(tree, axis), smallest_size(tree, axis) + reach(tree, axis)
    return -(-enough // repeat) * repeat


def _equivalent(tree: Tree[Geometry], axis: int, size: int, least: int = 0) -> int:
    repeat, enough = period(tree, axis), _past_both_borders(tree, axis, least)
    return size if size <= enough + repeat else enough + (size - enough) % repeat


def _past_both_borders(tree: Tree[Geometry], axis: int, least: int) -> int:
    return max(smallest_size(tree, axis) + 2 * reach(tree, axis), least)


def telling_size(tree: Tree[Geometry], fixed: Size | None) -> Size:
    """One input size that shows both the border and the inside: past every kernel, with some tens
    of outputs on each axis, and where sizes meet the border differently, the one with the most
    spoiled outputs, and among those the most wrong taps. With a `fixed` input the smallest such
    that meets the border as that does.
    """
    chosen = []
    for axis, whole in enumerate(axes := merged(tree).axes):
        least = -(-_OUTPUTS_SHOWN[len(axes)] * whole.stride // whole.upsample)
        if fixed is not None:
            chosen.append(_equivalent(tree, axis, fixed[axis], least))
            continue
        repeat, enough = period(tree, axis), _past_both_borders(tree, axis, least)
        spoiled = {n: _spoiled(tree, axis, n) for n in range(enough, enough + repeat)}
        chosen.append(max(spoiled, key=lambda n: (spoiled[n], n % repeat == 0)))
    return tuple(chosen)


def _spoiled(tree: Tree[Geometry], axis: int, size: int) -> tuple[int, int]:
    """How many output rows a plain merge has wrong on an axis, and by how many taps."""
    rows = len(wrong_rows(tree, axis, size))
    try:
        found = corrections(tree)
    except GeometryError:  # too many combinations of taps to look at each
        return rows, 0
    return rows, 0 if found is None else len(found.axes[axis].of(size).weights)


def random_image(geometry: Geometry, size: Size, generator: torch.Generator, batch: int) -> Tensor:
    """Normal values, float64, (batch, in_channels, *size)."""
    shape = (batch, geometry.in_channels, *size)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def bounded_image(geometry: Geometry, size: Size, generator: torch.Generator, batch: int) -> Tensor:
    """Values of either sign between a half and one in size, float64, as `random_image`.

    None is so small that it could hide a weight, none above one, which bounds what is added up, and
    no two are alike, so that weights which are exchanged do not cancel.
    """
    shape = (batch, geometry.in_channels, *size)
    values = torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5
    return values + values.sign() / 2


def showing_size(tree: Tree[Geometry], fixed: Size | None) -> Size:
    """A size, hardly larger than the smallest, at which every tap of the merged kernel reads some
    sample for an output that the border does not spoil.

    With a `fixed` input the size that stands for it, whatever that shows.
    """
    axes = range(len(merged(tree).axes))
    if fixed is not None:
        return tuple(_equivalent(tree, axis, fixed[axis]) for axis in axes)
    return tuple(_showing(tree, axis) for axis in axes)


def _showing(tree: Tree[Geometry], axis: int) -> int:
    whole, first = merged(tree).axes[axis], smallest_size(tree, axis)

    def shows(size: int) -> bool:
        if output_size(tree, axis, size) is None:
            return False
        return _shows_every_tap(whole, size, 0, size, wrong_rows(tree, axis, size))

    last = 2 * reach(tree, axis) + 2 * whole.stride
    steps = [first, *(first + 2**k for k in range(last.bit_length() + 1))]
    enough = next((size for size in steps if shows(size)), steps[-1])
    known = max((size for size in steps if size < enough), default=enough - 1)
    while enough - known > 1:  # halving: what shows at one size mostly does at the next
        middle = (known + enough) // 2
        known, enough = (known, middle) if shows(middle) else (middle, enough)
    return enough


def kernel_impulses(tree: Tree[Geometry], fixed: Size | None) -> Impulses:
    """A small image and positions whose impulses show every tap of the kernel in outputs that
    the border does not spoil.
    """
    chosen = [
        _covering(tree, axis, fixed[axis] if fixed else None)
        for axis in range(len(merged(tree).axes))
    ]
    size, positions = zip(*chosen, strict=True) if chosen else ((), ())
    return Impulses(tuple(size), tuple(map(tuple, positions)))


def border_impulses(tree: Tree[Geometry], wanted: Corrections) -> list[Impulses]:
    """Images and positions whose impulses (and whose zeros, for biases) show every border tap, on
    the other axes together with every tap of the merged kernel.
    """
    per_axis = [
        [_at_the_ends(tree, axis, one, found) for one in _classes_for_every_tap(found)]
        for axis, found in enumerate(wanted.axes)
    ]
    return [
        Impulses(tuple(size for size, _ in choice), tuple(places for _, places in choice))
        for choice in product(*per_axis)
    ]


def every_kind(wanted: Corrections) -> list[Size]:
    """Sizes of which every kind of size on each axis is one: each class is run once at least."""
    per_axis = [[one.size for one in axis.classes] for axis in wanted.axes]
    count = max(map(len, per_axis))
    return [tuple(sizes[index % len(sizes)] for sizes in per_axis) for index in range(count)]


def _classes_for_every_tap(found: AxisCorrections) -> list[SizeClass]:
    """Classes that tell all border taps apart: no change of taps cancels in all of them."""
    chosen: list[SizeClass] = []
    known = {"weights": torch.zeros(0, found.taps), "biases": torch.zeros(0, found.bias_taps)}
    for one in sorted(found.classes, key=lambda one: -one.size):
        more = {
            "weights": torch.cat([known["weights"], _uses(one.weights, found.taps)]),
            "biases": torch.cat([known["biases"], _uses(one.biases, found.bias_taps)]),
        }
        if any(_rank(more[role]) > _rank(known[role]) for role in known):
            chosen.append(one)
            known = more
    return chosen or [found.classes[-1]]


def _uses(entries: Sequence[tuple[int, ...]], taps: int) -> Tensor:
    """For every place of the entries (all but their last two numbers) the factor of each tap."""
    places = {place: index for index, place in enumerate(sorted({one[:-2] for one in entries}))}
    uses = torch.zeros(len(places), taps)
    for one in entries:
        uses[places[one[:-2]], one[-2]] += one[-1]
    return uses


def _rank(matrix: Tensor) -> int:
    return int(torch.linalg.matrix_rank(matrix.double())) if matrix.numel() else 0


def _at_the_ends(
    tree: Tree[Geometry], axis: int, one: SizeClass, found: AxisCorrections
) -> tuple[int, tuple[int, ...]]:
    """The smallest size of a class with room for its corrections, and positions: every sample that
    they read and some in the middle that show every tap of the merged kernel. Of a small size that
    is its own class: all.
    """
    if one.size < found.settled:
        return one.size, tuple(range(one.size))
    whole = merged(tree).axes[axis]
    last = one.size + 2 * reach(tree, axis) + 2 * whole.stride + found.period
    for size in range(one.size, last, found.period):
        outputs = output_size(tree, axis, size) or 0
        room = all(-size <= column < size for column in one.columns)
        room = room and all(-outputs <= row < outputs for row in one.rows)
        start = max((size - whole.stride) // 2, 0)
        middle = range(start, min(start + whole.stride, size))
        if room and _shows_every_tap(whole, size, start, len(middle), frozenset()):
            break
    return size, tuple(sorted({column % size for column in one.columns} | set(middle)))


def _covering(tree: Tree[Geometry], axis: int, fixed: int | None) -> tuple[int, range]:
    """A small size, and the positions around its middle, one for each stride phase, that show
    every tap; every position of the last size tried where none does.
    """
    whole = merged(tree).axes[axis]
    first = smallest_size(tree, axis)
    candidates = [_equivalent(tree, axis, fixed)] if fixed is not None else []
    if fixed is None:
        last = 2 * reach(tree, axis) + 2 * whole.stride
        candidates = [first, *(first + 2**k for k in range(last.bit_length() + 1))]
    for size in candidates:
        if output_size(tree, axis, size) is None:
            continue
        count = min(whole.stride, size)
        start = (size - count) // 2
        if _shows_every_tap(whole, size, start, count, wrong_rows(tree, axis, size)):
            return size, range(start, start + count)
    return candidates[-1], range(candidates[-1])


def _shows_every_tap(
    axis: Axis, size: int, start: int, count: int, spoiled: frozenset[int]
) -> bool:
    """Whether each tap meets an impulse at one of the positions in an output not spoiled."""
    outputs = axis.output_size(size)
    for tap in axis.taps:
        met = (divmod(axis.upsample * p - tap, axis.stride) for p in range(start, start + count))
        if not any(
            rest == 0 and 0 <= output < outputs and output not in spoiled for output, rest in met
        ):
            return False
    return True


def every_impulse(tree: Tree[Geometry], fixed: Size | None) -> list[Impulses]:
    """Impulses at every position of the smallest image and of one that holds every position class
    (each stride phase, each distance from each border that any kernel can tell apart).
    """
    rank = len(merged(tree).axes)
    if rank == 0:
        return [Impulses((), ())]
    if fixed is not None:
        chosen = sizes(tree, fixed)
    else:
        smallest = tuple(smallest_size(tree, axis) for axis in range(rank))
        whole = tuple(smallest[a] + reach(tree, a) + period(tree, a) for a in range(rank))
        chosen = list(dict.fromkeys([smallest, whole]))
    return [Impulses(size, tuple(tuple(range(n)) for n in size)) for size in chosen]


def impulse_batches(tree: Tree[Geometry], impulses: Impulses) -> Iterator[Tensor]:
    """Images (batch, in_channels, *size) with one impulse for each channel and position.

    The groups of a layer do not meet, so one image carries an impulse in each of them.
    """
    geometry = merged(tree)
    per_group = geometry.in_channels // geometry.groups
    wanted = [
        (channel, position)
        for position in product(*impulses.positions)
        for channel in range(per_group)
    ]
    widest = max(max(prod(leaf.weight_shape[1:]), leaf.out_channels) for leaf in leaves(tree))
    batch = max(1, _CHUNK_NUMBERS // (widest * max(prod(impulses.size), 1)))
    for begin in range(0, len(wanted), batch):
        chunk = wanted[begin : begin + batch]
        yield impulse_images(chunk, geometry.groups, per_group, impulses.size)


def impulse_images(
    wanted: Sequence[tuple[int, tuple[int, ...]]], groups: int, per_group: int, size: Size
) -> Tensor:
    """One image for each channel (of every group) and position: zeros, and ones there."""
    x = torch.zeros(len(wanted), groups * per_group, *size, dtype=torch.float64)
    for index, (channel, position) in enumerate(wanted):
        place: tuple[Any, ...] = (index, slice(channel, None, per_group), *position)
        x[place] = 1.0
    return x
