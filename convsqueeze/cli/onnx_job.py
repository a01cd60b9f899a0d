"""ONNX beside the other work of a command, which imports this only when it is asked for."""

from pathlib import Path
from typing import Any

from convsqueeze.checkpoint.new_files import NewFiles
from convsqueeze.errors import VerificationError
from convsqueeze.export import (
    CheckedModel,
    ExportResult,
    check_onnx_destination,
    check_onnx_file,
    checked_onnx,
)
from convsqueeze.module import load_layers
from convsqueeze.pipeline import Result
from convsqueeze.verify import Report


class OnnxJob:
    """`merge --onnx`: refused with the merge, checked and written with it."""

    def __init__(self, destination: Path, *, overwrite: bool, seed: int) -> None:
        check_onnx_destination(destination, overwrite=overwrite)
        self._destination, self._overwrite, self._seed = destination, overwrite, seed
        self._checked: CheckedModel | None = None

    def __call__(self, result: Result, files: NewFiles) -> None:
        """Build the model, hold it against torch and stage it. Raises VerificationError."""
        self._checked = checked_onnx(
            result.modules(),
            self._destination,
            recipe_json=result.recipe.to_json(),
            overwrite=self._overwrite,
            seed=self._seed,
        )
        self._checked.stage(files)

    def result(self) -> ExportResult | None:
        """What was written; None where nothing was, as on a dry run."""
        return None if self._checked is None else self._checked.result()


def with_onnx(
    report: Report, onnx: Path, squeezed: Path, key: str | None, seed: int
) -> tuple[Report, list[dict[str, Any]]]:
    """The report with what an ONNX file of the squeezed layers gets wrong, and what was seen."""
    try:
        seen = check_onnx_file(onnx, load_layers(squeezed, key=key), seed=seed)
    except VerificationError as error:
        return report.with_problems(error.problems), []
    return report, [one.to_data() for one in seen]
