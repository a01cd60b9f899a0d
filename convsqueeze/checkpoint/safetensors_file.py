"""`.safetensors`, read and written without the library.

The library's `save_file` sorts the tensors by dtype and name and takes tensors only, so it would
lose the order of the source and turn every untouched tensor into one. Here the header keeps the
order it had, and untouched bytes go from file to file as they are. Within the data the wider
dtypes come first (a stable sort), so that every tensor is aligned, as in the library's own files.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch

from convsqueeze.checkpoint import memory
from convsqueeze.checkpoint.base import RECIPE_KEY, Checkpoint, TensorInfo
from convsqueeze.checkpoint.disk import Advance, FileRange, FileVersion, sha256, unwatched
from convsqueeze.checkpoint.edits import Late, New, Splice, Spooled
from convsqueeze.checkpoint.new_files import Writer
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
from convsqueeze.errors import OutputError
from convsqueeze.names import common_prefix, shown

FROM_TORCH = {"format": "pt"}
"""What the library writes beside tensors that came from torch."""


@dataclass(frozen=True, eq=False)
class StoredTensors:
    """Contents of one or more safetensors files."""

    tensors: Mapping[str, Stored] = field(repr=False)
    files: tuple[FileVersion, ...]

    def load(self, name: str) -> torch.Tensor:
        stored = self.tensors[name]
        return read_tensor(stored.place, stored.info)

    def file_range(self, name: str) -> FileRange | None:
        return self.tensors[name].place

    def sha256(self, advance: Advance) -> str:
        return sha256((version.path for version in self.files), advance)

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


Copy = Callable[[BinaryIO], Iterator[int]]
"""Writes where a file stands; yields how many bytes, piece by piece."""


@dataclass(frozen=True)
class Piece:
    """A tensor to be written: what the header says of it, and how its bytes get into a file."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    copy_to: Copy = field(repr=False)


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
        stored = source.contents.tensors[source.prefix + name]
        return Piece(stored.dtype, stored.shape, stored.place.nbytes, stored.place.copy_to)
    place = source.file_range(name)
    if place is not None:
        return _piece(name, source.tensors[name], place.copy_to)
    return _piece(name, source.tensors[name], lambda file: _write(source.load(name), file))


def new_piece(name: str, new: New) -> Piece:
    if isinstance(new, Spooled):
        return _piece(name, new.info, new.place.copy_to)
    info = TensorInfo(tuple(new.shape), new.dtype, new.layout)
    return _piece(name, info, lambda file: _write(new, file))


def _write(tensor: torch.Tensor, file: BinaryIO) -> Iterator[int]:
    yield file.write(memory.raw_bytes(tensor))


def _piece(name: str, info: TensorInfo, copy_to: Copy) -> Piece:
    dtype = STORED_NAMES.get(info.dtype)
    if dtype is None or info.layout != torch.strided:
        what = info.dtype if dtype is None else info.layout
        raise OutputError(
            f"{shown(name)}: {what}, which a .safetensors file cannot hold; it holds "
            f"{', '.join(DTYPES)}. Write a .pt file instead."
        )
    return Piece(dtype, stored_shape(dtype, info.shape), info.nbytes, copy_to)


def safetensors_writer(
    parts: Mapping[str, Piece], metadata: Mapping[str, str | Late], advance: Advance = unwatched
) -> Writer:
    """Raises OutputError for names that no header can hold; the writer it gives streams.

    What is late in the metadata is asked for once all tensors are written.
    """
    by_width = sorted(parts, key=lambda name: -DTYPES[parts[name].dtype].itemsize)
    texts = {key: Late.of(text) for key, text in metadata.items()}
    draft = _header(parts, by_width, {key: text.draft for key, text in texts.items()})

    def write(file: BinaryIO) -> None:
        file.write(draft)
        for name in by_width:
            for nbytes in parts[name].copy_to(file):
                advance(nbytes)
        header = _header(parts, by_width, {key: text.final() for key, text in texts.items()})
        if len(header) != len(draft):
            raise ValueError(f"a header of {len(header)} bytes, its draft had {len(draft)}")
        if header != draft:
            file.seek(0)
            file.write(header)

    return write


def _header(
    parts: Mapping[str, Piece], in_file: Sequence[str], metadata: Mapping[str, str]
) -> bytes:
    starts: dict[str, int] = {}
    end = 0
    for name in in_file:
        starts[name], end = end, end + parts[name].nbytes
    try:
        return header_bytes(
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
