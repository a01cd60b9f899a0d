"""Standard streams that are closed, full, or gone with their terminal: no reason to end a run.

Imports nothing that takes a moment.
"""

import errno
import os
import sys
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any

GONE = (errno.EIO, errno.EBADF)
"""What writing to a terminal that is no longer there raises, and to a descriptor that is closed."""


class _Raw(FileIO):
    """A standard stream's descriptor. What cannot be written is told once, or never where nobody
    can be told of it: standard error, and a terminal that is gone.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._is_lost = False

    def write(self, data: Any) -> Any:
        if not self._is_lost:
            try:
                return super().write(data)
            except OSError as error:
                self._is_lost = True
                if self.fileno() != 2 and error.errno not in GONE:
                    error.filename = "standard output"
                    raise
        return len(data)


class _Standard(TextIOWrapper):
    """A standard stream, which no model's own code closes."""

    def close(self) -> None:
        self.flush()


def guard_streams() -> None:
    """Replace standard output and error by streams that end no run because nobody reads them.

    Closed from the start, all three are the null device: a file that is opened later would get
    their numbers, and with them what libraries print.
    """
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(null)
    sys.stdout = _guarded(sys.stdout)
    sys.stderr = _guarded(sys.stderr)


def _guarded(stream: Any) -> Any:
    if stream is None:  # it was closed from the start
        return open(os.devnull, "w")
    if not isinstance(stream, TextIOWrapper):
        return stream
    stream.flush()
    lines = stream.line_buffering or stream.write_through
    return _Standard(  # a terminal that cannot show a frame shows its code
        BufferedWriter(_Raw(stream.fileno())), stream.encoding, "backslashreplace",
        line_buffering=lines,
    )  # fmt: skip
