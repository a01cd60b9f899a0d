"""Which ONNX operator sets can be written: those that the installed libraries both know."""

from functools import cache

import onnx
import onnxruntime  # type: ignore[import-untyped]
from onnx import TensorProto, helper

from convsqueeze.errors import OutputError
from convsqueeze.export.session import RUNTIME_ERRORS, session_of

OLDEST_OPSET = 13
"""The first one in which Slice, Pad and Mod have the form that the graphs use."""

DEFAULT_OPSET = 17
"""No operator of the graphs has changed its meaning from 13 to 26, so a newer set would gain
nothing and shut out older runtimes; every onnxruntime since 1.12 (2022) reads 17.
"""


def ir_version(opset: int) -> int:
    """The oldest file format that holds this operator set, for the sake of older readers."""
    return helper.find_min_ir_version_for([helper.make_opsetid("", opset)])


@cache
def newest_opset() -> int:
    """The newest operator set that onnx describes and onnxruntime loads, found by loading it."""
    newest = onnx.defs.onnx_opset_version()
    return next((o for o in range(newest, OLDEST_OPSET, -1) if _loads(o)), OLDEST_OPSET)


def _loads(opset: int) -> bool:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", [x], [y])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version(opset)
    )
    try:
        session_of(model)
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
