"""Sessions of onnxruntime, what it raises, and the operator sets that it and onnx both know."""

from functools import cache
from importlib.metadata import version
from pathlib import Path

import onnx
import onnxruntime  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, helper, parser
from onnxruntime.capi import onnxruntime_pybind11_state as state  # type: ignore[import-untyped]

from convsqueeze.errors import OutputError

OLDEST_OPSET = 13
"""The first one in which Slice, Pad and Mod have the form that the graphs use."""
DEFAULT_OPSET = 17
"""No operator of the graphs has changed its meaning from 13 to 26, so a newer set would gain
nothing and shut out older runtimes; every onnxruntime since 1.12 (2022) reads 17.
"""
LARGEST_MESSAGE = onnx.checker.MAXIMUM_PROTOBUF
"""Bytes beyond which a model is no single protobuf message: 2 GiB."""

RUNTIME_ERRORS = (
    state.EPFail,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NotImplemented,
    state.RuntimeException,
)
"""What onnxruntime raises for a model or an input that it cannot run; they have no root."""
NO_KERNEL = state.NotImplemented
"""Raised for an operator that it has not for this dtype."""


def session_of(model: ModelProto | Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """A quiet session on the CPU, otherwise with onnxruntime's defaults, as a user's would be.

    `threads`: 0 for as many as there are cores. Raises one of `RUNTIME_ERRORS`.
    """
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    given = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def first_line(error: Exception) -> str:
    """Of what a library said; its other lines are for its own developers."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return line if line.isprintable() else ascii(line)


def model_of(graph: GraphProto, opset: int = DEFAULT_OPSET) -> ModelProto:
    """A model in the oldest file format that holds its operator set, for older readers."""
    return helper.make_model_gen_version(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        producer_name="convsqueeze",
        producer_version=version("convsqueeze"),
    )


@cache
def newest_opset() -> int:
    """The newest operator set that onnx describes and onnxruntime loads, found by loading it."""
    newest = onnx.defs.onnx_opset_version()
    return next((o for o in range(newest, OLDEST_OPSET, -1) if _loads(o)), OLDEST_OPSET)


def _loads(opset: int) -> bool:
    graph = parser.parse_graph("probe (float[1] x) => (float[1] y) { y = Identity(x) }")
    try:
        session_of(model_of(graph, opset))
    except RUNTIME_ERRORS:
        return False
    return True


def check_opset(opset: int) -> None:
    """Raises OutputError for an operator set that cannot be written or not be checked."""
    if not OLDEST_OPSET <= opset <= newest_opset():
        raise OutputError(
            f"opset {opset}: cannot be written, one from {OLDEST_OPSET} to {newest_opset()} was "
            f"needed (onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}). "
            f"Leave --opset away for {DEFAULT_OPSET}."
        )
