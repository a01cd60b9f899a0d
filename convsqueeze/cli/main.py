"""Where a run begins and ends: signals, exit statuses, and words for what went wrong.

Imports nothing that takes a moment, so a signal is met from the first moment on. Exit 0 done, 1
verification failed, 2 usage or input, 3 an error of this program; a run that a signal stopped ends
by that signal, as a shell expects.
"""

import atexit
import os
import signal
import sys
import traceback
from contextlib import suppress
from typing import NoReturn

from convsqueeze.cli.signals import Stopped, on_signals, stop_if_asked
from convsqueeze.cli.streams import guard_streams
from convsqueeze.errors import (
    ConvsqueezeError,
    ModelCodeError,
    ReportedTogether,
    lacks_memory,
    printable,
)

BUG_STATUS = 3
_end_process = os._exit


def process() -> NoReturn:
    """`main` as the whole of a process. That ends with its status, whatever a model's own code
    leaves behind: threads that Python would wait for, and functions that exit when it ends.
    """
    status: object = None
    try:
        main()
    except SystemExit as leaving:
        status = leaving.code
    os._exit = lambda status: None  # type: ignore[assignment, return-value]
    with suppress(Exception):
        atexit._run_exitfuncs()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    _end_process(status if isinstance(status, int) else int(status is not None))


def main() -> None:
    """Run the command line; leaves by SystemExit, or by the signal that stopped it."""
    # nothing has been begun, so nothing is to be tidied up, and no import is broken off halfway
    on_signals(lambda number, frame: _end_stopped(Stopped(number)))
    guard_streams()
    try:
        from convsqueeze.cli.app import app

        app()
    except Stopped as stopped:
        _end_stopped(stopped)
    except SystemExit as leaving:
        # 1 is typer's word for a reader that is gone: a failed verification is an exception, and
        # what a model's own code leaves by as well
        if leaving.code == 1 and hasattr(signal, "SIGPIPE"):
            _end_by(signal.SIGPIPE)
        if error := _flushed():
            _leave(error, *_worded(error))
        raise
    except ConvsqueezeError as error:
        problems = error.problems if isinstance(error, ReportedTogether) else (str(error),)
        if not problems:  # no run ends without a word
            _leave(error, *_worded(error))
        _leave(error, error.exit_status, *problems)
    except Exception as error:  # noqa: BLE001  the boundary: whatever is left has to be worded
        try:  # what a signal broke off may fail later, in its own words
            stop_if_asked()
        except Stopped as stopped:
            _end_stopped(stopped)
        _leave(error, *_worded(error))


def _end_stopped(stopped: Stopped) -> NoReturn:
    on_signals(signal.SIG_IGN)
    doing = "".join(f", {note}" for note in getattr(stopped, "__notes__", []))
    _tell(
        f"stopped by {signal.Signals(stopped.number).name}{doing}. Outputs appear whole or not at "
        "all; run it again to finish."
    )
    _end_by(stopped.number)


def _worded(error: Exception) -> tuple[int, str]:
    """Exit status and message of an error that nothing before has worded."""
    if isinstance(error, OSError):
        place = error.filename or "an output"
        return 2, f"{place}: {error.strerror or error}. Mend that and run it again."
    text = str(error).strip().partition("\n")[0]
    if lacks_memory(error):
        why = f"there is not enough of it ({text or 'refused by the system'})"
        return 2, f"memory: {why}. Free some, or merge fewer layers at a time."
    return BUG_STATUS, (
        f"internal: {type(error).__name__}: {text or 'no message'}. This is a mistake in "
        "convsqueeze and not in your files. Outputs appear whole or not at all. Run it again with "
        "--debug and report what it prints."
    )


def _leave(error: Exception, status: int, *problems: str) -> NoReturn:
    theirs = isinstance(error, ModelCodeError) and error.__cause__ is not None
    if (status == BUG_STATUS or theirs) and "--debug" in sys.argv:
        traceback.print_exception(error)
    _flushed()
    _tell(*problems)
    if status == 1:
        sys.stderr.write("Verification failed.\n")
    sys.exit(status)


def _flushed() -> OSError | None:
    """Write out what is buffered; why it cannot be, if it cannot."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _end_by(signal.SIGPIPE)
    except OSError as error:
        return error
    return None


def _tell(*problems: str) -> None:
    for problem in problems:
        sys.stderr.write(f"error: {printable(problem)}\n")


def _end_by(number: int) -> NoReturn:
    """As if the signal had not been caught. Nothing may be flushed where no one reads."""
    sys.stderr.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # the signal is blocked, or on its way
