"""The user's own model: from its code, with a checkpoint, on inputs, against another, as ONNX.

`factory`: from code and checkpoints; `inputs`: what a model is run on; `running`, `whole`,
`layerwise`: a squeezed model against its original; `squeeze`: all of it in one go; `onnx`: a whole
model as ONNX, imported only where it is asked for.
"""

from convsqueeze.models.factory import code_of, load_checkpoint, load_model
from convsqueeze.models.inputs import guess_inputs, inputs_of, parsed_inputs
from convsqueeze.models.squeeze import (
    SqueezeReport,
    apply,
    plan_from_code,
    put_in_place,
    scan_model,
    squeeze,
)
from convsqueeze.models.whole import WholeReport, exact_parameters, verify_whole

__all__ = [
    "SqueezeReport",
    "WholeReport",
    "apply",
    "code_of",
    "exact_parameters",
    "guess_inputs",
    "inputs_of",
    "load_checkpoint",
    "load_model",
    "parsed_inputs",
    "plan_from_code",
    "put_in_place",
    "scan_model",
    "squeeze",
    "verify_whole",
]
