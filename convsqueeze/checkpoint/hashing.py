"""The sha256 of files, computed in steps between other work, such as copying them."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from convsqueeze.checkpoint.disk import BLOCK, Progress, no_progress, unreadable


class FilesHash:
    """Of the bytes of all files, one after the other."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._digest = hashlib.sha256()
        self._blocks = _blocks(paths)
        self._due = 0

    def step(self, nbytes: int) -> None:
        """Hash `nbytes` more, to a block, if there are as many. Raises CheckpointError for a file
        that cannot be read.
        """
        self._due += nbytes
        while self._due > 0 and (block := next(self._blocks, None)) is not None:
            self._digest.update(block)
            self._due -= len(block)

    def hexdigest(self, progress: Progress = no_progress) -> str:
        """Of all bytes; those that no step took are hashed now. Raises as `step` does."""
        for block in self._blocks:
            self._digest.update(block)
            progress(len(block))
        return self._digest.hexdigest()


def _blocks(paths: Iterable[Path]) -> Iterator[memoryview]:
    """All bytes in order, in blocks that are overwritten by the next."""
    buffer = memoryview(bytearray(BLOCK))
    for path in paths:
        try:
            with path.open("rb", buffering=0) as file:
                while got := file.readinto(buffer):
                    yield buffer[:got]
        except OSError as error:
            raise unreadable(path, error) from error
