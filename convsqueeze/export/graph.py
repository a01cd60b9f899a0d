"""Squeezed layers -> one ONNX model. Builds the graph node by node; writes and runs nothing.

Each layer has an input `<name>.input`, an output `<name>.output` and initializers `<name>.weight`
and `<name>.bias`; nothing is shared between layers. A layer is the same steps as in
`algebra.apply`: padding that reads the image, cropping, convolution, and what its output stride
leaves out. All sizes but channels are dynamic.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor

from convsqueeze.algebra.geometry import Axis, Geometry
from convsqueeze.checkpoint import RECIPE_KEY
from convsqueeze.errors import OutputError
from convsqueeze.export.opsets import DEFAULT_OPSET, check_opset, ir_version
from convsqueeze.module import SqueezedConv

INPUT, OUTPUT = ".input", ".output"
AXIS_NAMES = {
    0: (),
    1: ("length",),
    2: ("height", "width"),
    3: ("depth", "height", "width"),
}
_ELEMENT_TYPES = {
    torch.float64: TensorProto.DOUBLE,
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
}
_TO_THE_END = 2**63 - 1


def exported_dtype(name: str, layer: SqueezedConv) -> torch.dtype:
    """The dtype of a layer in the model: as stored, but float32 for bfloat16.

    No convolution of bfloat16 runs on onnxruntime's CPU provider, and float32 holds every bfloat16
    number exactly. Raises OutputError for any dtype but these.
    """
    stored = layer.weight.dtype
    exported = torch.float32 if stored == torch.bfloat16 else stored
    if exported not in _ELEMENT_TYPES:
        raise OutputError(
            f"{name}: is stored as {stored}, but float64, float32, float16 or bfloat16 was needed. "
            "Convert the checkpoint first."
        )
    return exported


def geometry_of(layer: SqueezedConv) -> Geometry:
    """Channels and axes of a squeezed layer."""
    first, second = layer.weight.shape[:2]
    groups = layer.layer.groups
    if layer.layer.kind == "conv_transpose":
        channels = first, second * groups
    else:
        channels = second * groups, first
    return Geometry(*channels, layer.axes, groups, layer.bias is not None)


def parameters(name: str, layer: SqueezedConv) -> dict[str, Tensor]:
    """The values of a layer's initializers, in the dtype of the model."""
    dtype = exported_dtype(name, layer)
    values = {f"{name}.weight": layer.weight}
    if layer.bias is not None:
        values[f"{name}.bias"] = layer.bias
    return {key: value.detach().cpu().to(dtype).contiguous() for key, value in values.items()}


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
        [node for name, layer in layers.items() for node in _layer_nodes(name, layer)],
        "squeezed layers",
        [_signal(name, layer, INPUT) for name, layer in layers.items()],
        [_signal(name, layer, OUTPUT) for name, layer in layers.items()],
        [
            numpy_helper.from_array(value.numpy(), key)
            for name, layer in layers.items()
            for key, value in parameters(name, layer).items()
        ],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=ir_version(opset),
        producer_name="convsqueeze",
        producer_version=_own_version(),
    )
    if recipe_json is not None:
        helper.set_model_props(model, {RECIPE_KEY: recipe_json})
    return model


def _own_version() -> str:
    try:
        return metadata.version("convsqueeze")
    except metadata.PackageNotFoundError:
        return "not installed"


def _signal(name: str, layer: SqueezedConv, end: str) -> ValueInfoProto:
    """Type and shape of what enters or leaves a layer; every size but the channels is a name."""
    geometry = geometry_of(layer)
    channels, prefix = geometry.in_channels, ""
    if end == OUTPUT:
        channels, prefix = geometry.out_channels, "output_"
    sizes = [f"{name}.{prefix}{axis}" for axis in AXIS_NAMES[len(geometry.axes)]]
    element = _ELEMENT_TYPES[exported_dtype(name, layer)]
    return helper.make_tensor_value_info(name + end, element, [f"{name}.batch", channels, *sizes])


