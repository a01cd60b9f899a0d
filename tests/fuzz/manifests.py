"""Manifests: YAML that parsers choke on, and sound YAML that asks for the impossible."""

import json
from functools import cache
from typing import Any

import torch

from .choices import HUGE, SIZES, Choices, altered, damaged
from .isolation import Case
from .safetensors_files import SUFFIXES
from .samples import PAIR, PAIRS, SQUEEZED, stored, tensors

NAMES = (
    *("{i}", "{i}.{j}", "blk.{i}.a", "blk.{i}.{j}", "{a}{b}{c}{d}{e}{f}{g}{h}{k}x", "blk.{i²}.a"),
    *("{i}.{i}", "{", "}", "{}", "{i}{i}", "blk.{ª}.a", "{_}", "{a}.{b}.{c}", "blk.{i}.a.weight"),
    *("body.0", "body.1", "norm", "", ".", "\x00", "\ud800", "é", "x" * 1000, "(", "[a-z]*", "\\"),
    *("body.0.weight", "up", "flat", "norm.running_mean", "long." + "y" * 60, "{a}.{a}", "{é}"),
)
NUMBERS = (
    *(*SIZES, *HUGE, 1.5, -0.0, 1e308, 5e-324, True, False, [1, 1], [2, 2], [3, 3, 3], [1], [0, 0]),
    *([1 << 20, 1], [4096, 4096], [10**6, 10**6], [1 << 62, 2], [[1, 1], [1, 1]], [[0, 9], [9, 0]]),
    *([[-1, 5], [5, -1]], [[1 << 40, 0], [0, 0]], 5, 9, 13, 17, 31, 100, 300, 1000, 5000),
)
WORDS = ("conv", "conv_transpose", "linear", "batch_norm", "scale", "avg_pool", "identity", "pad")
OTHER = (
    "same",
    "valid",
    "zeros",
    "reflect",
    "replicate",
    "circular",
    "exact",
    "corrected",
    "interior",
)
LAYERS: tuple[dict[str, Any], ...] = (
    *PAIR.values(),
    *(
        {"name": "body.0", "padding": 1},
        {"name": "body.1", "padding": 1, "padding_mode": "circular"},
    ),
    *(
        {"type": "identity"},
        {"type": "scale", "factor": 2.0, "shift": -0.5},
        {"type": "pad", "padding": [1, 1]},
    ),
    *(
        {"type": "avg_pool", "kernel_size": [2, 2]},
        {"type": "avg_pool", "kernel_size": 3, "stride": 2},
    ),
    *(SQUEEZED["pairs"][1]["chain"][0], SQUEEZED["pairs"][1]["chain"][1], {"name": "norm"}),
    {"chain": [{"name": "body.0"}, {"name": "body.1"}]},
    {"sum": [{"type": "identity"}, {"type": "scale", "factor": 0.5}]},
)
HOSTILE: tuple[Any, ...] = (*NAMES, *NUMBERS, *NUMBERS, *WORDS, *OTHER, *LAYERS, None, [], {})
KEYS = ("stride", "padding", "dilation", "groups", "output_padding", "padding_mode", "kernel_size")
BLOCKS: dict[str, Any] = {
    "version": 1,
    "pairs": [{"first": {"name": "blk.{i}.a"}, "second": {"name": "blk.{i}.b"}}],
}
PRODUCT: dict[str, Any] = {
    "version": 1,
    "pairs": [{"chain": [{"name": f"blk.{{p{n}}}.a"} for n in range(7)]}],
}
"""Placeholders that have nothing to do with each other: every layer with every other."""

DOCUMENTS: tuple[dict[str, Any], ...] = (PAIRS, SQUEEZED, BLOCKS, PRODUCT)
BORDERS = ("corrected", "interior", "exact")

RAW = (
    *(b"x: &a [*a]", b"x: &a {k: *a}", b"? [a, b]\n: 1", b"? {a: b}\n: 1", b"? &a [*a]\n: 1"),
    *(
        b"x: 2001-99-99",
        b"x: 2001-12-14t21:59:43.10-99:99",
        b"x: 2001-01-01",
        b"x: 0001-01-01t00:00:00+23:59",
    ),
    *(
        b"x: !!timestamp x",
        b"x: !!int x",
        b"x: !!float x",
        b"x: !!binary x",
        b"x: !!bool x",
        b"x: !!null x",
    ),
    *(
        b"x: !!set {a, b}",
        b"x: !!omap [a: 1]",
        b"x: !!pairs [a: 1]",
        b"x: !!python/object:os.system {}",
    ),
    *(
        b"x: !foo bar",
        b"x: !!map [a]",
        b"x: !!seq {a: b}",
        b"<<: 3",
        b"<<: [1]",
        b"<<: *nothing",
        b"<<: {a: 1}",
    ),
    *(
        b"x: &b {a: 1}\n<<: *b",
        b"x: &b {a: 1}\ny: {<<: [*b, *b]}",
        b"x: &b {<<: *b}",
        b"!!int x: 1",
    ),
    *(
        b"x: " + b"9" * 5000,
        b"x: 0x" + b"f" * 5000,
        b"x: 1e9999",
        b"x: -.inf",
        b"x: .nan",
        b"x: 0o8",
        b"x: 0b2",
    ),
    *(
        b"x: 1_0",
        b"x: 190:20:30",
        b"x: +-1",
        b"x: 0.",
        b'x: "\\ud800"',
        b'x: "\\U00110000"',
        b'x: "\\x00"',
    ),
    *(
        b"%YAML 1.1\n---\nx: no",
        b"%YAML 9.9\n---\nx: 1",
        b"%TAG ! a\n---\nx: !b c",
        b"---\n---\nx: 1",
        b"--- |\n x",
    ),
    *(
        b"x: |+9\n  a",
        b"x: >-\n  a",
        b"\xef\xbb\xbfx: 1",
        b"\xff\xfex\x00",
        b"x: \x00",
        b"x: \x85",
        b"- 1",
        b"5",
        b"~",
    ),
    *(
        b"x: " + b"[" * 200 + b"]" * 200,
        b"x: " + b"[" * 20_000,
        b"x: " + b"{a: " * 400 + b"1" + b"}" * 400,
    ),
    *(
        b"- " * 3000 + b"x",
        b"? " * 2000,
        b"x: 'a\n",
        b"x: [a, b",
        b"a: b: c",
        b"!!set {version}",
        b"1: 2",
        b"x: *x",
    ),
    *(
        b"null: 1",
        b"true: 1",
        b"1.5: 1",
        b"2001-01-01: 1",
        b"!!binary aGk=: 1",
        b".nan: 1",
        b"? ''\n: 1",
    ),
)
LAUGHS = b"a0: &a0 [x, x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 12)
)
"""A few hundred bytes that stand for a list of thousands of millions."""


