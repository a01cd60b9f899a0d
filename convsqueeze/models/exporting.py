"""A squeezed model through torch's exporter, with as many sizes left open as its code allows.

Each squeezed layer stands there as one node of its own, until its graph is put in the node's place:
torch's exporter would follow a corrected layer for the sizes of the example alone. The graphs of
`export` take every size, and their initializers are the stored values.
"""

import logging
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
import torch._dynamo  # here, where a signal ends the run, and not in the middle of the work
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor, nn
from torch.export import Dim

from convsqueeze.checkpoint import RECIPE_KEY
from convsqueeze.errors import GeometryError, OutputError
from convsqueeze.export.graph import (
    ELEMENT_TYPES,
    INPUT,
    OUTPUT,
    exported_dtype,
    layer_nodes,
    parameters,
)
from convsqueeze.models.inputs import Inputs
from convsqueeze.module import SqueezedConv
from convsqueeze.names import listed, shown
from convsqueeze.tracing.raised import contained

DOMAIN = "convsqueeze"
BATCH = 2
"""Of the inputs that are traced: a size of 1 would be taken for a constant."""
NAMES = {
    2: ("batch", "length"),
    3: ("batch", "channels", "length"),
    4: ("batch", "channels", "height", "width"),
    5: ("batch", "channels", "depth", "height", "width"),
}
"""Of the sizes of an input of so many dimensions."""


def exports(
    squeezed: nn.Module, inputs: Inputs, opset: int, recipe_json: str | None = None
) -> Iterator[ModelProto]:
    """Models with every size open that the code leaves open, then with the batch alone, then with
    the sizes that were given; those that torch can export. `squeezed` is used up. Raises
    OutputError where torch can export none.
    """
    squeezed.cpu().eval().requires_grad_(False)
    layers = {n or "model": m for n, m in squeezed.named_modules() if isinstance(m, SqueezedConv)}
    stood, dtype = squeezed, None
    for name, layer in layers.items():
        exported_dtype(name, layer)  # raises for one that ONNX has no type for
        if layer is squeezed:
            stood = StandIn(name, layer)
        else:
            stood.set_submodule(name, StandIn(name, layer))
    for tensor in (*stood.parameters(), *stood.buffers()):
        if tensor.dtype == torch.bfloat16:  # ONNX convolves it from opset 22 on alone
            tensor.data, dtype = tensor.data.float(), torch.float32
    several = inputs.resized(
        [(BATCH, *s.shape[1:]) if s.shape[:1] == (1,) else s.shape for s in inputs.tensors]
    )
    count = 0
    failure: BaseException | None = None
    for given, opened in ((several, None), (several, 1), (inputs, 0)):
        try:
            made = _exported(stood, given.first(dtype), opened, opset)
        except Exception as error:  # noqa: BLE001  the user's code and the exporter's
            failure = error
            continue
        count += 1
        made = inlined(made, layers)
        made.ir_version = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
        made.graph.name = "squeezed model"
        if recipe_json is not None:
            helper.set_model_props(made, {RECIPE_KEY: recipe_json})
        yield made
    if not count:
        root = failure
        while root is not None and root.__cause__ is not None:
            root = root.__cause__
        text = " ".join(str(root).split())[:300]
        raise OutputError(
            f"{type(squeezed).__name__}: torch's exporter does not take the model "
            f"({type(root).__name__}: {text}). Change what it names in the model's code, or export "
            "the layers alone: leave --model away."
        ) from failure


def _exported(
    model: nn.Module, arguments: tuple[Any, ...], opened: int | None, opset: int
) -> ModelProto:
    """`opened`: how many sizes of each tensor may be open, from the first on; None: all."""
    shapes = tuple(
        dict.fromkeys(range(one.ndim if opened is None else min(opened, one.ndim)), Dim.AUTO)
        if isinstance(one, Tensor)
        else None
        for one in arguments
    )
    with _quietly(), torch.no_grad(), contained():
        traced = torch.export.export(
            model, arguments, dynamic_shapes=shapes if opened != 0 else None, strict=False
        )
        program = torch.onnx.export(traced, dynamo=True, opset_version=opset, verbose=False)
    if program is None:
        raise OutputError("torch's exporter gave nothing.")
    made: ModelProto = program.model_proto
    _name_sizes(made.graph, traced)
    return made


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's own progress and advice, which is for those who write exporters."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _name_sizes(graph: GraphProto, traced: torch.export.ExportedProgram) -> None:
    """`height` and not `s53`, also where it stands in the size of an output; the number where the
    trace found one, which the exporter still calls by a symbol.
    """
    found = {node.name: node.meta["val"] for node in traced.graph.nodes if node.op == "placeholder"}
    names: dict[str, str] = {}
    for value in graph.input:
        sizes = value.type.tensor_type.shape.dim
        usual, seen = NAMES.get(len(sizes), ()), getattr(found.get(value.name), "shape", ())
        for index, size in enumerate(sizes):
            if index < len(seen) and str(seen[index]).isdigit():
                names[size.dim_param] = str(seen[index])
            elif size.dim_param and size.dim_param not in names:
                name = usual[index] if index < len(usual) else f"size_{index}"
                taken = name in names.values()
                names[size.dim_param] = f"{value.name}_{name}" if taken else name
    for value in (*graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            renamed = re.sub(r"\w+", lambda one: names.get(one[0], one[0]), size.dim_param)
            if renamed.isdigit():
                size.dim_value = int(renamed)
            elif renamed:
                size.dim_param = renamed


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
        name = helper.get_node_attr_value(node, "layer").decode()
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
    given, element = node.input[0], helper.get_node_attr_value(node, "element")
    result = node.output[0]
    element_type = ELEMENT_TYPES[exported_dtype(name, layer)]
    stem = name if call == 1 else f"{name}#{call}"
    renamed = {name + INPUT: given, name + OUTPUT: result}

    def own_name(value: str) -> str:
        """Of a value within this call; initializers are shared by all of them."""
        return f"{stem}{value.removeprefix(name)}" if value.startswith(f"{name}/") else value

    if element_type != element:
        renamed = {name + INPUT: f"{stem}{INPUT}", name + OUTPUT: f"{stem}{OUTPUT}"}
        yield helper.make_node("Cast", [given], [f"{stem}{INPUT}"], to=element_type)
    for made in layer_nodes(name, layer):
        for field in (made.input, made.output):
            field[:] = [renamed.get(one, own_name(one)) for one in field]
        made.name = own_name(made.name)
        yield made
    if element_type != element:
        yield helper.make_node("Cast", [f"{stem}{OUTPUT}"], [result], to=element)


def _add_values(graph: GraphProto, layers: Mapping[str, SqueezedConv]) -> None:
    taken = {tensor.name for tensor in graph.initializer}
    for name, layer in layers.items():
        values = parameters(name, layer)
        if double := taken & values.keys():
            raise OutputError(f"{shown(name)}: {listed(sorted(double))} stands in the model twice.")
        for key, value in values.items():
            graph.initializer.append(numpy_helper.from_array(value.numpy(), key))


def _all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _all_nodes(inner)


def _forget_origins(model: ModelProto) -> None:
    graph = model.graph
    del graph.value_info[:]
    parts = (*_all_nodes(graph), *graph.input, *graph.output, *graph.initializer)
    for part in (model, graph, *parts):
        del part.metadata_props[:]
        part.doc_string = ""
