"""Files as files: which version was read, ranges of bytes, hashes, and where one may be written.

Knows nothing of what the files hold.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from convsqueeze.errors import CheckpointError, OutputError

BLOCK = 1 << 20
"""Bytes that are read at a time: what a core keeps near to itself."""

Progress = Callable[[int], None]
"""Called with every number of bytes that is done; may raise to end the work."""


def no_progress(nbytes: int) -> None:
    """For work that nobody watches."""


@dataclass(frozen=True)
class FileVersion:
    """A file as it was when it was opened: replaced or rewritten, it compares unequal."""

    path: Path
    size: int
    device_inode_time: tuple[int, int, int]

    @classmethod
    def of(cls, path: Path) -> "FileVersion":
        try:
            stat = path.stat()
        except OSError as error:
            raise unreadable(path, error) from error
        return cls(path, stat.st_size, (stat.st_dev, stat.st_ino, stat.st_mtime_ns))

    def check_unchanged(self) -> None:
        if FileVersion.of(self.path) != self:
            raise CheckpointError(
                f"{self.path}: changed while it was being read, and what was read so far may be a "
                "mixture. Wait until nothing writes to it and try again."
            )


@dataclass(frozen=True)
class FileRange:
    """Bytes of a file. Reading raises CheckpointError where the file no longer has them."""

    path: Path
    offset: int
    nbytes: int

    def read(self) -> bytearray:
        data = bytearray(self.nbytes)
        with _opened(self.path) as file:
            file.seek(self.offset)
            if file.readinto(data) < self.nbytes:
                raise self.cut()
        return data

    def blocks(self) -> Iterator[memoryview]:
        """The bytes in order, in blocks that are overwritten by the next."""
        buffer = memoryview(bytearray(min(BLOCK, self.nbytes)))
        with _opened(self.path) as file:
            file.seek(self.offset)
            for left in range(self.nbytes, 0, -BLOCK):
                block = buffer[:left]
                if file.readinto(block) < len(block):
                    raise self.cut()
                yield block

    def first_difference(self, other: "FileRange", progress: Progress = no_progress) -> int | None:
        """The offset of the first byte that is another one in `other`, which is as long."""
        done = 0
        for one, two in zip(self.blocks(), other.blocks(), strict=True):
            if one.tobytes() != two.tobytes():  # views compare element by element
                return done + next(i for i in range(len(one)) if one[i] != two[i])
            done += len(one)
            progress(len(one))
        return None

    def cut(self) -> CheckpointError:
        """That the file no longer has these bytes."""
        return CheckpointError(
            f"{self.path}: ends within its tensors, and was whole when it was opened. "
            "Wait until nothing writes to it and try again."
        )


RangeOfMemory = Callable[[int, int], FileRange | None]
"""Where in a file the bytes between two addresses lie, if they are a map of it."""


def no_file(start: int, stop: int) -> FileRange | None:
    """For memory that is no map of a file."""
    return None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> CheckpointError:
    reason = error.strerror or str(error)
    return CheckpointError(
        f"{path}: cannot be read ({reason}). Check the path and its permissions."
    )


def files_sha256(paths: Iterable[Path], progress: Progress = no_progress) -> str:
    """Of the bytes of all files, one after the other."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(BLOCK))
    for path in paths:
        with _opened(path) as file:
            while got := file.readinto(buffer):
                digest.update(buffer[:got])
                progress(got)
    return digest.hexdigest()


def check_place(place: Path, *, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Raises OutputError where a file cannot or must not be written at `place`; touches nothing.

    One of the `inputs`, under whatever name, is never replaced.
    """
    directory = place.parent
    with usable(place):
        if not directory.is_dir():
            what = "is not a directory" if directory.exists() else "does not exist"
            raise OutputError(f"{place}: the directory {directory} {what}. Create it first.")
        if not os.access(directory, os.W_OK | os.X_OK):
            raise OutputError(
                f"{place}: the directory {directory} cannot be written. "
                "Choose another, or change its permissions."
            )
        if place.exists() and not place.is_file():
            raise OutputError(f"{place}: no regular file, which was needed. Choose another name.")
        if place.exists() and any(one.exists() and place.samefile(one) for one in inputs):
            raise OutputError(
                f"{place}: is an input, which is never replaced. Choose another name."
            )
        if os.path.lexists(place) and not overwrite:
            raise OutputError(
                f"{place}: exists already. Choose another name, or replace it with --overwrite."
            )


@contextlib.contextmanager
def usable(place: Path) -> Iterator[None]:
    """Around questions about a place: raises OutputError where the system does not answer them."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{place}: cannot be used ({error.strerror}). Choose another place."
        ) from error
