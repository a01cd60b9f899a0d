"""The user's own model: from its code, with a checkpoint, on inputs, against another, as ONNX.

`factory`, `code`: from code and checkpoints; `inputs`: what a model is run on; `running`,
`outputs`, `whole`, `layerwise`: two models on the same inputs; `verifying`: a squeezed model
against its original; `squeeze`, `job`: all of it in one go; `onnx`: a whole model as ONNX, imported
only where it is asked for.
"""

from convsqueeze.models.applying import apply
from convsqueeze.models.code import Code, code_of
from convsqueeze.models.factory import load_model, with_checkpoint
from convsqueeze.models.inputs import (
    Guess,
    Inputs,
    InputSpec,
    guess_inputs,
    inputs_of,
    parsed_inputs,
)
from convsqueeze.models.job import WholeJob, planner_from_code
from convsqueeze.models.report import WholeReport
from convsqueeze.models.squeeze import SqueezeReport, scan_model, scan_plan, squeeze
from convsqueeze.models.verifying import exact_parameters, verify_whole
from convsqueeze.models.whole import compare_models

__all__ = [
    "Code",
    "Guess",
    "InputSpec",
    "Inputs",
    "SqueezeReport",
    "WholeJob",
    "WholeReport",
    "apply",
    "code_of",
    "compare_models",
    "exact_parameters",
    "guess_inputs",
    "inputs_of",
    "load_model",
    "parsed_inputs",
    "planner_from_code",
    "scan_model",
    "scan_plan",
    "squeeze",
    "verify_whole",
    "with_checkpoint",
]
