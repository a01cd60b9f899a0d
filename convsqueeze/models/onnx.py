"""A whole squeezed model as ONNX: exported by torch, checked in onnxruntime, written whole or not.

Sizes stay dynamic as far as the model's own code allows and the check bears it out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from torch import nn

from convsqueeze.checkpoint import open_checkpoint
from convsqueeze.copying import Sandbox
from convsqueeze.errors import CheckpointError, OutputError, VerificationError
from convsqueeze.export import build_model, check_model, check_onnx_destination, check_opset
from convsqueeze.export.files import CheckedModel, ExportResult
from convsqueeze.models.exporting import exports
from convsqueeze.models.factory import load_checkpoint
from convsqueeze.models.inputs import Inputs
from convsqueeze.models.onnx_check import OnnxCheck, OnnxReport
from convsqueeze.models.report import WholeReport
from convsqueeze.models.running import rounding_steps, runnable
from convsqueeze.models.verifying import exact_parameters, verified
from convsqueeze.models.whole import Compared
from convsqueeze.module import SqueezedConv
from convsqueeze.pipeline.tracking import Track, untracked
from convsqueeze.recipe import Recipe, read_recipe
from convsqueeze.surgery import applied

OLDEST_OPSET = 18
"""What torch's exporter writes by itself."""


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
        return {
            **data,
            "notes": [*data["notes"], *self.notes],
            "against": self.against,
            "whole": None if self.whole is None else self.whole.to_data(),
            "model": self.checked.to_data(),
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
    check_onnx_destination(destination, overwrite=overwrite, source=path)
    opset = check_exporter(opset)
    held = open_checkpoint(path, key=key)
    recipe = read_recipe(held.recipe, str(path))
    if checkpoint is not None:
        _check_source(checkpoint, recipe, key, path)
        load_checkpoint(model.eval(), checkpoint, key=key)
    sandbox = sandbox or Sandbox(model)
    squeezed, plan = applied(model, held, sandbox=sandbox)
    squeezed.eval()
    both = None
    if checkpoint is not None:
        exact = exact_parameters(model, plan)
        options: dict[str, Any] = {"trials": 1, "seed": seed, "track": track, "sandbox": sandbox}
        both = verified(model, squeezed, inputs, exact=exact, **options)
        both.report.raise_if_failed()
    is_exact = all(layer.border != "interior" for layer in recipe.layers)
    check = onnx_check(squeezed, inputs, seed, both if is_exact else None)
    track("exporting the whole model", 0, 0)
    layers = {n: m for n, m in squeezed.named_modules() if isinstance(m, SqueezedConv)}
    alone = build_model(layers, opset=opset)
    reports = check_model(alone, layers, seed=seed, where=str(destination))
    made, checked = _checked_export(
        exports(squeezed, inputs, opset, recipe.to_json()), check, str(destination)
    )
    held.check_unchanged()
    written = CheckedModel(made, destination, opset, reports, overwrite, seed).write()
    written = replace(written, state_dict=held.wrapper)
    against = "original" if both is not None and is_exact else "squeezed model"
    notes = () if checkpoint is not None else (_ONLY_SQUEEZED,)
    whole = both.report if both is not None else None
    return WholeExport(written, checked, whole, f"the {against} in torch", notes)


def onnx_check(
    squeezed: nn.Module, inputs: Inputs, seed: int, both: Compared | None = None
) -> OnnxCheck:
    """Against the original that was compared with a squeezed model, otherwise against itself.

    Raises ModelInputError where it does not run.
    """
    stored = dict(squeezed.named_parameters())
    notes: tuple[str, ...] = ()
    if any(p.dtype == torch.bfloat16 for p in stored.values()):
        notes = ("stored as bfloat16, exported as float32, which holds every value exactly",)
    if both is None:
        one = runnable(Sandbox(squeezed), lambda dtype: inputs.drawn(seed, dtype))
        known = (one.arguments, one.output)
        return OnnxCheck(one.running, one.running, inputs, seed, {}, known, notes)
    merged = (
        f"{name}.{key}" if name else key
        for name, layer in squeezed.named_modules()
        if isinstance(layer, SqueezedConv)
        for key, _ in layer.named_parameters()
    )
    steps = rounding_steps({name: stored[name] for name in merged})
    known = (both.before.arguments, both.before.output)
    return OnnxCheck(both.before.running, both.after, inputs, seed, steps, known, notes)


_ONLY_SQUEEZED = (
    "checked against the squeezed model in torch alone: --checkpoint ORIGINAL gives the weights "
    "that it was made of, and holds it against the original model"
)


def _checked_export(
    candidates: Iterator[ModelProto], check: OnnxCheck, where: str
) -> tuple[ModelProto, OnnxReport]:
    """The first candidate that the check bears out. Raises VerificationError with what it saw of
    the last one, OutputError where there is none.
    """
    problems: tuple[str, ...] = ()
    for candidate in candidates:
        try:
            return candidate, check.report(candidate)
        except VerificationError as error:
            problems = error.problems
    raise VerificationError([f"{where}: {problem}" for problem in problems])


def _check_source(checkpoint: Path, recipe: Recipe, key: str | None, path: Path) -> None:
    found = open_checkpoint(checkpoint, key=key).sha256()
    if found != recipe.source.sha256:
        raise CheckpointError(
            f"{checkpoint}: is not the file that {path} was squeezed from ({recipe.source.file}, "
            f"sha256 {recipe.source.sha256[:12]}..., this is {found[:12]}...). Give that one."
        )
