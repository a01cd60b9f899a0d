"""Signals that ask the run to stop: an exception, or, where some library swallowed it, a question.

An exception that is raised while foreign code runs (an import, a finalizer) may be lost there. So
what was asked is kept, and the run asks at every step whether it should stop. `importing` keeps
the exception out of a command's imports.
"""

import contextlib
import gc
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")

_asked: list[int] = []


class Stopped(BaseException):
    """A signal asked the run to stop. Its notes say what it was doing."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def on_signals(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    """From now on such a signal is met so; one that is ignored (nohup) stays so."""
    for name in STOPPING:
        number = getattr(signal, name, None)
        if number is None or signal.getsignal(number) == signal.SIG_IGN:
            continue
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(number, handler)


def stop_on_signals() -> None:
    """From now on a signal that asks the run to stop raises Stopped."""
    _asked.clear()
    on_signals(_stop)


def stop_if_asked() -> None:
    """Raises Stopped where a signal has come whose exception was lost."""
    if _asked:
        raise Stopped(_asked[0])


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    _asked.append(number)
    raise Stopped(number)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Around a command's imports; after them its work begins, and a signal raises Stopped.

    Until then it ends the run at once: an import that is broken off leaves half a module.
    Modules stay to the end, so the garbage collector does not look for garbage among them: that
    takes a third of the time in which torch is imported, and as long again on the way out.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    gc.set_threshold(100_000)  # of 200,000 tensors it would look at all, again and again
    if not gc.get_freeze_count():  # once a process: garbage of earlier runs must not stay as well
        gc.freeze()
    stop_on_signals()
