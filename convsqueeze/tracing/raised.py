"""What torch, or the model's own code, raised, and where in that code."""

import linecache
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

import torch

TORCH = Path(torch.__file__).parent
OWN = Path(__file__).parent.parent
PYTHON = Path(sysconfig.get_path("stdlib"))


class LeftError(Exception):
    """The model's own code raised what is no Exception, as `sys.exit` does."""


@contextmanager
def leaving_caught() -> Iterator[None]:
    """What the model's own code raises inside is an Exception: LeftError where it was none. What a
    signal raises goes on.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if is_signal(error):
            raise
        raise LeftError(str(error)).with_traceback(error.__traceback__) from error


def is_signal(error: BaseException) -> bool:
    """Whether it asks the run to stop, and is not raised by the model's own code."""
    is_own = type(error).__module__.partition(".")[0] not in ("builtins", __package__.split(".")[0])
    return not isinstance(error, Exception | SystemExit) and not is_own


def told(error: Exception) -> str:
    """Kind and first line of what torch, or the model's own code, raised, and the line of that code
    which it did not get past.
    """
    raised = error.__cause__ if isinstance(error, LeftError) and error.__cause__ else error
    lines = [line.strip() for line in str(raised).splitlines() if line.strip()]
    place = _place(error)
    at = f" at {place}" if place else ""
    return f"{type(raised).__name__}{at}: {lines[0] if lines else 'no more is said'}"


def _place(error: Exception) -> str | None:
    """The innermost line of the model's own code: `net.py:12 (if x.sum() > 0:)`."""
    found = None
    for frame, number in walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        if is_own_code(path):
            line = linecache.getline(str(path), number).strip()
            found = f"{path.name}:{number}" + (f" ({line})" if line else "")
    return found


def is_own_code(path: Path) -> bool:
    """Whether a file may hold the model's own code: it is there, and no library's."""
    in_python = path.is_relative_to(PYTHON) and "site-packages" not in path.parts
    library = in_python or any(path.is_relative_to(one) for one in (TORCH, OWN))
    return path.is_file() and not library
