"""What a run imports, and when: help and usage errors wait for nothing that takes a moment, and a
command has imported what it needs before its work begins.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from tests.attacks.files import PAIRS, tensors
from tests.command_line import plain_environment

ROOT = Path(__file__).parents[2]
HEAVY = {
    *("torch", "numpy", "onnx", "onnxruntime", "safetensors", "ruamel", "matplotlib", "pydantic"),
    *(
        "sympy",
        "torch._dynamo",
        "torch._inductor",
    ),  # which torch imports for a few of its functions
}
TYPERS_OWN = {"pydantic"}
"""What typer itself imports where there are values to convert (from 0.29 on)."""
LIGHT = {
    "convsqueeze",
    "convsqueeze.errors",
    "convsqueeze.paths",
    "convsqueeze.cli",
    *(
        f"convsqueeze.cli.{name}"
        for name in ("app", "commands", "main", "options", "run", "signals", "streams")
    ),
    *(
        f"convsqueeze.cli.commands.{name}"
        for name in ("export_onnx", "inspect", "merge", "plan", "scan", "schema", "verify")
    ),
}
"""All of this program that a run without a command's work needs."""
COMPLETING = {"_CONVSQUEEZE_COMPLETE": "complete_bash", "COMP_CWORD": "1"}

DRIVER = """
import gc, json, os, sys

place, sys.argv = sys.argv[1], ["convsqueeze", *sys.argv[2:]]
from convsqueeze.cli import main, signals

begun = []
stop_on_signals = signals.stop_on_signals
signals.stop_on_signals = lambda: (begun.append([*sys.modules]), stop_on_signals())
try:
    main.main()
finally:
    seen = {"home": main.__file__, "begun": begun, "ended": [*sys.modules]}
    with open(place, "w") as file:
        json.dump({**seen, "collects": gc.isenabled()}, file)
"""


@dataclass(frozen=True)
class Run:
    """A run in a process of its own: what was imported when its work began, and at its end."""

    status: int
    output: str
    begun: tuple[frozenset[str], ...]
    ended: frozenset[str]
    collects: bool

    @property
    def own(self) -> set[str]:
        return {name for name in self.ended if name.partition(".")[0] == "convsqueeze"}

    @property
    def heavy(self) -> set[str]:
        return HEAVY & self.ended

    @property
    def late(self) -> set[str]:
        """What was imported after the work had begun."""
        return {
            name
            for name in self.ended - self.begun[-1]
            if name in HEAVY or name.startswith("convsqueeze.")
        }


def run(
    place: Path,
    *arguments: object,
    environment: dict[str, str] | None = None,
    house: Path = ROOT,
    through: tuple[str, ...] = (),
) -> Run:
    """`convsqueeze ARGUMENTS` with the package in `house`; what was imported goes to `place`."""
    done = subprocess.run(
        [*through, sys.executable, "-c", DRIVER, place, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=house,
        env={**plain_environment(), **(environment or {})},
    )
    seen: dict[str, Any] = json.loads(place.read_text())
    assert Path(seen["home"]).is_relative_to(house)
    begun = tuple(map(frozenset, seen["begun"]))
    output = done.stdout + done.stderr
    return Run(done.returncode, output, begun, frozenset(seen["ended"]), seen["collects"])


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        ("", 2, "Usage: convsqueeze"),
        ("--help", 0, "export-onnx"),
        ("--version", 0, "convsqueeze "),
        ("--no-such-option", 2, "No such option"),
    ],
)
def test_what_needs_no_command_imports_nothing(
    tmp_path: Path, arguments: str, status: int, told: str
) -> None:
    seen = run(tmp_path / "seen.json", *arguments.split())
    assert (seen.status, told in seen.output) == (status, True), seen.output
    assert seen.own == LIGHT
    assert seen.heavy == set()
    assert seen.begun == ()


