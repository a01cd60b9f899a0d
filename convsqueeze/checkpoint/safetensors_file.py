"""`.safetensors`, written as a stream and held against the library before it stands in its place.

The library's `save_file` sorts the tensors by dtype and name and takes tensors only, so it would
lose the order of the source and turn every untouched tensor into one. Here the header keeps the
order it had, and untouched bytes go from file to file as they are. Within the data the wider
dtypes come first (a stable sort), so that every tensor is aligned, as in the library's own files.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch

from convsqueeze.checkpoint import memory
from convsqueeze.checkpoint.base import RECIPE_KEY, Checkpoint, TensorInfo, open_as
from convsqueeze.checkpoint.disk import FileRange, Progress, RangeOfMemory, no_file, no_progress
from convsqueeze.checkpoint.edits import DeferredText, New, Splice, TensorOnDisk
from convsqueeze.checkpoint.format import Format, Output, Start
from convsqueeze.checkpoint.new_files import NewFiles, Writer
from convsqueeze.checkpoint.ranges import read_tensor
from convsqueeze.checkpoint.safetensors_header import (
    DTYPES,
    METADATA,
    STORED_NAMES,
    Stored,
    header_bytes,
    read_header,
    stored_shape,
)
from convsqueeze.errors import CheckpointError, OutputError
from convsqueeze.names import listed, shown

SUFFIX = ".safetensors"
FROM_TORCH = {"format": "pt"}
"""What the library writes beside tensors that came from torch."""


@dataclass(frozen=True, eq=False)
class StoredTensors:
    """Reads the tensors of one or more safetensors files."""

    tensors: Mapping[str, Stored] = field(repr=False)
    range_of_memory: RangeOfMemory = no_file

    def load(self, name: str) -> torch.Tensor:
        stored = self.tensors[name]
        return read_tensor(stored.place, stored.info)

    def file_range(self, name: str) -> FileRange | None:
        return self.tensors[name].place

    def infos(self) -> dict[str, TensorInfo]:
        return {name: stored.info for name, stored in self.tensors.items()}


def _recognizes(start: Start) -> bool:
    length = int.from_bytes(start.head[:8], "little")
    like_one = start.head[8:9] == b"{" and length <= start.size - 8
    return like_one or start.path.suffix.lower() == SUFFIX


def _open(start: Start, key: str | None) -> Checkpoint:
    header = read_header(start.path)
    contents = StoredTensors(header.tensors)
    return open_as(
        start.path,
        SAFETENSORS.name,
        contents.infos(),
        contents,
        metadata=header.metadata,
        recipe=header.metadata.get(RECIPE_KEY),
        files=(header.version,),
    )


@dataclass(frozen=True)
class Piece:
    """A tensor to be written: what it is, and how its bytes get into a file."""

    info: TensorInfo
    copy_to: Callable[[BinaryIO, Progress], object] = field(repr=False)
    """Writes where the file stands, and calls with the bytes that are done."""


def pieces(source: Checkpoint, splicing: Splice) -> dict[str, Piece]:
    """What the edited checkpoint consists of: full names, in order.

    Raises OutputError for a tensor that the format cannot hold.
    """
    return {
        source.prefix + name: _kept_piece(source, name) if new is None else new_piece(name, new)
        for name, new in splicing.over(source.tensors)
    }


def _kept_piece(source: Checkpoint, name: str) -> Piece:
    place = source.file_range(name)
    copy = partial(_load_and_write, source, name) if place is None else place.copy_to
    return _piece(name, source.tensors[name], copy)


def new_piece(name: str, new: New) -> Piece:
    if isinstance(new, TensorOnDisk):
        return _piece(name, new.info, new.place.copy_to)
    info = TensorInfo(tuple(new.shape), new.dtype, new.layout)
    return _piece(name, info, partial(_write, new))


def _load_and_write(source: Checkpoint, name: str, file: BinaryIO, progress: Progress) -> None:
    _write(source.load(name), file, progress)


def _write(tensor: torch.Tensor, file: BinaryIO, progress: Progress) -> None:
    progress(file.write(memory.raw_bytes(tensor)))


def _piece(name: str, info: TensorInfo, copy_to: Callable[[BinaryIO, Progress], object]) -> Piece:
    if info.dtype not in STORED_NAMES or info.layout != torch.strided:
        what = info.layout if info.dtype in STORED_NAMES else info.dtype
        raise OutputError(
            f"{shown(name)}: {what}, which a .safetensors file cannot hold; it holds "
            f"{', '.join(DTYPES)}. Write a .pt file instead."
        )
    return Piece(info, copy_to)


def safetensors_writer(
    parts: Mapping[str, Piece],
    metadata: Mapping[str, str | DeferredText],
    progress: Progress = no_progress,
) -> Writer:
    """Raises OutputError for names that no header can hold. The writer that it gives raises
    OutputError where the library does not read what was written.

    Deferred texts in the metadata are asked for once all tensors are written.
    """
    by_width = sorted(parts, key=lambda name: -parts[name].info.dtype.itemsize)
    texts = {key: DeferredText.of(text) for key, text in metadata.items()}
    draft = _header(parts, by_width, {key: text.draft for key, text in texts.items()})

    def write(file: BinaryIO) -> None:
        file.write(draft)
        for name in by_width:
            parts[name].copy_to(file, progress)
        header = _header(parts, by_width, {key: text.final() for key, text in texts.items()})
        if len(header) != len(draft):
            raise ValueError(f"a header of {len(header)} bytes, its draft had {len(draft)}")
        if header != draft:
            file.seek(0)
            file.write(header)
        file.flush()
        _check_written(Path(file.name), parts)

    return write


def _check_written(path: Path, parts: Mapping[str, Piece]) -> None:
    try:
        read = read_header(path).tensors
    except CheckpointError as error:
        raise OutputError(f"{error} Write a .pt file instead.") from error
    if {name: stored.info for name, stored in read.items()} != {
        name: part.info for name, part in parts.items()
    }:
        raise OutputError(f"{path}: not the tensors that were to be written. Write a .pt file.")


def _header(
    parts: Mapping[str, Piece], in_file: Sequence[str], metadata: Mapping[str, str]
) -> bytes:
    places: dict[str, list[int]] = {}
    end = 0
    for name in in_file:
        places[name] = [end, end := end + parts[name].info.nbytes]
    entries = {
        name: {
            "dtype": STORED_NAMES[part.info.dtype],
            "shape": list(stored_shape(part.info)),
            "data_offsets": places[name],
        }
        for name, part in parts.items()
    }
    try:
        return header_bytes(entries, metadata)
    except ValueError as error:
        raise OutputError(f"{METADATA}: {error}. Write a .pt file instead.") from error


def _stage(output: Output, files: NewFiles) -> tuple[str, ...]:
    metadata: dict[str, str | DeferredText] = {**(output.source.metadata or FROM_TORCH)}
    metadata[RECIPE_KEY] = output.recipe
    parts = pieces(output.source, output.splicing)
    files.add(output.place, safetensors_writer(parts, metadata, output.progress))
    return tuple(tensors_only_notes(output))


def tensors_only_notes(output: Output) -> Iterator[str]:
    """What of the source a file that holds tensors alone does not take over."""
    source = output.source
    if source.saved is not None and (lost := source.saved.other_names()):
        yield f"{listed(lost)}: not kept, a .safetensors file holds tensors only"
    for group in source.ties():
        if len(kept := [name for name in group if name not in output.splicing.removed]) > 1:
            yield f"{listed(kept)}: shared memory, written out as copies"


SAFETENSORS = Format("safetensors", (SUFFIX,), recognizes=_recognizes, open=_open, stage=_stage)
