"""A model's code that changes the working directory moves no file of the run."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from convsqueeze.paths import anchored
from tests.attacks.files import PAIRS
from tests.command_line import run_here

NET = """
import os
from torch import nn

class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.Conv2d(8, 2, 3, bias=False))

    def forward(self, x):
        os.chdir({later!r})
        return self.body(x)

def build():
    os.chdir({place!r})
    return Body()
"""


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which the run begins; the model's code goes to another, and to a third."""
    folder, other, third = (tmp_path / name for name in ("here", "other", "third"))
    for one in (folder, folder / "sub", other, third):
        one.mkdir()
    (folder / "net.py").write_text(NET.format(place=str(other), later=str(third)))
    weights = {"body.0.weight": torch.rand(8, 4, 1, 1), "body.1.weight": torch.rand(2, 8, 3, 3)}
    save_file(weights, folder / "sub" / "model.safetensors")
    (folder / "pairs.yaml").write_text(PAIRS)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(folder)
    yield folder
    assert [*other.iterdir(), *third.iterdir()] == []


GIVEN = ("sub/model.safetensors", "--model", "net.py:build")


def test_merge(scene: Path) -> None:
    done = run_here(
        "merge", *GIVEN, "-o", "out.pt", "--onnx", "sub/../out.onnx", "--growth", "allow", "--json"
    )
    assert (done.status, done.errors) == (0, [])
    assert (done.data["source"], done.data["output"]) == ("sub/model.safetensors", "out.pt")
    assert done.data["onnx"]["files"] == ["sub/../out.onnx"]
    assert "\nsub/model.safetensors " in done.stderr
    assert "-> out.pt" in done.stderr
    assert {"out.pt", "out.onnx"} <= set(os.listdir(scene))


def test_merge_without_a_name_for_the_output(scene: Path) -> None:
    done = run_here("merge", *GIVEN, "--pairs", "pairs.yaml", "--growth", "allow", "--json")
    assert (done.status, done.errors) == (0, [])
    assert done.data["output"] == "sub/model.squeezed.safetensors"
    assert (scene / "sub" / "model.squeezed.safetensors").is_file()


def test_scan(scene: Path) -> None:
    given = ("net.py:build", "--checkpoint", "sub/model.safetensors", "--growth", "allow")
    done = run_here("scan", *given, "-o", "sub/found.yaml")
    assert (done.status, done.errors) == (0, [])
    assert "sub/found.yaml" in done.stdout.splitlines()
    assert (scene / "sub" / "found.yaml").is_file()


def test_export(scene: Path) -> None:
    pytest.importorskip("onnxscript")
    merged = ("merge", "sub/model.safetensors", "--pairs", "pairs.yaml", "--growth", "allow")
    assert run_here(*merged, "-o", "small.pt").status == 0
    whole = ("--model", "net.py:build", "--checkpoint", "sub/model.safetensors")
    done = run_here("export-onnx", "small.pt", *whole, "--json")
    assert (done.status, done.errors) == (0, [])
    assert done.data["output"] == "small.onnx"
    assert (scene / "small.onnx").is_file()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("merge", "sub/none.pt", "--pairs", "pairs.yaml"), "sub/none.pt: no such file."),
        (("merge", "./none.pt", "--pairs", "pairs.yaml"), "none.pt: no such file."),
        (("merge", "../here/none.pt", "--pairs", "p.yaml"), "../here/none.pt: no such file."),
        (("merge", GIVEN[0], "--pairs", "no.yaml"), "no.yaml: there is no such file."),
        (
            ("merge", GIVEN[0], "--pairs", "pairs.yaml", "-o", "no/out.pt"),
            "no/out.pt: the directory no does not exist.",
        ),
        (
            ("merge", GIVEN[0], "--pairs", "pairs.yaml", "--onnx", "sub/model.onnx/x.onnx"),
            "sub/model.onnx/x.onnx: ",
        ),
        (("inspect", "."), ".: a directory, a checkpoint"),
    ],
)
def test_messages_keep_the_words_of_the_user(
    scene: Path, arguments: tuple[str, ...], told: str
) -> None:
    done = run_here(*arguments)
    assert done.status == 2
    assert done.errors[0].startswith(told)


def test_an_anchored_path_reads_as_it_was_given(scene: Path) -> None:
    path = anchored("sub/model.safetensors")
    assert (str(path), f"{path}") == (f"{scene}/sub/model.safetensors", "sub/model.safetensors")
    assert (f"{path.parent}", f"{path.parent.parent}") == ("sub", ".")
    assert f"{path.with_name('other.pt'):>14}" == "  sub/other.pt"
    assert anchored(path) is path
    whole = anchored(str(path))
    assert (whole, f"{whole}") == (path, str(path))
    assert json.dumps(f"{anchored('/')}") == '"/"'


def test_a_working_directory_that_is_gone(scene: Path) -> None:
    """Only what is named from the root on is found."""
    gone = scene / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    merged = ("merge", scene / "sub" / "model.safetensors", "--pairs", scene / "pairs.yaml")
    done = run_here(*merged, "--growth", "allow", "-o", scene / "out.pt")
    assert (done.status, done.errors) == (0, [])
    assert run_here("inspect", "model.pt").errors == ["model.pt: no such file. Check the path."]
    os.chdir(scene)
