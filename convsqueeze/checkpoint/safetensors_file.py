"""`.safetensors`: headers are read by the safetensors library, files are written as streams.

Format: https://huggingface.co/docs/safetensors. Eight bytes (the header's length, little endian),
the header (a JSON object: name -> dtype, shape, data_offsets), then the data, of which each byte
belongs to exactly one tensor: the library refuses all else, and opens every file that is written
before it stands in its place.

The library's `save_file` sorts the tensors by dtype and name and takes tensors only, so it would
lose the order of the source and turn every untouched tensor into one. Here the header keeps the
order it had, and untouched bytes go from file to file as they are. Within the data the wider
dtypes come first (a stable sort), so that every tensor is aligned, as in the library's own files.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from convsqueeze.checkpoint import memory
from convsqueeze.checkpoint.base import RECIPE_KEY, Checkpoint, TensorInfo
from convsqueeze.checkpoint.disk import (
    FileRange,
    FileVersion,
    Progress,
    RangeOfMemory,
    no_file,
    no_progress,
    unreadable,
)
from convsqueeze.checkpoint.edits import DeferredText, New, Splice
from convsqueeze.checkpoint.format import Format, Output, Start
from convsqueeze.checkpoint.new_files import NewFiles, Writer
from convsqueeze.checkpoint.on_disk import TensorOnDisk, read_tensor
from convsqueeze.errors import CheckpointError, OutputError
from convsqueeze.names import listed, shown

SUFFIX = ".safetensors"
FROM_TORCH = {"format": "pt"}
"""What the library writes beside tensors that came from torch."""
METADATA = "__metadata__"
LIBRARY_SAYS = "Error while deserializing header: "

_TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}
DTYPES: dict[str, torch.dtype] = {
    stored: getattr(torch, name) for stored, name in _TORCH_NAMES.items() if hasattr(torch, name)
}
STORED_NAMES = {dtype: stored for stored, dtype in DTYPES.items()}
PACKED = "F4"
"""torch counts pairs of these along the last axis, the header counts each."""
LARGEST = (1 << 63) - 1
"""Bytes of a tensor, were its empty dimensions one: torch counts in signed 64-bit numbers."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: what it is, and where its bytes lie."""

    info: TensorInfo
    place: FileRange


@dataclass(frozen=True)
class Header:
    """`tensors` in the order of the header, which need not be that of the data."""

    version: FileVersion
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Raises CheckpointError for a header that is damaged, or that the file does not bear out."""
    version = FileVersion.of(path)
    try:
        with safe_open(path, "np", backend="pread") as library, path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(length), object_pairs_hook=unique_keys)
            start, places = 8 + length, {}
            for name in library.offset_keys():  # in the order of the data, without gaps
                tensor = library.get_slice(name)
                info = _described(name, tensor.get_dtype(), tuple(tensor.get_shape()))
                places[name] = Stored(info, FileRange(path, start, info.nbytes))
                start += info.nbytes
            metadata = entries.pop(METADATA, None) or {}  # the library forgets the order
    except OSError as error:
        raise unreadable(path, error) from error
    except (SafetensorError, ValueError) as error:
        reason = shown(str(error).removeprefix(LIBRARY_SAYS))
        raise CheckpointError(
            f"{path}: a damaged safetensors file of {version.size} bytes: {reason}, a header that "
            "fits its data was needed. Download or save it anew."
        ) from error
    return Header(version, {name: places[name] for name in entries}, metadata)


def _described(name: str, dtype: str, shape: tuple[int, ...]) -> TensorInfo:
    """As torch sees it. Raises ValueError where no tensor of torch is like that."""
    if dtype not in DTYPES:
        raise ValueError(f"{shown(name)} has the dtype {dtype}, unknown to torch")
    if prod(max(n, 1) for n in shape) * DTYPES[dtype].itemsize > LARGEST:
        raise ValueError(f"{shown(name)} has a shape that no tensor can have")
    if dtype == PACKED:
        if not shape or shape[-1] % 2:
            raise ValueError(f"{shown(name)} has half a byte left over")
        shape = (*shape[:-1], shape[-1] // 2)
    return TensorInfo(shape, DTYPES[dtype])


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `object_pairs_hook`: an object of JSON, of which Python would keep the last key only."""
    result = dict(pairs)
    if len(result) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {shown(twice)} stands there twice")
    return result


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
    return Checkpoint(
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


def stored_shape(info: TensorInfo) -> tuple[int, ...]:
    """The shape as a header has it."""
    if STORED_NAMES[info.dtype] == PACKED:
        return (*info.shape[:-1], info.shape[-1] * 2)
    return info.shape


def header_bytes(entries: Mapping[str, Mapping[str, Any]], metadata: Mapping[str, str]) -> bytes:
    """Length and header, padded with spaces so that the data starts at a multiple of 8.

    Raises ValueError for a name that is no Unicode or is the metadata's.
    """
    if METADATA in entries:
        raise ValueError(f"a tensor is called {METADATA}")
    whole = ({METADATA: dict(metadata)} if metadata else {}) | dict(entries)
    text = json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


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
