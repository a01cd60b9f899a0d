"""Examples in a forked process that may crash, hang or grow without taking the search with it.

What is measured: the wall time of an example, and by how much the resident memory of the process
grew above what it held when the example began, at its peak (Linux: VmHWM, which writing 5 into
/proc/self/clear_refs resets). Memory that is reserved and never touched does not count. The parent
ends a process that is over its time, or grows far beyond its limit; an address space limit is the
last resort. What was being done is taken from the stack that `faulthandler` left behind.
"""

import faulthandler
import gc
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from convsqueeze.errors import ConvsqueezeError, ReportedTogether

SECONDS = 10.0
MOST_BYTES = 128 << 20
"""Peak growth that an example may have beside `FILE_TIMES` times the bytes of its files. Half of it
is what onnxruntime and torch take for themselves when a process first uses them.
"""
FILE_TIMES = 20
LAST_RESORT = 8 << 30
PACKAGE = str(Path(sys.modules[ConvsqueezeError.__module__].__file__ or "").parent)

Kind = Literal["refused", "done", "exception", "words", "crash", "hang", "memory"]
Link = Path
"""A file that is a symbolic link to this place."""


@dataclass(frozen=True)
class Case:
    """Files by their names and how they are to be used."""

    files: Mapping[str, bytes | Link]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(len(data) for data in self.files.values() if isinstance(data, bytes))


@dataclass(frozen=True)
class Verdict:
    """What became of an example. `key` names the kind of finding, `trace` tells where it was."""

    kind: Kind
    words: tuple[str, ...] = ()
    key: str = ""
    trace: str = ""
    seconds: float = 0.0
    growth: int = 0
    lines: frozenset[tuple[str, int]] = frozenset()

    @property
    def is_finding(self) -> bool:
        return self.kind not in ("refused", "done")


Run = Callable[[Path, Mapping[str, Any]], None]


