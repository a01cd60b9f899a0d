"""Running an operator on data with torch: pad, convolve, step.

Knows tensors and axes. Every padding mode takes any width, also wider than the image, which a
merged layer can ask for where the layers apart did not and torch's own padding refuses.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convsqueeze.algebra.geometry import Axis
from convsqueeze.errors import GeometryError

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def apply_operator(
    x: Tensor, weight: Tensor, bias: Tensor | None, axes: Sequence[Axis], groups: int = 1
) -> Tensor:
    """The operator on `x`: (batch, in_channels, *size) to (batch, out_channels, *output_size).

    `weight` is (out_channels, in_channels / groups, *kernel_size). Without axes the operator is a
    linear layer and channels come last, as in `torch.nn.Linear`.
    """
    if not axes:
        return apply_linear(x, weight, bias, groups)
    steps = [(axis.stride, axis.before, axis.dilation) for axis in axes]
    stride, padding, dilation = zip(*steps, strict=True)
    if not all(map(_pads_alike, axes)):
        x, padding = pad(x, axes), (0,) * len(axes)
        if any(axis.upsample > 1 for axis in axes):
            return _upsampling(x, weight, bias, axes, groups)
    return _CONVOLVE[len(axes)](x, weight, bias, stride, padding, dilation, groups)


def _pads_alike(axis: Axis) -> bool:
    """Whether the convolution can pad by itself, which spares a copy of the image."""
    zeros = axis.padding_mode == "zeros" and axis.upsample == 1
    return zeros and axis.before == axis.after >= 0


def apply_linear(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """`torch.nn.functional.linear` with groups, channels last."""
    if groups == 1:
        return F.linear(x, weight, bias)
    y = torch.einsum(
        "...gi,goi->...go", x.unflatten(-1, (groups, -1)), weight.unflatten(0, (groups, -1))
    ).flatten(-2)
    return y if bias is None else y + bias.to(y.dtype)


def pad(x: Tensor, axes: Sequence[Axis]) -> Tensor:
    """`x` padded or cropped as each axis says; an axis that upsamples is left to its kernel."""
    zeros: list[int] = []
    for dim, axis in enumerate(axes, start=x.ndim - len(axes)):
        amounts = (0, 0) if axis.upsample > 1 else (axis.before, axis.after)
        if axis.padding_mode != "zeros":
            x = _pad_from_image(x, dim, axis)
            amounts = (0, 0)
        zeros = [*amounts, *zeros]
    return _grown_and_cropped(x, zeros)


def _grown_and_cropped(x: Tensor, amounts: Sequence[int]) -> Tensor:
    """`F.pad` with zeros, growing before it crops: F.pad crops first and may run out of samples."""
    if any(amount > 0 for amount in amounts):
        x = F.pad(x, [max(amount, 0) for amount in amounts])
    if any(amount < 0 for amount in amounts):
        x = F.pad(x, [min(amount, 0) for amount in amounts])
    return x


def _pad_from_image(x: Tensor, dim: int, axis: Axis) -> Tensor:
    """Padding whose values are the image's own: each position looked up where its mode says.

    Raises GeometryError for an axis of one sample, or none, which has nothing to reflect.
    """
    size = x.shape[dim]
    position = torch.arange(-axis.before, size + axis.after, device=x.device)
    if axis.padding_mode == "circular":
        source = position % size
    elif axis.padding_mode == "replicate":
        source = position.clamp(0, size - 1)
    else:
        if size < 2:
            raise GeometryError(f"padding_mode 'reflect' needs 2 samples on an axis, not {size}")
        period = 2 * (size - 1)
        folded = position % period
        source = torch.minimum(folded, period - folded)
    return x.index_select(dim, source)


def _upsampling(
    x: Tensor, weight: Tensor, bias: Tensor | None, axes: Sequence[Axis], groups: int
) -> Tensor:
    """Upsample and convolve: torch's transposed convolution in full, cropped and stepped.

    Its output `q` reads what ours reads at `i` where `q = stride*i + extent - 1 - before`.
    """
    rank = len(axes)
    full = _TRANSPOSED[rank](
        x,
        transposed_layout(weight, groups),
        stride=[axis.upsample for axis in axes],
        dilation=[axis.dilation for axis in axes],
        groups=groups,
    )
    crop: list[int] = []
    for axis, size, given in zip(axes, full.shape[-rank:], x.shape[-rank:], strict=True):
        before = axis.before if axis.upsample > 1 else 0
        slack = axis.slack if axis.upsample > 1 else 1 - axis.extent
        count = (axis.upsample * (given - 1) + slack) // axis.stride + 1
        start = axis.extent - 1 - before
        crop = [-start, start + axis.stride * (count - 1) + 1 - size, *crop]
    steps: tuple[Any, ...] = (..., *(slice(None, None, axis.stride) for axis in axes))
    y = _grown_and_cropped(full, crop)[steps]
    return y if bias is None else y + bias.to(y.dtype).view(-1, *(1,) * rank)


def transposed_layout(weight: Tensor, groups: int) -> Tensor:
    """(out, in/groups, *k) to torch's transposed (in, out/groups, *k), kernel reversed, or back."""
    swapped = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return swapped.flip(tuple(range(2, weight.ndim)))
