"""The progress bar: when it is drawn, what it tells, and that it stays on one line."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from convsqueeze.cli.progress import MOMENT_S, DelayedProgress

GB = 10**9


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """Progress on a terminal that is not there."""

    def __init__(self, *, width: int = 80, terminal: bool = True, quiet: bool = False) -> None:
        self.clock, self.out = Clock(), io.StringIO()
        console = Console(
            file=self.out,
            force_terminal=terminal,
            width=width,
            color_system=None,
            legacy_windows=False,
            _environ={},
        )
        self.track = DelayedProgress(console, quiet=quiet, clock=self.clock)

    def after(self, seconds: float, what: str, done: int, total: int, unit: str = "") -> None:
        self.clock.now += seconds
        self.track(what, done, total, unit=unit)

    @property
    def line(self) -> str:
        """What is drawn now."""
        bar = self.track._bar
        assert bar is not None
        bar.refresh()
        return self.out.getvalue().split("\r\x1b[2K")[-1].removeprefix("\x1b[?25l")

    def words(self) -> str:
        """The line without its bar."""
        return " ".join("".join(c for c in self.line if c not in "━╸╺").split())


def test_nothing_is_drawn_in_the_first_moment() -> None:
    watched = Watched()
    with watched.track:
        watched.after(0, "merging a", 0, 2)
        watched.after(MOMENT_S - 0.01, "merging b", 1, 2)
        assert watched.out.getvalue() == ""
        watched.after(0.02, "merging b", 1, 2)
        assert watched.words() == "merging b 1/2 0:00:00 -:--:--"
    assert watched.out.getvalue().endswith("\x1b[2K")


@pytest.mark.parametrize("how", [{"terminal": False}, {"quiet": True}])
def test_nothing_is_drawn_where_nobody_looks(how: dict[str, bool]) -> None:
    watched = Watched(**how)
    with watched.track:
        for done in range(10):
            watched.after(1, "copying x", done, 10, "bytes")
    assert watched.out.getvalue() == ""


def test_bytes_have_a_size_a_rate_and_a_time_that_remains() -> None:
    watched = Watched()
    with watched.track:
        for done in range(5):
            watched.after(2, "copying model.pt", done * GB, 10 * GB, "bytes")
        assert watched.words() == "copying model.pt 4.0/10.0 GB 500.0 MB/s 0:00:12"


def test_layers_are_counted_on_under_other_names() -> None:
    watched = Watched()
    with watched.track:
        for done in range(5):
            watched.after(3, f"merging body.{done}", done, 40)
        assert watched.words() == "merging body.4 4/40 0:00:12 0:01:48"
        watched.after(3, "verifying body.0", 0, 40)
        assert watched.words() == "verifying body.0 0/40 0:00:00 -:--:--"


@pytest.mark.parametrize(
    ("what", "done", "total", "unit", "told"),
    [
        ("copying b", 8 * GB, 10 * GB, "bytes", "copying b 8.0/10.0 GB ? -:--:--"),
        ("hashing a", 8 * GB, 11 * GB, "bytes", "hashing a 8.0/11.0 GB ? -:--:--"),
        ("hashing a", 1 * GB, 10 * GB, "bytes", "hashing a 1.0/10.0 GB ? -:--:--"),
        ("merging c", 1, 3, "", "merging c 1/3 0:00:00 -:--:--"),
        ("writing d", 0, 0, "", "writing d 0:00:00"),
    ],
)
def test_a_new_phase_starts_anew(what: str, done: int, total: int, unit: str, told: str) -> None:
    """What was read before it tells nothing of its rate or of the time that remains."""
    watched = Watched()
    with watched.track:
        for read in range(8):
            watched.after(1, "hashing a", read * GB, 10 * GB, "bytes")
        assert watched.words() == "hashing a 7.0/10.0 GB 1.0 GB/s 0:00:03"
        watched.after(1, what, done, total, unit)
        assert watched.words() == told


def test_what_was_done_when_a_phase_began_is_not_of_its_rate() -> None:
    watched = Watched()
    with watched.track:
        watched.after(1, "merging e", 4, 10)
        watched.after(6, "merging f", 6, 10)
        watched.after(6, "merging g", 8, 10)
        assert watched.words() == "merging g 8/10 0:00:12 0:00:06"


def test_work_of_unknown_length_after_a_count_has_no_count() -> None:
    watched = Watched()
    with watched.track:
        watched.after(1, "merging a", 1, 3)
        watched.after(1, "writing b", 0, 0)
        watched.after(5, "writing b", 0, 0)
        assert watched.words() == "writing b 0:00:05"


@pytest.mark.parametrize("width", [10, 20, 33, 40, 60, 80, 200])
@pytest.mark.parametrize(("total", "unit"), [(40 * GB, "bytes"), (40_000, ""), (0, "")])
def test_it_stays_on_one_line(width: int, total: int, unit: str) -> None:
    """With a name as long as they come, or one that would move the cursor."""
    for name in ("body.0", "\x1b[2J\nb", f"merging {'blocks.residual_' * 30}", "层" * 100):
        watched = Watched(width=width)
        with watched.track:
            for done in range(4):
                watched.after(1, name, done * total // 8, total, unit)
            line = watched.line
        assert "\n" not in line
        assert "\x1b" not in line
        assert cell_len(line) <= width
        if width >= 60 and total:
            assert "0:00:05" in line


def test_a_phase_has_run_since_it_was_told_of_and_not_since_it_was_drawn() -> None:
    watched = Watched()
    with watched.track:
        watched.after(0, "merging a", 0, 2)
        watched.after(5, "merging b", 1, 2)
        assert watched.words() == "merging b 1/2 0:00:05 -:--:--"


def test_what_was_going_on_is_told_with_an_error() -> None:
    def failing() -> None:
        with Watched(terminal=False).track as track:
            track("merging a", 0, 1)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no") as caught:
        failing()
    assert caught.value.__notes__ == ["while merging a"]