class Isolated:
    """Runs examples of one target in a process that is replaced when it ends.

    `warmed` is what became of the example `warm` that every process begins with.
    """

    def __init__(
        self, run: Run, warm: Case, *, traced: tuple[str, ...] = (), seconds: float = SECONDS
    ) -> None:
        self._run, self._warm, self._traced, self._seconds = run, warm, traced, seconds
        self._folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self.warmed: Verdict | None = None

    def __enter__(self) -> "Isolated":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __call__(self, case: Case) -> Verdict:
        pipe, pid = self._started()
        base, limit = _resident(pid), MOST_BYTES + FILE_TIMES * case.size
        begin, ended = time.monotonic(), ""
        pipe.send(case)
        while not pipe.poll(0.02):
            if time.monotonic() - begin > self._seconds:
                ended = "hang"
                break
            if _resident(pid) - base > 2 * limit + (256 << 20):
                ended = "memory"
                break
        seconds = time.monotonic() - begin
        if not ended:
            try:
                verdict: Verdict = pipe.recv()
            except EOFError:
                return self._crashed(seconds)
            return _within(verdict, limit)
        growth = _resident(pid) - base
        os.kill(pid, signal.SIGUSR1)  # faulthandler writes where it was
        time.sleep(0.2)
        trace = self._end()
        return Verdict(
            "hang" if ended == "hang" else "memory", (), *_place(ended, trace), seconds, growth
        )

    def _started(self) -> tuple[Connection, int]:
        if self._process is None or self._pipe is None or not self._process.is_alive():
            self._end()
            context = multiprocessing.get_context("fork")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(
                target=_serve,
                args=(theirs, self._run, self._warm, self._traced, self._folder),
                daemon=True,
            )
            self._process.start()
            theirs.close()
            self.warmed = self._pipe.recv()  # imports and caches are no growth of an example
        assert self._process.pid is not None
        return self._pipe, self._process.pid

    def _crashed(self, seconds: float) -> Verdict:
        assert self._process is not None
        self._process.join(5)
        code = self._process.exitcode or 0
        name = signal.Signals(-code).name if code < 0 else f"exit {code}"
        key, trace = _place(name, self._end())
        return Verdict("crash", (), key, trace, seconds)

    def _end(self) -> str:
        """Ends the process; what `faulthandler` wrote, innermost call first."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None
        written = self._folder / "stack"
        return written.read_text(errors="replace") if written.exists() else ""


def _within(verdict: Verdict, limit: int) -> Verdict:
    if verdict.is_finding or verdict.growth <= limit:
        return verdict
    key = f"memory after {verdict.words[0][-60:] if verdict.words else verdict.kind}"
    return Verdict("memory", verdict.words, key, "", verdict.seconds, verdict.growth)


def _place(what: str, trace: str) -> tuple[str, str]:
    """The key of a finding: the innermost call of the program in a trace of `faulthandler`."""
    first = trace[trace.find("Current thread") :] if "Current thread" in trace else trace
    own = [line for line in first.splitlines() if PACKAGE in line]
    where = own[0].partition(PACKAGE)[2].replace('", line ', ":").split()[0] if own else "?"
    function = own[0].rpartition(" in ")[2] if own else "?"
    return f"{what} in {where} {function}", first[:3000]


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def _peak() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))


def _reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


# The process's side.


def _serve(pipe: Connection, run: Run, warm: Case, traced: tuple[str, ...], folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with (folder / "stack").open("w") as stack, open(os.devnull, "w") as nowhere:
        faulthandler.enable(stack)
        faulthandler.register(signal.SIGUSR1, stack, all_threads=False)
        os.dup2(nowhere.fileno(), 2)  # libraries that talk
        known: set[tuple[str, int]] = set()
        first = _examined(run, warm, (), folder, known)
        gc.collect()
        gc.freeze()
        size = _address_space()
        resource.setrlimit(resource.RLIMIT_AS, (size + LAST_RESORT, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        pipe.send(first)
        while True:
            try:
                case = pipe.recv()
            except EOFError:
                return
            pipe.send(_examined(run, case, traced, folder, known))


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _examined(
    run: Run, case: Case, traced: tuple[str, ...], folder: Path, known: set[tuple[str, int]]
) -> Verdict:
    place = folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    written(case, place)
    base = _resident(os.getpid())
    _reset_peak()
    lines: set[tuple[str, int]] = set()
    begin = time.monotonic()
    if traced:
        sys.settrace(_tracer(traced, lines))
    try:
        verdict = judged(run, place, case.options)
    finally:
        sys.settrace(None)
    seconds, growth = time.monotonic() - begin, _peak() - base
    new = frozenset(lines - known)
    known |= new
    return Verdict(verdict.kind, verdict.words, verdict.key, verdict.trace, seconds, growth, new)


def written(case: Case, folder: Path) -> None:
    """The files of a case; a name that the file system refuses is no file."""
    for name, data in case.files.items():
        try:
            if isinstance(data, bytes):
                (folder / name).write_bytes(data)
            else:
                (folder / name).symlink_to(data)
        except (OSError, ValueError):
            continue


def judged(run: Run, folder: Path, options: Mapping[str, Any]) -> Verdict:
    """What a run in this process came to, as the command line would tell it."""
    try:
        run(folder, options)
    except ConvsqueezeError as error:
        problems = error.problems if isinstance(error, ReportedTogether) else (str(error),)
        bad = [problem for problem in problems if not problem.isprintable() or not problem]
        if bad:
            place = _raised_at(error)
            return Verdict(
                "words", tuple(problems), f"no printable line from {place}", repr(bad[0])[:500]
            )
        return Verdict("refused", tuple(problems))
    except Exception as error:  # noqa: BLE001  any of them is what is looked for
        told = "".join(traceback.format_exception(error, limit=-12))[-3000:]
        place = f"here: {error}"[:60] if isinstance(error, AssertionError) else _raised_at(error)
        return Verdict("exception", (), f"{type(error).__name__} in {place}", told)
    return Verdict("done")


def _raised_at(error: BaseException) -> str:
    """The innermost line of the program that an exception passed."""
    place = "?"
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            place = f"{code.co_filename.removeprefix(PACKAGE)}:{line} {code.co_name}"
    return place


def _tracer(traced: tuple[str, ...], lines: set[tuple[str, int]]) -> Callable[..., Any]:
    """Collects the lines that run in files whose names start with one of `traced`."""

    def inside(frame: FrameType, event: str, _: object) -> Callable[..., Any]:
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return inside

    wanted: dict[str, bool] = {}

    def entered(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        name = frame.f_code.co_filename
        known = wanted.get(name)
        if known is None:
            known = wanted[name] = name.startswith(traced)
        return inside if known else None

    return entered
