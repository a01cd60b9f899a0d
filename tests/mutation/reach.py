"""Which test runs which lines of the package, and how long it takes, measured once."""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import coverage
import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "convsqueeze"
KEPT_PARAMETERS = 3
"""Cases of one test function after which the next count half as much."""
LEAST = 0.05
"""Seconds added to those of a test before tests are compared."""


@dataclass(frozen=True)
class Reach:
    """Seconds of each test that passes, and the tests that run each line, by file."""

    seconds: dict[str, float]
    lines: dict[str, dict[int, frozenset[str]]]

    def tests(self, file: str, lines: range, around: range) -> list[str]:
        """The tests that run any of the lines, the most telling first.

        A test tells much that is fast and that also runs lines `around` them (a function's, say)
        which few others run: a refusal, or what only some layers need; and that runs little of
        other files. After a few cases of one test function each further one counts less.
        """
        found = self.lines.get(file, {})
        every = set().union(*(found.get(line, ()) for line in lines))
        value = dict.fromkeys(every, 0.0)
        for line in {*lines, *around}:
            here = found.get(line, frozenset())
            for test in here & every:
                value[test] += 1 / len(here)
        score = {
            one: value[one] * self._share(one, file) / (self.seconds[one] + LEAST) for one in every
        }
        seen: dict[str, int] = defaultdict(int)
        for test in sorted(every, key=lambda one: (-score[one], one)):
            function = test.partition("[")[0]
            score[test] /= 2 ** (seen[function] // KEPT_PARAMETERS)
            seen[function] += 1
        return sorted(every, key=lambda one: (-score[one], one))

    @cached_property
    def _counts(self) -> dict[str, Counter[str]]:
        """Lines that each test runs, by file."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for file, found in self.lines.items():
            for tests in found.values():
                for test in tests:
                    counts[test][file] += 1
        return counts

    def _share(self, test: str, file: str) -> float:
        """How much of what a test runs is in a file."""
        return self._counts[test][file] / self._counts[test].total()

    def write(self, path: Path) -> None:
        lines = {
            file: {str(line): sorted(tests) for line, tests in found.items()}
            for file, found in self.lines.items()
        }
        path.write_text(json.dumps({"seconds": self.seconds, "lines": lines}))

    @classmethod
    def read(cls, path: Path) -> "Reach":
        data = json.loads(path.read_text())
        lines = {
            file: {int(line): frozenset(tests) for line, tests in found.items()}
            for file, found in data["lines"].items()
        }
        return cls(data["seconds"], lines)


class _Collector:
    """A pytest plugin: one coverage context for each test, what it imports left out."""

    def __init__(self) -> None:
        self.coverage = coverage.Coverage(data_file=None, source=[str(PACKAGE)])
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    def pytest_sessionstart(self) -> None:
        self.coverage.start()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self.coverage.switch_context(item.nodeid)
        start = perf_counter()
        yield
        self.seconds[item.nodeid] = perf_counter() - start
        self.coverage.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)

    def reach(self) -> Reach:
        self.coverage.stop()
        data = self.coverage.get_data()
        passed = self.seconds.keys() - self.failed
        lines = {}
        for file in data.measured_files():
            found = data.contexts_by_lineno(file)
            lines[str(Path(file).relative_to(ROOT))] = {
                line: frozenset(passed.intersection(tests)) for line, tests in found.items()
            }
        return Reach({test: self.seconds[test] for test in sorted(passed)}, lines)


def collect(path: Path, arguments: list[str]) -> bool:
    """Run the tests and write their reach to `path`, if they ran."""
    collector = _Collector()
    status = pytest.main([*arguments, "-q", "-p", "no:cacheprovider"], plugins=[collector])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        print(f"the tests did not run: {status!r}")
        return False
    collector.reach().write(path)
    print(f"left out, as they fail: {sorted(collector.failed) or 'none'}")
    return True
