"""A new file whose bytes go straight to the disk, past the system's cache of files.

What is written and then flushed to the disk gains nothing by that cache, and pays for it: every
page of it has to be found free first, which takes longer than the disk does where much is written,
most of all in a virtual machine that has given free memory back to its host. Linux lets whole pages
of a file go from whole pages of memory to the disk (O_DIRECT). What is less than a page or too
little to wait for goes through the cache, and so does everything where the system, the file system
or the disk want it so.
"""

import mmap
import os
from io import SEEK_SET, FileIO
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import fcntl
except ImportError:  # not a POSIX system, and none with O_DIRECT
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PAGE = mmap.PAGESIZE
BUFFER = 4 << 20
"""Bytes that are collected before they are written."""
LEAST = 1 << 20
"""Fewer at a time go through the cache."""
DIRECT: int = getattr(os, "O_DIRECT", 0)


class DirectFile(FileIO):
    """A file that did not exist, for writing alone. Raises OSError as other files do.

    What has been neither flushed nor completed when it is closed is lost.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "x")
        self._direct = bool(DIRECT)
        self._buffer = memoryview(b"")
        # what waits, which lies as far behind the beginning of a page as it will in the file
        self._begin, self._end = 0, 0

    def write(self, data: "ReadableBuffer", /) -> int:
        """Take all of it."""
        given = memoryview(data).cast("B")
        if not self._buffer:
            self._buffer = memoryview(mmap.mmap(-1, BUFFER))
        done = 0
        while done < len(given):
            part = given[done : done + BUFFER - self._end]
            self._buffer[self._end : self._end + len(part)] = part
            self._end += len(part)
            done += len(part)
            if self._end == BUFFER:
                self.flush()
        return done

    def tell(self) -> int:
        return super().tell() + self._end - self._begin

    def seek(self, offset: int, whence: int = SEEK_SET, /) -> int:
        self.flush()
        place = super().seek(offset, whence)
        self._begin = self._end = place % PAGE
        return place

    def flush(self) -> None:
        """Hand what waits to the system."""
        first, last = -(-self._begin // PAGE) * PAGE, self._end // PAGE * PAGE
        if self._direct and last - first >= LEAST:
            self._put(first)
            self._put_directly(last)
        self._put(self._end)
        self._begin = self._end = self._end % PAGE

    def complete(self) -> None:
        """See to it that all is on the disk. Nothing more is to be written."""
        self.flush()
        os.fsync(self.fileno())
        self._buffer = memoryview(b"")

    def close(self) -> None:
        self._begin = self._end
        super().close()

    def _put(self, end: int) -> None:
        """Write what waits before the place `end` of the buffer."""
        while self._begin < end:
            self._begin += os.write(self.fileno(), self._buffer[self._begin : end])

    def _put_directly(self, end: int) -> None:
        """The same for whole pages. Whatever is in the way, the other way is left, or tells."""
        flags = fcntl.fcntl(self, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self, fcntl.F_SETFL, flags | DIRECT)
            self._put(end)
        except OSError:
            self._direct = False
        finally:
            fcntl.fcntl(self, fcntl.F_SETFL, flags)
