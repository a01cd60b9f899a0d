"""Transposed convolutions: `torch.nn.ConvTranspose1d`, 2d and 3d."""

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from convsqueeze.algebra.apply import transposed_layout
from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import Axis
from convsqueeze.errors import GeometryError
from convsqueeze.kinds import fields, oracle
from convsqueeze.kinds.call import Call, Kind
from convsqueeze.kinds.kernels import kernel_settings, with_kernel
from convsqueeze.kinds.layer import Shape, Tensors, WithTensors
from convsqueeze.kinds.operators import (
    Padding,
    PerAxis,
    as_vector,
    growing_pairs,
    per_axis,
    spatial_rank,
)
from convsqueeze.kinds.semantics import Semantics

_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class ConvTransposeLayer(WithTensors):
    """A transposed convolution, `torch.nn.ConvTranspose1d`, 2d or 3d."""

    type: Literal["conv_transpose"]
    stride: fields.PerAxis = 1
    padding: fields.Padding = 0
    output_padding: fields.PerAxisFromZero = 0
    dilation: fields.PerAxis = 1
    groups: int = Field(1, ge=1)

    has_taps = True
    mixes_channels = True
    takes_channels_first = True

    def infer_in_channels(self, shapes: Mapping[str, Shape]) -> int:
        return shapes["weight"][0]

    def operator(self, tensors: Tensors, rank: int, channels: int) -> Conv:
        return transposed(tensors["weight"], tensors.get("bias"), **self.settings)

    def run(self, x: Tensor, tensors: Tensors) -> Tensor:
        weight, bias = tensors["weight"], oracle.channel_vector(tensors.get("bias"))
        nested = oracle.is_nested(self.padding)
        settings = self.settings | ({"padding": 0} if nested else {})
        y = _CONV_TRANSPOSE[x.ndim - 2](x, weight, bias, **settings)
        return oracle.padded(y, [(-low, -high) for low, high in self.padding]) if nested else y


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

    `bias` is (out,). Raises GeometryError where shapes, groups or settings do not fit each other.

    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (2016), relationship
    14: upsample by the stride, then convolve with the reversed kernel and padding `d*(k-1) - p`.
    """
    rank = spatial_rank(weight)
    strides, dilations = per_axis(stride, rank, "stride"), per_axis(dilation, rank, "dilation")
    pairs = growing_pairs(padding, rank)
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
    return Conv(transposed_layout(weight, groups), as_vector(bias), tuple(axes), groups)


def transposed_call(call: Call) -> Semantics:
    """`conv_transpose2d`; or `convolution` where it is transposed."""
    settings = {"type": "conv_transpose", **kernel_settings(call, ConvTransposeLayer)}
    return with_kernel(call, call.rank, ConvTransposeLayer, settings)


KIND = Kind(
    ConvTransposeLayer,
    aten={f"conv_transpose{n}d": transposed_call for n in (1, 2, 3)},
    modules={getattr(nn, f"ConvTranspose{n}d"): f"conv_transpose{n}d" for n in (1, 2, 3)},
)
