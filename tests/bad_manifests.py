"""Manifests that are wrong, each with what must be told of it.

They are for `model.pt` of test_bad_input: body.0 (1x1, 4 to 8 channels, bias), body.1 (3x3, 8 to
2), norm (8 channels), wide (1x1, 9 to 6), line (one axis) and head (10 x 2).
"""

from dataclasses import dataclass, field

PAIRS = "version: 1\npairs:\n  - {first: {name: body.0}, second: {name: body.1}}\n"


@dataclass(frozen=True)
class Case:
    """A manifest and the words of each problem that must be told of it."""

    name: str
    text: str
    problems: tuple[tuple[str, ...], ...]
    options: tuple[str, ...] = field(default=())


def entry(body: str) -> str:
    return f"version: 1\npairs:\n  - {body}\n"


# What no manifest says.

MANIFESTS = [
    Case("empty", "", (("pairs.yaml", "empty", "needed"),)),
    Case("a list", "- 1\n", (("pairs.yaml", "[1]", "needed"),)),
    Case("syntax", "version: 1\npairs:\n  - {first: [}\n", (("pairs.yaml:3", "YAML"),)),
    Case("tab", "version: 1\npairs:\n\t- x\n", (("pairs.yaml:3", "YAML"),)),
    Case("key twice", "version: 1\nversion: 1\npairs: []\n", (("pairs.yaml:2", "version"),)),
    Case("alias of nothing", entry("*nothing"), (("pairs.yaml:3", "YAML"),)),
    Case(
        "unknown key",
        entry("{first: {name: body.0, paddin: 1}, second: {name: body.1}}"),
        (("pairs.yaml:3 pairs[0].first.paddin", "unknown key", "Did you mean padding"),),
    ),
    Case(
        "unknown key at the top",
        "version: 1\nboarder: exact\npairs:\n  - {first: {name: a}, second: {name: b}}\n",
        (("pairs.yaml:2 boarder", "unknown key", "Did you mean border"),),
    ),
    Case(
        "unknown key of an entry",
        entry("{first: {name: body.0}, second: {name: body.1}, int: x}"),
        (("pairs.yaml:3 pairs[0].int", "unknown key", "into"),),
    ),
    Case(
        "key of another kind of layer",
        entry("{chain: [{name: body.0}, {name: norm, type: batch_norm, eps: 1.0e-5, stride: 2}]}"),
        (("pairs.yaml:3 pairs[0].chain[1].stride", "unknown key"),),
    ),
    Case(
        "wrong type",
        entry("{first: {name: body.0, stride: two}, second: {name: body.1}}"),
        (("pairs.yaml:3 pairs[0].first.stride", "'two'", "whole number", "needed"),),
    ),
    Case(
        "shift of infinity",
        entry("{chain: [{name: body.0}, {type: scale, shift: -.inf}, {name: body.1}]}"),
        (("pairs.yaml:3 pairs[0].chain[1].shift", "is -inf, a finite number was needed"),),
    ),
    Case(
        "shift that is no number",
        entry("{chain: [{name: body.0}, {type: scale, shift: .nan}, {name: body.1}]}"),
        (("pairs.yaml:3 pairs[0].chain[1].shift", "is nan, a finite number was needed"),),
    ),
    Case(
        "shift too large",
        entry("{chain: [{name: body.0}, {type: scale, shift: 1.0e+999}, {name: body.1}]}"),
        (("pairs.yaml:3 pairs[0].chain[1].shift", "is inf, a finite number was needed"),),
    ),
    Case(
        "scale by nothing",
        entry("{chain: [{name: body.0}, {type: scale}, {name: body.1}]}"),
        (("pairs.yaml:3 pairs[0].chain[1]", "a factor or a shift to scale by"),),
    ),
    Case(
        "fraction",
        entry("{first: {name: body.0, padding: 1.5}, second: {name: body.1}}"),
        (("pairs[0].first.padding", "1.5", "needed"),),
    ),
    Case(
        "truth value",
        entry("{first: {name: body.0, groups: true}, second: {name: body.1}}"),
        (("pairs[0].first.groups", "true", "whole number", "needed"),),
    ),
    Case(
        "number for a name",
        entry("{first: {name: 0}, second: {name: body.1}}"),
        (("pairs[0].first.name", "0", "a name", "needed"),),
    ),
    Case(
        "stride of zero",
        entry("{first: {name: body.0, stride: 0}, second: {name: body.1}}"),
        (("pairs[0].first.stride", "0", "from 1 up", "needed"),),
    ),
    Case(
        "groups of zero",
        entry("{first: {name: body.0, groups: 0}, second: {name: body.1}}"),
        (("pairs[0].first.groups", "is 0", "1 or more", "needed"),),
    ),
    Case(
        "padding of three numbers a side",
        entry("{first: {name: body.0, padding: [[1, 2, 3], [1, 1]]}, second: {name: body.1}}"),
        (("pairs[0].first.padding", "[before, after]", "needed"),),
    ),
    Case(
        "unknown padding mode",
        entry("{first: {name: body.0, padding_mode: wrap}, second: {name: body.1}}"),
        (("pairs[0].first.padding_mode", "'wrap'", "circular", "needed"),),
    ),
    Case(
        "unknown type",
        entry("{first: {name: body.0, type: batchnorm}, second: {name: body.1}}"),
        (("pairs[0].first.type", "batchnorm", "Did you mean batch_norm"),),
    ),
    Case(
        "unknown border",
        entry("{first: {name: body.0}, second: {name: body.1}, border: none}"),
        (("pairs[0].border", "'none'", "exact", "interior", "needed"),),
    ),
    Case(
        "missing eps",
        entry("{chain: [{name: body.0}, {name: norm, type: batch_norm}]}"),
        (("pairs.yaml:3 pairs[0].chain[1]", "eps is missing", "1.0e-5"),),
    ),
    Case(
        "missing second",
        entry("{first: {name: body.0}}"),
        (("pairs.yaml:3 pairs[0]", "second is missing"),),
    ),
    Case("missing version", "pairs:\n  - {first: {name: a}, second: {name: b}}\n", (("version",),)),
    Case("missing pairs", "version: 1\n", (("pairs is missing",),)),
    Case(
        "another version", "version: 2\npairs: [{first: {name: a}, second: {name: b}}]\n", (("2",),)
    ),
    Case("no entries", "version: 1\npairs: []\n", (("pairs.yaml:2 pairs", "empty", "needed"),)),
    Case("empty chain", entry("{chain: []}"), (("pairs[0].chain", "empty", "needed"),)),
    Case(
        "layer without a name",
        entry("{first: {stride: 2}, second: {name: body.1}}"),
        (("pairs[0].first", "name"),),
    ),
    Case("an entry that is no mapping", entry("body.0"), (("pairs[0]", "'body.0'", "needed"),)),
    Case(
        "a layer that is no mapping",
        entry("{first: body.0, second: {name: body.1}}"),
        (("pairs[0].first", "'body.0'", "needed"),),
    ),
    Case("entry that holds itself", "version: 1\npairs: &all [*all]\n", (("pairs.yaml",),)),
    Case("nested without end", "version: 1\npairs: " + "[" * 500 + "\n", (("pairs.yaml",),)),
    Case("own tag", entry("{first: {name: !mine body.0}, second: {}}"), (("pairs.yaml",),)),
    Case("key that is no name", entry("{[1]: body.0}"), (("pairs.yaml",),)),
    Case("several documents", f"{PAIRS}---\n{PAIRS}", (("pairs.yaml:4", "YAML"),)),
    Case(
        "date for a name",
        entry("{first: {name: 2024-01-01}, second: {name: body.1}}"),
        (("pairs.yaml:3 pairs[0].first", "2024-01-01"),),
    ),
    Case(
        "not finite",
        entry("{chain: [{name: body.0}, {name: norm, type: batch_norm, eps: .nan}]}"),
        (("pairs.yaml", "eps", "needed"),),
    ),
]

