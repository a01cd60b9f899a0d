"""One fault at a time against the tests that meet it, each in a forked process of its own.

The package and the tests are loaded once. A fault inside a function replaces the function's code
in a fork of that process; one outside functions (a constant, a default) is loaded by a fork of
the process before it has imported the package. No file is changed.
"""

import gc
import importlib.abc
import importlib.machinery
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import spec_from_file_location
from pathlib import Path
from tempfile import gettempdir
from types import CodeType, FunctionType, ModuleType
from typing import Any, TextIO

import pytest

from tests.mutation.reach import ROOT, Reach
from tests.mutation.sites import Site, faulty

MEMORY = 8 << 30
SHORTEST = 15.0
"""Seconds that a fault is given at least; else `PATIENCE` times what its tests take without it."""
PATIENCE = 6.0
RECENT = 6
"""Tests that saw the last faults of the same function, and of the same file, tried first."""


@dataclass(frozen=True)
class Limits:
    """Tests for one fault: at most so many, and that take so many seconds together."""

    tests: int = 40
    seconds: float = 40.0
    first: str = ""
    """How the names of tests begin that are tried before all others."""


@dataclass(frozen=True)
class Trial:
    """A fault of a file and the tests that meet it, in the order to run them."""

    file: str
    site: Site
    tests: tuple[str, ...]
    seconds: float
    left_out: int

    @property
    def key(self) -> str:
        return key(self.file, self.site)


def key(file: str, site: Site) -> str:
    """What a fault is known by in a file of results."""
    return f"{file}:{site.line}:{site.node}.{site.variant}"


@dataclass
class Results:
    """What came of each fault, written as it comes: killed, timeout, survived, uncovered."""

    stream: TextIO
    _seers: dict[str, list[str]] = field(default_factory=dict)

    def add(self, trial: Trial, outcome: str, test: str, seconds: float) -> None:
        row = {
            "key": trial.key,
            "file": trial.file,
            "function": trial.site.function and trial.site.function[0],
            "line": trial.site.line,
            "told": trial.site.told,
            "outcome": outcome,
            "test": test,
            "tests": len(trial.tests),
            "left_out": trial.left_out,
            "seconds": round(seconds, 2),
        }
        self.learn(row)
        print(json.dumps(row), file=self.stream, flush=True)

    def learn(self, row: dict[str, Any]) -> None:
        """Remember which test saw a fault of a function."""
        if row["outcome"] == "killed" and "::" in row["test"]:
            for place in (row["file"], f"{row['file']} {row.get('function')}"):
                seers = self._seers.setdefault(place, [])
                if row["test"] in seers:
                    seers.remove(row["test"])
                seers.insert(0, row["test"])

    def likely(self, file: str, site: Site) -> list[str]:
        """The tests that saw the last faults of the same function, and of the same file."""
        function = site.function and site.function[0]
        places = (f"{file} {function}", file)
        return list(
            dict.fromkeys(one for place in places for one in self._seers.get(place, [])[:RECENT])
        )


def trial(file: str, site: Site, reach: Reach, limits: Limits, likely: Sequence[str]) -> Trial:
    """The tests for one fault: of its own lines, else its statement's, else its function's."""
    spans = [range(site.line, site.end_line + 1), range(site.statement[0], site.statement[1] + 1)]
    if site.function is None:
        spans.append(range(1, 100_000))
    around = site.function_lines
    every = next((found for span in spans if (found := reach.tests(file, span, around))), [])
    early = [test for test in likely if test in every]
    if limits.first:
        early = list(dict.fromkeys([*early, *(x for x in every if x.startswith(limits.first))]))
    chosen, seconds = [], 0.0
    for test in [*early, *(one for one in every if one not in early)]:
        taken = reach.seconds[test]
        if len(chosen) == limits.tests:
            break
        if seconds + taken <= limits.seconds or not chosen:
            chosen.append(test)
            seconds += taken
    return Trial(file, site, tuple(chosen), seconds, len(every) - len(chosen))


