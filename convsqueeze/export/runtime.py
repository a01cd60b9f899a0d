"""An exported model as functions: each layer by its name, run by onnxruntime.

Knows the names that `graph` gives inputs and outputs, and nothing of what the layers should
compute.
"""

from dataclasses import dataclass
from math import frexp, ldexp, prod
from pathlib import Path

import onnx
import onnxruntime  # type: ignore[import-untyped]
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model
from onnx.utils import Extractor
from torch import Tensor

from convsqueeze.checkpoint.disk import read_whole, unicode_path, unreadable
from convsqueeze.errors import CheckpointError, VerificationError
from convsqueeze.export.graph import DTYPES, INPUT, OUTPUT
from convsqueeze.export.session import LARGEST_MESSAGE, NO_KERNEL, first_line, session_of
from convsqueeze.names import listed, nearest, shown

ORDINARY_EXPONENT = 64
"""Values below 2 to this power leave room in float32 for their products and sums."""

LARGEST = 1 << 24
"""Of every size and attribute: more than any layer has."""


@dataclass(frozen=True, eq=False)
class OnnxLayer:
    """One layer of a model, run by onnxruntime: (batch, in_channels, *size) to
    (batch, out_channels, *output_size).

    `model` is that of the layer alone. `computes_in` is float32 where onnxruntime has no kernel for
    the layer's own `dtype`; then a copy is run whose values are multiplied by `scale` and rounded.
    `scale` is 1 or the power of two that brings values beyond the range of float32 into it.
    """

    name: str
    model: ModelProto
    dtype: torch.dtype
    computes_in: torch.dtype
    scale: float
    session: onnxruntime.InferenceSession

    def __call__(self, x: Tensor) -> Tensor:
        """The output, times `scale`, for `x` of any floating-point dtype, which is rounded first.

        Raises one of `RUNTIME_ERRORS`.
        """
        given = x.detach().cpu().to(self.computes_in).numpy()
        (y,) = self.session.run([self.name + OUTPUT], {self.name + INPUT: given})
        return torch.from_numpy(y)


class OnnxLayers:
    """The layers of a model that `build_model` made: `layers[name](x)` runs one of them.

    Raises CheckpointError for a model without such layers.
    """

    def __init__(self, model: ModelProto, where: str = "the ONNX model") -> None:
        self.model, self.where = model, where
        self._dtypes = _layers_in(model)
        self.names = tuple(self._dtypes)
        self._latest: OnnxLayer | None = None
        if not self._dtypes:
            raise CheckpointError(
                f"{where}: has no layer of a squeezed file, an input <name>{INPUT} and an output "
                f"<name>{OUTPUT} for each were needed. Write it with `convsqueeze export-onnx`."
            )

    def part(self, name: str) -> ModelProto:
        """The model of one layer alone. Raises VerificationError for a name that is not there."""
        if name not in self._dtypes:
            what = f"{self.where}: has no layer {shown(name)}, an input and an output of that name"
            advice = nearest(name, self.names, f"It has {listed(self.names)}.")
            raise VerificationError([f"{what} were needed. {advice}"])
        part: ModelProto = Extractor(self.model).extract_model([name + INPUT], [name + OUTPUT])
        return part

    def __getitem__(self, name: str) -> OnnxLayer:
        """Only the latest is kept: a session holds the layer's weights once more, or twice.

        Raises VerificationError as `part`, and one of `RUNTIME_ERRORS`.
        """
        if self._latest is None or self._latest.name != name:
            part = self.part(name)
            dtype = computes_in = self._dtypes[name]
            scale = 1.0
            try:
                session = session_of(part)
            except NO_KERNEL:
                computes_in, scale = torch.float32, _scale(part)
                session = session_of(in_float32(part, scale))
            self._latest = OnnxLayer(name, part, dtype, computes_in, scale, session)
        return self._latest


def open_onnx(path: Path) -> OnnxLayers:
    """The layers of an ONNX file, external data included.

    Raises CheckpointError for a file that is missing, no ONNX model, or holds no squeezed layers.
    """
    try:
        model = onnx.load_model_from_string(read_whole(path, LARGEST_MESSAGE))
        with unicode_path(path.parent) as folder:
            load_external_data_for_model(model, folder)
    except OSError as error:
        raise unreadable(path, error) from error
    except (DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise CheckpointError(
            f"{path}: is not a whole ONNX model ({first_line(error)}). "
            "Write it again with `convsqueeze export-onnx`."
        ) from error
    if strange := _strange_number(model):
        raise CheckpointError(
            f"{path}: {strange} in no model that was written here. Write it again with "
            "`convsqueeze export-onnx`."
        )
    return OnnxLayers(model, f"{path}")


def _strange_number(model: ModelProto) -> str | None:
    """A number that ends the process in onnx's own code, or a tensor that is not what it says."""
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if any(not 0 <= dim.dim_value <= LARGEST for dim in value.type.tensor_type.shape.dim):
            return f"{shown(value.name)} has a size as"
    for node in graph.node:
        for attribute in node.attribute if node.op_type != "Constant" else ():
            if any(abs(number) > LARGEST for number in (attribute.i, *attribute.ints)):
                return f"{shown(node.name)} has a {shown(attribute.name)} as"
    for tensor in graph.initializer:
        if tensor.data_type not in helper.get_all_tensor_dtypes() or not tensor.data_type:
            return f"{shown(tensor.name)} has an element type as"
        width = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if min(tensor.dims, default=1) < 0 or prod(tensor.dims) * width != len(tensor.raw_data):
            return f"{shown(tensor.name)} has a shape that its values do not fill, as"
    return None


def _layers_in(model: ModelProto) -> dict[str, torch.dtype]:
    """Each layer's name and the dtype of its input, in the model's order."""
    outputs = {value.name for value in model.graph.output}
    found = {}
    for value in model.graph.input:
        name = value.name.removesuffix(INPUT)
        dtype = DTYPES.get(value.type.tensor_type.elem_type, torch.bfloat16)
        if name != value.name and name + OUTPUT in outputs and dtype != torch.bfloat16:
            found[name] = dtype
    return found


def in_float32(model: ModelProto, scale: float = 1.0) -> ModelProto:
    """A copy in float32: the same nodes, every value of another floating-point dtype rounded to it,
    and initializers times `scale` first.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.tensor_type.elem_type in DTYPES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in copy.graph.initializer:
        _round_to_float32(tensor, scale)
    for node in copy.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in DTYPES:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t"):
                _round_to_float32(attribute.t, 1.0)
    return copy


def _round_to_float32(tensor: TensorProto, scale: float) -> None:
    if tensor.data_type in DTYPES:
        values = (numpy_helper.to_array(tensor) * scale).astype("float32")
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _scale(model: ModelProto) -> float:
    """The power of two, 1 if it may be, that brings a layer's largest value near 1.

    A layer is linear in its weights and biases taken together, and they are all its initializers.
    """
    held = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
    largest = max((float(abs(values).max()) for values in held if values.size), default=0.0)
    exponent = frexp(largest)[1]
    return 1.0 if abs(exponent) < ORDINARY_EXPONENT else ldexp(1.0, -exponent)
