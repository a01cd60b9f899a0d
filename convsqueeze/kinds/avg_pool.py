"""Average pools that count what they pad: `torch.nn.AvgPool1d`, 2d and 3d."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import LARGEST, Axis, Geometry
from convsqueeze.errors import GeometryError
from convsqueeze.kinds import fields, oracle
from convsqueeze.kinds.call import Call, Kind, are_fixed, on_every_axis
from convsqueeze.kinds.layer import Layer, OnnxNodes, Tensors
from convsqueeze.kinds.operators import Padding, PerAxis, growing_pairs, per_axis
from convsqueeze.kinds.semantics import Linear, Semantics, not_linear

_AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class AvgPoolLayer(Layer):
    """`torch.nn.AvgPool` with padding counted and sizes rounded down; stride: the kernel_size."""

    type: Literal["avg_pool"]
    kernel_size: fields.PerAxis
    stride: fields.PerAxis | None = None
    padding: fields.Padding = 0

    has_taps = True

    def operator(self, tensors: Tensors, rank: int, channels: int) -> Conv:
        if not rank:
            raise GeometryError("a pool needs an axis, these layers have channels alone")
        size = per_axis(self.kernel_size, rank, "kernel_size")
        return average_pool(channels, **{**self.settings, "kernel_size": size})

    def onnx(self, nodes: OnnxNodes, x: str, names: Mapping[str, str], geometry: Geometry) -> str:
        axes = geometry.axes
        sizes = {
            "kernel_shape": [axis.kernel_size for axis in axes],
            "strides": [axis.stride for axis in axes],
        }
        return nodes.add("AveragePool", nodes.padded(x, axes), **sizes)

    def run(self, x: Tensor, tensors: Tensors) -> Tensor:
        padded = oracle.padded(x, self.padding)
        return _AVG_POOL[x.ndim - 2](padded, self.kernel_size, self.stride or self.kernel_size)


def average_pool(
    channels: int,
    *,
    kernel_size: Sequence[int],
    stride: PerAxis | None = None,
    padding: Padding = 0,
) -> Conv:
    """`torch.nn.AvgPool` with padding counted and sizes rounded down, torch's defaults.

    Raises GeometryError for settings of another count than `kernel_size`, a padding of more than
    half of it, and a pool over more than 65,536 samples.
    """
    rank = len(kernel_size)
    strides = tuple(kernel_size) if stride is None else per_axis(stride, rank, "stride")
    pairs = growing_pairs(padding, rank)
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


def _call(call: Call) -> Semantics:
    """An average pool that counts what it pads."""
    given, padding = call["kernel_size"], on_every_axis(call["padding"])
    kernel = [*given] if isinstance(given, list | tuple) else [given] * call.rank
    kernel *= call.rank // len(kernel)
    stride = on_every_axis(call["stride"] or kernel)
    if not are_fixed([kernel, stride, padding]):
        return not_linear("a pool whose size depends on that of the input")
    if call["ceil_mode"]:
        return not_linear("a pool that rounds its size up")
    if padding and call["count_include_pad"] is False:
        return not_linear("a pool that does not count what it pads")
    if call["divisor_override"]:
        return not_linear("a pool with a divisor of its own")
    settings: dict[str, Any] = {"padding": padding} if padding else {}
    if stride != on_every_axis(kernel):
        settings["stride"] = stride
    return Linear(AvgPoolLayer(type="avg_pool", kernel_size=kernel, **settings), call.rank)


KIND = Kind(
    AvgPoolLayer,
    aten={f"avg_pool{n}d": _call for n in (1, 2, 3)},
    modules={getattr(nn, f"AvgPool{n}d"): f"avg_pool{n}d" for n in (1, 2, 3)},
)
