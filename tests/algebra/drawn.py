"""Hypothesis strategies for operators and images of small whole numbers."""

from collections.abc import Sequence
from itertools import islice, product
from math import gcd

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from convsqueeze import layers
from convsqueeze.algebra import Conv

torch.set_num_threads(1)

MODES = ("zeros", "reflect", "replicate", "circular")
_MOST_ITEMS = {0: 1, 1: 14, 2: 9, 3: 6}
LARGEST = 400
"""More than any four layers drawn here ask for; three of 4 taps, stride and dilation 3, unpadded,
take 118 samples.
"""

seeds = st.integers(0, 2**31 - 1)
ranks = st.sampled_from((1, 1, 2, 2, 3))


def law(examples: int) -> settings:
    """How often a law is tried."""
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


def whole(seed: int, *shape: int, largest: int = 4) -> Tensor:
    """Whole numbers up to `largest` of either sign, none zero."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, largest + 1, shape, generator=generator)
    signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return (sizes * signs).double()


def per_axis(rank: int, values: st.SearchStrategy[int]) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[values] * rank)


def sides(rank: int, widest: int) -> st.SearchStrategy[tuple[tuple[int, int], ...]]:
    amounts = st.integers(0, widest)
    return st.tuples(*[st.tuples(amounts, amounts)] * rank)


@st.composite
def channel_counts(draw: st.DrawFn, channels: int | None = None) -> tuple[int, int, int]:
    """(in, out, groups) with the groups dividing both."""
    count = st.sampled_from((1, 2, 3, 4, 6))
    given = channels or draw(count)
    out = draw(count)
    groups = draw(st.sampled_from([g for g in range(1, 7) if gcd(given, out) % g == 0]))
    return given, out, groups


@st.composite
def convolutions(
    draw: st.DrawFn,
    rank: int,
    channels: int | None = None,
    *,
    bias: bool | None = None,
    stride: int = 3,
    padding: int = 3,
    taps: int = 4,
    modes: Sequence[str] = ("zeros",),
) -> Conv:
    """Any ordinary convolution with whole weights."""
    given, out, groups = draw(channel_counts(channels))
    kernel = draw(per_axis(rank, st.integers(1, taps if rank < 3 else min(taps, 2))))
    seed = draw(seeds)
    has_bias = draw(st.booleans()) if bias is None else bias
    return layers.convolution(
        whole(seed, out, given // groups, *kernel),
        whole(seed + 1, out) if has_bias else None,
        stride=draw(per_axis(rank, st.integers(1, stride))),
        padding=draw(sides(rank, padding if rank < 3 else min(padding, 1))),
        dilation=draw(per_axis(rank, st.integers(1, 3 if rank < 3 else 2))),
        groups=groups,
        padding_mode=draw(st.sampled_from(list(modes))),
    )


@st.composite
def fitting(draw: st.DrawFn, first: Conv) -> Conv:
    """A branch of the same channels, strides and sizes as `first`, its taps anywhere."""
    given, out = first.geometry.in_channels, first.geometry.out_channels
    groups = draw(st.sampled_from([g for g in range(1, 7) if gcd(given, out) % g == 0]))
    kernel, dilation, pairs = [], [], []
    for axis in first.axes:
        k, d = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        while axis.slack + d * (k - 1) < 0:
            k += 1
        total = axis.slack + d * (k - 1)
        before = draw(st.integers(0, total))
        kernel, dilation = [*kernel, k], [*dilation, d]
        pairs.append((before, total - before))
    seed = draw(seeds)
    return layers.convolution(
        whole(seed, out, given // groups, *kernel),
        whole(seed + 1, out) if draw(st.booleans()) else None,
        stride=[axis.stride for axis in first.axes],
        padding=pairs,
        dilation=dilation,
        groups=groups,
    )


@st.composite
def transposed(
    draw: st.DrawFn, rank: int, channels: int | None = None, *, bias: bool | None = None
) -> Conv:
    """Any transposed convolution with whole weights, padding within its kernel's reach."""
    given, out, groups = draw(channel_counts(channels))
    kernel = draw(per_axis(rank, st.integers(1, 3 if rank < 3 else 2)))
    strides = draw(per_axis(rank, st.integers(1, 3)))
    dilation = draw(per_axis(rank, st.integers(1, 2)))
    pairs = [
        draw(st.tuples(*[st.integers(0, d * (k - 1))] * 2))
        for k, d in zip(kernel, dilation, strict=True)
    ]
    extras = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(strides, dilation, strict=True)]
    seed = draw(seeds)
    has_bias = draw(st.booleans()) if bias is None else bias
    return layers.transposed(
        whole(seed, given, out // groups, *kernel),
        whole(seed + 1, out) if has_bias else None,
        stride=strides,
        padding=pairs,
        output_padding=extras,
        dilation=dilation,
        groups=groups,
    )


@st.composite
def operators(draw: st.DrawFn, rank: int, channels: int | None = None) -> Conv:
    """An ordinary convolution, or now and then a transposed one."""
    if draw(st.integers(0, 3)):
        return draw(convolutions(rank, channels))
    return draw(transposed(rank, channels))


@st.composite
def images(draw: st.DrawFn, *chain: Conv) -> Tensor:
    """Whole numbers of a size that every link of the chain takes, one after the other."""
    rank = len(chain[0].axes)
    size = []
    for axis in range(rank):
        taken = (n for n in range(1, LARGEST) if _passes(chain, axis, n))
        size.append(draw(st.sampled_from(list(islice(taken, _MOST_ITEMS[rank])))))
    return whole(draw(seeds), 2, chain[0].geometry.in_channels, *size)


def _passes(chain: Sequence[Conv], axis: int, n: int) -> bool:
    for link in chain:
        if not link.axes[axis].accepts(n):
            return False
        n = link.axes[axis].output_size(n)
    return True


def within(outer: Conv, size: Sequence[int], output: Sequence[int]) -> Tensor:
    """Which outputs of `outer` read samples of an image of `size` alone; shape (*output)."""
    mask = torch.ones(tuple(output), dtype=torch.bool)
    for axis, (own, n, count) in enumerate(zip(outer.axes, size, output, strict=True)):
        last = own.upsample * (n - 1)
        for i, tap in product(range(count), own.taps):
            position = own.stride * i + tap
            if position % own.upsample == 0 and not 0 <= position <= last:
                mask.index_fill_(axis, torch.tensor([i]), False)
    return mask
