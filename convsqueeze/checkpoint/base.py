"""What a checkpoint is to the rest of the program: named tensors, described first, loaded later.

Knows no file format; each format's module fills in a `Checkpoint` and keeps what only it needs
in its own `Contents`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Protocol

import torch

from convsqueeze.checkpoint.disk import Advance, FileRange, FileVersion, unwatched
from convsqueeze.errors import CheckpointError
from convsqueeze.names import nearest, shown

RECIPE_KEY = "convsqueeze"
"""Where the recipe travels: a key of safetensors metadata, of an index's, or of `_metadata`."""


@dataclass(frozen=True)
class TensorInfo:
    """All that is known of a tensor before its values are read."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: torch.layout = torch.strided

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Of the values alone, stored densely."""
        return self.numel * self.dtype.itemsize


class Contents(Protocol):
    """What a format's own module knows of an open checkpoint. Names here carry their prefix."""

    @property
    def files(self) -> tuple[FileVersion, ...]: ...

    def load(self, name: str) -> torch.Tensor: ...

    def file_range(self, name: str) -> FileRange | None: ...

    def sha256(self, advance: Advance) -> str: ...

    def ties(self) -> tuple[tuple[str, ...], ...]: ...


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An open checkpoint: its headers are read, its values are not.

    `format` is "pt", "safetensors", "sharded" or "memory". `wrapper` is the dotted key under which
    the state dict lay, "" at the top level. `prefix` stood before every tensor's name and is in
    none of the names here. `tensors` is in file order. `recipe` is the JSON text that an earlier
    run left, if any.
    """

    path: Path
    format: str
    wrapper: str
    prefix: str
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    metadata: Mapping[str, str]
    recipe: str | None
    contents: Contents = field(repr=False)

    def load(self, name: str) -> torch.Tensor:
        """The tensor on the CPU as it is stored: never converted, maybe a view of the file."""
        if name not in self.tensors:
            advice = nearest(name, self.tensors, "List the names with inspect.")
            raise CheckpointError(f"{self.path}: holds no tensor {shown(name)}. {advice}")
        return self.contents.load(self.prefix + name)

    def file_range(self, name: str) -> FileRange | None:
        """Where in a file the values lie as they are in memory, one after the other; None where
        there is no such place.
        """
        return self.contents.file_range(self.prefix + name)

    @property
    def nbytes(self) -> int:
        """Of its files, all together."""
        return sum(version.size for version in self.contents.files)

    def sha256(self, advance: Advance = unwatched) -> str:
        """Of the file. Sharded: of the index, then of each shard in the order of their names.

        In memory: of each tensor's full name, dtype, shape and bytes, in order. `advance` is told
        of the bytes of files that are done.
        """
        return self.contents.sha256(advance)

    def ties(self) -> tuple[tuple[str, ...], ...]:
        """Groups of names whose tensors share memory, so that writing one would change another."""
        strip = len(self.prefix)
        return tuple(tuple(name[strip:] for name in group) for group in self.contents.ties())

    def check_unchanged(self) -> None:
        """Raises CheckpointError where a file is no longer the one that was opened."""
        for version in self.contents.files:
            version.check_unchanged()
