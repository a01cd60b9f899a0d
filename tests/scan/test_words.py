"""What the model's own code tells while it is followed, and what is told where it cannot be."""

import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convsqueeze.errors import TracingError
from tests.command_line import run_here
from tests.scan.code import Code, image, made, merged_layers, scanned

X = image(2, 3, 8, 8)


def network(forward: Callable[..., Any]) -> nn.Module:
    return made(lambda: Code(forward, one=nn.Conv2d(3, 8, 1), two=nn.Conv2d(8, 3, 1)))


def _tells(self: Any, x: Tensor) -> Any:
    print("printed")
    print("complained", file=sys.stderr)
    warnings.warn("warned", stacklevel=1)
    logging.getLogger("own").warning("logged")
    return self.two(self.one(x))


def test_what_the_models_code_tells_is_heard(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.warns(UserWarning, match="warned"):
        found = scanned(network(_tells), X)
    assert merged_layers(found) == [("one", "two")]
    told = capsys.readouterr()
    assert "printed\n" in told.out
    assert "complained\n" in told.err
    assert "logged" in caplog.text


def _branches(self: Any, x: Tensor) -> Any:
    y = self.one(x)
    if y.sum() > 0:
        y = y.relu()
    return self.two(y)


def _counts(self: Any, x: Tensor) -> Any:
    count = int(x.sum())
    return self.two(self.one(x))[:, :count]


def _leaves_torch(self: Any, x: Tensor) -> Any:
    return torch.from_numpy(self.one(x).numpy())


@pytest.mark.parametrize(
    ("forward", "line", "words"),
    [
        (_branches, "if y.sum() > 0:", "data-dependent"),
        (_counts, "count = int(x.sum())", "data-dependent"),
        (_leaves_torch, "return torch.from_numpy(self.one(x).numpy())", ".numpy()"),
    ],
)
def test_code_that_cannot_be_followed_is_told_by_its_line_and_torch_says_no_more(
    forward: Callable[..., Any],
    line: str,
    words: str,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    with pytest.raises(TracingError) as raised:
        scanned(network(forward), X)
    first = forward.__code__.co_firstlineno
    rows = Path(__file__).read_text().splitlines()[first:]
    number = first + 1 + [row.strip() for row in rows].index(line)
    told = str(raised.value)
    assert told.count(f"test_words.py:{number} ({line})") == 2
    assert all(part in told for part in (words, "torch.export says", "torch.fx says"))
    assert "Write a manifest by hand" in told
    assert capfd.readouterr() == ("", "")
    assert [str(one.message) for one in recwarn] == []


def test_a_level_that_is_asked_for_of_torchs_log_is_left() -> None:
    log = logging.getLogger("torch")
    before = log.level
    scanned(network(_branches_not), X)
    assert log.level == before


def _branches_not(self: Any, x: Tensor) -> Any:
    return self.two(self.one(x))


NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        print("from the model")
        return self.two(self.one(x))

class Branching(Net):
    def forward(self, x):
        y = self.one(x)
        if y.sum() > 0:
            y = y.relu()
        return self.two(y)
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


def test_what_the_model_prints_is_beside_the_report(code: Path) -> None:
    done = run_here("scan", f"{code}:Net", "--json")
    assert done.status == 0
    assert "from the model" in done.stderr
    assert len(json.loads(done.stdout)["merges"]) == 1


@pytest.mark.parametrize("inputs", [[], ["--input", "1,3,8,8"]])
def test_the_command_names_the_line_that_cannot_be_followed(code: Path, inputs: list[str]) -> None:
    done = run_here("scan", f"{code}:Branching", *inputs)
    assert done.status == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: Branching: its code cannot be followed")
    assert "net.py:16 (if y.sum() > 0:)" in error
    assert "Write a manifest by hand" in error
