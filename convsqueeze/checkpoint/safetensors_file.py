"""`.safetensors`, read and written without the library.

The library's `save_file` sorts the tensors by dtype and name and takes tensors only, so it would
lose the order of the source and turn every untouched tensor into one. Here the header keeps the
order it had, and untouched bytes go from file to file as they are. Within the data the wider
dtypes come first (a stable sort), so that every tensor is aligned, as in the library's own files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch

from convsqueeze.checkpoint import memory
from convsqueeze.checkpoint.base import RECIPE_KEY, Checkpoint, TensorInfo
from convsqueeze.checkpoint.disk import FileVersion, sha256
from convsqueeze.checkpoint.edits import Splice
from convsqueeze.checkpoint.names import common_prefix, shown
from convsqueeze.checkpoint.new_files import Writer
from convsqueeze.checkpoint.safetensors_header import (
    DTYPES,
    METADATA,
    STORED_NAMES,
    Stored,
    header_bytes,
    read_header,
    stored_shape,
)
from convsqueeze.errors import OutputError

FROM_TORCH = {"format": "pt"}
"""What the library writes beside tensors that came from torch."""


@dataclass(frozen=True, eq=False)
class StoredTensors:
    """Contents of one or more safetensors files."""

    tensors: Mapping[str, Stored] = field(repr=False)
    files: tuple[FileVersion, ...]

    def load(self, name: str) -> torch.Tensor:
        stored = self.tensors[name]
        info = stored.info
        data = stored.place.read()
        if not data:
            return torch.empty(info.shape, dtype=info.dtype)
        return torch.frombuffer(data, dtype=info.dtype).reshape(info.shape)

    def sha256(self) -> str:
        return sha256(version.path for version in self.files)

    def ties(self) -> tuple[tuple[str, ...], ...]:
        return ()  # no byte of such a file belongs to two tensors


def open_safetensors(path: Path) -> Checkpoint:
    """Raises CheckpointError for a header that is damaged."""
    header = read_header(path)
    return described_stored(
        path,
        "safetensors",
        StoredTensors(header.tensors, (header.version,)),
        header.metadata,
        header.metadata.get(RECIPE_KEY),
    )


def described_stored(
    path: Path,
    form: str,
    contents: StoredTensors,
    metadata: Mapping[str, str],
    recipe: str | None,
) -> Checkpoint:
    prefix = common_prefix(contents.tensors)
    strip = len(prefix)
    return Checkpoint(
        path=path,
        format=form,
        wrapper="",
        prefix=prefix,
        tensors={name[strip:]: stored.info for name, stored in contents.tensors.items()},
        metadata=metadata,
        recipe=recipe,
        contents=contents,
    )


@dataclass(frozen=True)
class Piece:
    """A tensor to be written: what the header says of it, and how its bytes get into a file."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    copy_to: Writer = field(repr=False)


def pieces(source: Checkpoint, splicing: Splice) -> dict[str, Piece]:
    """What the edited checkpoint consists of: full names, in order.

    Raises OutputError for a tensor that the format cannot hold.
    """
    return {
        source.prefix + name: kept_piece(source, name) if new is None else new_piece(name, new)
        for name, new in splicing.over(source.tensors)
    }


def kept_piece(source: Checkpoint, name: str) -> Piece:
    if isinstance(source.contents, StoredTensors):
        return _copied(source.contents.tensors[source.prefix + name])
    return _piece(name, source.tensors[name], lambda: source.load(name))


def new_piece(name: str, tensor: torch.Tensor) -> Piece:
    info = TensorInfo(tuple(tensor.shape), tensor.dtype, tensor.layout)
    return _piece(name, info, lambda: tensor)


def _copied(stored: Stored) -> Piece:
    def copy_to(file: BinaryIO) -> None:
        for block in stored.place.blocks():
            file.write(block)

    return Piece(stored.dtype, stored.shape, stored.place.nbytes, copy_to)


def _piece(name: str, info: TensorInfo, load: Callable[[], torch.Tensor]) -> Piece:
    dtype = STORED_NAMES.get(info.dtype)
    if dtype is None or info.layout != torch.strided:
        what = info.dtype if dtype is None else info.layout
        raise OutputError(
            f"{shown(name)}: {what}, which a .safetensors file cannot hold; it holds "
            f"{', '.join(DTYPES)}. Write a .pt file instead."
        )
    shape = stored_shape(dtype, info.shape)
    return Piece(dtype, shape, info.nbytes, lambda file: _write_tensor(load(), file))


def safetensors_writer(parts: Mapping[str, Piece], metadata: Mapping[str, str]) -> Writer:
    """Raises OutputError for names that no header can hold; the writer it gives streams."""
    by_width = sorted(parts, key=lambda name: -DTYPES[parts[name].dtype].itemsize)
    starts: dict[str, int] = {}
    end = 0
    for name in by_width:
        starts[name], end = end, end + parts[name].nbytes
    try:
        header = header_bytes(
            {
                name: {
                    "dtype": part.dtype,
                    "shape": list(part.shape),
                    "data_offsets": [starts[name], starts[name] + part.nbytes],
                }
                for name, part in parts.items()
            },
            metadata,
        )
    except ValueError as error:
        raise OutputError(f"{METADATA}: {error}. Write a .pt file instead.") from error

    def write(file: BinaryIO) -> None:
        file.write(header)
        for name in by_width:
            parts[name].copy_to(file)

    return write


def _write_tensor(tensor: torch.Tensor, file: BinaryIO) -> None:
    file.write(memory.raw_bytes(tensor))
