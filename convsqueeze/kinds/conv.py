"""Ordinary convolutions: `torch.nn.Conv1d`, `Conv2d` and `Conv3d`."""

from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import Axis
from convsqueeze.algebra.tree import Sum
from convsqueeze.errors import GeometryError
from convsqueeze.kinds import fields, oracle
from convsqueeze.kinds.call import Call, Kind, WithIdentity, are_fixed
from convsqueeze.kinds.conv_transpose import transposed_call
from convsqueeze.kinds.identity import IdentityLayer
from convsqueeze.kinds.kernels import kernel_settings, tensor_names, with_kernel
from convsqueeze.kinds.layer import Layer, Tensors, WithTensors
from convsqueeze.kinds.operators import (
    Padding,
    PerAxis,
    as_vector,
    growing_pairs,
    per_axis,
    spatial_rank,
)
from convsqueeze.kinds.pad import PadLayer
from convsqueeze.kinds.semantics import Linear, Semantics

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class ConvLayer(WithTensors):
    """An ordinary convolution, `torch.nn.Conv1d`, `Conv2d` or `Conv3d`."""

    type: Literal["conv"] = "conv"
    stride: fields.PerAxis = 1
    padding: fields.Padding = 0
    padding_mode: fields.PaddingMode = "zeros"
    dilation: fields.PerAxis = 1
    groups: int = Field(1, ge=1)

    has_taps = True
    mixes_channels = True

    def padded_by(self, before: Layer) -> "ConvLayer | None":
        """As one layer with a pad of the image's own values before it, as torch's modules do it."""
        if self.padding or not isinstance(before, PadLayer) or before.padding_mode == "zeros":
            return None
        settings = {"padding": before.padding, "padding_mode": before.padding_mode}
        return ConvLayer.model_validate(self.model_dump(exclude_unset=True) | settings)

    def operator(self, tensors: Tensors, rank: int, channels: int) -> Conv:
        return convolution(tensors["weight"], tensors.get("bias"), **self.settings)

    def run(self, x: Tensor, tensors: Tensors) -> Tensor:
        weight, bias = tensors["weight"], oracle.channel_vector(tensors.get("bias"))
        rank, padding = x.ndim - 2, self.padding
        steps = {"stride": self.stride, "dilation": self.dilation, "groups": self.groups}
        if self.padding_mode == "zeros" and not oracle.is_nested(padding):
            return _CONV[rank](x, weight, bias, padding=padding, **steps)
        if padding == "same":
            dilation = (self.dilation,) * rank if isinstance(self.dilation, int) else self.dilation
            totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            padding = [(total // 2, total - total // 2) for total in totals]
        x = oracle.padded(x, 0 if padding == "valid" else padding, self.padding_mode)
        return _CONV[rank](x, weight, bias, **steps)


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
    """`torch.nn.Conv1d`, `Conv2d` or `Conv3d`; `weight` (out, in / groups, *kernel_size).

    `bias` is (out,). Raises GeometryError where shapes, groups or settings do not fit each other.
    """
    rank = spatial_rank(weight)
    kernel_size = tuple(weight.shape[2:])
    strides, dilations = per_axis(stride, rank, "stride"), per_axis(dilation, rank, "dilation")
    if padding == "same":
        padding = _same(kernel_size, strides, dilations)
    pairs = growing_pairs(0 if padding == "valid" else padding, rank)
    axes = tuple(
        Axis(k, s, d, before, after, padding_mode=padding_mode)
        for k, s, d, (before, after) in zip(kernel_size, strides, dilations, pairs, strict=True)
    )
    return Conv(weight, as_vector(bias), axes, groups)


def _same(kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Padding:
    """The pairs of torch's `same`: `d*(k-1)` in all, the odd one after."""
    if any(step != 1 for step in stride):
        raise GeometryError("padding 'same' needs stride 1, as in torch")
    totals = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
    return [(total // 2, total - total // 2) for total in totals]


def _call(call: Call) -> Semantics:
    """`conv2d`, or `convolution` of both kinds."""
    if call["transposed"]:
        return transposed_call(call)
    settings = kernel_settings(call, ConvLayer)
    return _beside_identity(call, settings) or with_kernel(call, call.rank, ConvLayer, settings)


def _beside_identity(call: Call, settings: dict[str, Any]) -> Linear | None:
    """A 1x1 kernel that the code adds the identity to: two branches."""
    weight, padding = call["weight"], settings.get("padding", 0)
    if not isinstance(weight, WithIdentity) or weight.kernel.reshaped or call["bias"] is not None:
        return None
    out, width = weight.kernel.shape[:2]
    plain = "stride" not in settings and padding in (0, "valid") and are_fixed(settings)
    if not plain or out != settings.get("groups", 1) * width:
        return None
    kernel = ConvLayer(**tensor_names(weight.kernel, None, call.names), **settings)
    return Linear(Sum((kernel, IdentityLayer(type="identity"))), call.rank, weight.keys)


KIND = Kind(
    ConvLayer,
    aten=dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _call),
    modules={nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Conv3d: "conv3d"},
)
