"""`python -m tests.attacks`: every hostile file in a run of its own, with time and peak memory.

Beside each is what the same command takes for a sound file; exit 1 where one is not refused, or
costs more than LIMITS.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.attacks.files import ATTACKS, PAIRS, Attack, sound

MOST_S = 10.0
MOST_BYTES = 64 << 20
"""More than a sound file takes."""


@dataclass(frozen=True)
class Run:
    """What a run of `merge` came to: exit status, standard error, wall time, peak memory."""

    status: int
    errors: str
    seconds: float
    peak_bytes: int


def measured(attack: Attack) -> Run:
    """`merge` of the files that an attack builds, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pairs.yaml").write_text(PAIRS)
        model = attack.build(folder)
        before = _listing(folder)
        command = [sys.executable, "-m", "convsqueeze", "merge", str(model)]
        begin = time.monotonic()
        with (folder / "errors").open("w+") as errors:
            process = subprocess.Popen(
                [*command, "--pairs", str(folder / "pairs.yaml"), "-q"],
                stderr=errors,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - begin
            errors.seek(0)
            told = errors.read()
        code = os.waitstatus_to_exitcode(status)
        if code == 2 and _listing(folder) != [*before, "errors"]:
            told += f"left behind: {_listing(folder)}"
            code = -1
        return Run(code, told, seconds, usage.ru_maxrss * 1024)


def _listing(folder: Path) -> list[str]:
    """Files, `errors` last."""
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return sorted(found, key=lambda name: name == "errors")


def problem(attack: Attack, run: Run, usual: Run) -> str | None:
    """What is wrong with how an attack was met."""
    if run.status != 2:
        return f"exit {run.status}: {run.errors}"
    if not re.search(attack.says, run.errors) or len(run.errors.splitlines()) != 1:
        return f"said {run.errors!r}"
    if run.seconds > MOST_S + usual.seconds:
        return f"took {run.seconds:.1f} s"
    if run.peak_bytes > MOST_BYTES + usual.peak_bytes:
        return f"took {run.peak_bytes >> 20} MiB"
    return None


def command_line() -> int:
    usual = measured(Attack("sound file", sound, ""))
    rows, problems = [("sound file, merged", usual)], []
    for attack in ATTACKS:
        run = measured(attack)
        rows.append((attack.name, run))
        if wrong := problem(attack, run, usual):
            problems.append(f"{attack.name}: {wrong}")
    for name, run in rows:
        print(f"{name:40} exit {run.status} {run.seconds:6.2f} s {run.peak_bytes >> 20:5} MiB")
    print("\n".join(problems) or f"{len(ATTACKS)} attacks refused")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(command_line())
