"""`python -m tests.counting [COMMAND ...]`, all of them by default.

A row for each: its figures, their limits and what they were before the rebuild. Exit 1 where one is
beyond its limit.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from tests.counting.commands import COMMANDS, FORWARD, PAIRS, ROOT, SQUEEZED, command, work
from tests.counting.counter import Counted, counted
from tests.counting.tables import BEFORE, HEADINGS, LIMITS, beyond, figures, hooks, limit_words

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
"""Of a process that counts: neither cores nor chance change the figures much."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.counting", description=__doc__)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=", ".join(COMMANDS))
    parser.add_argument("--places", action="store_true", help="print where each thing is done from")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)  # a folder: count in it
    options = parser.parse_args()
    if unknown := [name for name in options.commands if name not in COMMANDS]:
        parser.error(f"unknown commands: {', '.join(unknown)}; there are {', '.join(COMMANDS)}")
    names = options.commands or [*COMMANDS]
    if options.here is not None:
        count_here(names[0], options.here)
        return 0
    with tempfile.TemporaryDirectory(prefix="convsqueeze-") as folder:
        if "export-onnx-model" in names:
            command(*PAIRS, Path(folder) / SQUEEZED)
        found = {name: count_apart(name, Path(folder)) for name in names}
    return report(found, places=options.places)


def count_apart(name: str, folder: Path) -> Counted:
    """Count a command in a process of its own, where nothing is imported yet."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.counting", name, "--here", str(folder)],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        check=False,
    )
    if done.returncode:
        sys.exit(f"{name}: was not counted, see above.")
    return Counted(**json.loads((folder / f"{name}.json").read_text()))


def count_here(name: str, folder: Path) -> None:
    found = counted(work(name, folder), hooks(), package="convsqueeze", forward=FORWARD)
    (folder / f"{name}.json").write_text(json.dumps(asdict(found)))


def report(found: Mapping[str, Counted], *, places: bool) -> int:
    """Print the table; the exit status."""
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(width=170)
    table = Table(Column(no_wrap=True), *HEADINGS.values(), show_lines=True)
    status = 0
    for name, one in found.items():
        numbers, wrong = figures(one), set(beyond(name, figures(one)))
        status = max(status, int(bool(wrong)))
        table.add_row(name, *(_cell(name, key, numbers[key], key in wrong) for key in HEADINGS))
    console.print(table)
    for name, one in found.items() if places else ():
        for thing, where in one.places.items():
            console.print(f"[bold]{name}: {thing}[/]")
            for place, times in where.items():
                console.print(f"{times:5} {place}", soft_wrap=True, highlight=False)
    console.print("beyond a limit" if status else "all within their limits")
    return status


def _cell(command: str, figure: str, number: int, wrong: bool) -> str:
    shown = f"[bold red]{number:,} ![/]" if wrong else f"[green]{number:,}[/]"
    limit = limit_words(LIMITS[command][figure])
    return f"{shown}\n{limit}\nbefore: {BEFORE[command][figure]:,}"


if __name__ == "__main__":
    sys.exit(main())
