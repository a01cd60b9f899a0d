"""A squeezed model through torch's exporter, with as many sizes left open as its code allows."""

import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
import torch._dynamo  # here, where a signal ends the run, and not in the middle of the work
from onnx import GraphProto, ModelProto, helper
from torch import Tensor, nn
from torch.export import Dim

from convsqueeze.checkpoint import RECIPE_KEY
from convsqueeze.errors import OutputError
from convsqueeze.models.inputs import Inputs
from convsqueeze.models.standins import inlined, put_stand_ins
from convsqueeze.tracing.raised import exits_caught

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
    stood, layers = put_stand_ins(squeezed.cpu().eval().requires_grad_(False))
    dtype = torch.float32 if _without_bfloat16(stood) else None
    several = inputs.resized([_several(spec.shape) for spec in inputs.tensors])
    count, failure = 0, None
    for given, opened in ((several, None), (several, 1), (inputs, 0)):
        try:
            made = _exported(stood, given.first(dtype), opened, opset)
        except Exception as error:  # noqa: BLE001  the user's code and the exporter's
            failure = error
            continue
        count += 1
        yield _finished(inlined(made, layers), opset, recipe_json)
    if not count:
        text = " ".join(str(_root(failure)).split())[:300]
        raise OutputError(
            f"{type(squeezed).__name__}: torch's exporter does not take the model "
            f"({type(_root(failure)).__name__}: {text}). Change what it names in the model's code, "
            "or export the layers alone: leave --model away."
        ) from failure


def _without_bfloat16(model: nn.Module) -> bool:
    """Makes all of it float32, which holds every value: ONNX has no such convolution before opset
    22, nor onnxruntime on the CPU. Whether there was any.
    """
    tensors = [*model.parameters(), *model.buffers()]
    narrow = [tensor for tensor in tensors if tensor.dtype == torch.bfloat16]
    for tensor in narrow:
        tensor.data = tensor.data.float()
    return bool(narrow)


def _several(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape) if not shape or shape[0] != 1 else (BATCH, *shape[1:])


def _root(error: BaseException | None) -> BaseException | None:
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    return error


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
    with _quietly(), torch.no_grad(), exits_caught():
        traced = torch.export.export(
            model, arguments, dynamic_shapes=shapes if opened != 0 else None, strict=False
        )
        program = torch.onnx.export(traced, dynamo=True, opset_version=opset, verbose=False)
    if program is None:
        raise OutputError("torch's exporter gave nothing.")
    made: ModelProto = program.model_proto
    _fix_sizes(made.graph, traced)
    return made


def _fix_sizes(graph: GraphProto, traced: torch.export.ExportedProgram) -> None:
    """Sizes that the trace found to be one number, which the exporter still calls by a symbol."""
    found = {node.name: node.meta["val"] for node in traced.graph.nodes if node.op == "placeholder"}
    known: dict[str, int] = {}
    for value in graph.input:
        shape = getattr(found.get(value.name), "shape", ())
        for size, seen in zip(value.type.tensor_type.shape.dim, shape, strict=False):
            if size.dim_param and str(seen).isdigit():
                known[size.dim_param] = int(str(seen))
    for value in (*graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in known:
                size.dim_value = known[size.dim_param]


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


def _finished(model: ModelProto, opset: int, recipe_json: str | None) -> ModelProto:
    model.ir_version = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    model.graph.name = "squeezed model"
    _name_sizes(model.graph)
    if recipe_json is not None:
        helper.set_model_props(model, {RECIPE_KEY: recipe_json})
    return model


def _name_sizes(graph: GraphProto) -> None:
    """`height` and not `s53`, also where it stands in the size of an output."""
    names: dict[str, str] = {}
    for value in graph.input:
        sizes = value.type.tensor_type.shape.dim
        for index, size in enumerate(sizes):
            if size.dim_param and size.dim_param not in names:
                usual = NAMES.get(len(sizes), ())
                name = usual[index] if index < len(usual) else f"size_{index}"
                taken = name in names.values()
                names[size.dim_param] = f"{value.name}_{name}" if taken else name
    for value in (*graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(
                    r"\w+", lambda found: names.get(found[0], found[0]), size.dim_param
                )
