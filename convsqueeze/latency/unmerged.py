"""Layers one after the other with random weights, as torch runs them and as an ONNX model has them.

Norms, scales and pools are the operators that a network has for them, not convolutions, so that a
runtime may fuse them as it would there.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import TypeVar

import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor

from convsqueeze.algebra.geometry import Axis
from convsqueeze.algebra.tree import Chain, Sum, Tree
from convsqueeze.export.nodes import Nodes, Operator, operator, padded
from convsqueeze.export.session import model_of
from convsqueeze.plan import Merge, ResolvedLayer

Values = Mapping[str, Mapping[str, Tensor]]
"""By the name of a layer's operation, its tensors by role, in the shapes in which they are stored.
"""
Value = TypeVar("Value")


def random_values(merge: Merge, dtype: torch.dtype) -> Values:
    """Values above zero, as variances are, and so small that what layers give does not grow."""
    return {
        op.name: {
            role: (torch.rand(shape, dtype=dtype) + 0.5) / torch.Size(shape[1:]).numel()
            for role, shape in op.shapes.items()
        }
        for op in merge.layers
    }


def _through(
    layer: Callable[[ResolvedLayer, Value], Value],
    add: Callable[[Value, Value], Value],
    tree: Tree[ResolvedLayer],
    x: Value,
) -> Value:
    """What layers make of `x`, where `layer` is what one does and `add` sums two branches."""
    through = partial(_through, layer, add)
    if isinstance(tree, Chain):
        return reduce(lambda value, link: through(link, value), tree.links, x)
    if isinstance(tree, Sum):
        return reduce(add, [through(branch, x) for branch in tree.branches])
    return layer(tree, x)


def in_torch(merge: Merge, values: Values) -> Callable[[Tensor], Tensor]:
    """The layers as one function of (batch, channels, *size)."""
    return partial(_through, lambda op, x: op.layer.run(x, values[op.name]), torch.add, merge.tree)


class _LayerNodes(Nodes):
    """Nodes of layers in float32, as the kinds of layers add them."""

    def constant(self, values: Tensor) -> str:
        return self.add("Constant", value=numpy_helper.from_array(values.float().numpy()))

    def padded(self, x: str, axes: Sequence[Axis]) -> str:
        return padded(self, x, axes)

    def convolved(
        self, x: str, weight: str, bias: str | None, axes: Sequence[Axis], groups: int
    ) -> str:
        return operator(self, x, Operator(weight, bias, tuple(axes), groups, weight))


def as_onnx(merge: Merge, values: Values) -> ModelProto:
    """The layers, whose values are float32, as a model with the input `x` and the output `y`."""
    nodes = _LayerNodes("apart")

    def layer(op: ResolvedLayer, x: str) -> str:
        names = {role: f"{op.name}.{role}" for role in values[op.name]}
        return op.layer.onnx(nodes, x, names, op.geometry)

    result = _through(layer, lambda one, other: nodes.add("Add", one, other), merge.tree, "x")
    nodes.made.append(helper.make_node("Identity", [result], ["y"]))
    channels = {"x": merge.geometry.in_channels, "y": merge.geometry.out_channels}
    free = [None] * len(merge.size)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, number, *free])
        for name, number in channels.items()
    ]
    stored = [
        numpy_helper.from_array(tensor.numpy(), f"{name}.{role}")
        for name, tensors in values.items()
        for role, tensor in tensors.items()
    ]
    graph = helper.make_graph(nodes.made, "layers apart", ends[:1], ends[1:], stored)
    return model_of(graph)
