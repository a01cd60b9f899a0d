"""Layers one after the other with random weights, as torch runs them and as an ONNX model has them.

Norms, scales and pools are the operators that a network has for them, not convolutions, so that a
runtime may fuse them as it would there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import count

import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor

from convsqueeze.algebra.geometry import Axis, Geometry
from convsqueeze.algebra.tree import Chain, Sum, Tree, leaves, mapped
from convsqueeze.export.nodes import Nodes, Operator, operator, padded
from convsqueeze.export.session import model_of
from convsqueeze.kinds import Layer
from convsqueeze.plan import Merge, ResolvedLayer
from convsqueeze.verify.reference import Run, run_of_tree


@dataclass(frozen=True, eq=False)
class RandomLayer:
    """A layer with random values: its tensors by role, in the shapes in which they are stored."""

    name: str
    layer: Layer
    geometry: Geometry
    tensors: Mapping[str, Tensor]


def random_layers(merge: Merge, dtype: torch.dtype) -> Tree[RandomLayer]:
    """The layers of a merge with random values."""
    numbers = count()

    def with_values(leaf: ResolvedLayer) -> RandomLayer:
        tensors = {role: _random(shape, dtype) for role, shape in leaf.shapes.items()}
        return RandomLayer(f"layer_{next(numbers)}", leaf.layer, leaf.geometry, tensors)

    return mapped(merge.tree, with_values)


def _random(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Above zero, as variances are, and so small that what layers give does not grow."""
    values = torch.rand(tuple(shape), dtype=dtype) + 0.5
    return values / torch.Size(shape[1:]).numel()


def kind_of(leaf: ResolvedLayer) -> str:
    """All that the time of a layer depends on beside its geometry."""
    return f"{leaf.layer.type} {leaf.layer.settings} {' '.join(leaf.parameters)}"


def in_torch(tree: Tree[RandomLayer]) -> Run:
    """The layers as one function of (batch, channels, *size)."""
    return run_of_tree(tree, lambda own, x: own.layer.run(x, own.tensors))


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


def as_onnx(tree: Tree[RandomLayer], merge: Merge) -> ModelProto:
    """The layers, whose values are float32, as a model with the input `x` and the output `y`."""
    nodes = _LayerNodes("apart")
    nodes.made.append(helper.make_node("Identity", [_add_nodes(nodes, "x", tree)], ["y"]))
    channels = {"x": merge.geometry.in_channels, "y": merge.geometry.out_channels}
    free = [None] * len(merge.size)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, number, *free])
        for name, number in channels.items()
    ]
    values = [
        numpy_helper.from_array(tensor.numpy(), f"{own.name}.{role}")
        for own in leaves(tree)
        for role, tensor in own.tensors.items()
    ]
    graph = helper.make_graph(nodes.made, "layers apart", ends[:1], ends[1:], values)
    return model_of(graph)


def _add_nodes(nodes: _LayerNodes, x: str, tree: Tree[RandomLayer]) -> str:
    """The nodes of a tree on `x`; gives the name of its output."""
    if isinstance(tree, Chain):
        return reduce(lambda value, link: _add_nodes(nodes, value, link), tree.links, x)
    if isinstance(tree, Sum):
        outputs = [_add_nodes(nodes, x, branch) for branch in tree.branches]
        return reduce(lambda one, other: nodes.add("Add", one, other), outputs)
    names = {role: f"{tree.name}.{role}" for role in tree.tensors}
    return tree.layer.onnx(nodes, x, names, tree.geometry)
