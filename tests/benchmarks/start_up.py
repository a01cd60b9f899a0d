"""How long a run takes from its first moment to its last, beside what it has to import.

Whole processes, in turn. No run is faster than an interpreter that imports what draws the command
line, and none that needs torch than one that imports torch, if it does that as everyone does.
"""

import subprocess
import sys
import tempfile
from argparse import Namespace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.rounds import Rounds, in_turn
from tests.command_line import SESR, SESR_PAIRS, installed_command, plain_environment

TITLE = "time of whole processes, beside what they import"
LONGEST_HELP_S = 0.35
HELP = "--help"
EMPTY, TERMINAL, TORCH = "pass", "import typer, rich", "import torch"
LIMITS = {
    HELP: TERMINAL,
    "--version": TERMINAL,
    "schema": TERMINAL,
    "inspect": TORCH,
    "merge": TORCH,
}
"""Beside which interpreter each way of running the program stands."""


def run(console: Console, options: Namespace) -> list[str]:
    """Time every process; returns the claims that did not hold."""
    environment = {**plain_environment(), "OMP_NUM_THREADS": str(options.threads)}
    with tempfile.TemporaryDirectory() as folder:
        commands = _commands(Path(folder))
        runs = {name: partial(_run, command, environment) for name, command in commands.items()}
        rounds = in_turn(runs, options.rounds)
    print_table(console, rounds)
    broken = claims(rounds)
    if not broken:
        console.print(f"held: {HELP} within {LONGEST_HELP_S} s")
    return broken


def claims(rounds: Rounds) -> list[str]:
    """What did not hold."""
    seconds = rounds.milliseconds(HELP) / 1e3
    if seconds <= LONGEST_HELP_S:
        return []
    return [f"{HELP} took {seconds:.2f} s, where at most {LONGEST_HELP_S} s were claimed"]


def _commands(folder: Path) -> dict[str, list[object]]:
    arguments: dict[str, list[object]] = {
        "inspect": [SESR],
        "merge": [SESR, "--pairs", SESR_PAIRS, "-o", folder / "out.pt", "--overwrite"],
    }
    return {
        **{code: [sys.executable, "-c", code] for code in (EMPTY, TERMINAL, TORCH)},
        **{name: [installed_command(), name, *arguments.get(name, [])] for name in LIMITS},
    }


def _run(command: list[object], environment: dict[str, str]) -> None:
    subprocess.run(
        [str(word) for word in command], env=environment, stdout=subprocess.DEVNULL, check=True
    )


def print_table(console: Console, rounds: Rounds) -> None:
    """Medians, and medians of the ratios within a round."""
    table = Table()
    for column in ("process", "ms", "fastest", "beside", "ratio"):
        table.add_column(column, justify="left" if column in ("process", "beside") else "right")
    for name, seconds in rounds.seconds.items():
        limit = LIMITS.get(name)
        table.add_row(
            f"convsqueeze {name}" if limit else f'python -c "{name}"',
            f"{rounds.milliseconds(name):.0f}",
            f"{1e3 * min(seconds):.0f}",
            limit or "",
            f"{rounds.ratio(name, limit):.2f}" if limit else "",
        )
    console.print(table)
