"""Which input sample every combination of taps reads, with each layer's own padding.

A chain of layers with kernels of `k1, ..., kL` taps on one axis makes `k1 * ... * kL` combinations
of one tap of each. Each reads at most one input sample for an output, whatever the padding modes,
so one table of whole numbers an axis says all that there is to say about borders: where it differs
from the table of the merged kernel, a plain merge is wrong. Combinations are counted with the last
layer's tap first: `tap_L * (k1 * ... * k(L-1)) + ... + tap_1`. Knows geometry only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from convsqueeze.algebra.geometry import Axis
from convsqueeze.algebra.sizes import GeometryTree
from convsqueeze.algebra.tree import fold, paths
from convsqueeze.errors import GeometryError, TooLargeError

NOTHING = -1
"""In a table of sources: a zero is read, from the padding or between upsampled samples."""
LARGEST_TABLE = 1 << 22
"""Places of a table: outputs times combinations of the input and of each bias."""
MOST_LAYERS = 60_000
"""On all ways through the sums of a chain, for all sizes together: each takes some 0.2 ms."""


Ways = tuple[int, int]
"""Through the sums of a chain: their number, and how many layers they have together."""


@dataclass(frozen=True)
class Link:
    """One axis of one layer, and whether the layer adds a bias."""

    axis: Axis
    bias: bool


Path = tuple[Link, ...]


def axis_paths(tree: GeometryTree, axis: int) -> tuple[Path, ...]:
    """The chains of single layers whose sum is the tree, on one axis."""
    return tuple(
        tuple(Link(layer.axes[axis], layer.bias and counts) for layer, counts in path)
        for path in paths(tree)
    )


def check_ways(tree: GeometryTree, sizes: int) -> None:
    """Raises TooLargeError where the ways through the sums of a chain have more layers than can be
    looked at for so many sizes.
    """
    ways, layers = fold(tree, lambda leaf: (1, 1), _ways_of_chain, _ways_of_sum)
    if layers * sizes > MOST_LAYERS:
        raise TooLargeError(
            f"these layers have {ways:,} way{'s' * (ways != 1)} through them, each with a border "
            f"of its own, with {layers:,} layers together; at {sizes:,} input sizes at most "
            f"{MOST_LAYERS // sizes:,} can be corrected. Merge fewer of them at once"
        )


def _ways_of_chain(links: Sequence[Ways]) -> Ways:
    ways = prod(n for n, _ in links)
    return ways, sum(layers * ways // n for n, layers in links)


def _ways_of_sum(branches: Sequence[Ways]) -> Ways:
    return sum(n for n, _ in branches), sum(layers for _, layers in branches)


def reads(path: Path, size: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What each output and combination of taps reads of an input of `size` samples.

    The input sample, or NOTHING: int64 (outputs, combinations). And for each layer that adds a
    bias, whether the bias reaches each output through each combination of taps of the layers
    behind it, or a zero stands there instead: bool (outputs, combinations) each.
    """
    if not path:
        raise GeometryError("a chain needs at least one layer")
    table = torch.arange(size).unsqueeze(1)
    combinations = 1
    for link in path:
        read = _layer_sources(link.axis, table.shape[0])
        combinations *= read.shape[1]
        _check_amount(read.shape[0] * read.shape[1] * table.shape[1], combinations)
        table = _through(read, table)
        if link.bias:
            table = torch.cat((table, table.new_zeros(len(table), 1)), 1)
    found, *biases = (table[:, columns] for columns in _columns(path))
    return found, tuple(bias != NOTHING for bias in biases)


@lru_cache(maxsize=256)
def _columns(path: Path) -> tuple[Tensor, ...]:
    """Where the combinations of the input and of each bias stand in the table of all of them."""
    parts, count = torch.zeros(1, dtype=torch.int64), 1
    for link in path:
        parts = parts.repeat(link.axis.kernel_size)
        if link.bias:
            parts = torch.cat((parts, torch.tensor([count])))
            count += 1
    return tuple((parts == part).nonzero().flatten() for part in range(count))


def merged_sources(axis: Axis, positions: Tensor, size: int, count: int) -> Tensor:
    """What `reads` would find if a merged kernel did what the padding of each layer does.

    `positions` is where each combination stands relative to `stride * i`, int64 (combinations,).
    """
    starts = axis.stride * torch.arange(count).unsqueeze(1)
    return samples_at(starts + positions, torch.tensor(size), axis.padding_mode, axis.upsample)


@lru_cache(maxsize=4096)
def _layer_sources(axis: Axis, size: int) -> Tensor:
    """The sample that each output of one layer reads with each tap: int64 (outputs, taps)."""
    taps = torch.tensor(list(axis.taps))
    return merged_sources(axis, taps, size, axis.output_size(size))


def samples_at(position: Tensor, size: Tensor, mode: str, upsample: int) -> Tensor:
    """The sample that stands at each position around an image padded by `mode`, or NOTHING.

    `size` is one of an image, or several that broadcast against `position`.
    """
    if mode == "circular":
        return position % size
    if mode == "replicate":
        return torch.minimum(position.clamp(min=0), size - 1)
    if mode == "reflect":
        period = (2 * (size - 1)).clamp(min=1)
        folded = position % period
        return torch.minimum(torch.minimum(folded, period - folded), size - 1)
    index = torch.div(position, upsample, rounding_mode="floor")
    there = (position % upsample == 0) & (index >= 0) & (index < size)
    return torch.where(there, index, NOTHING)


def _through(outer: Tensor, inner: Tensor) -> Tensor:
    """`inner` looked up where `outer` reads: (outputs, outer taps * inner columns)."""
    found = inner[outer.clamp(min=0)]
    return found.masked_fill_((outer == NOTHING).unsqueeze(2), NOTHING).flatten(1)


def _check_amount(places: int, combinations: int) -> None:
    if places > LARGEST_TABLE:
        raise TooLargeError(
            f"{combinations:,} combinations of taps on one axis are too many to correct; "
            "merge fewer layers at once"
        )
