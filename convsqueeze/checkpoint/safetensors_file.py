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
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from convsqueeze.checkpoint.base import RECIPE_KEY, Checkpoint
from convsqueeze.checkpoint.disk import FileRange, FileVersion, Progress, no_progress, unreadable
from convsqueeze.checkpoint.edits import Splice
from convsqueeze.checkpoint.format import Format, Output, Start
from convsqueeze.checkpoint.new_files import NewFiles, Writer
from convsqueeze.checkpoint.tensors import Entry, TensorInfo, TensorOnDisk, blocks_of
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
LONGEST_NUMBER = 100
"""Digits."""
LARGEST = (1 << 63) - 1
"""Bytes of a tensor, were its empty dimensions one: torch counts in signed 64-bit numbers."""


def read_file(path: Path) -> Checkpoint:
    """Raises CheckpointError for a header that is damaged, or that the file does not bear out."""
    version = FileVersion.of(path)
    try:
        with safe_open(path, "np", backend="pread") as library, path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = read_json(file.read(length))
            start, places = 8 + length, {}
            for name in library.offset_keys():  # in the order of the data, without gaps
                tensor = library.get_slice(name)
                info = _described(name, tensor.get_dtype(), tuple(tensor.get_shape()))
                places[name] = TensorOnDisk(info, FileRange(path, start, info.nbytes))
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
    return Checkpoint(
        path,
        SAFETENSORS.name,
        {name: places[name] for name in entries},  # in the order of the header
        metadata=metadata,
        recipe=metadata.get(RECIPE_KEY),
        files=(version,),
    )


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


def read_json(text: str | bytes) -> Any:
    """JSON in which no key stands twice. Raises ValueError with a terse reason, or json's own."""
    return json.loads(text, object_pairs_hook=_unique_keys, parse_int=_whole_number)


def _whole_number(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"JSON with a number of {len(text):,} digits")
    return int(text)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, of which Python would keep the last key only."""
    result = dict(pairs)
    if len(result) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"JSON in which the key {shown(twice)} stands twice")
    return result


def _recognizes(start: Start) -> bool:
    length = int.from_bytes(start.head[:8], "little")
    like_one = start.head[8:9] == b"{" and length <= start.size - 8
    return like_one or start.path.suffix.lower() == SUFFIX


def storable(splicing: Splice) -> dict[str, Entry]:
    """The tensors of the edited checkpoint. Raises OutputError for one that the format has no place
    for.
    """
    parts = splicing.entries()
    for name, info in ((name, part.info) for name, part in parts.items()):
        if info.dtype not in STORED_NAMES or info.layout != torch.strided:
            what = info.layout if info.dtype in STORED_NAMES else info.dtype
            raise OutputError(
                f"{shown(name)}: {what}, which a .safetensors file cannot hold; it holds "
                f"{', '.join(DTYPES)}. Write a .pt file instead."
            )
    return parts


def safetensors_writer(
    parts: Mapping[str, Entry], metadata: Mapping[str, str], progress: Progress = no_progress
) -> Writer:
    """Raises OutputError for names that no header can hold. The writer that it gives raises
    OutputError where the library does not read what was written.
    """
    infos = {name: part.info for name, part in parts.items()}
    by_width = sorted(infos, key=lambda name: -infos[name].dtype.itemsize)
    header = _header(infos, by_width, metadata)

    def write(file: BinaryIO) -> None:
        file.write(header)
        for name in by_width:
            for block in blocks_of(parts[name]):
                progress(file.write(block))
        file.flush()
        _check_written(Path(file.name), infos)

    return write


def _check_written(path: Path, infos: Mapping[str, TensorInfo]) -> None:
    try:
        read = read_file(path).entries
    except CheckpointError as error:
        raise OutputError(f"{error} Write a .pt file instead.") from error
    if {name: stored.info for name, stored in read.items()} != infos:
        raise OutputError(f"{path}: not the tensors that were to be written. Write a .pt file.")


def _header(
    infos: Mapping[str, TensorInfo], in_file: Sequence[str], metadata: Mapping[str, str]
) -> bytes:
    """Length and header, padded with spaces so that the data starts at a multiple of 8. The tensors
    lie there in the order `in_file`.
    """
    if METADATA in infos:
        raise OutputError(f"{METADATA}: a tensor is called {METADATA}. Write a .pt file instead.")
    ends = list(accumulate((infos[name].nbytes for name in in_file), initial=0))
    places = dict(zip(in_file, pairwise(ends), strict=True))
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    for name, info in infos.items():
        header[name] = {
            "dtype": STORED_NAMES[info.dtype],
            "shape": stored_shape(info),
            "data_offsets": places[name],
        }
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except ValueError as error:
        raise OutputError(f"{METADATA}: {error}. Write a .pt file instead.") from error
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def stored_shape(info: TensorInfo) -> tuple[int, ...]:
    """The shape as a header has it."""
    if STORED_NAMES[info.dtype] == PACKED:
        return (*info.shape[:-1], info.shape[-1] * 2)
    return info.shape


def _stage(output: Output, files: NewFiles) -> tuple[str, ...]:
    metadata = {**(output.splicing.source.metadata or FROM_TORCH), RECIPE_KEY: output.recipe}
    writer = safetensors_writer(storable(output.splicing), metadata, output.progress)
    files.add(output.place, writer)
    return tuple(tensors_only_notes(output.splicing))


def tensors_only_notes(splicing: Splice) -> Iterator[str]:
    """What of the source a file that holds tensors alone does not take over."""
    source = splicing.source
    if source.saved is not None and (lost := source.saved.other_names()):
        yield f"{listed(lost)}: not kept, a .safetensors file holds tensors only"
    for group in source.ties():
        if len(kept := [name for name in group if name not in splicing.removed]) > 1:
            yield f"{listed(kept)}: shared memory, written out as copies"


SAFETENSORS = Format(
    "safetensors",
    (SUFFIX,),
    recognizes=_recognizes,
    open=lambda start, key: read_file(start.path),
    stage=_stage,
)
