"""Layers one after the other with random weights, as torch runs them and as an ONNX model has them.

Norms, scales and pools are the operators that a network has for them, not convolutions, so that a
runtime may fuse them as it would there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import count

import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor

from convsqueeze.algebra.geometry import Geometry
from convsqueeze.algebra.tree import Chain, Sum, Tree, fold, leaves, mapped
from convsqueeze.export.nodes import Nodes, Operator, operator, padded
from convsqueeze.export.opsets import DEFAULT_OPSET, ir_version
from convsqueeze.kinds import Layer
from convsqueeze.kinds.scale import ScaleLayer
from convsqueeze.plan import Merge, ResolvedLayer

Run = Callable[[Tensor], Tensor]
NORM = ("weight", "bias", "running_mean", "running_var")
"""The tensors of a norm in the order of ONNX's operator."""


@dataclass(frozen=True, eq=False)
class RandomLayer:
    """A layer with random values: its tensors by role, in the shapes that torch's layer has."""

    name: str
    layer: Layer
    geometry: Geometry
    tensors: Mapping[str, Tensor]


def random_layers(merge: Merge, dtype: torch.dtype) -> Tree[RandomLayer]:
    """The layers of a merge with random values."""
    numbers = count()

    def randomized(leaf: ResolvedLayer) -> RandomLayer:
        tensors = {
            role: torch.rand(shape, dtype=dtype) + 0.5
            if role == "running_var"
            else torch.randn(shape, dtype=dtype)
            for role, shape in leaf.shapes.items()
        }
        return RandomLayer(f"layer_{next(numbers)}", leaf.layer, leaf.geometry, tensors)

    return mapped(merge.tree, randomized)


def in_torch(tree: Tree[RandomLayer]) -> Run:
    """The layers as one function of (batch, channels, *size)."""

    def chain(links: Sequence[Run]) -> Run:
        return lambda x: reduce(lambda value, link: link(value), links, x)

    def add(branches: Sequence[Run]) -> Run:
        return lambda x: reduce(torch.add, [branch(x) for branch in branches])

    return fold(tree, lambda own: lambda x: own.layer.run(x, own.tensors), chain, add)


def as_onnx(tree: Tree[RandomLayer], merge: Merge) -> ModelProto:
    """The layers, whose values are float32, as a model with the input `x` and the output `y`."""
    nodes = Nodes("apart")
    nodes.made.append(helper.make_node("Identity", [_add_nodes(nodes, "x", tree)], ["y"]))
    channels = {"x": merge.geometry.in_channels, "y": merge.geometry.out_channels}
    free = [None] * len(merge.size)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, number, *free])
        for name, number in channels.items()
    ]
    values = [
        numpy_helper.from_array(tensor.contiguous().numpy(), f"{own.name}.{role}")
        for own in leaves(tree)
        for role, tensor in _initializers(own).items()
    ]
    graph = helper.make_graph(nodes.made, "layers apart", ends[:1], ends[1:], values)
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", DEFAULT_OPSET)],
        ir_version=ir_version(DEFAULT_OPSET),
    )


def _initializers(own: RandomLayer) -> dict[str, Tensor]:
    """A layer's tensors by role, in the shapes of the operators that take them."""
    tensors, channels = dict(own.tensors), own.geometry.out_channels
    kernel_size = own.geometry.kernel_size
    if own.layer.type == "batch_norm":
        absent = {"weight": torch.ones(channels), "bias": torch.zeros(channels)}
        return {role: {**absent, **tensors}[role].flatten() for role in NORM}
    if isinstance(own.layer, ScaleLayer):
        if own.layer.factor != 1:
            tensors["weight"] = tensors.get("weight", torch.ones(1)) * own.layer.factor
        if own.layer.shift:
            tensors["bias"] = tensors.get("bias", torch.zeros(1)) + own.layer.shift
        return {role: t.reshape(-1, *(1 for _ in kernel_size)) for role, t in tensors.items()}
    if own.layer.mixes_channels:
        weight = tensors["weight"]
        tensors["weight"] = weight.reshape(*weight.shape[:2], *kernel_size)
    return {role: t.flatten() if role == "bias" else t for role, t in tensors.items()}


def _add_nodes(nodes: Nodes, x: str, tree: Tree[RandomLayer]) -> str:
    """The nodes of a tree on `x`; gives the name of its output."""
    if isinstance(tree, Chain):
        return reduce(lambda value, link: _add_nodes(nodes, value, link), tree.links, x)
    if isinstance(tree, Sum):
        outputs = [_add_nodes(nodes, x, branch) for branch in tree.branches]
        return reduce(lambda one, other: nodes.add("Add", one, other), outputs)
    return _add_layer(nodes, x, tree)


def _add_layer(nodes: Nodes, x: str, own: RandomLayer) -> str:
    axes, kind = own.geometry.axes, own.layer.type
    named = {role: f"{own.name}.{role}" for role in _initializers(own)}
    if kind == "batch_norm":
        return nodes.add("BatchNormalization", x, *named.values())
    if kind == "scale":
        x = nodes.add("Mul", x, named["weight"]) if "weight" in named else x
        return nodes.add("Add", x, named["bias"]) if "bias" in named else x
    if kind == "pad":
        return padded(nodes, x, axes)
    if kind == "avg_pool":
        sizes = {
            "kernel_shape": [axis.kernel_size for axis in axes],
            "strides": [axis.stride for axis in axes],
        }
        return nodes.add("AveragePool", padded(nodes, x, axes), **sizes)
    if not own.layer.mixes_channels:
        return x
    if not axes:
        return nodes.add("Gemm", x, *named.values(), transB=1)
    return operator(
        nodes,
        x,
        Operator(named["weight"], named.get("bias"), axes, own.geometry.groups, own.name),
    )
