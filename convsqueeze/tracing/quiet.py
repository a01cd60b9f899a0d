"""Torch kept quiet while it follows a model's code; what that code itself tells is heard."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
import torch.export

EXPORT = Path(torch.export.__file__).parent
SPEAKERS = r"(torch|copyreg)\b"
"""Modules whose lines torch's own warnings are told of."""
ASSIGNED = r"The tensor attributes? .* assigned during export"


@contextmanager
def torch_quiet() -> Iterator[None]:
    """Torch tells of every axis that the model's code fixes, and of what it cannot follow before it
    raises that: in its log, as warnings, and printed. Loggers that `TORCH_LOGS` asks for go on.
    """
    log = logging.getLogger("torch")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), redirect_stderr(_WithoutExport(sys.stderr)):
            warnings.filterwarnings("ignore", module=SPEAKERS)
            warnings.filterwarnings("ignore", message=ASSIGNED)  # told of a line of contextlib
            yield
    finally:
        log.setLevel(level)


class _WithoutExport:
    """A stream that leaves out what is printed by the code of torch.export."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        writer = sys._getframe(1).f_code.co_filename
        if Path(writer).is_relative_to(EXPORT):
            return len(text)
        return int(self._stream.write(text))
