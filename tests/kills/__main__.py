"""`python -m tests.kills [--runs 240] [--seed 0]`: prints what killed runs left; exit 1 for a loss.

Runs are forked from a process that has torch imported, so that they die in their own work; every
eighth is a process of its own from the first import on. Half of them are killed at any moment, half
once they have begun to write.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from convsqueeze.checkpoint.new_files import TEMPORARY
from convsqueeze.cli.main import main
from tests.kills.scene import FORMATS, KEPT, Files, Scene, built

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LONGEST_S = 120.0


@dataclass(frozen=True)
class Case:
    """One run to kill: `moment` is a share of the time that the run, or its writing, takes."""

    form: str
    existing: bool
    signal: signal.Signals
    moment: float
    while_writing: bool
    own_process: bool


def cases(runs: int, seed: int) -> list[Case]:
    """Every combination of format, earlier output and signal as often as every other."""
    rng = random.Random(seed)
    combinations = [(f, e, s) for f in FORMATS for e in (False, True) for s in SIGNALS]
    return [
        Case(*combinations[n % len(combinations)], rng.random(), rng.random() < 0.5, n % 8 == 7)
        for n in range(runs)
    ]


@dataclass(frozen=True)
class Process:
    """A run that was started, and the file that holds what it prints."""

    pid: int
    log: Path

    def wait(self) -> int:
        """Its exit status; negative, the signal that ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def started(scene: Scene, arguments: list[str], *, own_process: bool) -> Process:
    log = scene.folder.with_suffix(".log")
    with log.open("wb") as out:
        if own_process:
            command = [sys.executable, "-m", "convsqueeze", *arguments]
            return Process(subprocess.Popen(command, stdout=out, stderr=out).pid, log)
        pid = os.fork()
        if pid:
            return Process(pid, log)
        _run_forked(out.fileno(), arguments)
    raise AssertionError


def _run_forked(out: int, arguments: list[str]) -> None:
    """Never returns."""
    status = 70
    try:
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.argv = ["convsqueeze", *arguments]
        main()
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@dataclass(frozen=True)
class Expected:
    """What a run starts from and leads to, and how long it takes, measured unkilled."""

    scene: Scene
    old: Files
    new: Files
    seconds: dict[bool, float]
    """Of a run in a process of its own (True) and of a forked one."""
    writing_s: float


def prepared(folder: Path, form: str, kept_tensors: int) -> Expected:
    """Builds the scene, with the output of another input in it, and runs it unkilled."""
    earlier = built(folder / "earlier", form, 1, kept_tensors)
    scene = built(folder / "scene", form, 2, kept_tensors)
    run_whole(earlier, overwrite=False)
    for place in earlier.places(of_output=True):
        shutil.copy2(place, scene.folder)
    old = scene.files(of_output=True)
    seconds, writing_s = {}, 0.0
    for own_process in (True, False):
        fresh = scene.copy_to(folder / "run", with_output=False)
        begin = time.monotonic()
        process = started(fresh, fresh.arguments(overwrite=False), own_process=own_process)
        wait_until(lambda folder=fresh.folder: writing(folder), process)
        since = time.monotonic()
        if status := process.wait():
            raise SystemExit(f"a run that was not killed ended with {status}")
        seconds[own_process], writing_s = time.monotonic() - begin, time.monotonic() - since
    return Expected(scene, old, fresh.files(of_output=True), seconds, writing_s)


def run_whole(scene: Scene, *, overwrite: bool) -> None:
    arguments = scene.arguments(overwrite=overwrite)
    process = started(scene, arguments, own_process=False)
    if status := process.wait():
        raise SystemExit(f"{arguments} ended with {status}: {process.log.read_text()}")


def writing(folder: Path) -> bool:
    return any(TEMPORARY.fullmatch(path.name) for path in folder.iterdir())


def wait_until(happened: Callable[[], bool], process: Process) -> None:
    """Until then, or until the run has ended."""
    end = time.monotonic() + LONGEST_S
    while not happened() and time.monotonic() < end:
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.0005)


