"""Sessions of onnxruntime, and what it raises."""

from pathlib import Path

import onnxruntime  # type: ignore[import-untyped]
from onnx import ModelProto
from onnxruntime.capi import onnxruntime_pybind11_state as state  # type: ignore[import-untyped]

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
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    given = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def first_line(error: Exception) -> str:
    """Of what a library said; its other lines are for its own developers."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return line if line.isprintable() else ascii(line)
