"""What a checkpoint is to the rest of the program: named tensors, described first, loaded later.

Knows no file format; each format's module fills in a `Checkpoint`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from convsqueeze.checkpoint import memory
from convsqueeze.checkpoint.disk import FileVersion, Progress, files_sha256, no_progress
from convsqueeze.checkpoint.saved_object import SavedObject
from convsqueeze.checkpoint.tensors import Entry, TensorInfo
from convsqueeze.errors import CheckpointError
from convsqueeze.names import common_prefix, nearest, shown
from convsqueeze.sharing import ties

RECIPE_KEY = "convsqueeze"
"""Where the recipe travels: a key of safetensors metadata, of an index's, or of `_metadata`."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An open checkpoint: its headers are read, its values are not.

    `format` is "pt", "safetensors", "sharded" or "memory". `entries` are the tensors by their full
    names, in file order. `recipe` is the JSON text that an earlier run left, if any. `files` are
    those it was read from. `saved` is the object that holds the state dict, where the format keeps
    one. Of a sharded one, `shards` are the checkpoints that it consists of, and `index` is the
    whole JSON object of its index.
    """

    path: Path
    format: str
    entries: Mapping[str, Entry] = field(repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)
    recipe: str | None = None
    files: tuple[FileVersion, ...] = ()
    saved: SavedObject | None = None
    index: Mapping[str, Any] = field(default_factory=dict, repr=False)
    shards: Sequence["Checkpoint"] = ()

    @cached_property
    def prefix(self) -> str:
        """What stands before every tensor's name in the file, and in none of the names here."""
        return common_prefix(self.entries)

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """By name without prefix, in file order."""
        return {name[len(self.prefix) :]: entry.info for name, entry in self.entries.items()}

    @property
    def wrapper(self) -> str:
        """The dotted key under which the state dict lay, "" at the top level."""
        return "" if self.saved is None else ".".join(self.saved.key_path)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Of the files that it is read from."""
        return tuple(version.path for version in self.files)

    def load(self, name: str) -> torch.Tensor:
        """The tensor on the CPU as it is stored: never converted, maybe a view of the file.

        Raises CheckpointError for a name that is not there and for a file that cannot be read.
        """
        if name not in self.tensors:
            advice = nearest(name, self.tensors, "List the names with inspect.")
            raise CheckpointError(f"{self.path}: holds no tensor {shown(name)}. {advice}")
        return self.entries[self.prefix + name].load()

    @property
    def nbytes(self) -> int:
        """Of its files, all together."""
        return sum(version.size for version in self.files)

    def sha256(self, progress: Progress = no_progress) -> str:
        """Of the file. Sharded: of the index, then of each shard in the order of their names.

        In memory: `tensors_sha256`. `progress` is called with the bytes of files that are done.
        Raises CheckpointError for an unreadable file.
        """
        if self.files or self.saved is None:
            return files_sha256(self.paths, progress)
        return self.tensors_sha256()

    def tensors_sha256(self) -> str:
        """Of each tensor's full name, dtype, shape and bytes, in order, wherever they are kept.

        Raises CheckpointError for a file that cannot be read.
        """
        if self.saved is not None:
            return memory.sha256(self.saved.tensors.items())
        return memory.sha256((name, entry.load()) for name, entry in self.entries.items())

    def ties(self) -> tuple[tuple[str, ...], ...]:
        """Groups of names whose tensors share memory, so that writing one would change another."""
        strip = len(self.prefix)
        groups = () if self.saved is None else ties(self.saved.tensors)
        return tuple(tuple(name[strip:] for name in group) for group in groups)

    def check_unchanged(self) -> None:
        """Raises CheckpointError where a file is no longer the one that was opened."""
        for version in self.files:
            version.check_unchanged()
