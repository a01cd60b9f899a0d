"""One tensor of a checkpoint: described first, read later from a file or from memory."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from convsqueeze.checkpoint import memory
from convsqueeze.checkpoint.disk import FileRange, RangeOfMemory, no_file
from convsqueeze.checkpoint.new_files import NewFiles, unwritable
from convsqueeze.errors import CheckpointError
from convsqueeze.sharing import span


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


@dataclass(frozen=True)
class TensorOnDisk:
    """A tensor whose values lie in order in a file."""

    info: TensorInfo
    place: FileRange

    def load(self) -> Tensor:
        """The tensor, on memory of its own. Raises CheckpointError where the file has been cut."""
        if not self.place.nbytes:
            return torch.empty(self.info.shape, dtype=self.info.dtype)
        data = self.place.read()
        return torch.frombuffer(data, dtype=self.info.dtype).reshape(self.info.shape)


@dataclass(frozen=True, eq=False)
class HeldTensor:
    """A tensor in memory or, as `range_of_memory` says, on a map of a file. The map is never read:
    a file that another program cuts short kills the process that does. `name` is for messages.
    """

    name: str
    tensor: Tensor = field(repr=False)
    range_of_memory: RangeOfMemory = no_file

    @property
    def info(self) -> TensorInfo:
        return TensorInfo(tuple(self.tensor.shape), self.tensor.dtype, self.tensor.layout)

    @property
    def place(self) -> FileRange | None:
        """Where in a file the values lie as they are in memory, one after the other."""
        is_plain = memory.is_plain(self.tensor)
        return self._range() if is_plain and self.tensor.is_contiguous() else None

    def load(self) -> Tensor:
        """The tensor on the CPU. Raises CheckpointError where it has no values, or as FileRange."""
        if self.tensor.is_meta:
            raise CheckpointError(
                f"{self.name} lies on the meta device, its values were needed. "
                "Save the state dict of a model that has its weights."
            )
        place = self._range()
        if place is None:
            return self.tensor.detach().cpu()
        flat = torch.frombuffer(place.read(), dtype=self.tensor.dtype)
        return flat.as_strided(self.tensor.shape, self.tensor.stride())

    def _range(self) -> FileRange | None:
        """Where in a file it lies, from its first element to its last."""
        if self.range_of_memory is no_file or not memory.is_plain(self.tensor):
            return None
        found = span(self.tensor)
        return None if found is None else self.range_of_memory(found.start, found.stop)


Entry = TensorOnDisk | HeldTensor
"""A tensor of a checkpoint."""


def blocks_of(entry: Entry) -> Iterable[memoryview]:
    """The bytes of its values in order, each block before the next is asked for."""
    return [memory.raw_bytes(entry.load())] if entry.place is None else entry.place.blocks()


class ScratchFile:
    """Keeps new tensors on disk until the file that they belong to is written.

    Its header comes before the data and describes all of them, and nothing is written before all of
    them are verified. The scratch file is temporary, one of `files`, beside the `place` of the
    output.
    """

    def __init__(self, files: NewFiles, place: Path) -> None:
        self._files, self._place = files, place
        self._file: BinaryIO | None = None

    def keep(self, tensor: Tensor) -> TensorOnDisk:
        """The tensor, its values on disk. Raises OutputError where there is no room for them."""
        if self._file is None:
            self._file = self._files.scratch(self._place)
        info = TensorInfo(tuple(tensor.shape), tensor.dtype)
        start = self._file.tell()
        try:
            self._file.write(memory.raw_bytes(tensor))
            self._file.flush()
        except OSError as error:
            raise unwritable(self._place, error) from error
        return TensorOnDisk(info, FileRange(Path(self._file.name), start, info.nbytes))
