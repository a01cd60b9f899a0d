"""What the command line does with files: the same calls in the same order, nothing printed."""

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import safe_open

from convsqueeze.checkpoint import Checkpoint, open_checkpoint
from convsqueeze.cli.data import merge_data, report_data
from convsqueeze.cli.inspection import inspect_data, print_inspection
from convsqueeze.cli.output import print_json
from convsqueeze.cli.tables import print_merge, print_verify
from convsqueeze.errors import CheckpointError, ConvsqueezeError, ReportedTogether
from convsqueeze.inspection import found_layers
from convsqueeze.module import load_layers
from convsqueeze.pipeline import merge_file, verify_files
from convsqueeze.recipe import read_recipe
from convsqueeze.verify import Settings

from .samples import PAIRS

FEW = Settings(trials=1)


class Steps:
    """Runs one step after the other; what they refuse is raised together at the end."""

    def __init__(self) -> None:
        self._problems: list[str] = []

    def __call__(self, step: Callable[[], object]) -> None:
        try:
            step()
        except ConvsqueezeError as error:
            together = isinstance(error, ReportedTogether)
            self._problems += error.problems if together else [str(error)]

    def finish(self) -> None:
        if self._problems:
            raise ReportedTogether(self._problems)


def use_checkpoint(folder: Path, options: Mapping[str, Any]) -> None:
    """Inspect a checkpoint, load all of it, merge it, verify what was written."""
    path = folder / options["name"]
    checkpoint = open_checkpoint(path, key=options.get("key"))
    steps = Steps()
    steps(lambda: _inspected(checkpoint))
    for name in checkpoint.tensors:
        steps(partial(checkpoint.load, name))
    steps(checkpoint.sha256)
    steps(checkpoint.ties)
    (folder / "pairs.yaml").write_text(json.dumps(PAIRS))
    steps(lambda: _merged(path, folder / "pairs.yaml", folder, options))
    if checkpoint.format == "safetensors":
        _held_against_the_library(checkpoint)
    steps.finish()


def use_manifest(folder: Path, options: Mapping[str, Any]) -> None:
    """Plan by a manifest, then merge by it."""
    model, pairs = folder / "model.safetensors", folder / "pairs.yaml"
    steps = Steps()
    steps(lambda: merge_file(model, pairs, folder / "out.pt", dry_run=True, growth="allow"))
    steps(lambda: _merged(model, pairs, folder, options))
    steps.finish()


def use_recipe(folder: Path, options: Mapping[str, Any]) -> None:
    """Read the recipe of a squeezed file, build its layers, verify and export them."""
    original, squeezed = folder / options["original"], folder / options["name"]
    checkpoint = open_checkpoint(squeezed)
    steps = Steps()
    steps(lambda: _inspected(checkpoint))
    steps(lambda: read_recipe(checkpoint.recipe, str(squeezed)))
    steps(lambda: load_layers(squeezed))
    steps(lambda: _verified(original, squeezed, None))
    if options.get("export"):
        steps(lambda: _exported(squeezed, folder / "out.onnx"))
    steps.finish()


def use_onnx(folder: Path, options: Mapping[str, Any]) -> None:
    """`verify --onnx` of a sound squeezed file."""
    from convsqueeze.export import check_onnx_file

    layers = load_layers(folder / "squeezed.safetensors")
    check_onnx_file(folder / "layers.onnx", layers)


def _held_against_the_library(checkpoint: Checkpoint) -> None:
    """What is taken for a sound file must be one for the format's own library, too."""
    try:
        with safe_open(checkpoint.path, framework="pt") as file:
            library = set(file.keys())
    except Exception as error:
        raise AssertionError(f"accepted, but the library says: {error}") from error
    if library != {checkpoint.prefix + name for name in checkpoint.tensors}:
        raise AssertionError("the library sees other names")


def _exported(squeezed: Path, output: Path) -> None:
    from convsqueeze.export import export

    export(squeezed, output)


def _inspected(checkpoint: Checkpoint) -> None:
    layers = found_layers(checkpoint)
    with _quiet() as console:
        print_json(inspect_data(checkpoint, layers))
        print_inspection(console, checkpoint, layers)


def _merged(model: Path, pairs: Path, folder: Path, options: Mapping[str, Any]) -> None:
    output = folder / f"merged{options.get('suffix', '.pt')}"
    key = options.get("key")
    try:
        done = merge_file(model, pairs, output, key=key, growth="allow", settings=FEW)
    except CheckpointError as error:
        if str(output) in str(error):
            raise AssertionError(f"wrote what it cannot read: {error}") from error
        raise
    with _quiet() as console:
        print_json(merge_data(done))
        print_merge(console, done)
    _verified(model, output, key)
    left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    if left:
        raise AssertionError(f"left behind: {left}")


def _verified(original: Path, squeezed: Path, key: str | None) -> None:
    report = verify_files(original, squeezed, key=key, settings=FEW)
    with _quiet() as console:
        print_verify(console, report)
        print_json(report_data(report))
    report.raise_if_failed()


@contextlib.contextmanager
def _quiet() -> Iterator[Console]:
    """A console and a standard output that nobody sees, of the encoding that terminals have."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(out):
        yield Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), width=80)
