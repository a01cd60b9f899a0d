"""What a progress bar looks like: columns for bytes, for counts, and for work of unknown length."""

from collections.abc import Callable
from datetime import timedelta

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

from convsqueeze.cli.progress import Phase
from convsqueeze.errors import printable


class Bar:
    """One line, drawn from the first `show` on."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._progress = Progress(console=console, transient=True, get_time=clock)
        self._task = self._progress.add_task("", total=None)
        self._phase: Phase | None = None

    def show(self, what: str, done: int, phase: Phase) -> None:
        """The state of the work from now on; a new phase starts with a new rate."""
        what = printable(what)
        if phase != self._phase:
            self._begin(what, done, phase)
        self._progress.update(self._task, description=what, completed=done)
        self._progress.start()

    def stop(self) -> None:
        """Leaves the terminal as it was."""
        self._progress.stop()

    def _begin(self, what: str, done: int, phase: Phase) -> None:
        """A task of its own: one that had a total cannot be without one again."""
        self._progress.remove_task(self._task)
        self._progress.columns = _columns(phase)
        self._task = self._progress.add_task(
            what, total=phase.total or None, completed=done, begun=phase.begun
        )
        self._progress.tasks[0].start_time = phase.since
        self._phase = phase


class _What(ProgressColumn):
    """Cut where the terminal is narrow, so that all stays on one line."""

    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class _Remaining(ProgressColumn):
    """By the rate of the whole phase: rich looks at single steps, of which there may be three."""

    def render(self, task: Task) -> Text:
        done, elapsed = task.completed - task.fields["begun"], task.elapsed
        told = "-:--:--"
        if done and elapsed is not None and task.remaining is not None:
            told = str(timedelta(seconds=int(elapsed * task.remaining / done)))
        return Text(told, style="progress.remaining")


def _columns(phase: Phase) -> tuple[ProgressColumn, ...]:
    what, bar = _What(), BarColumn(bar_width=24)
    elapsed = TimeElapsedColumn(_whole())
    if not phase.total:
        return what, bar, elapsed
    if phase.unit == "bytes":
        amount, speed = DownloadColumn(table_column=_whole()), TransferSpeedColumn(_whole())
        return what, bar, amount, speed, TimeRemainingColumn(table_column=_whole())
    return what, bar, MofNCompleteColumn(table_column=_whole()), elapsed, _Remaining(_whole())


def _whole() -> Column:
    """Gives way last, where the terminal is narrow."""
    return Column(no_wrap=True)
