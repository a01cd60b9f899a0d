"""How far a run is: one line on stderr, of rich's own columns, once work takes a moment."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout, suppress
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column
from rich.text import Text

from convsqueeze.cli.signals import stop_if_asked
from convsqueeze.errors import printable

MOMENT_S = 0.7
RATE_S = 600
"""Seconds over which a rate is taken: a single layer may take minutes."""


class DelayedProgress(AbstractContextManager["DelayedProgress", None]):
    """Usable as the pipeline's `track`: nothing is drawn in the first moment, nor when quiet.

    Within it, what a user's own code prints goes to stderr, whoever writes it: stdout is for the
    report.
    """

    def __init__(
        self, console: Console, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._clock = console, clock
        self._aside = _stdout_aside()
        self._shows = not quiet and console.is_terminal
        self._starts = clock() + MOMENT_S
        self._bar: Progress | None = None
        self._counted: tuple[int, str, str] = (0, "", "")
        self._what, self._done = "", 0

    def __enter__(self) -> "DelayedProgress":
        self._aside.__enter__()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._stop()
        self._aside.__exit__(kind, error, trace)
        if error is not None and self._what:
            error.add_note(f"while {self._what}")

    def __call__(self, what: str, done: int, total: int, *, unit: str = "") -> None:
        """`done` of `total` (0: unknown) of `what` is being done; `unit`: "bytes", or "" for a
        count. Raises Stopped where a signal has asked the run to stop.
        """
        self._what = what
        stop_if_asked()
        if not self._shows:
            return
        counted = total, unit, what if unit else ""  # the layers of one count have a name each
        if self._bar is None or counted != self._counted or done < self._done:
            self._stop()
            self._bar = Progress(
                *_columns(total, unit),
                console=self._console,
                transient=True,
                get_time=self._clock,
                speed_estimate_period=RATE_S,
            )
            self._bar.add_task("", total=total or None, completed=done)
        self._counted, self._done = counted, done
        self._bar.update(self._bar.task_ids[0], description=printable(what), completed=done)
        if self._clock() >= self._starts:
            self._bar.start()

    def _stop(self) -> None:
        """Another bar has a rate of its own, and stands in the place of this one."""
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def _stdout_aside() -> Iterator[None]:
    """What is written to stdout meanwhile, by other programs too, goes to stderr."""
    with ExitStack() as restored:
        with suppress(OSError):  # closed
            sys.stdout.flush()
            kept = os.dup(1)
            restored.callback(os.close, kept)
            restored.callback(os.dup2, kept, 1)
            os.dup2(2, 1)
        restored.enter_context(redirect_stdout(sys.stderr))
        yield


class _Description(ProgressColumn):
    """Cut where the terminal is narrow, so that all stays on one line."""

    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


def _columns(total: int, unit: str) -> tuple[ProgressColumn, ...]:
    description, bar = _Description(), BarColumn(bar_width=24)
    whole = Column(no_wrap=True)  # gives way last
    elapsed = TimeElapsedColumn(whole)
    if not total:
        return description, bar, elapsed
    remaining = TimeRemainingColumn(table_column=whole)
    if unit == "bytes":
        amount, speed = DownloadColumn(table_column=whole), TransferSpeedColumn(whole)
        return description, bar, amount, speed, remaining
    return description, bar, MofNCompleteColumn(table_column=whole), elapsed, remaining
