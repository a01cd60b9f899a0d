"""When to show on stderr how far a run is: only where work takes longer than a moment."""

import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console

from convsqueeze.cli.signals import stop_if_asked

if TYPE_CHECKING:
    from convsqueeze.cli.bar import Bar

MOMENT_S = 0.7
INTERVAL_S = 0.05
"""Between two updates of the same count: shorter than what is seen."""


@dataclass(frozen=True)
class Phase:
    """Work that is counted through, with a rate of its own: `total` of `unit`, from a count and a
    time on.
    """

    total: int
    unit: str
    begun: int
    since: float

    def ends(self, renamed: bool, anew: bool, total: int, unit: str) -> bool:
        """Whether what is told now belongs to another phase.

        Bytes are of one thing each; the layers of one count have a name each.
        """
        return anew or (total, unit) != (self.total, self.unit) or (renamed and unit == "bytes")


class DelayedProgress:
    """Usable as the pipeline's `track`: nothing is drawn in the first moment, nor when quiet.

    Within it, what a user's own code prints goes to stderr: stdout is for the report.
    """

    def __init__(
        self, console: Console, *, quiet: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._aside = redirect_stdout(sys.stderr)
        self._shows = not quiet and console.is_terminal
        self._clock = clock
        self._next = clock() + MOMENT_S
        self._bar: Bar | None = None
        self._what = ""
        self._done = 0
        self._phase: Phase | None = None

    def __enter__(self) -> "DelayedProgress":
        self._aside.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._aside.__exit__(kind, error, trace)
        if error is not None and self._what:
            error.add_note(f"while {self._what}")

    def __call__(self, what: str, done: int, total: int, *, unit: str = "") -> None:
        """`done` of `total` (0: nobody knows) of what is being done; `unit`: "bytes", or "" for a
        count. Cheap, however often it is called.
        """
        renamed, self._what = what != self._what, what
        stop_if_asked()
        if not self._shows:
            return
        now, phase = self._clock(), self._phase
        if phase is None or phase.ends(renamed, done < self._done, total, unit):
            phase = self._phase = Phase(total, unit, done, now)
        self._done = done
        if now < self._next and not (renamed and self._bar):
            return
        if self._bar is None:
            from convsqueeze.cli.bar import Bar

            self._bar = Bar(self._console, self._clock)
        self._bar.show(what, done, phase)
        self._next = now + INTERVAL_S