# What does not fit the checkpoint.

MISFITS = [
    Case(
        "unknown layer",
        entry("{first: {name: bodi.0}, second: {name: body.1}}"),
        (("pairs.yaml:3 pairs[0].first", "bodi.0.weight is not in", "Did you mean body.0"),),
    ),
    Case(
        "layer that resembles nothing",
        entry("{first: {name: zzzzzz}, second: {name: body.1}}"),
        (("pairs[0].first", "zzzzzz", "convsqueeze inspect"),),
    ),
    Case(
        "unknown tensor",
        entry("{first: {name: body.0}, second: {weight: body.1.wieght}, into: x}"),
        (("pairs[0].second", "body.1.wieght", "Did you mean body.1.weight"),),
    ),
    Case(
        "batch norm without statistics",
        entry("{chain: [{name: body.0}, {name: wide, type: batch_norm, eps: 1.0e-5}]}"),
        (
            ("pairs[0].chain[1]", "wide.running_mean"),
            ("pairs[0].chain[1]", "wide.running_var"),
        ),
    ),
    Case(
        "channels that do not chain",
        entry("{first: {name: body.0}, second: {name: wide}}"),
        (("pairs.yaml:3 pairs[0].second", "wide", "8", "9"),),
    ),
    Case(
        "groups that do not divide the output",
        entry("{first: {name: body.0, groups: 3}, second: {name: body.1}}"),
        (("pairs.yaml:3 pairs[0].first", "body.0", "8", "3"),),
    ),
    Case(
        "groups that change the input",
        entry("{first: {name: body.0}, second: {name: body.1, groups: 2}}"),
        (("pairs[0].second", "body.1", "8", "16"),),
    ),
    Case(
        "another number of axes",
        entry("{first: {name: body.0}, second: {name: line}}"),
        (("pairs[0].second", "line"),),
    ),
    Case(
        "padding for another number of axes",
        entry("{first: {name: body.0, padding: [1, 1, 1]}, second: {name: body.1}}"),
        (("pairs[0].first", "padding", "3", "2"),),
    ),
    Case(
        "branches that do not add",
        entry("{into: x, sum: [{name: body.0}, {name: wide}]}"),
        (("pairs[0].sum[1]", "wide"),),
    ),
    Case(
        "tensor used twice in an entry",
        entry("{into: x, sum: [{name: body.0}, {name: body.0}]}"),
        (("pairs.yaml:3 pairs[0]", "body.0.weight", "2 times"), ("body.0.bias", "2 times")),
    ),
    Case(
        "tensor used twice across entries",
        "version: 1\npairs:\n"
        "  - {first: {name: body.0}, second: {name: body.1}, into: x}\n"
        "  - {first: {name: body.0}, second: {name: body.1}, into: y}\n",
        (
            ("pairs.yaml:4 pairs[1]", "body.0.weight", "pairs.yaml:3 pairs[0]"),
            ("pairs.yaml:4 pairs[1]", "body.0.bias", "pairs.yaml:3 pairs[0]"),
            ("pairs.yaml:4 pairs[1]", "body.1.weight", "pairs.yaml:3 pairs[0]"),
        ),
    ),
    Case(
        "two entries into one name",
        "version: 1\npairs:\n"
        "  - {chain: [{name: body.0}], into: x}\n"
        "  - {chain: [{name: body.1}], into: x}\n",
        (("pairs.yaml:3 pairs[0]", "pairs.yaml:4 pairs[1]", "into x", "2 times"),),
    ),
    Case(
        "into a tensor that stays",
        entry("{first: {name: body.0}, second: {name: body.1}, into: head}"),
        (("pairs.yaml:3 pairs[0]", "head.weight", "overwrite"),),
    ),
    Case(
        "into a bias that stays",
        entry("{first: {name: body.0}, second: {name: body.1}, into: norm}"),
        (("norm.weight", "overwrite"), ("norm.bias", "overwrite")),
    ),
    Case(
        "nothing to merge into",
        entry("{chain: [{weight: body.0.weight}, {weight: body.1.weight}]}"),
        (("pairs.yaml:3 pairs[0]", "into"),),
    ),
    Case(
        "placeholder without a match",
        entry("{first: {name: 'stage.{i}.a'}, second: {name: 'stage.{i}.b'}}"),
        (("pairs.yaml:3 pairs[0]", "stage.{i}.a", "stage.{i}.b", "convsqueeze inspect"),),
    ),
    Case(
        "placeholder that matches in part only",
        entry("{first: {name: 'body.{i}'}, second: {name: 'bodi.{i}'}}"),
        (("pairs.yaml:3 pairs[0]", "bodi.{i}"),),
    ),
    Case(
        "placeholder in into alone",
        entry("{first: {name: body.0}, second: {name: body.1}, into: 'x.{i}'}"),
        (("pairs.yaml:3 pairs[0]", "{i}"),),
    ),
    Case(
        "dropping what is not there",
        entry("{first: {name: body.0}, second: {name: body.1}, drop: [mergd]}"),
        (("pairs.yaml:3 pairs[0].drop", "mergd"),),
    ),
    Case(
        "input of another number of axes",
        entry("{first: {name: body.0}, second: {name: body.1}, input: [8]}"),
        (("pairs[0]", "input", "1", "2"),),
    ),
    Case(
        "input smaller than the kernels",
        entry("{first: {name: body.0}, second: {name: body.1}, input: [2, 2]}"),
        (("pairs[0]", "[2, 2]", "[3, 3]"),),
    ),
    Case(
        "unknown key of the file",
        PAIRS,
        (("model.pt", "no state dict under the key ema"),),
        ("--key", "ema"),
    ),
]