@cache
def model() -> bytes:
    state = dict(tensors())
    for n in range(8):
        state[f"blk.{n}.a.weight"] = torch.ones(2, 2, 1, 1) * n
        state[f"blk.{n}.b.weight"] = torch.ones(2, 2, 3, 3)
    state["long." + "y" * 60 + ".weight"] = torch.ones(2, 2, 1, 1)
    return stored(state)


def make(choices: Choices) -> Case:
    """A manifest beside the checkpoint that it is for."""
    data = choices.pick((_structured, _structured, _raw, _altered_bytes))(choices)
    suffix = choices.pick(SUFFIXES)
    return Case({"model.safetensors": model(), "pairs.yaml": data}, {"suffix": suffix})


def _structured(choices: Choices) -> bytes:
    document = choices.pick(DOCUMENTS)
    if choices.chance(50):
        document["border"] = choices.pick(BORDERS)
    for _ in range(choices.below(4)):
        layers = _layers(document)
        layer = layers[choices.below(len(layers))]
        key = choices.pick(
            (
                *KEYS,
                *KEYS,
                "name",
                "eps",
                "factor",
                "weight",
                "bias",
                "type",
                "input",
                "into",
                "drop",
            )
        )
        layer[key] = choices.pick(NAMES if key in ("name", "into", "weight") else HOSTILE)
    if choices.chance(20):
        entry = document["pairs"][choices.below(len(document["pairs"]))]
        entry["input"] = [choices.size(), choices.pick((5, 64, choices.size()))]
    if choices.chance(20):
        key = choices.pick(("chain", "sum"))
        document["pairs"].append({key: [choices.pick(LAYERS) for _ in range(1 + choices.below(4))]})
    document = altered(choices, document, HOSTILE, choices.pick((0, 0, 2, 8)))
    text = json.dumps(document, indent=choices.pick((None, 1))).encode()
    return damaged(choices, text) if choices.chance(5) else text


def _layers(node: Any) -> "list[dict[str, Any]]":
    """Every mapping of a manifest below its entries, the entries too."""
    if isinstance(node, list):
        return [found for value in node for found in _layers(value)]
    if not isinstance(node, dict):
        return []
    inside = [found for value in node.values() for found in _layers(value)]
    return inside if "pairs" in node and inside else [node, *inside]


def _raw(choices: Choices) -> bytes:
    """One strange piece of YAML, alone or in a sound manifest."""
    if choices.chance(5):
        return LAUGHS + b"version: 1\npairs: *a11\n"
    piece = choices.pick(RAW)
    where = choices.below(4)
    if where == 0:
        return piece + b"\nversion: 1\npairs: []\n"
    value = piece.removeprefix(b"x: ")
    if where == 1:
        return b"version: 1\npairs: " + value + b"\n"
    name = choices.pick((b"name", b"padding", b"stride", b"eps", b"groups", b"type"))
    if where == 2:
        return b"version: 1\npairs:\n- first: {name: body.0, " + name + b": " + value + b"}\n"
    return (
        b"version: 1\npairs:\n- first: &f\n    name: body.0\n"
        + b"".join(b"    " + line + b"\n" for line in piece.split(b"\n"))
        + b"  second: {name: body.1}\n"
    )


def _altered_bytes(choices: Choices) -> bytes:
    pieces = (
        b"&a ",
        b"*a ",
        b"<<: ",
        b"!!",
        b"\n",
        b"- ",
        b"? ",
        b": ",
        b"{",
        b"}",
        b"[",
        b"]",
        b"'",
        b'"',
        b"#",
        b"|",
        b">",
        b"\t",
    )
    text = (
        b"version: 1\nborder: corrected\npairs:\n- first: &l {name: body.0, padding: 1}\n"
        b"  second:\n    name: body.1\n    padding: [1, 1]\n  into: x\n"
        b"- chain:\n  - <<: *l\n    name: up\n    type: conv_transpose\n"
    )
    return damaged(choices, text, pieces)
