"""Each kind of layer as a `Conv`, in torch's own terms and with torch's defaults.

Only shapes are looked at where nothing else is needed, so tensors on the meta device give the
geometry of a layer without its values. Knows torch's layer conventions, no files or names.
"""

from collections.abc import Sequence
from math import prod
from typing import Literal

import torch
from torch import Tensor

from convsqueeze.algebra.apply import transposed_layout
from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import LARGEST, Axis
from convsqueeze.errors import GeometryError

PerAxis = int | Sequence[int]
Padding = int | Sequence[int] | Sequence[Sequence[int]] | Literal["same", "valid"]


def per_axis(value: PerAxis, rank: int, name: str) -> tuple[int, ...]:
    """One number for each of `rank` axes. Raises GeometryError for any other count."""
    if isinstance(value, int):
        return (value,) * rank
    if len(value) != rank:
        raise GeometryError(f"{name} {list(value)} has {len(value)} numbers for {rank} axes")
    return tuple(value)


def padding_pairs(padding: Padding, rank: int) -> tuple[tuple[int, int], ...]:
    """(before, after) for each axis, from an int, one number an axis or one pair an axis.

    Raises GeometryError for any other form or count.
    """
    if isinstance(padding, str):
        raise GeometryError(f"padding {padding!r} is for ordinary convolutions only")
    if isinstance(padding, int):
        return ((padding, padding),) * rank
    if len(padding) != rank:
        raise GeometryError(
            f"padding {list(padding)} has {len(padding)} entries for {rank} axes; "
            "give one number or one [before, after] pair for each axis"
        )
    pairs = tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)
    if any(len(pair) != 2 for pair in pairs):
        raise GeometryError(f"padding {list(padding)} needs [before, after] for each axis")
    return pairs  # type: ignore[return-value]


