"""ONNX files: where one goes, and writing it whole or not at all after it was checked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto
from onnx.external_data_helper import set_external_data, uses_external_data

from convsqueeze.checkpoint import open_checkpoint, suffix_of
from convsqueeze.checkpoint.disk import FileVersion, read_whole
from convsqueeze.checkpoint.new_files import NewFiles
from convsqueeze.errors import CheckpointError, OutputError, VerificationError
from convsqueeze.export.check import ExportReport, check_model, fits_one_message
from convsqueeze.export.graph import DTYPES, build_model
from convsqueeze.export.runtime import open_onnx
from convsqueeze.export.session import DEFAULT_OPSET, LARGEST_MESSAGE, check_opset
from convsqueeze.module import SqueezedConv, modules_of
from convsqueeze.names import listed, nearest, plain_file_name, shown
from convsqueeze.paths import anchored, check_outputs
from convsqueeze.recipe import Recipe, RecipeLayer, read_recipe

SUFFIX = ".onnx"
PAGE = 4096
"""Where tensors begin in an external data file, so that runtimes can map them into memory."""


@dataclass(frozen=True)
class ExportResult:
    """A written model: its files (the model first), its operator set, and what the check saw on
    inputs from `seed`. `state_dict` is the dotted key of the squeezed file's, "" at the top level.
    """

    files: tuple[Path, ...]
    bytes_written: int
    opset: int
    layers: tuple[ExportReport, ...]
    seed: int = 0
    state_dict: str = ""

    @property
    def destination(self) -> Path:
        return self.files[0]

    @property
    def worst(self) -> ExportReport:
        """The layer whose outputs came nearest to their bound."""
        return max(self.layers, key=lambda layer: layer.worst.share)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(note for layer in self.layers for note in layer.notes)

    def to_data(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "output": f"{self.destination}",
            "files": [f"{file}" for file in self.files],
            "bytes": self.bytes_written,
            "opset": self.opset,
            "seed": self.seed,
            "state_dict": self.state_dict,
            "layers": [layer.to_data() for layer in self.layers],
            "notes": list(self.notes),
        }


def default_onnx_destination(path: Path) -> Path:
    """`model.squeezed.pt` -> `model.squeezed.onnx`, beside the input."""
    suffix = path.name[len(path.name) - len(suffix_of(path) or path.suffix) :]
    return path.with_name(path.name.removesuffix(suffix) + SUFFIX)


def check_onnx_destination(
    destination: Path, *, overwrite: bool, inputs: Sequence[Path] = ()
) -> None:
    """Raises OutputError where a model cannot or must not be written by a run that reads the
    `inputs`; touches nothing.
    """
    if destination.suffix.lower() != SUFFIX:
        raise OutputError(
            f"{destination}: does not end in {SUFFIX}, which was needed. Name the model file so."
        )
    check_outputs([destination], overwrite=overwrite, inputs=inputs)


def export(
    path: Path | str,
    destination: Path | str | None = None,
    *,
    names: Sequence[str] | None = None,
    opset: int | None = None,
    key: str | None = None,
    overwrite: bool = False,
    seed: int = 0,
) -> ExportResult:
    """Write the squeezed layers of the file at `path`, or those `names`, as one ONNX model.

    `key` names the state dict inside a pickle. Everything that can be refused is refused before
    a tensor is read, and nothing is written until onnxruntime has agreed with torch. Raises
    CheckpointError, OutputError or VerificationError.
    """
    path = anchored(path)
    output = anchored(default_onnx_destination(path) if destination is None else destination)
    check_onnx_destination(output, overwrite=overwrite, inputs=[path])
    check_opset(DEFAULT_OPSET if opset is None else opset)
    checkpoint = open_checkpoint(path, key=key)
    recipe = read_recipe(checkpoint.recipe, f"{path}")
    chosen = _chosen(recipe, names, f"{path}")
    layers = modules_of(chosen, checkpoint, f"{path}")
    checkpoint.check_unchanged()
    written = checked_onnx(
        layers,
        output,
        recipe_json=recipe.to_json(),
        opset=opset,
        overwrite=overwrite,
        inputs=checkpoint.paths,
        seed=seed,
    ).write()
    return replace(written, state_dict=checkpoint.wrapper)


def _chosen(recipe: Recipe, names: Sequence[str] | None, where: str) -> list[RecipeLayer]:
    """The recipe's layers of these names, in its order. Raises CheckpointError for others."""
    known = [layer.name for layer in recipe.layers]
    for name in names or ():
        if name not in known:
            advice = nearest(name, known, f"It has {listed(known)}.")
            raise CheckpointError(
                f"{where}: has no squeezed layer {shown(name)}, one of its own was needed. {advice}"
            )
    return [layer for layer in recipe.layers if not names or layer.name in names]


