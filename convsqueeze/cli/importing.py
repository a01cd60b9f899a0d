"""What a command needs is imported when it runs: help and usage errors wait for none of it."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from convsqueeze.cli.signals import stop_on_signals


@contextmanager
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
    if not gc.get_freeze_count():  # once a process: garbage of earlier runs must not stay as well
        gc.freeze()
    stop_on_signals()