def _not_negative(pairs: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    if any(amount < 0 for pair in pairs for amount in pair):
        raise GeometryError(f"padding {[list(p) for p in pairs]} is negative; only `pad` crops")
    return pairs


def _same(kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Padding:
    """The pairs of torch's `same`: `d*(k-1)` in all, the odd one after."""
    if any(step != 1 for step in stride):
        raise GeometryError("padding 'same' needs stride 1, as in torch")
    totals = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
    return [(total // 2, total - total // 2) for total in totals]


def convolution(
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Conv:
    """`torch.nn.Conv1d`, `Conv2d` or `Conv3d`; `weight` (out, in / groups, *kernel_size)."""
    rank = _spatial_rank(weight)
    kernel_size = tuple(weight.shape[2:])
    strides, dilations = per_axis(stride, rank, "stride"), per_axis(dilation, rank, "dilation")
    if padding == "same":
        padding = _same(kernel_size, strides, dilations)
    pairs = _not_negative(padding_pairs(0 if padding == "valid" else padding, rank))
    axes = tuple(
        Axis(k, s, d, before, after, padding_mode=padding_mode)
        for k, s, d, (before, after) in zip(kernel_size, strides, dilations, pairs, strict=True)
    )
    return Conv(weight, bias, axes, groups)


def transposed(
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    output_padding: PerAxis = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
) -> Conv:
    """`torch.nn.ConvTranspose1d`, 2d or 3d; `weight` (in, out / groups, *kernel_size).

    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (2016), relationship
    14: upsample by the stride, then convolve with the reversed kernel and padding `d*(k-1) - p`.
    """
    rank = _spatial_rank(weight)
    strides, dilations = per_axis(stride, rank, "stride"), per_axis(dilation, rank, "dilation")
    pairs = _not_negative(padding_pairs(padding, rank))
    extras = per_axis(output_padding, rank, "output_padding")
    if any(not 0 <= e < max(s, d) for e, s, d in zip(extras, strides, dilations, strict=True)):
        raise GeometryError("output_padding must be smaller than stride or dilation, as in torch")
    if groups < 1 or weight.shape[0] % groups:
        raise GeometryError(
            f"{weight.shape[0]} input channels do not divide into groups = {groups}"
        )
    axes = []
    for k, s, d, (low, high), extra in zip(
        weight.shape[2:], strides, dilations, pairs, extras, strict=True
    ):
        reach = d * (k - 1)
        axes.append(Axis(k, 1, d, reach - low, reach - high + extra, upsample=s))
    return Conv(transposed_layout(weight, groups), bias, tuple(axes), groups)


def linear(weight: Tensor, bias: Tensor | None = None, *, rank: int = 0) -> Conv:
    """`torch.nn.Linear`, `weight` (out, in), on the channels of a signal with `rank` axes."""
    if weight.ndim != 2:
        raise GeometryError(f"a linear weight has 2 dimensions, this has {tuple(weight.shape)}")
    return Conv(weight[(..., *(None,) * rank)], bias, (Axis(),) * rank)


def diagonal(weight: Tensor, bias: Tensor | None = None, *, rank: int) -> Conv:
    """One factor (and summand) for each channel; `weight` and `bias` hold one number a channel."""
    flat = weight.reshape(-1, 1, *(1,) * rank)
    return Conv(flat, None if bias is None else bias.flatten(), (Axis(),) * rank, flat.shape[0])


def batch_norm(
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float,
    rank: int,
) -> Conv:
    """`torch.nn.BatchNorm` in eval mode: `(x - mean) / sqrt(var + eps) * weight + bias`.

    All tensors (channels,). Computed in float64. Zero variances are carried by eps, and negative
    ones too as far as the sum is above zero, as in torch.
    """
    factor = (running_var.double() + eps).rsqrt()
    if weight is not None:
        factor = factor * weight.double()
    shift = -running_mean.double() * factor
    return diagonal(factor, shift if bias is None else shift + bias.double(), rank=rank)


def scale(
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    channels: int,
    factor: float = 1.0,
    shift: float = 0.0,
    rank: int,
) -> Conv:
    """`factor * weight * x + bias + shift`, as in LayerScale; `weight` and `bias` one number or
    `channels`. A shift of zero alone is no bias.

    Raises GeometryError where they hold another count.
    """
    spread = []
    for name, values in (("weight", weight), ("bias", bias)):
        if values is not None and values.numel() not in (1, channels):
            raise GeometryError(
                f"{name} of shape {tuple(values.shape)} does not scale {channels} channels"
            )
        spread.append(None if values is None else values.double().flatten().expand(channels))
    weights = torch.ones(channels, dtype=torch.float64) if spread[0] is None else spread[0]
    summands = spread[1]
    if shift and summands is not None:
        summands = summands + shift
    elif shift:
        summands = torch.full((channels,), shift, dtype=torch.float64)
    return diagonal(weights * factor, summands, rank=rank)


def average_pool(
    channels: int,
    *,
    kernel_size: Sequence[int],
    stride: PerAxis | None = None,
    padding: Padding = 0,
) -> Conv:
    """`torch.nn.AvgPool` with padding counted and sizes rounded down, torch's defaults."""
    rank = len(kernel_size)
    strides = tuple(kernel_size) if stride is None else per_axis(stride, rank, "stride")
    pairs = _not_negative(padding_pairs(padding, rank))
    if any(2 * max(pair) > k for pair, k in zip(pairs, kernel_size, strict=True)):
        raise GeometryError("padding of a pool is at most half its kernel_size, as in torch")
    count = prod(kernel_size)
    if count > LARGEST:
        raise GeometryError(f"a pool over {count:,} samples, at most {LARGEST:,} can be")
    one = torch.tensor(1.0 / count, dtype=torch.float64)
    weight = one.expand(channels, 1, *kernel_size)  # planning makes it too: no memory for it yet
    axes = tuple(
        Axis(k, s, 1, before, after)
        for k, s, (before, after) in zip(kernel_size, strides, pairs, strict=True)
    )
    return Conv(weight, None, axes, channels)


def pad(channels: int, *, padding: Padding, rank: int, padding_mode: str = "zeros") -> Conv:
    """`torch.nn.functional.pad`: padding and nothing else; negative amounts crop."""
    pairs = padding_pairs(padding, rank)
    if padding_mode == "circular" and any(min(pair) < 0 < max(pair) for pair in pairs):
        raise GeometryError(
            f"circular padding {[list(pair) for pair in pairs]} crops one side and wraps what is "
            "left to the other, which is not the padding of one convolution"
        )
    axes = tuple(
        Axis(before=before, after=after, padding_mode=padding_mode) for before, after in pairs
    )
    return Conv(torch.ones(channels, 1, *(1,) * rank, dtype=torch.float64), None, axes, channels)


def identity(channels: int, *, rank: int) -> Conv:
    """The operator that changes nothing."""
    return pad(channels, padding=0, rank=rank)


def _spatial_rank(weight: Tensor) -> int:
    if weight.ndim not in (3, 4, 5):
        raise GeometryError(
            f"a convolution's weight has 3, 4 or 5 dimensions, this has {tuple(weight.shape)}"
        )
    return weight.ndim - 2
