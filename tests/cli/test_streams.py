"""Standard streams that are closed, full, or gone: quiet, and the status of what was done."""

import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from convsqueeze.checkpoint import open_checkpoint
from convsqueeze.pipeline import merge_file
from tests.attacks.files import PAIRS, tensors
from tests.command_line import installed_command, plain_environment

NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(4, 64, 1, bias=False), nn.Conv2d(64, 2, 3))
"""
MERGE = "merge model.safetensors --pairs pairs.yaml -o out.pt --overwrite"
COMMANDS = {
    "help": ("--help", 0),
    "help of a command": ("merge --help", 0),
    "version": ("--version", 0),
    "merge": (MERGE, 0),
    "merge for data": (f"{MERGE} --json", 0),
    "merge quietly": (f"{MERGE} -q", 0),
    "merge refused": ("merge none.pt --pairs pairs.yaml", 2),
    "scan": ("scan net.py:build", 0),
    "plan": ("plan model.safetensors --pairs pairs.yaml", 0),
    "verify": ("verify model.safetensors squeezed.safetensors", 0),
    "verify what differs": ("verify model.safetensors damaged.safetensors", 1),
    "export": ("export-onnx squeezed.safetensors -o out.onnx --overwrite", 0),
    "inspect": ("inspect model.safetensors", 0),
    "schema": ("schema", 0),
    "usage": ("merge", 2),
}
FEW = ("merge for data",)
"""Those that are run in every lane: a process takes two seconds to start."""
WITHOUT_TORCH = ("--help", "merge --help", "--version", "merge")
"""Commands that are done in an instant."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    save_file(tensors(), folder / "model.safetensors")
    (folder / "pairs.yaml").write_text(PAIRS)
    (folder / "net.py").write_text(NET)
    squeezed = folder / "squeezed.safetensors"
    merge_file(folder / "model.safetensors", folder / "pairs.yaml", squeezed)
    values = load_file(squeezed)
    values["body.0.weight"][0, 0, 0, 0] += 1
    kept = dict(open_checkpoint(squeezed).metadata)
    save_file(values, folder / "damaged.safetensors", metadata=kept)
    return folder


def run(folder: Path, command: str, redirected: str) -> tuple[int, str, str]:
    """Exit status, standard output and error, with streams `redirected` as a shell does it."""
    for output in ("out.pt", "out.onnx"):
        (folder / output).unlink(missing_ok=True)
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirected}', "sh", installed_command(), *command.split()],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=plain_environment(),
        timeout=100,
    )
    return done.returncode, done.stdout, done.stderr


def written(folder: Path, command: str) -> bool:
    """Whether what the command writes is there, where it writes anything."""
    places = [folder / one for one in command.split() if one in ("out.pt", "out.onnx")]
    return all(place.stat().st_size > 0 for place in places)


def every(names: tuple[str, ...] = FEW) -> list[object]:
    return [
        pytest.param(*COMMANDS[name], id=name, marks=() if name in names else pytest.mark.stress)
        for name in COMMANDS
    ]


@pytest.mark.parametrize(
    "closed",
    [
        *(pytest.param(one, marks=pytest.mark.stress) for one in ("<&-", ">&-", "2>&-")),
        *("<&- >&- 2>&-", "2>/dev/full"),
    ],
)
@pytest.mark.parametrize(("command", "status"), every())
def test_closed_streams_change_no_status(
    folder: Path, command: str, status: int, closed: str
) -> None:
    found, _, errors = run(folder, command, closed)
    assert (found, written(folder, command)) == (status, True), errors
    assert "Traceback" not in errors
    if status == 0:
        assert "error: " not in errors


@pytest.mark.parametrize(("command", "status"), every())
def test_a_full_standard_output_is_told_and_hides_no_failure(
    folder: Path, command: str, status: int
) -> None:
    found, _, errors = run(folder, command, "> /dev/full")
    prints = status != 2 and "-q" not in command
    expected = 2 if status == 0 and prints else status
    assert (found, written(folder, command)) == (expected, True)
    told = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert bool(told) == (found != 0 and command != "merge")  # whose usage is told in a frame
    if status == 0 and prints:
        assert len(told) == 1
        assert "No space left on device" in told[0]
    for output in ("out.pt", "out.onnx"):
        if output in command and prints:
            assert told[0] == (
                "error: standard output: the report cannot be written (No space left on device), "
                f"but the work is done: {output}. Make room for it, or let it go elsewhere."
            )


@pytest.mark.parametrize(("command", "status"), every())
def test_a_reader_that_is_gone(folder: Path, command: str, status: int) -> None:
    """Ends by SIGPIPE, as other programs do, once what was to be done is done."""
    read, write = os.pipe()
    os.close(read)
    (folder / "out.pt").unlink(missing_ok=True)
    for output, error in ((write, subprocess.PIPE), (subprocess.DEVNULL, write)):
        done = subprocess.run(
            [installed_command(), *command.split()],
            stdout=output,
            stderr=error,
            cwd=folder,
            env=plain_environment(),
            check=False,
            timeout=100,
        )
        prints = status == 0 and "-q" not in command and output == write
        assert done.returncode == (-signal.SIGPIPE if prints else status), done.stderr
        assert written(folder, command)
        assert b"Traceback" not in (done.stderr or b"")
    os.close(write)


@pytest.mark.parametrize("ignored", [True, False])
@pytest.mark.parametrize(("command", "status"), every(("merge for data",)))
def test_a_terminal_that_goes_away(folder: Path, command: str, status: int, ignored: bool) -> None:
    """It ends the run by SIGHUP; a run that does not mind (nohup) does its work."""
    (folder / "out.pt").unlink(missing_ok=True)
    started, starting = os.pipe()  # which starting the command closes
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
        os.execve(installed_command(), ["convsqueeze", *command.split()], plain_environment())
    os.close(starting)
    os.read(started, 1)
    os.close(started)
    time.sleep(0 if command in WITHOUT_TORCH else 0.3)
    os.close(terminal)
    _, ended = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(ended)
    assert code == (status if ignored else -signal.SIGHUP)
    if ignored:
        assert written(folder, command)
