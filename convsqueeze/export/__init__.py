"""Squeezed layers -> ONNX: one model of all of them, checked against torch before it is written.

`session`: onnxruntime, and what can be written; `graph`: layers to a model; `runtime`: a model to
functions; `check`: the two against each other; `files`: where models are written.
"""

from convsqueeze.export.check import check_model
from convsqueeze.export.files import (
    CheckedModel,
    ExportResult,
    check_onnx_destination,
    check_onnx_file,
    checked_onnx,
    default_onnx_destination,
    export,
    onnx_files,
)
from convsqueeze.export.graph import build_model
from convsqueeze.export.runtime import OnnxLayers, open_onnx
from convsqueeze.export.session import DEFAULT_OPSET, check_opset, newest_opset

__all__ = [
    "DEFAULT_OPSET",
    "CheckedModel",
    "ExportResult",
    "OnnxLayers",
    "build_model",
    "check_model",
    "check_onnx_destination",
    "check_onnx_file",
    "check_opset",
    "checked_onnx",
    "default_onnx_destination",
    "export",
    "newest_opset",
    "onnx_files",
    "open_onnx",
]
