"""The header of a `.safetensors` file: parsed, checked against the file, and written.

Format: https://huggingface.co/docs/safetensors. Eight bytes (the header's length, little endian),
the header (a JSON object: name -> dtype, shape, data_offsets), then the data, of which each byte
belongs to exactly one tensor. Reads no data.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from convsqueeze.checkpoint.base import TensorInfo
from convsqueeze.checkpoint.disk import FileRange, FileVersion, unreadable
from convsqueeze.checkpoint.strict_json import parse_object
from convsqueeze.errors import CheckpointError
from convsqueeze.names import shown

METADATA = "__metadata__"
LONGEST = 100_000_000
"""In bytes: the library's own limit."""

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
    """A tensor in a file."""

    dtype: str
    shape: tuple[int, ...]
    place: FileRange

    @property
    def info(self) -> TensorInfo:
        return TensorInfo(_torch_shape(self.dtype, self.shape), DTYPES[self.dtype])


@dataclass(frozen=True)
class Header:
    version: FileVersion
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Raises CheckpointError for a header that is damaged, or that the file does not bear out."""
    version = FileVersion.of(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(LONGEST, version.size - 8):
                raise _damaged(path, f"claims a header of {length} bytes", version.size)
            text = file.read(length)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        entries = parse_object(text)
        metadata = _metadata(entries.pop(METADATA, {}))
        tensors = {n: _stored(path, n, entry, 8 + length) for n, entry in entries.items()}
        _check_data(tensors, 8 + length, version.size)
    except ValueError as error:
        raise _damaged(path, str(error), version.size) from error
    return Header(version, tensors, metadata)


def _metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise ValueError(f"{METADATA} maps to something else than strings")
    return found


def _stored(path: Path, name: str, entry: Any, data: int) -> Stored:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{shown(name)} has something else than dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(
            f"{shown(name)} has the dtype {dtype!r:.40}, unknown to torch {torch.__version__}"
        )
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{shown(name)} has a shape or offsets that are no lists of sizes")
    if prod(max(n, 1) for n in shape) * DTYPES[dtype].itemsize > LARGEST:
        raise ValueError(f"{shown(name)} has a shape that no tensor can have")
    start, stop = offsets
    if dtype == PACKED and (not shape or shape[-1] % 2):
        raise ValueError(f"{shown(name)} has half a byte left over")
    needed = prod(_torch_shape(dtype, tuple(shape))) * DTYPES[dtype].itemsize
    if stop - start != needed:
        raise ValueError(
            f"{shown(name)}, {dtype} of its shape, takes {needed} bytes, not {stop - start}"
        )
    return Stored(dtype, tuple(shape), FileRange(path, data + start, needed))


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _check_data(tensors: Mapping[str, Stored], start: int, size: int) -> None:
    """Each byte of the data belongs to exactly one tensor."""
    ends = [("the header", start)]
    places = [(tensor.place.offset, tensor.place.nbytes, name) for name, tensor in tensors.items()]
    for offset, nbytes, name in sorted(places):
        ends.append((name, offset + nbytes))
        (before, reached), _ = ends[-2:]
        if offset != reached:
            how = "overlaps" if offset < reached else "leaves a gap behind"
            raise ValueError(f"{shown(name)} {how} {shown(before)}")
    if ends[-1][1] != size:
        raise ValueError(f"the tensors end at byte {ends[-1][1]}")


def _torch_shape(dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], shape[-1] // 2) if dtype == PACKED else shape


def stored_shape(dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], shape[-1] * 2) if dtype == PACKED else shape


def header_bytes(entries: Mapping[str, Mapping[str, Any]], metadata: Mapping[str, str]) -> bytes:
    """Length and header, padded with spaces so that the data starts at a multiple of 8.

    Raises ValueError for a name that is no Unicode, is the metadata's, or for too long a header.
    """
    if METADATA in entries:
        raise ValueError(f"a tensor is called {METADATA}")
    whole = ({METADATA: dict(metadata)} if metadata else {}) | dict(entries)
    text = json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > LONGEST:
        raise ValueError(f"the header takes {len(text)} bytes, at most {LONGEST} are read")
    return len(text).to_bytes(8, "little") + text


def _damaged(path: Path, reason: str, size: int) -> CheckpointError:
    return CheckpointError(
        f"{path}: a damaged safetensors file of {size} bytes: {reason}, a header that fits "
        "its data was needed. Download or save it anew."
    )