def kill(case: Case, expected: Expected, folder: Path) -> tuple[Scene, int, str]:
    """Run and kill; returns the scene, the exit status and what was printed."""
    scene = expected.scene.copy_to(folder, with_output=case.existing)
    arguments = scene.arguments(overwrite=case.existing)
    process = started(scene, arguments, own_process=case.own_process)
    if case.while_writing:
        wait_until(lambda: writing(folder), process)
        time.sleep(case.moment * expected.writing_s)
    else:
        time.sleep(case.moment * expected.seconds[case.own_process])
    os.kill(process.pid, case.signal)
    return scene, process.wait(), process.log.read_text(errors="replace")


def outcome(case: Case, expected: Expected, scene: Scene) -> str:
    """Whether the output is absent, the old one or the new one. Raises ValueError for a loss."""
    if scene.files(of_output=False) != expected.scene.files(of_output=False):
        raise ValueError("the input has changed")
    found = scene.files(of_output=True)
    if found == expected.new:
        return "new"
    if case.existing and found == expected.old:
        return "old"
    if not case.existing and not scene.output.exists():
        return "absent"
    raise ValueError(f"the output is neither old nor new nor absent: {sorted(found)}")


def examined(case: Case, expected: Expected, folder: Path) -> tuple[str, int]:
    """What one killed run came to, and how many files it left; raises ValueError with the loss."""
    scene, status, printed = kill(case, expected, folder)
    if "Traceback" in printed or status not in (0, -case.signal):
        raise ValueError(f"it ended with {status} and printed {printed!r}")
    found = outcome(case, expected, scene)
    left = scene.leftovers()
    if found == "new":
        verified = started(
            scene, ["verify", str(scene.model), str(scene.output)], own_process=False
        )
        if status := verified.wait():
            raise ValueError(f"verify ended with {status}: {verified.log.read_text()}")
    if left:
        if case.signal != signal.SIGKILL:
            raise ValueError(f"{left} was left although the run could tidy up")
        run_whole(scene, overwrite=True)
        if scene.leftovers() or outcome(case, expected, scene) != "new":
            raise ValueError(f"{left} is not removed by the next run: {scene.leftovers()}")
    return found, len(left)


def report(seen: list[tuple[Case, str, int]]) -> str:
    """The counts, in lines."""
    lines = [f"{len(seen)} runs killed; every input is bit for bit what it was"]
    for form in FORMATS:
        for existing in (False, True):
            found = Counter(o for c, o, _ in seen if (c.form, c.existing) == (form, existing))
            told = ", ".join(f"{count} {word}" for word, count in sorted(found.items()))
            lines.append(f"  {form}, {'over an earlier output' if existing else 'none'}: {told}")
    for number in SIGNALS:
        ends = Counter(o for c, o, _ in seen if c.signal == number)
        left = [count for c, _, count in seen if c.signal == number and count]
        told = ", ".join(f"{count} {word}" for word, count in sorted(ends.items()))
        lines.append(
            f"  {number.name}: {told}; {len(left)} left {sum(left)} files, removed by the next run"
        )
    aimed = sum(c.while_writing for c, _, _ in seen)
    lines.append(f"  {aimed} while writing, {sum(c.own_process for c, _, _ in seen)} own processes")
    return "\n".join(lines)


def kill_runs(runs: int, seed: int, kept_tensors: int, folder: Path) -> list[tuple[Case, str, int]]:
    """Raises SystemExit, naming the case, at the first loss."""
    expected = {form: prepared(folder / form, form, kept_tensors) for form in FORMATS}
    seen = []
    for number, case in enumerate(cases(runs, seed)):
        try:
            found, left = examined(case, expected[case.form], folder / "run")
        except ValueError as loss:
            raise SystemExit(f"run {number}, {case}: {loss}") from loss
        seen.append((case, found, left))
    return seen


def command_line() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--runs", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kept", type=int, default=KEPT, help="tensors of 4 MB to carry along")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # a shell's background job ignores SIGINT, and so would every run that it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        print(report(kill_runs(options.runs, options.seed, options.kept, Path(folder))))
    print(f"  {time.monotonic() - begin:.0f} s, seed {options.seed}")


if __name__ == "__main__":
    command_line()
