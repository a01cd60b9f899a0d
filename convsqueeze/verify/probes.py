"""Which inputs show a difference if there is one: sizes, random images and impulses.

Knows geometry and the border; no values of weights.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from math import prod
from operator import ge

import torch
import torch.nn.functional as F
from torch import Tensor

from convsqueeze.algebra.border.corrections import AxisCorrections, Corrections, SizeClass
from convsqueeze.algebra.border.mismatches import wrong_rows
from convsqueeze.algebra.border.taps import corrections
from convsqueeze.algebra.geometry import Axis, Geometry
from convsqueeze.algebra.sizes import (
    equivalent_size,
    merged,
    output_size,
    past_both_borders,
    period,
    reach,
    smallest_size,
)
from convsqueeze.algebra.tree import Tree, counted, leaves
from convsqueeze.errors import GeometryError

Size = tuple[int, ...]
_CHUNK_NUMBERS = 1 << 22
_OUTPUTS_SHOWN = {1: 64, 2: 32, 3: 16}
_MEASURED = 400_000_000
"""Multiplications of an image on which a border is measured, at most: some 40 ms."""
_MOST_PERIODS = 64
"""Sizes at most that are looked at for the one that shows most of the border."""
COPY = 16
"""What a number takes that a convolution copies, in multiplications."""
_SMALL = 2
"""Samples that a small image has beyond the smallest, on each axis."""
_MOST_PHASES = 4
"""Remainders by the strides of which each has its image; of more the ends and the middle have."""


# Sizes


@lru_cache(maxsize=256)
def sizes_of(
    tree: Tree[Geometry], wanted: Corrections | None, fixed: Size | None, border: str
) -> tuple[list[Size], Size]:
    """The input sizes for the exact values, and one for the stored layer: a small one, or under the
    `interior` policy one on which the border can be measured.
    """
    if wanted is not None:
        sizes = corrected_sizes(tree, wanted, fixed)
        return sizes, sizes[0]
    if border == "interior":
        sizes = interior_sizes(tree, fixed)
        largest = max(sizes, key=prod)
        if fixed is not None:  # which may have no inside
            return sizes, largest
        return sizes, max(largest, _measured(tree) or largest, key=prod)
    sizes = plain_sizes(tree, fixed)
    return sizes, sizes[0] if fixed else small_size(tree, sizes[0])


def plain_sizes(tree: Tree[Geometry], fixed: Size | None = None) -> list[Size]:
    """Sizes on which a plain convolution that differs from the layers shows it: one for each
    remainder by the strides, at which every tap reads some sample.

    With a `fixed` input the one that stands for it. No other size is needed. Where padding is zeros
    a difference at the border comes from one combination of taps that leaves an image in between.
    Its taps are together one of the merged kernel's: at the output next to the border where that
    one reads a sample, the combination leaves the image as well, and so it does in every image that
    has such an output. Where padding repeats the image, images reach past every kernel, so that no
    sample is taken for another.
    """
    axes = range(len(merged(tree).axes))
    if fixed is not None:
        return [tuple(_standing_for(tree, axis, fixed[axis]) for axis in axes)]
    return _along_the_diagonal([_every_phase(tree, axis) for axis in axes])


def interior_sizes(tree: Tree[Geometry], fixed: Size | None) -> list[Size]:
    """Those of `plain_sizes` for any input, as taps are told from outputs that the border does not
    spoil, and the one that stands for a `fixed` input, which may have none.
    """
    standing = [] if fixed is None else plain_sizes(tree, fixed)
    return list(dict.fromkeys([*standing, *plain_sizes(tree)]))


def small_size(tree: Tree[Geometry], size: Size) -> Size:
    """The size itself, or one hardly larger than the smallest that the layers take."""
    return tuple(min(smallest_size(tree, axis) + _SMALL, n) for axis, n in enumerate(size))


def _along_the_diagonal(per_axis: Sequence[Sequence[int]]) -> list[Size]:
    """Each number of each axis, with those of the others that have its place or come last."""
    count = max(map(len, per_axis), default=1)
    sizes = [tuple(some[min(index, len(some) - 1)] for some in per_axis) for index in range(count)]
    return list(dict.fromkeys(sizes))


def _every_phase(tree: Tree[Geometry], axis: int) -> list[int]:
    """For each remainder by the strides the smallest size that shows every tap."""
    repeat, first = period(tree, axis), _showing(tree, axis)
    phases = (*range(repeat),)
    if repeat > _MOST_PHASES:
        phases = 0, 1, repeat // 2, repeat - 1
    return [_at_phase(tree, axis, first + phase) for phase in phases]


def _standing_for(tree: Tree[Geometry], axis: int, size: int) -> int:
    """The smallest size that shows every tap and meets the border as this one does, if any is."""
    first = _showing(tree, axis)
    same = first + (size - first) % period(tree, axis)
    return min(_at_phase(tree, axis, same), size)


def _at_phase(tree: Tree[Geometry], axis: int, first: int) -> int:
    """The first that shows every tap of this size and those that the strides take for it."""
    sizes = range(first, first + 2 * reach(tree, axis) + 1, period(tree, axis))
    return next((size for size in sizes if _shows(tree, axis, size)), sizes[-1])


def corrected_sizes(tree: Tree[Geometry], wanted: Corrections, fixed: Size | None) -> list[Size]:
    """Sizes on which corrections that are wrong show it: those of every class, and with room those
    of all combinations of classes that tell every border tap apart, together with every tap of the
    merged kernel.
    """
    per_axis = [
        [_with_room(tree, axis, one, found) for one in _classes_for_every_tap(found)]
        for axis, found in enumerate(wanted.axes)
    ]
    sizes = [*every_kind(wanted), *product(*per_axis)]
    shown = tuple(_showing(tree, axis) for axis in range(len(wanted.axes)))
    if fixed is None and not any(all(map(ge, size, shown)) for size in sizes):
        sizes.append(shown)
    return sorted(dict.fromkeys(sizes), key=prod)


def every_kind(wanted: Corrections) -> list[Size]:
    """Sizes of which every kind of size on each axis is one: each class is run once at least."""
    return _along_the_diagonal([[one.size for one in axis.classes] for axis in wanted.axes])


def _classes_for_every_tap(found: AxisCorrections) -> list[SizeClass]:
    """Classes that tell all border taps apart: no change of taps cancels in all of them."""
    taps = found.taps + found.bias_taps
    chosen: list[SizeClass] = []
    known, rank = torch.zeros(0, taps, dtype=torch.float64), 0
    for one in sorted(found.classes, key=lambda one: -one.size):
        if rank == taps:
            break
        more = torch.cat([known, _uses(one, found)]).unique(dim=0)
        if len(more) > len(known) and (higher := int(torch.linalg.matrix_rank(more))) > rank:
            chosen.append(one)
            known, rank = more, higher
    return chosen or [found.classes[-1]]


def _uses(one: SizeClass, found: AxisCorrections) -> Tensor:
    """For every place that is corrected the factor of each tap, of weights and then of biases."""
    uses: dict[tuple[int, ...], Tensor] = {}
    entries = [*one.weights, *((row, found.taps + tap, factor) for row, tap, factor in one.biases)]
    for *place, tap, factor in entries:
        none = torch.zeros(found.taps + found.bias_taps, dtype=torch.float64)
        uses.setdefault(tuple(place), none)[tap] += factor
    return torch.stack([*uses.values()]) if uses else torch.zeros(0, found.taps + found.bias_taps)


def _with_room(tree: Tree[Geometry], axis: int, one: SizeClass, found: AxisCorrections) -> int:
    """The smallest size of a class at which the corrections of either end have places of their own
    and every tap of the merged kernel reads a sample. A small size is its own class.
    """
    if one.size < found.settled:
        return one.size
    whole = merged(tree).axes[axis]
    last = one.size + 2 * reach(tree, axis) + 2 * whole.stride + found.period
    for size in range(one.size, last, found.period):
        outputs = output_size(tree, axis, size) or 0
        room = all(-size <= column < size for column in one.columns)
        room = room and all(-outputs <= row < outputs for row in one.rows)
        if room and _shows_every_tap(whole, size, frozenset()):
            break
    return size


def _showing(tree: Tree[Geometry], axis: int) -> int:
    """A size, hardly larger than the smallest, that shows every tap; past every kernel where
    padding repeats the image.
    """
    first = smallest_size(tree, axis)
    last = first + 2 * reach(tree, axis) + 2 * merged(tree).axes[axis].stride
    if any(leaf.axes[axis].padding_mode != "zeros" for leaf in leaves(tree)):
        first += reach(tree, axis)
    steps = [first, *(first + 2**k for k in range((last - first).bit_length() + 1))]
    enough = next((size for size in steps if _shows(tree, axis, size)), steps[-1])
    known = max((size for size in steps if size < enough), default=enough - 1)
    while enough - known > 1:  # halving: what shows at one size mostly does at the next
        middle = (known + enough) // 2
        known, enough = (known, middle) if _shows(tree, axis, middle) else (middle, enough)
    return enough


def _shows(tree: Tree[Geometry], axis: int, size: int) -> bool:
    """Whether every tap reads some sample for an output that the border does not spoil, and strides
    lead to a second output.
    """
    if (output_size(tree, axis, size) or 0) < 2:
        return False
    return _shows_every_tap(merged(tree).axes[axis], size, wrong_rows(tree, axis, size))


def _shows_every_tap(axis: Axis, size: int, spoiled: frozenset[int]) -> bool:
    """Whether each tap meets a sample in an output not spoiled: of whole numbers whose bits are
    where outputs start and where samples are, the one shifted by the tap has some of the other.
    """
    starts = _bits(axis.output_size(size), axis.stride)
    for row in spoiled:
        starts &= ~(1 << axis.stride * row)
    samples = _bits(size, axis.upsample)
    outermost = axis.taps[0], axis.taps[-1]  # where taps miss, these do
    return all(
        (starts << tap if tap >= 0 else starts >> -tap) & samples
        for tap in (*outermost, *axis.taps)
    )


def _bits(count: int, step: int) -> int:
    """A whole number of which every `step`th bit is set, `count` in all."""
    return ((1 << step * count) - 1) // ((1 << step) - 1)


def _measured(tree: Tree[Geometry]) -> Size | None:
    """The telling size with the most outputs that takes no long time, if one does."""
    whole = merged(tree)
    for outputs in (_OUTPUTS_SHOWN[max(len(whole.axes), 1)], 16, 8):
        size = telling_size(tree, None, outputs)
        macs, _ = counted(tree, size, lambda leaf, n: (leaf.macs(n), leaf.output_size(n)))
        copied = whole.in_channels * prod(whole.kernel_size) * prod(whole.output_size(size))
        if macs + whole.macs(size) + COPY * copied <= _MEASURED:
            return size
    return None


def telling_size(tree: Tree[Geometry], fixed: Size | None, outputs: int | None = None) -> Size:
    """One input size that shows both the border and the inside: past every kernel, with some tens
    of `outputs` on each axis, and where sizes meet the border differently, the one with the most
    spoiled outputs, and among those the most wrong taps. With a `fixed` input the smallest such
    that meets the border as that does.
    """
    chosen = []
    for axis, whole in enumerate(axes := merged(tree).axes):
        wanted = outputs or _OUTPUTS_SHOWN[len(axes)]
        least = -(-wanted * whole.stride // whole.upsample)
        if fixed is not None:
            chosen.append(equivalent_size(tree, axis, fixed[axis], least))
            continue
        repeat, enough = period(tree, axis), past_both_borders(tree, axis, least)
        if repeat > _MOST_PERIODS:
            chosen.append(enough)
            continue
        spoiled = {n: _spoiled(tree, axis, n) for n in range(enough, enough + repeat)}
        chosen.append(max(spoiled, key=lambda n: (spoiled[n], n % repeat == 0)))
    return tuple(chosen)


def _spoiled(tree: Tree[Geometry], axis: int, size: int) -> tuple[int, int]:
    """How many output rows a plain merge has wrong on an axis, and by how many taps."""
    rows, found = len(wrong_rows(tree, axis, size)), _corrections(tree)
    return rows, 0 if found is None else len(found.axes[axis].of(size).weights)


@lru_cache(maxsize=256)
def _corrections(tree: Tree[Geometry]) -> Corrections | None:
    try:
        return corrections(tree)
    except GeometryError:  # too many combinations of taps to look at each
        return None


# Images


def random_image(geometry: Geometry, size: Size, generator: torch.Generator, batch: int) -> Tensor:
    """Normal values, float64, (batch, in_channels, *size)."""
    shape = (batch, geometry.in_channels, *size)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def bounded_image(geometry: Geometry, size: Size, generator: torch.Generator, batch: int) -> Tensor:
    """Values of either sign between a half and one in size, float64, as `random_image`.

    None is so small that it could hide a weight, and no two are alike, so that weights which are
    exchanged do not cancel.
    """
    shape = (batch, geometry.in_channels, *size)
    values = torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5
    return values + values.sign() / 2


# Impulses


def exhaustive_sizes(tree: Tree[Geometry], fixed: Size | None) -> list[Size]:
    """The smallest size and one that holds every kind of position (each stride phase, each distance
    from each border that any kernel can tell apart).

    With a `fixed` input that size, or the smallest that meets the border in the same way.
    """
    axes = range(len(merged(tree).axes))
    if fixed is not None:
        return [tuple(equivalent_size(tree, axis, n) for axis, n in enumerate(fixed))]
    smallest = tuple(smallest_size(tree, axis) for axis in axes)
    whole = tuple(smallest[a] + reach(tree, a) + period(tree, a) for a in axes)
    return list(dict.fromkeys([smallest, whole]))


def every_impulse(tree: Tree[Geometry], size: Size) -> Iterator[Tensor]:
    """Images (batch, in_channels, *size) with one impulse for each channel and position.

    The groups of a layer do not meet, so one image carries an impulse in each of them.
    """
    geometry = merged(tree)
    per_group, places = geometry.in_channels // geometry.groups, prod(size)
    widest = max(max(prod(leaf.weight_shape[1:]), leaf.out_channels) for leaf in leaves(tree))
    batch = max(1, _CHUNK_NUMBERS // (widest * max(places, 1)))
    count = places * per_group
    for chunk in torch.arange(count).split(batch):
        x = F.one_hot(chunk, count).double().unflatten(1, (places, per_group)).mT
        yield x.reshape(-1, per_group, *size).repeat(1, geometry.groups, *(1 for _ in size))