@dataclass(frozen=True, eq=False)
class CheckedModel:
    """A model that onnxruntime and torch agree on and that is not written yet. It replaces none of
    the `inputs`.
    """

    model: ModelProto
    destination: Path
    opset: int
    reports: tuple[ExportReport, ...]
    overwrite: bool
    seed: int = 0
    inputs: tuple[Path, ...] = ()
    _written: list[Path] = field(default_factory=list, init=False, repr=False)

    def write(self) -> ExportResult:
        """Write it, whole or not at all. Raises OutputError, and then leaves what stood there."""
        with NewFiles(overwrite=self.overwrite, inputs=self.inputs) as files:
            self.stage(files)
            files.commit()
        return self.result()

    def stage(self, files: NewFiles) -> None:
        """Write it to stand in its place with the other `files`, once.

        A model too large for one file has its values in `<destination>.data` beside it.
        """
        check_onnx_destination(self.destination, overwrite=self.overwrite)
        self._written.clear()
        if not fits_one_message(self.model):
            check_outputs([_data_place(self.destination, "")], overwrite=self.overwrite)
            self._written.append(_stage_data(files, self.model, self.destination))
        content = self.model.SerializeToString()
        files.add(self.destination, lambda file: file.write(content))
        self._written.append(self.destination)
        for old in _data_of(self.destination):
            if old not in self._written:
                files.retire(old)

    def result(self) -> ExportResult:
        """What was written."""
        files = tuple(reversed(self._written))
        size = sum(file.stat().st_size for file in files)
        return ExportResult(files, size, self.opset, self.reports, self.seed)


def checked_onnx(
    layers: Mapping[str, SqueezedConv],
    destination: Path,
    *,
    recipe_json: str | None = None,
    opset: int | None = None,
    overwrite: bool = False,
    inputs: Sequence[Path] = (),
    seed: int = 0,
) -> CheckedModel:
    """Build and check one model of `layers`, ready to write; see `build_model`, `check_model`.

    `inputs` are files that it must not replace. Raises OutputError or VerificationError.
    """
    destination = anchored(destination)
    check_onnx_destination(destination, overwrite=overwrite, inputs=inputs)
    opset = DEFAULT_OPSET if opset is None else opset
    model = build_model(layers, opset=opset, recipe_json=recipe_json)
    reports = check_model(model, layers, seed=seed, where=f"{destination}")
    return CheckedModel(model, destination, opset, reports, overwrite, seed, tuple(inputs))


def check_onnx_file(
    path: Path, layers: Mapping[str, SqueezedConv], *, seed: int = 0
) -> tuple[ExportReport, ...]:
    """`check_model` of an ONNX file: every layer that it has against the one of that name.

    Raises CheckpointError for a file that is no such model, VerificationError for any difference
    and for a layer that is not among `layers`.
    """
    versions = [FileVersion.of(file) for file in onnx_files(path)]
    held = open_onnx(path)
    for name in held.names:
        if name not in layers:
            advice = nearest(name, layers, f"The squeezed file has {listed(layers)}.")
            raise VerificationError(
                [f"{path}: has a layer {shown(name)}, which the squeezed file has not. {advice}"]
            )
    chosen = {name: layers[name] for name in held.names}
    reports = check_model(held.model, chosen, seed=seed, where=f"{path}")
    for version in versions:
        version.check_unchanged()
    return reports


def _data_place(destination: Path, digits: str) -> Path:
    """`model.onnx.data`; with `digits`, `model.onnx-<digits>.data`."""
    name = plain_file_name(destination.name)
    return destination.with_name(f"{'-'.join(filter(None, (name, digits)))}.data")


def _stage_data(files: NewFiles, model: ModelProto, destination: Path) -> Path:
    """Write the values of `model` to a file of their own, taking them out of it."""
    # numbers that are shapes stay: onnxruntime reads no other file while it infers shapes
    tensors = [tensor for tensor in model.graph.initializer if tensor.data_type in DTYPES]

    def write(file: BinaryIO) -> None:
        for tensor in tensors:
            file.write(tensor.raw_data)
            file.write(bytes(-len(tensor.raw_data) % PAGE))

    data = files.add_part(partial(_data_place, destination), write)
    offset = 0
    for tensor in tensors:
        set_external_data(tensor, data.name, offset, len(tensor.raw_data))
        offset += -(-len(tensor.raw_data) // PAGE) * PAGE
        tensor.ClearField("raw_data")
    return data


def _data_of(destination: Path) -> list[Path]:
    """The file of values of an earlier model written here, if `destination` is one."""
    name = re.escape(plain_file_name(destination.name))
    pattern = re.compile(name + r"(-[0-9a-f]{8}|-[0-9a-f]{64})?\.data")
    return [file for file in onnx_files(destination)[1:] if pattern.fullmatch(file.name)]


def onnx_files(path: Path) -> list[Path]:
    """Of the model at `path`: itself, and the files of values that it names, if it is one."""
    try:
        model = onnx.load_model_from_string(read_whole(path, LARGEST_MESSAGE))
    except (OSError, ValueError, DecodeError):
        return [path]
    external = [t for t in model.graph.initializer if uses_external_data(t)]
    entries = [entry for tensor in external for entry in tensor.external_data]
    names = {entry.value for entry in entries if entry.key == "location"}
    return [path, *(path.parent / name for name in sorted(names))]