@pytest.mark.stress
@pytest.mark.parametrize(
    "command", ["merge", "scan", "plan", "verify", "export-onnx", "inspect", "schema"]
)
def test_help_of_a_command_waits_for_none_of_its_work(tmp_path: Path, command: str) -> None:
    seen = run(tmp_path / "seen.json", command, "--help")
    assert (seen.status, f"convsqueeze {command}" in seen.output) == (0, True), seen.output
    assert (seen.own, seen.heavy - TYPERS_OWN) == (LIGHT, set())


@pytest.mark.stress
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("no-such-command", "No such command"),
        ("merge", "Missing argument"),
        ("merge model.pt", "which layers?"),
        ("merge model.pt --pairs pairs.yaml --no-such-option", "No such option"),
        ("merge model.pt --pairs pairs.yaml --border sloppy", "--border"),
        ("merge model.pt --pairs pairs.yaml --growth yes", "--growth"),
        ("merge model.pt --pairs pairs.yaml --trials 0", "--trials"),
        ("plan model.pt", "Missing option"),
        ("plan model.pt --pairs pairs.yaml --minimize size", "--minimize"),
        ("verify model.pt out.pt --seed some", "--seed"),
        ("verify model.pt", "Missing argument"),
        ("export-onnx out.pt --opset new", "--opset"),
        ("export-onnx out.pt --checkpoint model.pt", "give --model"),
        ("export-onnx out.pt --model code:build --layer a", "--layer"),
        ("inspect model.pt other.pt", "unexpected extra argument"),
        ("schema extra", "unexpected extra argument"),
    ],
)
def test_a_usage_error_is_told_at_once(tmp_path: Path, arguments: str, told: str) -> None:
    seen = run(tmp_path / "seen.json", *arguments.split())
    assert (seen.status, told in seen.output) == (2, True), seen.output
    assert (seen.own, seen.heavy - TYPERS_OWN) == (LIGHT, set())


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({**COMPLETING, "COMP_WORDS": "convsqueeze me"}, "merge"),
        ({**COMPLETING, "COMP_WORDS": "convsqueeze merge --bor", "COMP_CWORD": "2"}, "--border"),
        ({"_CONVSQUEEZE_COMPLETE": "source_bash"}, "complete_bash"),
    ],
    ids=["command", "option", "source"],
)
def test_completion_waits_for_no_work(
    tmp_path: Path, environment: dict[str, str], told: str
) -> None:
    seen = run(tmp_path / "seen.json", environment=environment)
    assert (seen.status, told in seen.output) == (0, True), seen.output
    assert (seen.own, seen.heavy - TYPERS_OWN) == (LIGHT, set())


