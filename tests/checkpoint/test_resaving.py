"""What a refusal advises works when it is followed: each command is run, and its file is opened."""

import argparse
import datetime
import decimal
import fractions
import os
import pathlib
import re
import subprocess
import sys
import types
import uuid
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from convsqueeze.checkpoint import open_checkpoint
from convsqueeze.errors import CheckpointError

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}
ADAM: dict[str, Any] = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}
CODE = "code that the file chooses"


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert message.isprintable()
    assert " was needed. " in message
    return message


def followed(message: str, path: Path) -> Path:
    """Run what a message says; the file that it then says to name."""
    found = re.search(r"Run (python -c .*) and name ([^ ]+)\.$", message)
    assert found, message
    folder = os.path.dirname(sys.executable)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(found[1], shell=True, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, (found[1], done.stderr)
    return path.with_name(found[2])


def same(found: Path, expected: dict[str, torch.Tensor], key: str | None = None) -> None:
    checkpoint = open_checkpoint(found, key=key)
    assert list(checkpoint.tensors) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.load(name), tensor)


PLAIN_VALUES: dict[str, tuple[Any, str]] = {
    "argparse": (argparse.Namespace(lr=0.1, data="x"), "argparse.Namespace"),
    "pathlib": (pathlib.PurePosixPath("/data/x"), "pathlib.*PurePosixPath"),
    "a path of Windows": (pathlib.PureWindowsPath("c:/x"), "pathlib.*PureWindowsPath"),
    "a numpy scalar": (np.float64(0.9), r"multiarray\.scalar, numpy\.dtype"),
    "a numpy integer": (np.int64(3), r"multiarray\.scalar, numpy\.dtype"),
    "a numpy array": (np.zeros((2, 3), np.float32), "numpy.dtype, numpy.ndarray"),
    "strings of numpy": (np.array(["a", "bc"]), "numpy.dtype, numpy.ndarray"),
    "a state of numpy's generator": (np.random.get_state(), "numpy.dtype, numpy.ndarray"),
    "datetime": (datetime.datetime(2024, 2, 29, 12), "datetime.datetime"),
    "a time zone": (datetime.UTC, "datetime.timedelta, datetime.timezone"),
    "a date": ([datetime.date(2024, 1, 1), datetime.time(3)], "datetime.date, datetime.time"),
    "a namespace": (types.SimpleNamespace(a=1), "types.SimpleNamespace"),
    "decimal": (decimal.Decimal("1.5"), "decimal.Decimal"),
    "uuid": (uuid.UUID(int=7), "uuid.UUID"),
    "a frozen set": (frozenset([1]), "frozenset"),
    "a slice": (slice(1, 2), "slice"),
    "a range": (range(3), "range"),
}


@pytest.mark.stress
@pytest.mark.parametrize(("value", "says"), PLAIN_VALUES.values(), ids=PLAIN_VALUES)
def test_plain_values_beside_the_weights(tmp_path: Path, value: Any, says: str) -> None:
    """Their advice needs no trust: it allows these classes and no others."""
    path = tmp_path / "model.pt"
    torch.save({"model": STATE, "x": {"y": value}, "optimizer": ADAM}, path)
    message = refusal(path)
    assert re.search(f"objects? of .*{says}, which for safety", message)
    assert "weights_only=False" not in message
    assert "trust" not in message
    same(followed(message, path), STATE)


@pytest.mark.stress
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_all_foreign_objects_are_named(tmp_path: Path, zipped: bool) -> None:
    """A training checkpoint as scripts write it, with everything in it."""
    path = tmp_path / "last.ckpt"
    hyper = {"root": Path("/data"), "at": datetime.datetime(2024, 1, 1), "best": np.float32(1)}
    whole = {"state_dict": STATE, "hyper_parameters": hyper, "args": argparse.Namespace()}
    torch.save(whole, path, _use_new_zipfile_serialization=zipped)
    message = refusal(path)
    for name in ("argparse.Namespace", "datetime.datetime", "pathlib", "scalar", "numpy.dtype"):
        assert name in message.partition(" which for safety")[0]
    same(followed(message, path), STATE)


