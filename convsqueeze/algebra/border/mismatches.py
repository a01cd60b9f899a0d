"""Where and why a plain merged operator differs from the layers it replaces.

Valid convolutions compose exactly. The one inexact step is moving a layer's padding past the layer
before it: the layer itself sees its padding in the ring around the intermediate image, the merged
kernel sees what the layer before would have computed there.

The layers of one axis are run in whole numbers on both: their own padding, and an input that is
padded once and without end, as the merged kernel sees it. Weights, biases and samples are random
residues modulo a prime, so two values are equal where they are equal for all weights (Schwartz,
"Fast probabilistic algorithms for verification of polynomial identities", J. ACM 27, 1980). All
input sizes are run at once, until the answer repeats (it depends on the size modulo the strides).
Knows geometry only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random
from typing import Literal

import torch
from torch import Tensor

from convsqueeze.algebra.border.trace import samples_at
from convsqueeze.algebra.geometry import Geometry
from convsqueeze.algebra.sizes import (
    ONE_SIZE,
    GeometryTree,
    along,
    equivalent_size,
    merged,
    output_size,
    reach,
    sizes_to_examine,
)
from convsqueeze.algebra.tree import Chain, Sum
from convsqueeze.errors import TooLargeError

Side = Literal["low", "high"]
Cause = Literal["bias", "window", "mode"]
Place = tuple[int, ...]
SIDES: tuple[Side, Side] = ("low", "high")

PRIME = 2**31 - 1
"""Two values that differ are taken for equal about once in so many times."""
AT_ONCE = 1 << 19
"""Taps of samples of all sizes together that are read at once, which takes some ten times their
memory.
"""
MOST_READ = 1 << 25
"""Taps of samples of all sizes together that are read at most: some seconds."""


@dataclass(frozen=True)
class Mismatch:
    """One side of one axis on which a plain merge is not exact.

    `rows` output rows differ at most; `cause` is what fills the ring of the layer at `link` (its
    place in the tree): the inner layer's `bias`, its `window` reaching the image, or a padding
    `mode` that does not pass it. `exact_sizes` are the examined input sizes without a mismatch.
    """

    axis: int
    side: Side
    rows: int
    cause: Cause
    link: Place
    exact_sizes: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def depends_on_size(self) -> bool:
        """Whether sizes past every kernel are exact: one that is smaller is no case to speak of."""
        middle = self.sizes[len(self.sizes) // 2]
        return any(size > middle for size in self.exact_sizes)


def mismatches(tree: GeometryTree, size: Sequence[int] | None = None) -> tuple[Mismatch, ...]:
    """Every axis side on which the plain merge of `tree` differs from the layers themselves.

    With `size` (one number an axis) only that input counts, otherwise every size that the layers
    accept. Empty: the plain merge is exact at every pixel.
    """
    sizes = (None,) * len(merged(tree).axes) if size is None else size
    return tuple(
        replace(found, axis=axis)
        for axis, fixed in enumerate(sizes)
        for found in _on_axis(along(tree, axis), fixed)
    )


def wrong_rows(tree: GeometryTree, axis: int, size: int) -> frozenset[int]:
    """The output indices on one axis at which the plain merge differs, for one input size."""
    return _wrong_rows(along(tree, axis), size)


@lru_cache(maxsize=4096)
def _wrong_rows(tree: GeometryTree, size: int) -> frozenset[int]:
    if _pads_only_input(tree):
        return frozenset()
    alike = equivalent_size(tree, 0, size)
    _check_amount(tree, [alike])
    rows = _Run(tree, [alike]).wrong[:, 0].any(0).nonzero().flatten().tolist()
    outputs = output_size(tree, 0, alike) or 0
    further = (output_size(tree, 0, size) or 0) - outputs
    return frozenset(row if 2 * row < outputs else row + further for row in rows)


@lru_cache(maxsize=4096)
def _on_axis(tree: GeometryTree, fixed: int | None) -> tuple[Mismatch, ...]:
    """Those of a tree with a single axis."""
    if _pads_only_input(tree):
        return ()
    sizes = sizes_to_examine(tree, 0) if fixed is None else [equivalent_size(tree, 0, fixed)]
    step = max(1, AT_ONCE // _check_amount(tree, sizes))
    runs = [_Run(tree, sizes[start : start + step]) for start in range(0, len(sizes), step)]
    found = []
    for side in range(len(SIDES)):
        parts = [part for run in runs if (part := run.mismatch(side)) is not None]
        if parts:
            rows, wrong = max(part.rows for part in parts), {n for x in parts for n in x.sizes}
            exact = tuple(n for n in sizes if n not in wrong)
            found.append(replace(parts[-1], rows=rows, exact_sizes=exact, sizes=tuple(sizes)))
    return tuple(found)


def _check_amount(tree: GeometryTree, sizes: Sequence[int]) -> int:
    """How many taps of samples are read for the largest of some sizes. Raises TooLargeError where
    all of them together read too many.
    """
    padded = sizes[-1] + 2 * reach(tree, 0)
    largest = padded + _taps_read(tree, padded)[0]
    if (read := largest * len(sizes)) > MOST_READ:
        raise TooLargeError(
            f"what happens at the border follows from {read:,} taps that samples of all sizes are "
            f"read by, at most {MOST_READ:,} are looked at. Leave the layer with the large kernel, "
            f"padding or stride apart{ONE_SIZE if largest <= MOST_READ else ''}"
        )
    return largest


def _taps_read(tree: GeometryTree, size: int) -> tuple[int, int]:
    """How many taps of samples all layers read for one input of some size, and how many samples
    leave, at most.
    """
    if isinstance(tree, Chain):
        read = 0
        for link in tree.links:
            taps, size = _taps_read(link, size)
            read += taps
        return read, size
    if isinstance(tree, Sum):
        ways = [_taps_read(branch, size) for branch in tree.branches]
        return sum(taps for taps, _ in ways), max(outputs for _, outputs in ways)
    (axis,) = tree.axes
    outputs = axis.upsample * size // axis.stride + 1
    return outputs * axis.kernel_size, outputs


def _pads_only_input(tree: GeometryTree, first: bool = True) -> bool:
    """Whether no layer pads what another layer computed: then nothing can differ."""
    if isinstance(tree, Chain):
        links = enumerate(tree.links)
        return all(_pads_only_input(link, first and not index) for index, link in links)
    if isinstance(tree, Sum):
        return all(_pads_only_input(branch, first) for branch in tree.branches)
    return first or not tree.axes[0].pads


@dataclass(frozen=True)
class _Signal:
    """What leaves some layers, for several input sizes at once.

    `counts` (sizes, 1) are its samples. `implied` (2, sizes, positions), from position `first` on,
    is what the merged kernel sees: the part linear in the input, and the constant one. `errors`
    (sides, 2, sizes, most samples) is what the layers compute minus that, by where it comes from.
    """

    counts: Tensor
    first: int
    implied: Tensor
    errors: Tensor


class _Run:
    """The layers of a tree with one axis, run on inputs of some sizes.

    `wrong` (sides, sizes, outputs) says where the merged kernel gives something else. `_rings` are
    the places of layers, whether their padding differs from what the merged kernel sees there
    (sides, 2, sizes), and whether it repeats the image.
    """

    def __init__(self, tree: GeometryTree, sizes: Sequence[int]) -> None:
        self._sizes = tuple(sizes)
        self._rings: list[tuple[Place, Tensor, bool]] = []
        self._mode = merged(tree).axes[0].padding_mode
        self._random = Random(0)
        margin, longest = reach(tree, 0), max(sizes)
        counts = torch.tensor(self._sizes).unsqueeze(1)
        samples = samples_at(torch.arange(-margin, longest + margin), counts, self._mode, 1)
        image = torch.cat((self._drawn(longest), torch.zeros(1, dtype=torch.int64)))
        linear = image[samples]  # NOTHING takes the last, a zero
        none = torch.zeros(2, 2, len(sizes), longest, dtype=torch.int64)
        implied = torch.stack((linear, torch.zeros_like(linear)))
        last = self._through(tree, _Signal(counts, -margin, implied, none))
        self._counts = last.counts
        self.wrong = last.errors.any(1) & (last.errors.sum(0) % PRIME).any(0)

    def _drawn(self, count: int) -> Tensor:
        return torch.tensor([self._random.randrange(1, PRIME) for _ in range(count)])

    def mismatch(self, side: int) -> Mismatch | None:
        """That of one side, its `sizes` those that have it; the cause is that of the largest."""
        wrong = self.wrong[side]
        where = wrong.any(1).nonzero().flatten()
        if not len(where):
            return None
        wrong, index = wrong[where], int(where[-1])
        if SIDES[side] == "low":
            rows = 1 + wrong.any(0).nonzero()
        else:
            rows = self._counts[where] - wrong.int().argmax(1, True)
        met = [ring for ring in self._rings if bool(ring[1][side, :, index].any())]
        place, differs, by_mode = min(met, key=lambda ring: not ring[0])  # any but the input's own
        linear, constant = differs[side, :, index].tolist()
        cause: Cause = "bias" if constant else "window"
        if by_mode or (linear and self._mode != "zeros"):
            cause = "mode"
        sizes = tuple(self._sizes[n] for n in where.tolist())
        return Mismatch(0, SIDES[side], int(rows.max()), cause, place, (), sizes)

    def _through(
        self, tree: GeometryTree, signal: _Signal, here: Place = (), place: Place = ()
    ) -> _Signal:
        """What leaves the tree at `here`; `place` is the last one that has a layer before it."""
        if isinstance(tree, Chain):
            for index, link in enumerate(tree.links):
                step = (*here, index)
                signal = self._through(link, signal, step, step if index else place)
            return signal
        if isinstance(tree, Sum):
            branches = enumerate(tree.branches)
            ways = [self._through(one, signal, (*here, index), place) for index, one in branches]
            first = max(way.first for way in ways)
            end = min(way.first + way.implied.shape[-1] for way in ways)
            parts = [way.implied[..., first - way.first : end - way.first] for way in ways]
            implied, errors = torch.stack(parts), torch.stack([way.errors for way in ways])
            return _Signal(ways[0].counts, first, implied.sum(0) % PRIME, errors.sum(0) % PRIME)
        return self._through_layer(tree, signal, place)

    def _through_layer(self, layer: Geometry, signal: _Signal, place: Place) -> _Signal:
        (axis,) = layer.axes
        step, up, taps = axis.stride, axis.upsample, axis.taps
        end = signal.first + signal.implied.shape[-1]
        first = -((taps[0] - up * signal.first) // step)
        positions = torch.arange(first, (up * end - 1 - taps[-1]) // step + 1).unsqueeze(1)
        read = step * positions + torch.tensor(taps)
        index, weights = read // up, self._drawn(axis.kernel_size)
        seen = signal.implied[..., index - signal.first].where(read % up == 0, 0)
        implied = _summed(seen, weights)
        if layer.bias:
            implied[1] = (implied[1] + self._drawn(1)) % PRIME
        counts = (up * (signal.counts - 1) + axis.slack) // step + 1
        outputs = slice(-first, -first + int(counts.max()))
        # (sizes, outputs, taps) from here on
        index, seen, size = index[outputs], seen[..., outputs, :], signal.counts.unsqueeze(2)
        there = (read[outputs] % up == 0) & (positions[outputs] < counts.unsqueeze(2))
        inside = there & (index >= 0) & (index < size)
        sides = torch.stack(torch.broadcast_tensors(index < 0, index >= size)).unsqueeze(1)
        ring = _padding(axis.padding_mode, signal, index) - seen
        ring = ring.where(there & sides, 0)
        self._rings.append((place, ring.flatten(3).any(3), axis.padding_mode != "zeros"))
        errors = signal.errors[..., index.clamp(0, signal.errors.shape[-1] - 1)]
        errors = _summed(errors.where(inside, ring) % PRIME, weights)
        return _Signal(counts, first, implied, errors)


def _padding(mode: str, signal: _Signal, index: Tensor) -> Tensor:
    """What a layer's padding puts at places outside the signal, as the layers compute it."""
    if mode == "zeros":
        return torch.zeros((), dtype=torch.int64)
    image = signal.implied[..., -signal.first :][..., : signal.errors.shape[-1]]
    real = (image + signal.errors.sum(0)) % PRIME
    samples = samples_at(index, signal.counts.unsqueeze(2), mode, 1)
    return real.gather(2, samples.flatten(1).expand(2, -1, -1)).unflatten(2, index.shape)


def _summed(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights % PRIME).sum(-1) % PRIME
