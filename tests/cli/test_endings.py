"""How runs end: in words, with the right status, and with every file whole."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from convsqueeze import pipeline
from convsqueeze.cli import main as entry
from convsqueeze.errors import ModelMismatchError
from convsqueeze.export import files as export_files
from convsqueeze.pipeline import files, merging
from tests.attacks.files import PAIRS
from tests.attacks.files import tensors as attacked
from tests.command_line import installed_command, plain_environment, run_here, run_process

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def tensors() -> dict[str, Tensor]:
    return {**attacked(), "kept": torch.randn(100_000, generator=torch.Generator().manual_seed(0))}


@pytest.fixture(params=[".safetensors", ".pt"])
def model(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / f"model{request.param}"
    if request.param == ".pt":
        torch.save(tensors(), path)
    else:
        save_file(tensors(), path)
    (tmp_path / "pairs.yaml").write_text(PAIRS)
    return path


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "merge_file", fail)


def test_an_error_of_this_program_is_called_one(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, TypeError("no such thing\nin two lines"))
    arguments = ("merge", model, "--pairs", model.parent / "pairs.yaml")
    done = run_here(*arguments)
    assert (done.status, done.stdout, len(done.stderr.splitlines())) == (3, "", 1)
    assert done.errors[0].startswith("internal: TypeError: no such thing. This is a mistake in")
    assert "--debug" in done.errors[0]
    debugged = run_here(*arguments, "--debug")
    assert (debugged.status, debugged.errors) == (3, done.errors)
    assert re.search(r"Traceback .*\n(.*\n)+TypeError: no such thing", debugged.stderr)


def test_no_run_ends_without_a_word(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ModelMismatchError([]))
    done = run_here("merge", model, "--pairs", model.parent / "pairs.yaml")
    assert done.status == 3
    assert done.errors[0].startswith("internal: ModelMismatchError: no message. ")


def test_debug_changes_nothing_for_an_error_of_the_user(model: Path) -> None:
    arguments = ("merge", model, "--pairs", model.parent / "none.yaml")
    plain, debugged = run_here(*arguments), run_here(*arguments, "--debug")
    assert plain == debugged
    assert plain.status == 2


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "memory: there is not enough of it"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "memory: there is"),
        (OSError(28, "No space left on device"), "an output: No space left on device"),
        (PermissionError(13, "Permission denied", "x.pt"), "x.pt: Permission denied"),
    ],
)
def test_what_the_machine_refuses_is_no_error_of_this_program(
    model: Path, error: Exception, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, error)
    done = run_here("merge", model, "--pairs", model.parent / "pairs.yaml")
    assert done.status == 2
    assert len(done.errors) == 1
    assert done.errors[0].startswith(says)


def test_names_in_messages_do_not_reach_the_terminal_raw(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, entry.ConvsqueezeError("a\x1b[2J\nb: is odd. Look."))
    done = run_here("merge", model, "--pairs", model.parent / "pairs.yaml")
    assert done.stderr == "error: a\\x1b[2J\\nb: is odd. Look.\n"


class OwnError(BaseException):
    """Of a model's code."""


@pytest.mark.parametrize(
    "error", [SystemExit(0), SystemExit(1), SystemExit("done"), KeyboardInterrupt(), OwnError()]
)
def test_no_code_ends_a_run_as_if_it_had_done_its_work(
    model: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, error)
    done = run_here("merge", model, "--pairs", model.parent / "pairs.yaml")
    assert (done.status, done.stdout, len(done.errors)) == (2, "", 1)
    assert f"own code: ended the run ({type(error).__name__}: " in done.errors[0]
    debugged = run_here("merge", model, "--pairs", model.parent / "pairs.yaml", "--debug")
    assert "Traceback" in debugged.stderr


NOISY = """
import sys, warnings
from torch import nn

def build():
    print("printed")
    warnings.warn("warned")
    print("told", file=sys.stderr)
    return nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.Conv2d(8, 2, 2, padding="same"))
"""


