"""New tensors that wait on disk until the file that they belong to is written.

The merged tensors of a run would otherwise add up in memory: a header comes before the data and
describes all of them, and nothing is written before all of them are verified.
"""

from pathlib import Path
from typing import BinaryIO

import torch

from convsqueeze.checkpoint import memory
from convsqueeze.checkpoint.base import TensorInfo
from convsqueeze.checkpoint.disk import FileRange
from convsqueeze.checkpoint.edits import TensorOnDisk
from convsqueeze.checkpoint.new_files import NewFiles, unwritable


class ScratchFile:
    """A temporary file among `files`, beside the `place` of the output, made when first needed."""

    def __init__(self, files: NewFiles, place: Path) -> None:
        self._files, self._place = files, place
        self._file: BinaryIO | None = None

    def keep(self, tensor: torch.Tensor) -> TensorOnDisk:
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
