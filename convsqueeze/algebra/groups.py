"""Channel groups of weights: products of grouped matrices without structural zeros.

Knows weights of shape (out_channels, in_channels / groups, *taps), whatever their taps stand for.
"""

from math import gcd

import torch
from torch import Tensor


def cells(outer: Tensor, outer_groups: int, inner: Tensor, inner_groups: int) -> tuple[Tensor, ...]:
    """Both weights cut into the cells of intermediate channels that one group of each shares.

    Within each of the `gcd(g1, g2)` merged groups the inner layer has `a = g1/gcd` blocks and the
    outer `b = g2/gcd`: `a*b` cells of channels, each in one block of either, so nothing is ever
    multiplied by a structural zero. The inner's, (gcd * a*b, cell, in, *k1), then the outer's,
    (gcd * a*b, out, cell, *k2), as they are stored.
    """
    common = gcd(outer_groups, inner_groups)
    blocks_in, blocks_out = inner_groups // common, outer_groups // common
    first = inner.unflatten(0, (common * blocks_in * blocks_out, -1))
    second = outer.unflatten(0, (common * blocks_out, -1))
    second = second.unflatten(2, (blocks_in, -1)).movedim(2, 1).flatten(0, 1)
    return first, second


def joined(parts: Tensor, outer_groups: int, inner_groups: int) -> Tensor:
    """Cells of shape (gcd * a*b, out, in, *k) summed into (out_channels, in_channels/gcd, *k)."""
    common = gcd(outer_groups, inner_groups)
    blocks_in, blocks_out = inner_groups // common, outer_groups // common
    parts = parts.unflatten(0, (common, -1))
    if blocks_in > 1 and blocks_out > 1:
        cell = torch.arange(blocks_in * blocks_out, device=parts.device)
        place = cell // blocks_in * blocks_in + cell // blocks_out
        parts = _summed(parts, place)
    grid = parts.unflatten(1, (blocks_out, blocks_in)).movedim(2, 3)
    return grid.flatten(3, 4).flatten(0, 2)


def _summed(parts: Tensor, place: Tensor) -> Tensor:
    """(common, cells, ...) with every cell added to its place, one after the other: on each device
    by the operation that has an order there.
    """
    total = torch.zeros_like(parts)
    if parts.device.type == "cpu":
        return total.index_add_(1, place, parts)
    total.transpose(0, 1).index_put_((place,), parts.transpose(0, 1), accumulate=True)
    return total


def regrouped(weight: Tensor, groups: int, fewer: int) -> Tensor:
    """The same weight written with `fewer` groups (a divisor of `groups`): block-diagonal."""
    blocks = groups // fewer
    if blocks == 1:
        return weight
    grouped = weight.unflatten(0, (fewer, blocks, -1))
    wide = weight.new_zeros((*grouped.shape[:3], blocks, *grouped.shape[3:]))
    wide.diagonal(dim1=1, dim2=3).copy_(grouped.movedim(1, -1))
    return wide.flatten(3, 4).flatten(0, 2)
