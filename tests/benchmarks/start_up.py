"""How long a run takes from the shell's point of view, and how much of that is its own.

Whole processes, each way once a round and in turn. The limit beside which they stand is an
interpreter that imports what draws the command line; for what needs torch, one that imports torch.
"""

import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.command_line import SESR, SESR_PAIRS, installed_command, plain_environment

TITLE = "time of whole processes, beside what they import"
LONGEST_HELP_S = 0.35
EMPTY, TERMINAL, TORCH = "pass", "import typer, rich", "import torch"
HELP = "--help"
LIMITS = {TERMINAL: (HELP, "--version", "schema"), TORCH: ("inspect", "merge")}
"""Whose time cannot be less than that of which import."""

Command = Sequence[str | Path]


def run(console: Console, options: Namespace) -> list[str]:
    """Time every command; returns the claims that did not hold."""
    with tempfile.TemporaryDirectory() as folder:
        commands = _commands(Path(folder))
        environment = {**plain_environment(), "OMP_NUM_THREADS": str(options.threads)}
        taken: dict[str, list[float]] = {name: [] for name in commands}
        names = list(commands)
        for index in range(-1, options.rounds):
            for name in names[index % len(names) :] + names[: index % len(names)]:
                seconds = _seconds(commands[name], environment)
                if index >= 0:  # the first round fills the disk's cache
                    taken[name].append(seconds)
    print_table(console, taken)
    broken = claims(taken)
    if not broken:
        console.print(f"held: {HELP} is there within {LONGEST_HELP_S} s")
    return broken


def claims(taken: Mapping[str, Sequence[float]]) -> list[str]:
    """What did not hold."""
    seconds = median(taken[HELP])
    if seconds <= LONGEST_HELP_S:
        return []
    return [f"{HELP} took {seconds:.2f} s, {LONGEST_HELP_S} s at most was claimed"]


def _commands(folder: Path) -> dict[str, Command]:
    program = installed_command()
    merge = ("merge", SESR, "--pairs", SESR_PAIRS, "-o", folder / "out.pt", "--overwrite")
    return {
        **{code: (sys.executable, "-c", code) for code in (EMPTY, TERMINAL, TORCH)},
        **{name: (program, name) for name in LIMITS[TERMINAL]},
        "inspect": (program, "inspect", SESR),
        "merge": (program, *merge),
    }


def _seconds(command: Command, environment: Mapping[str, str]) -> float:
    """Of one process, which must succeed."""
    begin = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def print_table(console: Console, taken: Mapping[str, Sequence[float]]) -> None:
    """Medians, and medians of the ratios to the limit within a round."""
    limits = {name: limit for limit, names in LIMITS.items() for name in names}
    table = Table("process", "seconds", "fastest", "beside", "ratio")
    for column in table.columns[1:3] + table.columns[4:]:
        column.justify = "right"
    for name, seconds in taken.items():
        limit = limits.get(name)
        ratio = ""
        if limit is not None:
            ratio = f"{median(a / b for a, b in zip(seconds, taken[limit], strict=True)):.2f}"
        program = "python -c" if limit is None else "convsqueeze"
        cells = (f"{median(seconds):.3f}", f"{min(seconds):.3f}", limit or "", ratio)
        table.add_row(f"{program} {name}", *cells)
    console.print(table)
