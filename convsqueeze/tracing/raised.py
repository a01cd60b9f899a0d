"""What torch, or the model's own code, raised, and where in that code."""

import linecache
import os
import random
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import dropwhile
from pathlib import Path
from traceback import walk_tb
from typing import NoReturn

import numpy as np
import torch

from convsqueeze.errors import ConvsqueezeError, ModelCodeError

TORCH = Path(torch.__file__).parent
OWN = Path(__file__).parent.parent
PYTHON = Path(sysconfig.get_path("stdlib"))
LONGEST = 300
"""Characters of a message, or of a line of code, that are shown."""


class CodeExitError(Exception):
    """The model's own code raised what is no Exception, as `sys.exit` does."""


_end_process = os._exit


@contextmanager
def contained() -> Iterator[None]:
    """What the model's own code raises inside is an Exception: CodeExitError where it was none, and
    where the code would end the process. A process that it forks ends here. Python's and numpy's
    random numbers go on as if it had drawn none, and torch's default device and Python's recursion
    limit are what they were.

    What a signal raises goes on.
    """
    process, before = os.getpid(), os._exit
    drawn = random.getstate(), np.random.get_state()
    device, deepest = torch.get_default_device(), sys.getrecursionlimit()
    os._exit = _raise_exit
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if is_signal(error):
            raise
        raise CodeExitError(str(error)).with_traceback(error.__traceback__) from error
    finally:
        os._exit = before
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
        sys.setrecursionlimit(deepest)
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        if os.getpid() != process:
            _end_process(1)


def _raise_exit(status: int) -> NoReturn:
    """In place of `os._exit`, which nothing can tell of."""
    raise SystemExit(status)


def is_signal(error: BaseException) -> bool:
    """Whether it asks the run to stop, and is not raised by the model's own code."""
    is_own = type(error).__module__.partition(".")[0] == __package__.split(".")[0]
    return isinstance(error, KeyboardInterrupt) or (is_own and not isinstance(error, Exception))


@contextmanager
def user_errors_told() -> Iterator[None]:
    """Around a run with the model's own code: what that raises where it is not run to compute, as a
    method of torch's that its class writes anew, becomes ModelCodeError.
    """
    before = os._exit
    os._exit = _raise_exit
    try:
        yield
    except (ConvsqueezeError, OSError, MemoryError):
        raise
    except BaseException as error:
        if is_signal(error) or not _is_from_user_code(error):
            raise
        raise ModelCodeError(
            f"the model's own code raises {describe_error(error).rstrip('.')}. Mend it, or leave "
            "out what it does there; --debug shows all of its traceback."
        ) from error
    finally:
        os._exit = before


def _is_from_user_code(error: BaseException) -> bool:
    """Whether the model's own code, called by code here, raised it, or a library that it called."""
    paths = [Path(frame.f_code.co_filename) for frame, _ in walk_tb(error.__traceback__)]
    called = [*dropwhile(lambda path: not path.is_relative_to(OWN), paths)]
    called = [path for path in called if path != Path(__file__)]  # `_raise_exit`
    near = [path for path in called if path.is_relative_to(OWN) or _is_near(path)]
    return bool(near) and not near[-1].is_relative_to(OWN)


def describe_error(error: BaseException) -> str:
    """Kind and first line of what torch, or the model's own code, raised, and the line of that code
    which it did not get past: `TypeError at net.py:12 (if x.sum() > 0:): bool was needed`.
    """
    kind, text = kind_and_text(error)
    if (place := user_code_line(error)) is not None:
        path, number = place
        line = linecache.getline(str(path), number).strip()
        kind += f" at {path.name}:{number}" + (f" ({line[:LONGEST]})" if line else "")
    return f"{kind}: {text}"


def kind_and_text(error: BaseException) -> tuple[str, str]:
    """The type of what was raised, and the first line of what it says."""
    raised = error.__cause__ if isinstance(error, CodeExitError) and error.__cause__ else error
    try:
        text = str(raised).strip().partition("\n")[0].strip()
    except Exception:  # noqa: BLE001  the user's own class
        text = ""
    return type(raised).__name__, text[:LONGEST] or "no more is said"


def user_code_line(error: BaseException) -> tuple[Path, int] | None:
    """File and number of the innermost line of the model's own code, that of an installed package
    only where there is no other.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return Path(error.filename), error.lineno or 1
    frames = ((Path(f.f_code.co_filename), number) for f, number in walk_tb(error.__traceback__))
    user_frames = [(path, number) for path, number in frames if is_user_code(path)]
    near = [one for one in user_frames if _is_near(one[0])]
    return (near or user_frames)[-1] if user_frames else None


def _is_near(path: Path) -> bool:
    """Whether a file holds the user's own code and is not of an installed package."""
    return is_user_code(path) and "site-packages" not in path.parts


@cache
def is_user_code(path: Path) -> bool:
    """Whether a file may hold the model's own code: it is there, and no library's."""
    in_python = path.is_relative_to(PYTHON) and "site-packages" not in path.parts
    library = in_python or any(path.is_relative_to(one) for one in (TORCH, OWN))
    return path.is_file() and not library
