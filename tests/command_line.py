"""The command line, run in the test's own process or, as a user would, in one of its own.

A process takes two seconds to start, so what needs none is run here: the same `main`, the same
arguments, standard output and error caught apart.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import torch

from convsqueeze.cli.main import main

SAMPLES = Path(__file__).parent.parent / "samples"
SESR = SAMPLES / "sesr" / "sesr_x2.pt"
SESR_PAIRS = SAMPLES / "sesr" / "pairs.yaml"
BLOCKS = SAMPLES / "blocks"

PLAIN_TERMINAL = {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Tests run side by side: threads of two processes on one core wait for each other, often for
longer than the arithmetic takes."""
torch.set_num_threads(1)
COLOURING = ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "CLICOLOR_FORCE")


@dataclass(frozen=True)
class Outcome:
    """What a run left behind: exit status, standard output, standard error."""

    status: int
    stdout: str
    stderr: str

    @property
    def errors(self) -> list[str]:
        """The problems that were told, a line each, without `error: `."""
        lines = self.stderr.splitlines()
        return [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]

    @property
    def data(self) -> Any:
        """Standard output as JSON that every parser reads: no NaN, no Infinity."""
        return json.loads(self.stdout, parse_constant=_no_constant)


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def plain_environment() -> dict[str, str]:
    """This environment with a terminal of 80 columns and no colour, whatever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if name not in COLOURING}
    return {**kept, **PLAIN_TERMINAL, **ONE_THREAD}


def run_here(*arguments: object) -> Outcome:
    """`convsqueeze ARGUMENTS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with (
        mock.patch.object(sys, "argv", ["convsqueeze", *map(str, arguments)]),
        mock.patch.dict(os.environ, plain_environment(), clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    return Outcome(status, out.getvalue(), err.getvalue())


def installed_command() -> Path:
    """The script that installing the package put beside this interpreter."""
    return Path(sys.executable).with_name("convsqueeze")


def run_process(
    *arguments: object,
    cwd: Path | None = None,
    umask: int = -1,
    environment: dict[str, str] | None = None,
    command: Sequence[str] = (),
) -> Outcome:
    """The installed command (or `command` in its place) with ARGUMENTS in a process of its own."""
    done = subprocess.run(
        [*(command or [str(installed_command())]), *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        cwd=cwd,
        umask=umask,
        env={**plain_environment(), **(environment or {})},
        timeout=120,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
