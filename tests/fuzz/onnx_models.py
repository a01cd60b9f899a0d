"""ONNX files: bytes of a sound export altered, and models that say what is not so."""

from typing import Any

import onnx

from .choices import Choices, damaged
from .isolation import Case
from .samples import exported, squeezed

OPS = ("Conv", "ConvTranspose", "Gemm", "Loop", "If", "Resize", "Expand", "Tile", "Nope", "")
WORDS = (
    b"Conv",
    b"weight",
    b"input",
    b"output",
    b"\x08\x01",
    b"\x12\xff\xff\xff\xff\x0f",
    b"\x0a\x00",
)


def make(choices: Choices) -> Case:
    """A model beside the squeezed file whose layers it should have."""
    data = exported()
    if choices.chance(50):
        data = _structured(choices)
    if choices.chance(50):
        data = damaged(choices, data, WORDS)
    return Case({"squeezed.safetensors": squeezed(".safetensors")[1], "layers.onnx": data})


def _structured(choices: Choices) -> bytes:
    model = onnx.load_model_from_string(exported())
    for _ in range(1 + choices.below(3)):
        choices.pick(CHANGES)(choices, model)
    return model.SerializeToString()


def _dims(choices: Choices, model: onnx.ModelProto) -> None:
    tensor = choices.pick(model.graph.initializer)
    number = choices.size()
    if -(1 << 63) <= number < 1 << 63:
        tensor.dims[:] = [*tensor.dims[:-1], number]


def _type(choices: Choices, model: onnx.ModelProto) -> None:
    choices.pick(model.graph.initializer).data_type = choices.below(30)


def _attribute(choices: Choices, model: onnx.ModelProto) -> None:
    node = choices.pick(model.graph.node)
    if node.attribute:
        attribute = choices.pick(node.attribute)
        number = choices.size()
        if -(1 << 63) <= number < 1 << 63:
            attribute.ints[:] = [number] * choices.below(5)
            attribute.i = number


def _operator(choices: Choices, model: onnx.ModelProto) -> None:
    choices.pick(model.graph.node).op_type = choices.pick(OPS)


def _rewired(choices: Choices, model: onnx.ModelProto) -> None:
    node = choices.pick(model.graph.node)
    if node.input:
        other: Any = choices.pick((*choices.pick(model.graph.node).output, "", "nothing"))
        node.input[choices.below(len(node.input))] = other


def _outside(choices: Choices, model: onnx.ModelProto) -> None:
    tensor = choices.pick(model.graph.initializer)
    place = choices.pick(
        ("x.data", "../../etc/passwd", "/etc/passwd", "/dev/zero", "layers.onnx", "")
    )
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", place), ("length", str(choices.size())), ("offset", "0")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def _versions(choices: Choices, model: onnx.ModelProto) -> None:
    number = choices.size()
    if -(1 << 63) <= number < 1 << 63:
        if choices.chance(50):
            model.ir_version = number
        elif model.opset_import:
            model.opset_import[0].version = number


def _names(choices: Choices, model: onnx.ModelProto) -> None:
    value = choices.pick((*model.graph.input, *model.graph.output, *model.graph.initializer))
    value.name = choices.pick(
        ("", "x\n", "body.0.input", "body.0.output", "\x1b.input", "up.weight")
    )


def _lost(choices: Choices, model: onnx.ModelProto) -> None:
    field = choices.pick(
        (model.graph.node, model.graph.initializer, model.graph.input, model.graph.output)
    )
    if len(field):
        del field[choices.below(len(field))]


def _shape(choices: Choices, model: onnx.ModelProto) -> None:
    value = choices.pick((*model.graph.input, *model.graph.output))
    kind = value.type.tensor_type
    number = choices.size()
    if kind.shape.dim and -(1 << 63) <= number < 1 << 63:
        choices.pick(kind.shape.dim).dim_value = number
    if choices.chance(30):
        kind.elem_type = choices.below(30)


CHANGES = (
    *(_dims, _type, _attribute, _operator, _rewired, _outside, _versions, _names, _lost, _shape),
)