class _Nodes:
    """The nodes of one layer in order. `add` gives the name of what the new node computes."""

    def __init__(self, name: str, layer: SqueezedConv) -> None:
        self.name = name
        self.parameters = [f"{name}.weight"] + [f"{name}.bias"] * (layer.bias is not None)
        self.made: list[NodeProto] = []

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        output = f"{self.name}/{operator.lower()}_{len(self.made)}"
        node = helper.make_node(operator, inputs, [output], name=output, **attributes)
        self.made.append(node)
        return output

    def integers(self, values: int | Sequence[int]) -> str:
        if isinstance(values, int):
            return self.add("Constant", value_int=values)
        return self.add("Constant", value_ints=values)


def _layer_nodes(name: str, layer: SqueezedConv) -> list[NodeProto]:
    nodes = _Nodes(name, layer)
    steps = {"linear": _linear, "conv": _convolution, "conv_transpose": _transposed}
    steps[layer.layer.kind](nodes, name + INPUT, layer)
    nodes.made[-1].output[:] = [name + OUTPUT]
    return nodes.made


def _linear(nodes: _Nodes, x: str, layer: SqueezedConv) -> None:
    """`x @ weight.T + bias` on (batch, in_channels), group by group."""
    doc = f"merged from {', '.join(layer.layer.sources)}"
    groups, out_channels = layer.layer.groups, layer.weight.shape[0]
    if groups == 1:
        nodes.add("Gemm", x, *nodes.parameters, transB=1, doc_string=doc)
        return
    x = nodes.add("Reshape", x, nodes.integers([0, groups, -1]))
    weight = nodes.add(
        "Reshape", nodes.parameters[0], nodes.integers([groups, out_channels // groups, -1])
    )
    y = nodes.add("Einsum", x, weight, equation="bgi,goi->bgo", doc_string=doc)
    y = nodes.add("Reshape", y, nodes.integers([0, out_channels]))
    for bias in nodes.parameters[1:]:
        nodes.add("Add", y, bias)


def _convolution(nodes: _Nodes, x: str, layer: SqueezedConv) -> None:
    """Padding that the operator Conv has not, then Conv with the rest of it, each side its own."""
    x = _padded_from_image(nodes, x, layer.axes)
    apart, own = zip(*(_zero_padding(axis) for axis in layer.axes), strict=True)
    x = _padded(nodes, x, apart, "crop")
    nodes.add(
        "Conv",
        x,
        *nodes.parameters,
        pads=_lows_then_highs(own),
        strides=[axis.stride for axis in layer.axes],
        **_kernel(layer),
    )


def _zero_padding(axis: Axis) -> tuple[tuple[int, int], tuple[int, int]]:
    """What Pad and what Conv do on an axis: Conv may not crop, and Pad crops before it pads."""
    amounts, nothing = (axis.before, axis.after), (0, 0)
    if axis.padding_mode != "zeros":
        return nothing, nothing
    return (amounts, nothing) if min(amounts) < 0 else (nothing, amounts)


def _kernel(layer: SqueezedConv) -> dict[str, Any]:
    """Attributes that Conv and ConvTranspose share."""
    return {
        "kernel_shape": [axis.kernel_size for axis in layer.axes],
        "dilations": [axis.dilation for axis in layer.axes],
        "group": layer.layer.groups,
        "doc_string": f"merged from {', '.join(layer.layer.sources)}",
    }


def _lows_then_highs(pairs: Iterable[tuple[int, int]]) -> list[int]:
    """ONNX's order of padding: the low side of every axis, then the high side."""
    return [amount for side in zip(*pairs, strict=True) for amount in side]


def _padded(nodes: _Nodes, x: str, amounts: Sequence[tuple[int, int]], what: str) -> str:
    """Zeros added on each side of the spatial axes; negative amounts take away."""
    if not any(map(any, amounts)):
        return x
    pads = nodes.integers(_lows_then_highs([(0, 0), (0, 0), *amounts]))
    shown = ", ".join(f"{low:+d} before {high:+d} after" for low, high in amounts)
    return nodes.add("Pad", x, pads, doc_string=f"{what}: {shown}")


def _padded_from_image(nodes: _Nodes, x: str, axes: Sequence[Axis]) -> str:
    """Each axis with a mode of its own: its samples looked up where the mode says.

    Gather and not Pad, which refuses a reflection wider than the image and has no circular mode
    before opset 19.
    """
    for dim, axis in enumerate(axes, start=2):
        if axis.padding_mode != "zeros":
            source = _source(nodes, x, dim, axis)
            doc = f"{axis.padding_mode} padding: {axis.before} before, {axis.after} after"
            x = nodes.add("Gather", x, source, axis=dim, doc_string=doc)
    return x


def _source(nodes: _Nodes, x: str, dim: int, axis: Axis) -> str:
    """Which sample of the image stands at each place of the padded axis: int64 (padded_size,)."""
    size = nodes.add("Gather", nodes.add("Shape", x), nodes.integers(dim))
    stop = nodes.add("Add", size, nodes.integers(axis.after))
    place = nodes.add("Range", nodes.integers(-axis.before), stop, nodes.integers(1))
    if axis.padding_mode == "circular":
        return nodes.add("Mod", place, size)
    last = nodes.add("Sub", size, nodes.integers(1))
    if axis.padding_mode == "replicate":
        return nodes.add("Min", nodes.add("Max", place, nodes.integers(0)), last)
    # A single sample has period 0, by which some runtimes divide without a check.
    period = nodes.add("Max", nodes.add("Add", last, last), nodes.integers(1))
    folded = nodes.add("Mod", place, period)
    return nodes.add("Min", folded, nodes.add("Sub", period, folded))


@dataclass(frozen=True)
class _Ends:
    """What becomes of the ends of one axis of a full transposed convolution.

    `low`, `high` and `extra` are ConvTranspose's pads and output_padding. `apart` is for a Pad
    behind it: samples that no tap reaches, which are the bias alone.
    """

    low: int = 0
    high: int = 0
    extra: int = 0
    apart: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, axis: Axis) -> "_Ends":
        """In torch's own form, both sides alike and output_padding, where there is one."""
        reach = axis.extent - 1
        if axis.padding_mode != "zeros":
            return cls(reach, reach)
        low, high = reach - axis.before, reach - axis.after
        if low >= 0 and 0 < low - high < axis.upsample:
            return cls(low, low, extra=low - high)
        return cls(low, high) if min(low, high) >= 0 else cls(apart=(-low, -high))


def _transposed(nodes: _Nodes, x: str, layer: SqueezedConv) -> None:
    """ConvTranspose, cropped at each end, then every n-th sample where a stride is left."""
    rank = len(layer.axes)
    x = _padded_from_image(nodes, x, layer.axes)
    ends = [_Ends.of(axis) for axis in layer.axes]
    apart = [end.apart for end in ends]
    biases = nodes.parameters[1:]
    inside = [] if any(map(any, apart)) else biases
    x = nodes.add(
        "ConvTranspose",
        x,
        nodes.parameters[0],
        *inside,
        pads=_lows_then_highs((end.low, end.high) for end in ends),
        output_padding=[end.extra for end in ends],
        strides=[axis.upsample for axis in layer.axes],
        **_kernel(layer),
    )
    x = _padded(nodes, x, apart, "ends")
    for bias in biases if not inside else ():
        column = nodes.add("Reshape", bias, nodes.integers([-1, *(1,) * rank]))
        x = nodes.add("Add", x, column)
    if any(axis.stride > 1 for axis in layer.axes):
        _stepped(nodes, x, [axis.stride for axis in layer.axes])


def _stepped(nodes: _Nodes, x: str, steps: Sequence[int]) -> str:
    rank = len(steps)
    return nodes.add(
        "Slice",
        x,
        nodes.integers([0] * rank),
        nodes.integers([_TO_THE_END] * rank),
        nodes.integers([*range(2, 2 + rank)]),
        nodes.integers(steps),
        doc_string=f"every n-th sample, n = {list(steps)}",
    )
