"""Layers one after the other with random weights, as torch runs them and as an ONNX model has them.

Norms, scales and pools are the operators that a network has for them, not convolutions, so that a
runtime may fuse them as it would there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor

from convsqueeze.algebra.apply import apply_operator, pad, transposed_layout
from convsqueeze.algebra.geometry import Geometry
from convsqueeze.algebra.tree import Chain, Sum, Tree, fold, leaves, mapped
from convsqueeze.export.nodes import Nodes, Operator, operator, padded
from convsqueeze.export.opsets import DEFAULT_OPSET, ir_version
from convsqueeze.kinds.scale import ScaleLayer
from convsqueeze.plan import Merge, ResolvedLayer

Run = Callable[[Tensor], Tensor]
_POOL: Mapping[int, Callable[..., Tensor]] = {
    1: F.avg_pool1d,
    2: F.avg_pool2d,
    3: F.avg_pool3d,
}


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer with values: what it is, its geometry, and its tensors by role."""

    name: str
    kind: str
    geometry: Geometry
    tensors: Mapping[str, Tensor]

    @property
    def column(self) -> tuple[int, ...]:
        """The shape that broadcasts a number a channel over an image."""
        return (-1, *(1,) * len(self.geometry.axes))


def valued(merge: Merge, dtype: torch.dtype) -> Tree[Layer]:
    """The layers of a merge with random values."""
    numbers = {id(leaf): index for index, leaf in enumerate(leaves(merge.tree))}
    return mapped(merge.tree, lambda leaf: _valued(leaf, f"layer_{numbers[id(leaf)]}", dtype))


def _valued(leaf: ResolvedLayer, name: str, dtype: torch.dtype) -> Layer:
    kind, geometry, tensors = kind_of(leaf), leaf.geometry, {}
    channels = geometry.out_channels
    if kind in ("conv", "conv_transpose", "linear"):
        tensors["weight"] = torch.randn(geometry.weight_shape, dtype=dtype)
        if geometry.bias:
            tensors["bias"] = torch.randn(channels, dtype=dtype)
    elif kind == "batch_norm":
        tensors = {role: torch.rand(channels, dtype=dtype) + 0.5 for role in _NORM}
    elif kind in _DIAGONAL:
        if kind == "scale":
            tensors["weight"] = torch.randn(channels, dtype=dtype)
        if geometry.bias:
            tensors["bias"] = torch.randn(channels, dtype=dtype)
    return Layer(name, kind, geometry, tensors)


def kind_of(leaf: ResolvedLayer) -> str:
    """The layer's type; a scale that multiplies by nothing is a `shift`."""
    layer = leaf.layer
    adds_only = isinstance(layer, ScaleLayer) and layer.factor == 1
    return "shift" if adds_only and "weight" not in leaf.parameters else layer.type


_DIAGONAL = ("scale", "shift")
_NORM = ("weight", "bias", "running_mean", "running_var")


def in_torch(tree: Tree[Layer]) -> Run:
    """The layers as one function of (batch, channels, *size)."""

    def chain(links: Sequence[Run]) -> Run:
        return lambda x: reduce(lambda value, link: link(value), links, x)

    def add(branches: Sequence[Run]) -> Run:
        return lambda x: reduce(torch.add, [branch(x) for branch in branches])

    return fold(tree, lambda layer: lambda x: _applied(layer, x), chain, add)


def _applied(layer: Layer, x: Tensor) -> Tensor:
    tensors, axes = layer.tensors, layer.geometry.axes
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if layer.kind == "batch_norm":
        mean, variance = tensors["running_mean"], tensors["running_var"]
        return F.batch_norm(x, mean, variance, weight, bias)
    if layer.kind in _DIAGONAL:
        x = x if weight is None else x * weight.view(layer.column)
        return x if bias is None else x + bias.view(layer.column)
    if layer.kind == "avg_pool":
        kernel, strides = [a.kernel_size for a in axes], [a.stride for a in axes]
        return _POOL[len(axes)](pad(x, axes), kernel, strides)
    if layer.kind == "pad":
        return pad(x, axes)
    if weight is None:
        return x
    return apply_operator(x, weight, bias, axes, layer.geometry.groups)


def as_onnx(tree: Tree[Layer], merge: Merge, dtype: torch.dtype) -> ModelProto:
    """The layers as a model with the input `x` and the output `y`."""
    nodes = Nodes("apart")
    last = _added(nodes, "x", tree)
    nodes.made.append(helper.make_node("Identity", [last], ["y"]))
    element = TensorProto.DOUBLE if dtype == torch.float64 else TensorProto.FLOAT
    free = [None] * len(merge.size)
    ends = [
        helper.make_tensor_value_info(name, element, [None, channels, *free])
        for name, channels in (
            ("x", merge.geometry.in_channels),
            ("y", merge.geometry.out_channels),
        )
    ]
    values = [
        numpy_helper.from_array(tensor.contiguous().numpy(), name)
        for layer in leaves(tree)
        for name, tensor in _stored(layer).items()
    ]
    graph = helper.make_graph(nodes.made, "layers apart", ends[:1], ends[1:], values)
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", DEFAULT_OPSET)],
        ir_version=ir_version(DEFAULT_OPSET),
    )


def _stored(layer: Layer) -> dict[str, Tensor]:
    """A layer's tensors by full name, in the layouts of the operators that take them."""
    tensors = dict(layer.tensors)
    if layer.geometry.is_transposed and "weight" in tensors:
        tensors["weight"] = transposed_layout(tensors["weight"], layer.geometry.groups)
    if layer.kind in _DIAGONAL:
        tensors = {role: tensor.view(layer.column) for role, tensor in tensors.items()}
    return {f"{layer.name}.{role}": tensor for role, tensor in tensors.items()}


def _added(nodes: Nodes, x: str, tree: Tree[Layer]) -> str:
    """The nodes of a tree on `x`; gives the name of its output."""
    if isinstance(tree, Chain):
        return reduce(lambda value, link: _added(nodes, value, link), tree.links, x)
    if isinstance(tree, Sum):
        outputs = [_added(nodes, x, branch) for branch in tree.branches]
        return reduce(lambda one, other: nodes.add("Add", one, other), outputs)
    return _added_layer(nodes, x, tree)


def _added_layer(nodes: Nodes, x: str, layer: Layer) -> str:
    axes, named = layer.geometry.axes, {role: f"{layer.name}.{role}" for role in layer.tensors}
    if layer.kind == "identity":
        return x
    if layer.kind == "batch_norm":
        return nodes.add("BatchNormalization", x, *(named[role] for role in _NORM))
    if layer.kind in _DIAGONAL:
        x = nodes.add("Mul", x, named["weight"]) if "weight" in named else x
        return nodes.add("Add", x, named["bias"]) if "bias" in named else x
    if layer.kind == "pad":
        return padded(nodes, x, axes)
    if layer.kind == "avg_pool":
        sizes = {
            "kernel_shape": [axis.kernel_size for axis in axes],
            "strides": [axis.stride for axis in axes],
        }
        return nodes.add("AveragePool", padded(nodes, x, axes), **sizes)
    if not axes:
        bias = [named["bias"]] if "bias" in named else []
        return nodes.add("Gemm", x, named["weight"], *bias, transB=1)
    own = Operator(named["weight"], named.get("bias"), axes, layer.geometry.groups, layer.name)
    return operator(nodes, x, own)
