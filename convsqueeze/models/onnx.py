"""A whole squeezed model as ONNX: exported by torch, checked in onnxruntime, written whole or not.

Sizes stay dynamic as far as the model's own code allows and the check bears it out.
"""

from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convsqueeze.checkpoint import from_state_dict, open_checkpoint
from convsqueeze.copying import Sandbox
from convsqueeze.errors import CheckpointError, OutputError, VerificationError
from convsqueeze.export import ExportResult, check_onnx_destination, check_opset, checked_onnx
from convsqueeze.models.exporting import exports
from convsqueeze.models.factory import load_checkpoint
from convsqueeze.models.inputs import Inputs
from convsqueeze.models.onnx_check import OnnxCheck, OnnxReport
from convsqueeze.models.whole import WholeReport, exact_parameters, verified
from convsqueeze.module import SqueezedConv
from convsqueeze.paths import anchored
from convsqueeze.pipeline.tracking import Track, untracked
from convsqueeze.recipe import read_recipe
from convsqueeze.squeezing import exact_values
from convsqueeze.surgery import applied

OLDEST_OPSET = 18
"""What torch's exporter writes by itself."""
_ONLY_SQUEEZED = (
    "checked against the squeezed model in torch alone: --checkpoint ORIGINAL gives the weights "
    "that it was made of, and holds it against the original model"
)


@dataclass(frozen=True)
class WholeExport:
    """A written model, what its check in onnxruntime saw, and, where the original's weights were
    given, what the squeezed model gave beside it in torch.
    """

    written: ExportResult
    checked: OnnxReport
    whole: WholeReport | None
    against: str
    notes: tuple[str, ...] = ()

    def to_data(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        data = self.written.to_data()
        whole = () if self.whole is None else self.whole.notes
        return {
            **data,
            "notes": [*data["notes"], *self.notes, *self.checked.notes, *whole],
            "against": self.against,
            "whole": None if self.whole is None else self.whole.to_data(),
            "model": asdict(self.checked),
        }


def check_exporter(opset: int | None) -> int:
    """The operator set to write. Raises OutputError where no whole model can be written in it."""
    if find_spec("onnxscript") is None:
        raise OutputError(
            "--model: a whole model as ONNX needs onnxscript, which is not installed. Run "
            "pip install onnxscript (or convsqueeze[models]), or leave --model away for the layers."
        )
    if not hasattr(torch.onnx, "ops"):
        raise OutputError(
            f"--model: a whole model as ONNX needs torch 2.8 or newer, this is {torch.__version__}."
        )
    chosen = OLDEST_OPSET if opset is None else opset
    check_opset(chosen)
    if chosen < OLDEST_OPSET:
        raise OutputError(
            f"opset {chosen}: torch's exporter writes whole models in {OLDEST_OPSET} and newer. "
            f"Leave --opset away for {OLDEST_OPSET}."
        )
    return chosen


def export_whole(
    model: nn.Module,
    path: Path,
    destination: Path,
    inputs: Inputs,
    *,
    checkpoint: Path | None = None,
    key: str | None = None,
    opset: int | None = None,
    overwrite: bool = False,
    seed: int = 0,
    track: Track = untracked,
    sandbox: Sandbox | None = None,
) -> WholeExport:
    """Write `model` with the squeezed layers of the file at `path` as ONNX.

    `checkpoint` is the file that was squeezed, which is loaded into `model`: onnxruntime is then
    held against that, otherwise against the squeezed model in torch. `sandbox` is that of the
    model. Nothing is written unless they agree. Raises CheckpointError, ModelMismatchError,
    ModelInputError, OutputError or VerificationError.
    """
    path, destination = anchored(path), anchored(destination)
    held = open_checkpoint(path, key=key)
    original = None if checkpoint is None else open_checkpoint(anchored(checkpoint), key=key)
    files = (*held.paths, *(() if original is None else original.paths))
    check_onnx_destination(destination, overwrite=overwrite, inputs=files)
    opset = check_exporter(opset)
    recipe = read_recipe(held.recipe, f"{path}")
    if original is not None:
        found = original.sha256()
        if found != recipe.source.sha256:
            raise CheckpointError(
                f"{original.path}: is not the file that {path} was squeezed from "
                f"({recipe.source.file}, sha256 {recipe.source.sha256[:12]}..., this is "
                f"{found[:12]}...). Give that one."
            )
        load_checkpoint(model.eval(), original.path, key=key)
    sandbox = sandbox or Sandbox(model)
    squeezed, plan = applied(model, held, sandbox=sandbox)
    squeezed.eval()
    against, both, whole = "squeezed model", None, None
    notes: tuple[str, ...] = (_ONLY_SQUEEZED,)
    if original is not None:
        model_state = from_state_dict(model.state_dict())
        exact = exact_parameters(
            plan, model_state.prefix, lambda merge: exact_values(merge, model_state.load)
        )
        options: dict[str, Any] = {"trials": 1, "seed": seed, "track": track, "sandbox": sandbox}
        whole, *ran = verified(model, squeezed, inputs, exact=exact, **options)
        whole.raise_if_failed()
        notes = ()
        if all(layer.border != "interior" for layer in recipe.layers):
            against, both = "original", (ran[0], ran[1])
    check = OnnxCheck(squeezed, inputs, seed, both)
    track("exporting the whole model", 0, 0)
    layers = {n: m for n, m in squeezed.named_modules() if isinstance(m, SqueezedConv)}
    alone = checked_onnx(
        layers, destination, opset=opset, overwrite=overwrite, inputs=files, seed=seed
    )
    problems: tuple[str, ...] = ()
    for made in exports(squeezed, inputs, opset, recipe.to_json()):
        try:
            checked = check.report(made)
            break
        except VerificationError as error:
            problems = error.problems
    else:
        raise VerificationError([f"{destination}: {problem}" for problem in problems])
    held.check_unchanged()
    written = replace(replace(alone, model=made).write(), state_dict=held.wrapper)
    return WholeExport(written, checked, whole, f"the {against} in torch", notes)