def run_in_fork(work: Callable[[TextIO], None], limit: float) -> tuple[str, str]:
    """(outcome, test): what `work` wrote to its stream before it ended, in a process of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        _be_quiet()
        with os.fdopen(writer, "w") as stream:
            try:
                work(stream)
            except BaseException as error:  # noqa: BLE001  (a fault may raise anything)
                print(f"killed\t{type(error).__name__} outside of a test", file=stream, flush=True)
        os._exit(0)
    os.close(writer)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            with os.fdopen(reader) as stream:
                outcome, _, test = stream.read().partition("\n")[0].partition("\t")
            return (outcome, test) if outcome else ("killed", "the process died")
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reader)
    return "timeout", ""


def _be_quiet() -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)


class Functions:
    """Every function of the package that is alive, by file and place in it."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, int], list[FunctionType]] = {}
        for one in gc.get_objects():
            if isinstance(one, FunctionType) and (one.__module__ or "").startswith("convsqueeze"):
                code = one.__code__
                key = (code.co_filename, code.co_qualname, code.co_firstlineno)
                self._found.setdefault(key, []).append(one)

    def replaced_by(self, file: Path, tree: Any, site: Site) -> bool:
        """Give the function that holds a fault its faulty code; whether that could be done."""
        if site.function is None:
            return False
        code = _code(compile(tree, str(file), "exec"), *site.function)
        functions = self._found.get((str(file), *site.function), [])
        if code is None or not functions:
            return False
        if any(one.__code__.co_freevars != code.co_freevars for one in functions):
            return False
        for one in functions:
            one.__code__ = code
        return True


def _code(code: CodeType, name: str, line: int) -> CodeType | None:
    for one in code.co_consts:
        if isinstance(one, CodeType):
            if (one.co_qualname, one.co_firstlineno) == (name, line):
                return one
            if (found := _code(one, name, line)) is not None:
                return found
    return None


def forget_results() -> None:
    """Empty every cache of the package."""
    for name, module in list(sys.modules.items()):
        if name.startswith("convsqueeze"):
            for one in vars(module).values():
                if hasattr(one, "cache_clear"):
                    one.cache_clear()


class _Watcher:
    """A pytest plugin that ends the process at the first failure and writes which test it was."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.stream is not None:
            print(f"killed\t{report.nodeid}", file=self.stream, flush=True)
            os._exit(0)


class Served(_Watcher):
    """A pytest plugin that collects every test and then, instead of running them, the trials."""

    def __init__(self, serve: "Callable[[Served], None]") -> None:
        super().__init__()
        self._serve = serve
        self._items: dict[str, pytest.Item] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._items = {item.nodeid: item for item in session.items}
        self._functions = Functions()
        _warm_up()
        gc.collect()
        gc.freeze()
        self._serve(self)
        return True

    def try_one(self, one: Trial, source: str) -> tuple[str, str] | None:
        """What comes of a fault; None where it needs a process of its own."""
        file = ROOT / one.file
        tree = faulty(source, one.site)

        def work(stream: TextIO) -> None:
            self.stream = stream
            if not self._functions.replaced_by(file, tree, one.site):
                print("alone", file=stream, flush=True)
                return
            forget_results()
            items = [self._items[test] for test in one.tests if test in self._items]
            for item, following in zip(items, [*items[1:], None], strict=True):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            print("survived", file=stream, flush=True)

        found = run_in_fork(work, max(SHORTEST, PATIENCE * one.seconds))
        return None if found[0] == "alone" else found


def _warm_up() -> None:
    """One law tried, so that forks need not read again what hypothesis reads of all sources."""
    from hypothesis import given, settings
    from hypothesis import strategies as st

    @settings(max_examples=2)
    @given(st.floats(), st.integers(), st.text())
    def nothing(x: float, y: int, z: str) -> None: ...

    nothing()


def serve(serve_all: Callable[[Served], None]) -> None:
    """Collect the tests in this process and hand them to `serve_all`."""
    pytest.main(_arguments(["tests"]), plugins=[Served(serve_all)])


def try_alone(one: Trial, source: str) -> tuple[str, str]:
    """What comes of a fault in a process that imports the package anew."""
    tree = faulty(source, one.site)

    def work(stream: TextIO) -> None:
        sys.meta_path.insert(0, _Finder(ROOT / one.file, tree))
        code = pytest.main([*_arguments([*one.tests]), "-x"], plugins=[_Watcher(stream)])
        print("killed\twhile collecting" if code else "survived", file=stream, flush=True)

    return run_in_fork(work, max(SHORTEST, PATIENCE * one.seconds) + 20)


def _arguments(tests: list[str]) -> list[str]:
    return [*tests, "-q", "-p", "no:cacheprovider", f"--basetemp={gettempdir()}/mutation-tests"]


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one file of the package from a syntax tree."""

    def __init__(self, file: Path, tree: Any) -> None:
        self.file, self.tree = file, tree
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        self.name = name.removesuffix(".__init__")

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        return spec_from_file_location(name, self.file, loader=self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.tree, str(self.file), "exec"), module.__dict__)


def read(stream: Path) -> Iterator[dict[str, Any]]:
    """The results in a file."""
    if stream.is_file():
        yield from (json.loads(line) for line in stream.read_text().splitlines())
