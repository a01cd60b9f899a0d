"""Which input sample every combination of taps reads, with each layer's own padding.

A chain of layers with kernels of `k1, ..., kL` taps on one axis makes `k1 * ... * kL` combinations
of one tap of each. Each reads at most one input sample for an output, whatever the padding modes,
so one table of whole numbers an axis says all that there is to say about borders: where it differs
from the table of the merged kernel, a plain merge is wrong. Combinations are counted with the last
layer's tap first: `tap_L * (k1 * ... * k(L-1)) + ... + tap_1`. Knows geometry only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from convsqueeze.algebra.geometry import Axis
from convsqueeze.algebra.sizes import GeometryTree
from convsqueeze.algebra.tree import paths
from convsqueeze.errors import GeometryError

NOTHING = -1
"""In a table of sources: a zero is read, from the padding or between upsampled samples."""
LARGEST_TABLE = 1 << 22


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


def sources(path: Path, size: int) -> Tensor:
    """The input sample that each output and combination of taps reads, or NOTHING.

    int64, (outputs, combinations), for an input of `size` samples.
    """
    if not path:
        raise GeometryError("a chain needs at least one layer")
    table = torch.arange(size).unsqueeze(1)
    for link in path:
        read = _layer_sources(link.axis, table.shape[0])
        _check_amount(read.shape[0], read.shape[1] * table.shape[1])
        table = _through(read, table, NOTHING)
    return table


def presence(path: Path, size: int) -> tuple[Tensor, ...]:
    """For each layer of a path that adds a bias, whether the bias reaches each output through each
    combination of taps of the layers behind it, or a zero stands there instead.

    bool, (outputs, combinations) each.
    """
    tables: list[Tensor] = []
    count = size
    for link in path:
        read = _layer_sources(link.axis, count)
        count = read.shape[0]
        tables = [_through(read, table, False) for table in tables]
        if link.bias:
            tables.append(torch.ones(count, 1, dtype=torch.bool))
    return tuple(tables)


def merged_sources(axis: Axis, positions: Tensor, size: int, count: int) -> Tensor:
    """What `sources` would be if a merged kernel did what the padding of each layer does.

    `positions` is where each combination stands relative to `stride * i`, int64 (combinations,).
    """
    starts = axis.stride * torch.arange(count).unsqueeze(1)
    return samples_at(starts + positions, torch.tensor(size), axis.padding_mode, axis.upsample)


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


def _through(outer: Tensor, inner: Tensor, nothing: int | bool) -> Tensor:
    """`inner` looked up where `outer` reads: (outputs, outer taps * inner columns)."""
    found = inner[outer.clamp(min=0)]
    return torch.where((outer == NOTHING).unsqueeze(2), nothing, found).flatten(1)


def _check_amount(outputs: int, combinations: int) -> None:
    if outputs * combinations > LARGEST_TABLE:
        raise GeometryError(
            f"{combinations:,} combinations of taps on one axis are too many to correct; "
            "merge fewer layers at once"
        )
