"""The header of a `.safetensors` file: read through the safetensors library, and written.

Format: https://huggingface.co/docs/safetensors. Eight bytes (the header's length, little endian),
the header (a JSON object: name -> dtype, shape, data_offsets), then the data, of which each byte
belongs to exactly one tensor: the library refuses all else. It maps no file here and reads no data.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from convsqueeze.checkpoint.base import TensorInfo
from convsqueeze.checkpoint.disk import FileRange, FileVersion, unreadable
from convsqueeze.checkpoint.strict_json import unique_keys
from convsqueeze.errors import CheckpointError
from convsqueeze.names import shown

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