def test_quiet_runs_tell_errors_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch warns of `same` padding for a kernel of two, which is nobody's business here."""
    monkeypatch.chdir(tmp_path)
    weights = torch.randn(2, 8, 2, 2), torch.randn(8, 4, 1, 1)
    values = {"1.weight": weights[0], "1.bias": torch.ones(2), "0.weight": weights[1]}
    save_file(values, tmp_path / "model.safetensors")
    Path("net.py").write_text(NOISY)
    Path("pairs.yaml").write_text(
        "version: 1\npairs: [{first: {name: '0'}, second: {name: '1', padding: same}}]"
    )
    made = ("merge", "model.safetensors", "--model", "net.py:build", "--overwrite")
    quiet = run_process(*made, "-q", cwd=tmp_path)
    assert (quiet.status, quiet.stdout, quiet.stderr) == (0, "", "")
    heard = run_process(*made, cwd=tmp_path)
    assert heard.status == 0
    for words in ("printed", "UserWarning: warned", "told"):
        assert words in heard.stderr
    assert "same" not in heard.stderr
    plain = ("merge", "model.safetensors", "--pairs", "pairs.yaml", "--overwrite")
    told = run_process(*plain, cwd=tmp_path)
    assert (told.status, told.stderr) == (0, "")
    refused = run_process(*plain, "-q", "-o", "none/out.pt", cwd=tmp_path)
    assert (refused.status, len(refused.stderr.splitlines())) == (2, 1)


@pytest.mark.stress
@pytest.mark.parametrize("buffered", [True, False])
def test_a_report_that_cannot_be_printed(model: Path, buffered: bool) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [installed_command(), "inspect", model],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**plain_environment(), "PYTHONUNBUFFERED": "" if buffered else "1"},
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == (
        "error: standard output: No space left on device. Mend that and run it again.\n"
    )


