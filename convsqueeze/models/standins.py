"""Squeezed layers in an exported model: each stands there as one node of its own, until its graph
is put in the node's place.

torch's exporter would follow a corrected layer for the sizes of the example alone; the graphs of
`export` take every size, and their initializers are the stored values.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor, nn

from convsqueeze.errors import GeometryError, OutputError
from convsqueeze.export.graph import (
    ELEMENT_TYPES,
    INPUT,
    OUTPUT,
    exported_dtype,
    layer_nodes,
    parameters,
)
from convsqueeze.module import SqueezedConv
from convsqueeze.names import listed, shown

DOMAIN = "convsqueeze"


class StandIn(nn.Module):
    """In place of a squeezed layer while a model is exported: a node that names it."""

    def __init__(self, name: str, layer: SqueezedConv) -> None:
        super().__init__()
        self.name, self.layer = name, layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        if not layer.axes or x.ndim != len(layer.axes) + 2:  # linear, or without a batch
            y: Tensor = layer(x)
            return y
        if x.shape[1] != layer.geometry.in_channels:  # also fixes the number while it is exported
            raise GeometryError(
                f"{shown(self.name)} takes {layer.geometry.in_channels} channels, not {x.shape[1]}"
            )
        sizes = [axis.output_size(n) for axis, n in zip(layer.axes, x.shape[2:], strict=True)]
        made: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::Layer",
            (x,),
            {"layer": self.name, "element": ELEMENT_TYPES[x.dtype]},
            dtype=x.dtype,
            shape=(x.shape[0], layer.geometry.out_channels, *sizes),
            version=1,
        )
        return made


def put_stand_ins(model: nn.Module) -> tuple[nn.Module, dict[str, SqueezedConv]]:
    """The model with every squeezed layer replaced in place, and the layers by name.

    Raises OutputError for a layer in a dtype that ONNX has no type for.
    """
    layers = {n or "model": m for n, m in model.named_modules() if isinstance(m, SqueezedConv)}
    for name, layer in layers.items():
        exported_dtype(name, layer)
        if model is layer:
            return StandIn(name, layer), layers
        model.set_submodule(name, StandIn(name, layer))
    return model, layers


def inlined(model: ModelProto, layers: Mapping[str, SqueezedConv]) -> ModelProto:
    """The model with the graph of each layer in the place of its nodes, without what the exporter
    notes beside (paths and stack traces among it). Raises OutputError where a node is left.
    """
    whole = ModelProto()
    whole.CopyFrom(model)
    _forget_origins(whole)
    nodes, calls = list(whole.graph.node), Counter[str]()
    del whole.graph.node[:]
    for node in nodes:
        if node.domain != DOMAIN:
            whole.graph.node.append(node)
            continue
        name = _attribute(node, "layer").decode()
        calls[name] += 1
        whole.graph.node.extend(_nodes_for(node, name, layers[name], calls[name]))
    _add_values(whole.graph, {name: layers[name] for name in calls})
    kept = [o for o in whole.opset_import if o.domain != DOMAIN]
    del whole.opset_import[:]
    whole.opset_import.extend(kept)
    left = {node.op_type for node in _all_nodes(whole.graph) if node.domain == DOMAIN}
    if left or whole.functions:
        raise OutputError(
            "the model runs a squeezed layer within a branch or a loop of its own code, which "
            "cannot be written as ONNX here. Export the layers alone: leave --model away."
        )
    return whole


def _nodes_for(node: NodeProto, name: str, layer: SqueezedConv, call: int) -> Iterator[NodeProto]:
    """The layer's nodes between the values that the exporter's node stands between."""
    given, element = node.input[0], _attribute(node, "element")
    result = node.output[0]
    own = ELEMENT_TYPES[exported_dtype(name, layer)]
    stem = name if call == 1 else f"{name}#{call}"
    renamed = {name + INPUT: given, name + OUTPUT: result}
    if own != element:
        renamed = {name + INPUT: f"{stem}{INPUT}", name + OUTPUT: f"{stem}{OUTPUT}"}
        yield helper.make_node("Cast", [given], [f"{stem}{INPUT}"], to=own)
    values = parameters(name, layer)
    for made in layer_nodes(name, layer):
        for field in (made.input, made.output):
            field[:] = [
                one if one in values else renamed.get(one, _of_call(one, name, stem))
                for one in field
            ]
        made.name = _of_call(made.name, name, stem)
        yield made
    if own != element:
        yield helper.make_node("Cast", [f"{stem}{OUTPUT}"], [result], to=element)


def _of_call(value: str, name: str, stem: str) -> str:
    return f"{stem}{value.removeprefix(name)}" if value.startswith(f"{name}/") else value


def _add_values(graph: GraphProto, layers: Mapping[str, SqueezedConv]) -> None:
    taken = {tensor.name for tensor in graph.initializer}
    for name, layer in layers.items():
        values = parameters(name, layer)
        if double := taken & values.keys():
            raise OutputError(f"{shown(name)}: {listed(sorted(double))} stands in the model twice.")
        for key, value in values.items():
            graph.initializer.append(numpy_helper.from_array(value.numpy(), key))


def _attribute(node: NodeProto, name: str) -> Any:
    return next(helper.get_attribute_value(one) for one in node.attribute if one.name == name)


def _all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _all_nodes(inner)


def _forget_origins(model: ModelProto) -> None:
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    model.graph.doc_string = ""
    for node in _all_nodes(model.graph):
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
