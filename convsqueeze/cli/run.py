"""A command as a run of the command line: its paths first, then its work, in peace and quiet.

Imports nothing that takes a moment.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from functools import wraps
from pathlib import Path
from typing import Any, get_type_hints

from convsqueeze.cli.options import WRITTEN
from convsqueeze.cli.signals import Stopped
from convsqueeze.errors import ModelCodeError
from convsqueeze.paths import anchored, check_not_read

LIBRARIES = r"(convsqueeze|torch|onnx\w*|numpy|safetensors|matplotlib|copyreg)(\.|$)"
"""Modules whose lines the warnings are told of that are none of the user's business."""
Command = Callable[..., None]


def as_run(command: Command) -> Command:
    """The command with every path that it is given from the root on, after a look that none which
    it writes is one that it reads. It ends by returning or by an error, whatever code it runs.
    """
    hints = get_type_hints(command, include_extras=True)
    written = {name for name, hint in hints.items() if WRITTEN in getattr(hint, "__metadata__", ())}

    @wraps(command)
    def run(**given: Any) -> None:
        paths = {name: anchored(one) for name, one in given.items() if isinstance(one, Path)}
        inputs = [path for name, path in paths.items() if name not in written]
        outputs = [path for name, path in paths.items() if name in written]
        check_not_read(outputs, [*inputs, *_code(given.values())])
        with _exits_worded(), _quiet(given.get("quiet", False)):
            command(**{**given, **paths})

    return run


@contextmanager
def _exits_worded() -> Iterator[None]:
    """What is no error and no signal can only come from a model's own code: `sys.exit(0)` there
    must not look like a run that has done its work.
    """
    try:
        yield
    except (Exception, Stopped):
        raise
    except BaseException as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich leaves so
            raise
        said = str(error) or "no message"
        raise ModelCodeError(
            f"the model's own code: ended the run ({type(error).__name__}: {said}), which was to "
            "go on. Take that out of it; --debug shows where it is."
        ) from error


@contextmanager
def _quiet(everything: bool) -> Iterator[None]:
    """Without warnings of libraries on what this program does with them, or of anyone on anything;
    errors are told when this is left.
    """
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.filterwarnings("ignore", module=LIBRARIES)
        if everything:
            warnings.simplefilter("ignore")
            stack.enter_context(redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        yield


def _code(values: Any) -> list[Path]:
    """The file of each `path/to/file.py:factory`."""
    files = [one.rpartition(":")[0] for one in values if isinstance(one, str)]
    return [anchored(file) for file in files if file.endswith(".py")]
