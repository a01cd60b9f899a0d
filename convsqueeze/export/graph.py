"""Squeezed layers -> one ONNX model. Builds the graph node by node; writes and runs nothing.

Each layer has an input `<name>.input`, an output `<name>.output` and initializers `<name>.weight`
and `<name>.bias`; nothing is shared between layers. A layer is one operator (`nodes`)
and what it adds at its borders (`borders`), whose tensors are the initializers `<name>.border.*`.
All sizes but channels are dynamic.
"""

from collections.abc import Mapping

import torch
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor

from convsqueeze.algebra.precision import STORAGE_DTYPES
from convsqueeze.checkpoint import RECIPE_KEY
from convsqueeze.errors import OutputError
from convsqueeze.export.borders import add_borders
from convsqueeze.export.nodes import Nodes, Operator, operator
from convsqueeze.export.session import DEFAULT_OPSET, check_opset, model_of
from convsqueeze.module import SqueezedConv

INPUT, OUTPUT = ".input", ".output"
AXIS_NAMES = {0: (), 1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
DTYPES: dict[int, torch.dtype] = {
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
}
"""Of ONNX's floating-point types."""
ELEMENT_TYPES = {dtype: element for element, dtype in DTYPES.items()}


def exported_dtype(name: str, layer: SqueezedConv) -> torch.dtype:
    """The dtype of a layer in the model: the widest of its tensors', but float32 for bfloat16.

    No convolution of bfloat16 runs on onnxruntime's CPU provider, and float32 holds every bfloat16
    number exactly. Raises OutputError for any dtype but these.
    """
    for stored in {tensor.dtype for tensor in layer.parameters()} - set(STORAGE_DTYPES):
        raise OutputError(
            f"{name}: is stored as {stored}, but float64, float32, float16 or bfloat16 was needed. "
            "Convert the checkpoint first."
        )
    return torch.float32 if layer.dtype == torch.bfloat16 else layer.dtype


def parameters(name: str, layer: SqueezedConv) -> dict[str, Tensor]:
    """The values of a layer's initializers, in the dtype of the model."""
    dtype = exported_dtype(name, layer)
    return {
        f"{name}.{key}": value.detach().cpu().to(dtype).contiguous()
        for key, value in layer.named_parameters()
    }


def build_model(
    layers: Mapping[str, SqueezedConv],
    *,
    opset: int = DEFAULT_OPSET,
    recipe_json: str | None = None,
) -> ModelProto:
    """One model of all `layers`, by the names they are given here.

    Input (batch, in_channels, *size) and output (batch, out_channels, *output_size); a linear
    layer takes (batch, in_channels). `recipe_json` travels as metadata "convsqueeze".
    Raises OutputError for an operator set or dtype that cannot be written.
    """
    check_opset(opset)
    if not layers:
        raise OutputError("no layer to export, at least one was needed.")
    graph = helper.make_graph(
        [node for name, layer in layers.items() for node in layer_nodes(name, layer)],
        "squeezed layers",
        [_signal(name, layer, INPUT) for name, layer in layers.items()],
        [_signal(name, layer, OUTPUT) for name, layer in layers.items()],
        [
            numpy_helper.from_array(value.numpy(), key)
            for name, layer in layers.items()
            for key, value in parameters(name, layer).items()
        ],
    )
    model = model_of(graph, opset)
    if recipe_json is not None:
        helper.set_model_props(model, {RECIPE_KEY: recipe_json})
    return model


def _signal(name: str, layer: SqueezedConv, end: str) -> ValueInfoProto:
    """Type and shape of what enters or leaves a layer; every size but the channels is a name."""
    geometry = layer.geometry
    channels, prefix = geometry.in_channels, ""
    if end == OUTPUT:
        channels, prefix = geometry.out_channels, "output_"
    sizes = [f"{name}.{prefix}{axis}" for axis in AXIS_NAMES[len(geometry.axes)]]
    element = ELEMENT_TYPES[exported_dtype(name, layer)]
    return helper.make_tensor_value_info(name + end, element, [f"{name}.batch", channels, *sizes])


def layer_nodes(name: str, layer: SqueezedConv) -> list[NodeProto]:
    """From `<name>.input` to `<name>.output`; every other value's name begins with `<name>/`."""
    nodes, x = Nodes(name), name + INPUT
    doc = f"merged from {', '.join(layer.layer.sources)}"
    bias = None if layer.bias is None else f"{name}.bias"
    op = Operator(f"{name}.weight", bias, layer.axes, layer.layer.groups, doc)
    if layer.layer.kind == "linear":
        last = _linear(nodes, x, op, layer.weight.shape[0])
    else:
        last = operator(nodes, x, op)
        if layer.border is not None:
            last = add_borders(nodes, last, x, layer)
    for node in nodes.made:
        node.output[:] = [name + OUTPUT if made == last else made for made in node.output]
    return nodes.made


def _linear(nodes: Nodes, x: str, op: Operator, out_channels: int) -> str:
    """`x @ weight.T + bias` on (batch, in_channels), group by group."""
    if op.groups == 1:
        return nodes.add("Gemm", x, op.weight, *op.biases, transB=1, doc_string=op.doc)
    x = nodes.add("Reshape", x, nodes.integers([0, op.groups, -1]))
    shape = nodes.integers([op.groups, out_channels // op.groups, -1])
    weight = nodes.add("Reshape", op.weight, shape)
    y = nodes.add("Einsum", x, weight, equation="bgi,goi->bgo", doc_string=op.doc)
    y = nodes.add("Reshape", y, nodes.integers([0, out_channels]))
    return nodes.add("Add", y, op.bias) if op.bias else y