@pytest.mark.stress
def test_a_reader_that_is_gone_is_no_failed_verification(tmp_path: Path) -> None:
    """`inspect | head`: ends as other programs do, without a word."""
    names = {f"layer.{i}.weight": torch.zeros(1) for i in range(5000)}
    save_file(names, tmp_path / "model.safetensors")
    process = subprocess.Popen(
        [installed_command(), "inspect", tmp_path / "model.safetensors"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=plain_environment(),
    )
    assert process.stdout is not None
    process.stdout.read(100)
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == -signal.SIGPIPE


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The signals that runs in this process ended by, which leaves the process alive."""
    found: list[int] = []

    def end(by: int) -> None:
        found.append(by)
        raise SystemExit(128 + by)

    handlers = {number: signal.getsignal(number) for number in STOPPING}
    monkeypatch.setattr(entry, "_end_by", end)
    yield found
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_stops_a_run_and_leaves_nothing(
    model: Path, number: signal.Signals, ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(1)
        raise AssertionError("not stopped")

    monkeypatch.setattr(merging, "squeeze_one", signalled)
    done = run_here("merge", model, "--pairs", model.parent / "pairs.yaml")
    assert ended == [number]
    assert done.errors == [
        f"stopped by {number.name}, while merging body.0. Outputs appear whole or not at all; run "
        "it again to finish."
    ]
    assert listing(model.parent) == [model.name, "pairs.yaml"]


def test_a_signal_whose_exception_is_lost_stops_the_run_all_the_same(
    model: Path, ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = merging.squeeze_one

    def swallowed(*arguments: Any, **options: Any) -> Any:
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        return real(*arguments, **options)

    monkeypatch.setattr(merging, "squeeze_one", swallowed)
    done = run_here("merge", model, "--pairs", model.parent / "pairs.yaml")
    assert ended == [signal.SIGTERM]
    assert "stopped by SIGTERM, while verifying body.0" in done.errors[0]
    assert listing(model.parent) == [model.name, "pairs.yaml"]


def test_an_error_that_a_lost_signal_led_to_is_not_told_as_one(
    model: Path, ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        raise AttributeError("half of a module")

    monkeypatch.setattr(merging, "squeeze_one", broken)
    done = run_here("merge", model, "--pairs", model.parent / "pairs.yaml")
    assert ended == [signal.SIGTERM]
    assert [error[:18] for error in done.errors] == ["stopped by SIGTERM"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_work_begins(model: Path, number: signal.Signals) -> None:
    """While torch is still being imported: no traceback then either."""
    process = subprocess.Popen(
        [installed_command(), "merge", model, "--pairs", model.parent / "pairs.yaml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=plain_environment(),
        text=True,
    )
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "libtorch" not in maps.read_text():
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == -number
    assert errors.startswith(f"error: stopped by {number.name}")
    assert len(errors.splitlines()) == 1
    assert listing(model.parent) == [model.name, "pairs.yaml"]


@pytest.mark.parametrize("when", ["squeeze_one", "verify_merge", "write_checkpoint"])
@pytest.mark.parametrize("change", ["cut", "rewritten", "put back", "removed", "replaced"])
def test_an_input_that_changes_under_the_run(
    model: Path, when: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = model.read_bytes()
    place = files if when == "write_checkpoint" else merging
    real = getattr(place, when)

    def changed(*arguments: Any, **options: Any) -> Any:
        match change:
            case "cut":
                os.truncate(model, len(data) // 3)
            case "rewritten":
                model.write_bytes(data[:-8] + bytes(8))
            case "put back":  # written in place, its time as it was
                before = model.stat()
                with model.open("r+b") as file:
                    file.seek(-8, os.SEEK_END)
                    file.write(bytes(8))
                os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
            case "removed":
                model.unlink()
            case "replaced":
                model.rename(model.with_suffix(".old"))
                model.write_bytes(data)
        return real(*arguments, **options)

    monkeypatch.setattr(place, when, changed)
    done = run_here("merge", model, "--pairs", model.parent / "pairs.yaml")
    assert done.status == 2, done
    assert len(done.errors) == 1
    assert re.match(
        rf"{re.escape(str(model))}: (changed while|ends within|cannot be read)", done.errors[0]
    )
    assert [name for name in listing(model.parent) if "squeezed" in name or "tmp" in name] == []


def test_an_input_that_changes_under_a_verification(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeezed = model.with_name(f"out{model.suffix}")
    pairs = model.parent / "pairs.yaml"
    assert run_here("merge", model, "--pairs", pairs, "-o", squeezed).status == 0
    assert run_here("verify", model, squeezed).status == 0
    real = files.verify_checkpoints

    def touched(*arguments: Any, **options: Any) -> Any:
        report = real(*arguments, **options)
        squeezed.write_bytes(squeezed.read_bytes())
        return report

    monkeypatch.setattr(files, "verify_checkpoints", touched)
    done = run_here("verify", model, squeezed)
    assert (done.status, len(done.errors)) == (2, 1)
    assert f"{squeezed}: changed while it was being read" in done.errors[0]


def test_an_onnx_file_that_changes_under_a_verification(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeezed, onnx = model.with_name(f"out{model.suffix}"), model.with_name("out.onnx")
    pairs = model.parent / "pairs.yaml"
    assert run_here("merge", model, "--pairs", pairs, "-o", squeezed, "--onnx", onnx).status == 0
    real = export_files.check_model

    def touched(*arguments: Any, **options: Any) -> Any:
        onnx.write_bytes(onnx.read_bytes())
        return real(*arguments, **options)

    monkeypatch.setattr(export_files, "check_model", touched)
    done = run_here("verify", model, squeezed, "--onnx", onnx)
    assert (done.status, len(done.errors)) == (2, 1)
    assert f"{onnx}: changed while it was being read" in done.errors[0]


def test_the_command_starts_before_torch_is_there() -> None:
    """So that a signal finds words from the first moment on."""
    code = "import sys, convsqueeze.cli.main; print('torch' in sys.modules)"
    done = run_process(command=[str(installed_command().with_name("python")), "-c", code])
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_streams_that_are_closed_from_the_start(model: Path, more: tuple[str, ...]) -> None:
    """`>&-` and `2>&-` of a shell: the run does its work and ends with 0."""
    output = model.with_stem("squeezed")
    for closed in (">&-", "2>&-"):
        given = f'exec "$@" {closed}'
        arguments = ("merge", str(model), "--pairs", str(model.parent / "pairs.yaml"), *more)
        done = subprocess.run(
            ["sh", "-c", given, "sh", installed_command(), *arguments, "-o", output],
            check=False,
            capture_output=True,
            env=plain_environment(),
        )
        assert done.returncode == 0, done.stderr
        output.unlink()
