"""A progress bar on stderr, shown only where work takes longer than a moment."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from convsqueeze.cli.signals import stop_if_asked

MOMENT_S = 0.7


class DelayedProgress:
    """Usable as the pipeline's `track`: nothing is drawn in the first moment, nor when quiet."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None)
        self._since = time.monotonic()
        self._started = False
        self._doing = ""

    def __enter__(self) -> "DelayedProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._started:
            self._progress.stop()
        if error is not None and self._doing:
            error.add_note(f"while {self._doing}")

    def __call__(self, what: str, done: int, total: int, *, unit: str = "") -> None:
        self._doing = what
        stop_if_asked()
        if not self._started and time.monotonic() - self._since > MOMENT_S:
            self._progress.start()
            self._started = True
        self._progress.update(
            self._task, description=what, completed=done, total=total if total else None
        )