@pytest.mark.stress
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (fractions.Fraction(1, 3), "fractions.Fraction"),
        (defaultdict(list, a=[1]), "collections.defaultdict"),
        (torch.optim.SGD([nn.Parameter(torch.ones(1))]), "torch.optim.sgd.SGD"),
    ],
)
def test_other_objects_beside_the_weights(tmp_path: Path, value: Any, says: str) -> None:
    """What their classes do when they are made nobody knows, so the advice says what it takes."""
    path = tmp_path / "model.pt"
    torch.save({"ema": {"module": STATE}, "x": value}, path)
    message = refusal(path)
    assert says in message
    assert f"If you trust where it is from, as this runs {CODE}: Run python" in message
    same(followed(message, path), STATE)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.stress
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_whole_module(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "net.pth"
    torch.save(network(), path, _use_new_zipfile_serialization=zipped)
    message = refusal(path)
    for name in ("Conv2d", "BatchNorm2d", "Linear", "Sequential"):
        assert name in message
    assert CODE in message
    same(followed(message, path), dict(network().state_dict()))


def test_modules_in_a_dictionary(tmp_path: Path) -> None:
    """As detectors save them: the model and its average, both as modules."""
    path = tmp_path / "best.pt"
    whole = {"epoch": 3, "model": network(), "ema": network().half(), "optimizer": ADAM}
    torch.save({**whole, "date": "2024-01-01", "updates": 7}, path)
    found = followed(refusal(path), path)
    same(found, dict(network().state_dict()), "model")
    same(found, dict(network().half().state_dict()), "ema")


@pytest.mark.stress
@pytest.mark.filterwarnings("ignore")
def test_archives_of_code(tmp_path: Path) -> None:
    net = network()[0]  # type: ignore[index]
    torch.jit.save(torch.jit.script(net), tmp_path / "script.pt")
    torch.export.save(torch.export.export(net, (torch.ones(1, 3, 5, 5),)), tmp_path / "net.pt2")
    for name in ("script.pt", "net.pt2"):
        path = tmp_path / name
        same(followed(refusal(path), path), dict(net.state_dict()))


def test_a_state_dict_with_foreign_entries(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(OrderedDict(STATE, scale=np.float64(2), _extra_state={"x": 1}), path)
    same(followed(refusal(path), path), STATE)


def test_names_that_shells_and_python_read_otherwise(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s a "$HOME" `x`'
    folder.mkdir()
    path = folder / "model's.pt"
    key = 'a "key" with $x, it\'s \\ odd'
    torch.save({key: STATE, "args": argparse.Namespace()}, path)
    same(followed(refusal(path), path), STATE)


@pytest.mark.parametrize(
    "whole",
    [
        [argparse.Namespace()],
        {"args": argparse.Namespace(weights=STATE)},
        {"args": argparse.Namespace(), "optimizer": ADAM},
    ],
)
def test_no_weights_that_are_seen(tmp_path: Path, whole: Any) -> None:
    """Nothing is advised that would find none; what it takes is said."""
    path = tmp_path / "model.pt"
    torch.save(whole, path)
    message = refusal(path)
    assert "python -c" not in message
    assert f"weights_only=False), which runs {CODE}" in message


def test_advice_has_an_end(tmp_path: Path) -> None:
    """However many weights, classes and letters a file has."""
    path = tmp_path / "model.pt"
    many = {f"{number}": dict(STATE) for number in range(100)} | {"x" * 100_000: STATE}
    torch.save({"args": argparse.Namespace(), **many}, path)
    message = refusal(path)
    assert len(message) < 3_000
    same(followed(message, path), STATE, "7")


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def test_what_runs_commands_is_not_to_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"model": STATE, "x": Runs(), "args": argparse.Namespace()}, path)
    message = refusal(path)
    assert "Do not load it: it runs commands." in message
    assert "torch.load" not in message
