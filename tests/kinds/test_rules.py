"""Rules over calls that no front end made: what a kind needs to know stands in the call alone."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

import convsqueeze
from convsqueeze.algebra.tree import Chain, Sum
from convsqueeze.kinds import LAYER_KINDS, Layer
from convsqueeze.kinds.call import (
    Call,
    Derived,
    Numbers,
    Product,
    RuntimeNumber,
    Stored,
    Value,
    WithIdentity,
)
from convsqueeze.kinds.registry import KINDS, semantics_of, semantics_of_module
from convsqueeze.kinds.semantics import Adding, Identity, Linear, Reason

pytestmark = pytest.mark.quick

IMAGE = Value(("n", 4, "h", "w"), torch.float32)
OUT = Value(("n", 6, "h", "w"), torch.float32)


def stored(key: str, *shape: int, **more: Any) -> Stored:
    return Stored(key, shape, (key,), dtype=torch.float32, **more)


def call(operator: str, result: Value = OUT, names: str = "", **arguments: Any) -> Call:
    return Call(operator, arguments, result, frozenset(names.split()))


def conv(operator: str = "conv2d", **arguments: Any) -> Call:
    given = {
        "weight": stored("a.weight", 6, 4, 3, 3),
        "bias": stored("a.bias", 6),
        "stride": [1, 1],
        "padding": [0, 0],
        "dilation": [1, 1],
        "groups": 1,
    }
    return call(operator, names="a.weight a.bias", input=IMAGE, **(given | arguments))


def layer(kind: str, **words: Any) -> Layer:
    return LAYER_KINDS[kind].model_validate({"type": kind, **words})


POINT = stored("a.weight", 4, 4, 1, 1)
NORM = {role: stored(f"n.{role}", 4) for role in ("weight", "bias", "running_mean", "running_var")}
FOUND: dict[str, tuple[Call, Any, int | None]] = {
    "convolution": (conv(), {"name": "a"}, 2),
    "its settings": (
        conv(stride=[2, 2], padding=[1, 0], dilation=[1, 3], groups=2),
        {"name": "a", "stride": 2, "padding": [1, 0], "dilation": [1, 3], "groups": 2},
        2,
    ),
    "same": (conv(padding="same"), {"name": "a", "padding": "same"}, 2),
    "tensors of two layers": (
        conv(bias=stored("b.bias", 6)),
        {"weight": "a.weight", "bias": "b.bias"},
        2,
    ),
    "transposed by an argument": (
        conv("convolution", transposed=True, output_padding=[1, 0], stride=[2, 2]),
        {"type": "conv_transpose", "name": "a", "stride": 2, "output_padding": [1, 0]},
        2,
    ),
    "linear": (
        call("linear", input=IMAGE, weight=stored("a.weight", 6, 4), bias=None, names="a.weight"),
        {"type": "linear", "name": "a"},
        0,
    ),
    "norm": (
        call("batch_norm", IMAGE, input=IMAGE, **NORM, training=False, eps=1e-3),
        {"type": "batch_norm", "name": "n", "eps": 1e-3},
        2,
    ),
    "pool": (
        call("avg_pool2d", input=IMAGE, kernel_size=[2, 3], stride=[], padding=[1, 1]),
        {"type": "avg_pool", "kernel_size": [2, 3], "padding": 1},
        2,
    ),
    "pad": (
        call("pad", input=IMAGE, pad=[1, 2, 0, -1], mode="reflect"),
        {"type": "pad", "padding": [[0, -1], [1, 2]], "padding_mode": "reflect"},
        2,
    ),
    "factor": (
        call("mul", IMAGE, self=IMAGE, other=0.5),
        {"type": "scale", "factor": 0.5},
        None,
    ),
    "stored factor": (
        call("mul", IMAGE, self=stored("s", 4, 1, 1, factor=2.0), other=IMAGE),
        {"type": "scale", "weight": "s", "factor": 2.0},
        2,
    ),
    "known summand": (
        call("sub", IMAGE, self=Numbers(torch.ones(1)), other=IMAGE, alpha=3),
        {"type": "scale", "factor": -3.0, "shift": 1.0},
        None,
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_a_call_is_a_layer(name: str) -> None:
    given, words, rank = FOUND[name]
    found = semantics_of(given)
    assert isinstance(found, Linear)
    assert (found.tree, found.rank) == (layer(words.get("type", "conv"), **words), rank)
    assert {*found.keys} == {
        key for one in given.arguments.values() if isinstance(one, Stored) for key in one.keys
    }


def test_layers_in_a_row_and_beside_each_other() -> None:
    names = {"weight": "s", "bias": "a.bias"}
    product = Product(stored("s", 6, 1, 1, 1), stored("a.weight", 6, 4, 3, 3))
    found = semantics_of(conv(weight=product))
    assert isinstance(found, Linear)
    assert found.tree == Chain((layer("conv", weight="a.weight"), layer("scale", **names)))
    found = semantics_of(conv(weight=WithIdentity(POINT), bias=None))
    assert isinstance(found, Linear)
    kernel = layer("conv", weight="a.weight")
    assert found.tree == Sum((kernel, layer("identity")))
    found = semantics_of(call("sub", IMAGE, self=IMAGE, other=stored("m", 4, 1, 1), alpha=1))
    assert isinstance(found, Linear)
    minus = layer("scale", factor=-1.0)
    assert found.tree == Chain((layer("scale", bias="m", factor=-1.0), minus))


def test_sums_and_what_changes_nothing() -> None:
    two = {"self": IMAGE, "other": IMAGE, "alpha": 1}
    assert semantics_of(call("add", IMAGE, **two)) == Adding()
    assert semantics_of(call("subtract", IMAGE, **two)) == Adding(frozenset({1}))
    assert semantics_of(call("view", IMAGE, self=IMAGE, size=[1, 2])) == Identity()
    assert semantics_of(call("dropout", IMAGE, input=IMAGE, p=0.5, train=False)) == Identity()


OPEN = Value((None, 4, "h", "w"), torch.float32)
REFUSED: dict[str, tuple[Call, str]] = {
    "a size of the input": (conv(padding=[RuntimeNumber(), 0]), "depends on the size of the input"),
    "a computed weight": (conv(weight=Derived(("a.weight",))), "computed from stored tensors"),
    "a weight from the input": (
        call("conv2d", input=stored("a", 1, 4, 5, 5), weight=IMAGE),
        "not one of the stored tensors",
    ),
    "a factor on the channels that enter": (
        conv(
            "conv_transpose2d",
            weight=Product(stored("s", 6, 1, 1, 1), stored("a.weight", 6, 4, 3, 3)),
        ),
        "computed from stored tensors",
    ),
    "another dtype": (
        call("mul", Value(IMAGE.shape, torch.float64), self=IMAGE, other=2.0),
        "it converts to torch.float64",
    ),
    "whole numbers": (
        call(
            "mul",
            IMAGE,
            self=IMAGE,
            other=Stored("s", (4, 1, 1), ("s",), dtype=torch.int64),
        ),
        "s is stored as torch.int64",
    ),
    "a shape that is not known": (
        call("view", OPEN, self=OPEN, size=[1, 2]),
        "view gives another shape",
    ),
    "sizes that are not known": (
        call("add", OPEN, self=OPEN, other=OPEN, alpha=1),
        "different shapes",
    ),
    "a norm of the batch": (
        call("_native_batch_norm_legit", IMAGE, input=IMAGE, **NORM, training=True),
        "is in training mode",
    ),
    "no statistics": (
        call("_native_batch_norm_legit", IMAGE, input=IMAGE, training=True),
        "keeps no running statistics",
    ),
    "a pool of open size": (
        call("avg_pool2d", input=IMAGE, kernel_size=RuntimeNumber(), padding=[0, 0]),
        "depends on that of the input",
    ),
    "an activation": (call("relu", IMAGE, self=IMAGE), "relu is not linear"),
    "an operator that nobody knows": (call("frob", IMAGE, self=IMAGE), "no layer that can be"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_layer_has_a_reason(name: str) -> None:
    given, told = REFUSED[name]
    found = semantics_of(given)
    assert isinstance(found, Reason)
    assert told in found.text


MODULES = {
    "conv": torch.nn.Conv1d(4, 6, 3, 2, padding_mode="circular", padding=1),
    "conv_transpose": torch.nn.ConvTranspose2d(4, 6, 3, 2, output_padding=(1, 0)),
    "linear": torch.nn.Linear(4, 6),
    "batch_norm": torch.nn.BatchNorm2d(4).eval(),
    "avg_pool": torch.nn.AvgPool3d(2, padding=1),
    "pad": torch.nn.ReplicationPad2d((1, 2, 3, 4)),
}
WORDS: dict[str, dict[str, Any]] = {
    "conv": {"stride": 2, "padding": 1, "padding_mode": "circular"},
    "conv_transpose": {"stride": 2, "output_padding": [1, 0]},
    "linear": {},
    "batch_norm": {"eps": 1e-5},
    "avg_pool": {"kernel_size": [2, 2, 2], "padding": 1},
    "pad": {"padding": [[3, 4], [1, 2]], "padding_mode": "replicate"},
}


@pytest.mark.parametrize("kind", MODULES)
def test_a_module_is_a_layer(kind: str) -> None:
    names = frozenset(f"m.{key}" for key in MODULES[kind].state_dict())
    found = semantics_of_module(MODULES[kind], "m", names)
    assert isinstance(found, Linear)
    name = {"name": "m"} if LAYER_KINDS[kind].roles else {}
    assert found.tree == layer(kind, **WORDS[kind], **name)


def test_no_two_kinds_have_a_rule_for_the_same() -> None:
    for rules in ([kind.aten for kind in KINDS], [kind.modules for kind in KINDS]):
        every = [name for one in rules for name in one]
        assert len(every) == len(set(every)) > 10


HOME = Path(convsqueeze.__file__).parent / "kinds"


def imported(file: Path) -> set[str]:
    nodes = [*ast.walk(ast.parse(file.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {
        f"{node.module}.{alias.name}"
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_the_kinds_know_no_front_end() -> None:
    files = [*HOME.glob("*.py")]
    names = {name for file in files for name in imported(file)}
    assert "torch.nn.functional" in names
    assert not {name for name in names if name.startswith(("torch.fx", "torch.export", "onnx"))}
    front_end = imported(HOME.parent / "tracing" / "calls.py")
    assert "torch.fx.Node" in front_end
