"""Linear layers on the channels: `torch.nn.Linear`."""

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import Axis, Geometry
from convsqueeze.errors import GeometryError
from convsqueeze.kinds import oracle
from convsqueeze.kinds.call import Call, Kind
from convsqueeze.kinds.kernels import with_kernel
from convsqueeze.kinds.layer import OnnxNodes, Tensors, WithTensors
from convsqueeze.kinds.operators import as_vector
from convsqueeze.kinds.semantics import Semantics


class LinearLayer(WithTensors):
    """`torch.nn.Linear` on the channels."""

    type: Literal["linear"]

    mixes_channels = True

    def operator(self, tensors: Tensors, rank: int, channels: int) -> Conv:
        return linear(tensors["weight"], tensors.get("bias"), rank=rank)

    def onnx(self, nodes: OnnxNodes, x: str, names: Mapping[str, str], geometry: Geometry) -> str:
        weight, bias, axes = names["weight"], names.get("bias"), geometry.axes
        if not axes:
            return nodes.add("Gemm", x, weight, *([] if bias is None else [bias]), transB=1)
        shape = nodes.integers(geometry.weight_shape)
        return nodes.convolved(x, nodes.add("Reshape", weight, shape), bias, axes, 1)

    def run(self, x: Tensor, tensors: Tensors) -> Tensor:
        bias = oracle.channel_vector(tensors.get("bias"))
        return F.linear(x.movedim(1, -1), tensors["weight"], bias).movedim(-1, 1)


def linear(weight: Tensor, bias: Tensor | None = None, *, rank: int = 0) -> Conv:
    """`torch.nn.Linear`, `weight` (out, in), on the channels of a signal with `rank` axes.

    `bias` is (out,). Raises GeometryError for a weight or a bias of another shape.
    """
    if weight.ndim != 2:
        raise GeometryError(f"a linear weight has 2 dimensions, this has {tuple(weight.shape)}")
    return Conv(weight[(..., *(None,) * rank)], as_vector(bias), (Axis(),) * rank)


def _call(call: Call) -> Semantics:
    """`linear`, on the last axis."""
    return with_kernel(call, 0, LinearLayer, {"type": "linear"})


KIND = Kind(LinearLayer, aten={"linear": _call}, modules={nn.Linear: "linear"})