def test_showing_completion_waits_for_no_work(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    shell = (bash, "-c", '"$@"; exit $?', "bash")
    seen = run(tmp_path / "seen.json", "--show-completion", through=shell)
    assert (seen.status, "complete_bash" in seen.output) == (0, True), seen.output
    assert (seen.own, seen.heavy - TYPERS_OWN) == (LIGHT, set())


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, its manifest and what `merge` made of them."""
    folder = tmp_path_factory.mktemp("scene")
    save_file(tensors(), folder / "model.safetensors")
    (folder / "pairs.yaml").write_text(PAIRS)
    merged = run(
        folder / "merged.json",
        *("merge", folder / "model.safetensors", "--pairs", folder / "pairs.yaml"),
        *("-o", folder / "out.safetensors", "--onnx", folder / "out.onnx"),
    )
    assert merged.status == 0, merged.output
    return folder


SEVERAL = {"convsqueeze.export", "convsqueeze.plot", "convsqueeze.surgery", "onnx", "onnxruntime"}
"""What most commands have no use for."""


@pytest.mark.stress
@pytest.mark.parametrize(
    ("command", "needless"),
    [
        (
            "merge {0}/model.safetensors --pairs {0}/pairs.yaml -o {0}/other.safetensors",
            {*SEVERAL, "matplotlib"},
        ),
        (
            "merge {0}/model.safetensors --pairs {0}/pairs.yaml -o {0}/third.safetensors "
            "--onnx {0}/third.onnx",
            {"convsqueeze.plot", "convsqueeze.surgery", "matplotlib"},
        ),
        (
            "plan {0}/model.safetensors --pairs {0}/pairs.yaml",
            {*SEVERAL, "convsqueeze.latency", "matplotlib"},
        ),
        (
            "plan {0}/model.safetensors --pairs {0}/pairs.yaml --minimize latency",
            {"convsqueeze.plot", "convsqueeze.surgery", "matplotlib"},
        ),
        ("verify {0}/model.safetensors {0}/out.safetensors", {*SEVERAL, "matplotlib"}),
        (
            "verify {0}/model.safetensors {0}/out.safetensors --onnx {0}/out.onnx "
            "--plot {0}/out.png",
            {"convsqueeze.surgery"},
        ),
        (
            "export-onnx {0}/out.safetensors -o {0}/fourth.onnx",
            {"convsqueeze.pipeline", "convsqueeze.plot", "convsqueeze.surgery", "matplotlib"},
        ),
        (
            "inspect {0}/out.safetensors",
            {
                *SEVERAL,
                "convsqueeze.pipeline",
                "convsqueeze.manifest",
                "convsqueeze.plan",
                "convsqueeze.verify",
                "matplotlib",
                "ruamel",
            },
        ),
        ("schema", {*SEVERAL, "convsqueeze.checkpoint", "convsqueeze.plan", "safetensors"}),
    ],
)
def test_a_command_imports_what_it_needs_before_its_work(
    scene: Path, tmp_path: Path, command: str, needless: set[str]
) -> None:
    """A signal that meets an import ends the run at once: no half of a module is left to use."""
    arguments = command.format(scene).split()
    seen = run(tmp_path / "seen.json", *arguments)
    assert seen.status == 0, seen.output
    assert len(seen.begun) == 1
    assert seen.late == set()
    assert seen.ended & (needless | {"sympy", "torch._dynamo"}) == set()
    assert seen.collects


CODE = """
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.Conv2d(8, 2, 3, bias=False))

    def forward(self, x):
        return self.body(x)
"""


@pytest.mark.stress
def test_a_whole_model_imports_its_exporter_before_its_work(scene: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    (tmp_path / "code.py").write_text(CODE)
    seen = run(
        tmp_path / "seen.json",
        *("export-onnx", scene / "out.safetensors", "-o", tmp_path / "whole.onnx"),
        *("--model", f"{tmp_path / 'code.py'}:Model"),
    )
    assert seen.status == 0, seen.output
    assert len(seen.begun) == 1
    assert seen.late == set()
    assert seen.ended & {"matplotlib", "convsqueeze.plot"} == set()


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the package that a test may break."""
    shutil.copytree(ROOT / "convsqueeze", tmp_path / "house" / "convsqueeze")
    return tmp_path / "house"


@pytest.mark.stress
@pytest.mark.parametrize(
    ("module", "line", "found"),
    [
        ("errors.py", "import numpy", {"numpy"}),
        ("cli/app.py", "from convsqueeze.algebra import geometry", {"convsqueeze.algebra"}),
        ("cli/main.py", "import convsqueeze.cli.output", {"convsqueeze.cli.output"}),
    ],
)
def test_a_needless_import_is_seen(
    tmp_path: Path, house: Path, module: str, line: str, found: set[str]
) -> None:
    broken = house / "convsqueeze" / module
    broken.write_text(f"{broken.read_text()}\n{line}\n")
    seen = run(tmp_path / "seen.json", "--help", house=house)
    assert seen.status == 0, seen.output
    assert found <= (seen.own - LIGHT) | seen.heavy


def test_a_late_import_is_seen(tmp_path: Path, house: Path, scene: Path) -> None:
    command = house / "convsqueeze" / "cli" / "commands" / "inspect.py"
    text = command.read_text()
    assert "    checkpoint = open_checkpoint" in text
    late = "    import convsqueeze.cli.progress\n    checkpoint = open_checkpoint"
    command.write_text(text.replace("    checkpoint = open_checkpoint", late))
    seen = run(tmp_path / "seen.json", "inspect", scene / "out.safetensors", house=house)
    assert seen.status == 0, seen.output
    assert "convsqueeze.cli.progress" in seen.late
