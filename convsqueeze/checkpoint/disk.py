"""Files as files: which version was read, ranges of bytes, hashes.

Knows nothing of what the files hold.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from convsqueeze.errors import CheckpointError
from convsqueeze.names import as_unicode

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
    device_inode_times: tuple[int, int, int, int]
    """Times of its last writing, which a program may set, and of its last change, which none may.
    """

    @classmethod
    def of(cls, path: Path) -> "FileVersion":
        try:
            found = path.stat()
        except OSError as error:
            raise unreadable(path, error) from error
        times = found.st_mtime_ns, found.st_ctime_ns
        return cls(path, found.st_size, (found.st_dev, found.st_ino, *times))

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


def read_whole(path: Path, most: int) -> bytes:
    """The bytes of a small file. Raises OSError where it cannot be read, ValueError in a few words
    for what is no regular file, and for one of more than `most` bytes, which is not read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("is a directory" if path.is_dir() else "is no regular file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(most + 1) if size <= most else b""
    if max(size, len(data)) > most:
        raise ValueError(f"has {size:,} bytes, at most {most:,} are read")
    return data


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise unreadable(path, error) from error


@contextlib.contextmanager
def unicode_path(path: Path) -> Iterator[str]:
    """A path in UTF-8 to a file or a directory, for libraries that take no other: its own, or that
    of a descriptor, where bytes of its name are no text.
    """
    if as_unicode(str(path)) == str(path):
        yield str(path)
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield f"/dev/fd/{descriptor}"
    finally:
        os.close(descriptor)


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
