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


class CodeExitError(Exception):
    """The model's own code raised what is no Exception, as `sys.exit` does."""


@contextmanager
def exits_caught() -> Iterator[None]:
    """What the model's own code raises inside is an Exception: CodeExitError where it was none.

    What a signal raises goes on.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if is_signal(error):
            raise
        raise CodeExitError(str(error)).with_traceback(error.__traceback__) from error


def is_signal(error: BaseException) -> bool:
    """Whether it asks the run to stop, and is not raised by the model's own code."""
    is_own = type(error).__module__.partition(".")[0] not in ("builtins", __package__.split(".")[0])
    return not isinstance(error, Exception | SystemExit) and not is_own


def describe_error(error: BaseException) -> str:
    """Kind and first line of what torch, or the model's own code, raised, and the line of that code
    which it did not get past: `TypeError at net.py:12 (if x.sum() > 0:): bool was needed`.
    """
    raised = error.__cause__ if isinstance(error, CodeExitError) and error.__cause__ else error
    kind, place = type(raised).__name__, user_code_line(error)
    if place is not None:
        path, number = place
        line = linecache.getline(str(path), number).strip()
        kind += f" at {path.name}:{number}" + (f" ({line})" if line else "")
    lines = [line.strip() for line in str(raised).splitlines() if line.strip()]
    return f"{kind}: {lines[0] if lines else 'no more is said'}"


def user_code_line(error: BaseException) -> tuple[Path, int] | None:
    """File and number of the innermost line of the model's own code, that of an installed package
    only where there is no other.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return Path(error.filename), error.lineno or 1
    frames = ((Path(f.f_code.co_filename), number) for f, number in walk_tb(error.__traceback__))
    user_frames = [(path, number) for path, number in frames if is_user_code(path)]
    near = [one for one in user_frames if "site-packages" not in one[0].parts]
    return (near or user_frames)[-1] if user_frames else None


def is_user_code(path: Path) -> bool:
    """Whether a file may hold the model's own code: it is there, and no library's."""
    in_python = path.is_relative_to(PYTHON) and "site-packages" not in path.parts
    library = in_python or any(path.is_relative_to(one) for one in (TORCH, OWN))
    return path.is_file() and not library
