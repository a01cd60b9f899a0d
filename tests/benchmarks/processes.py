"""Whole processes: how long one takes and how much memory it holds at its peak."""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_S = 0.004


@dataclass(frozen=True)
class Ran:
    """Wall time, and peaks of resident memory in bytes, of which `anonymous` is no file's."""

    seconds: float
    resident: int
    anonymous: int


def ran(command: Sequence[object]) -> Ran:
    """Run a command to its end. Linux tells the peaks: resident as the kernel counts it, anonymous
    sampled every few milliseconds.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    status = Path(f"/proc/{process.pid}/status")
    resident = anonymous = 0
    while process.poll() is None:
        found = _kilobytes(status)
        resident = max(resident, found.get("VmHWM", 0))
        anonymous = max(anonymous, found.get("RssAnon", 0))
        time.sleep(SAMPLE_S)
    seconds = time.perf_counter() - begin
    output = process.stdout.read().decode() if process.stdout else ""
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}: {output}")
    return Ran(seconds, 1024 * resident, 1024 * anonymous)


def _kilobytes(status: Path) -> dict[str, int]:
    try:
        lines = status.read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    words = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(amount) for name, amount, _ in words}


def convsqueeze(*arguments: object) -> list[object]:
    """The command line of this interpreter's own convsqueeze."""
    return [sys.executable, "-m", "convsqueeze", *arguments]


def python(code: str) -> list[object]:
    return [sys.executable, "-c", code]
