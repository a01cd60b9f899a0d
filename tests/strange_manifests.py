"""Manifests that name a layer more than once, or layers in an order in which they cannot run.

They are for a checkpoint of 1x1 convolutions; `SHAPES` tells (out_channels, in_channels) of each.
"""

from dataclasses import dataclass

SHAPES = {
    "a": (8, 4),
    "b": (4, 8),
    "c": (4, 4),
    "d": (2, 4),
    "e": (8, 4),
    "up": (16, 8),
    "wide": (32, 16),
    "out": (3, 32),
    "odd": (5, 9),
    "x.0.u": (8, 4),
    "x.0.v": (4, 8),
    "x.1.u": (8, 4),
    "x.1.v": (4, 8),
}
"""`a` has a bias, `n` is a batch norm of 8 channels beside them, `g` a tensor of 8 factors."""


@dataclass(frozen=True)
class Case:
    """Entries of `pairs` and the words of each problem that must be told of them, in any order."""

    entries: tuple[str, ...]
    problems: tuple[tuple[str, ...], ...]

    @property
    def text(self) -> str:
        return "version: 1\npairs:\n" + "".join(f"  - {entry}\n" for entry in self.entries)


AB = "{first: {name: a}, second: {name: b}}"
XS = '{first: {name: "x.{i}.u"}, second: {name: "x.{i}.v"}}'
ONE, TWO, THREE = (f"pairs.yaml:{3 + i} pairs[{i}]" for i in range(3))


def used(key: str, first: str = ONE, second: str = TWO, *more: str) -> tuple[str, ...]:
    """What is told of a tensor that two entries use."""
    return (f"{second}: {key} is used 2 times (by {first} and {second}). Use it once", *more)


TWICE = {
    "a pair twice": Case((AB, AB), ((f"{TWO}: merges a, b into a, as {ONE} does", "Remove one"),)),
    "a pair three times": Case(
        (AB, AB, AB),
        (
            (f"{TWO}: merges a, b into a, as {ONE} does",),
            (f"{THREE}: merges a, b into a, as {ONE} does",),
        ),
    ),
    "a pair twice, as a chain": Case(
        (AB, "{chain: [{name: a}, {name: b}]}"), ((f"{TWO}: merges a, b into a, as {ONE} does",),)
    ),
    "a pair twice, into two names": Case(
        (AB, "{first: {name: a}, second: {name: b}, into: z}"),
        (used("a.weight"), used("a.bias"), used("b.weight")),
    ),
    "placeholders twice": Case(
        (XS, XS),
        (
            (f"{TWO} (i=0): merges x.0.u, x.0.v into x.0.u, as {ONE} (i=0) does",),
            (f"{TWO} (i=1): merges x.1.u, x.1.v into x.1.u, as {ONE} (i=1) does",),
        ),
    ),
    "a placeholder's pair by its name": Case(
        (XS, "{first: {name: x.1.u}, second: {name: x.1.v}}"),
        ((f"{TWO}: merges x.1.u, x.1.v into x.1.u, as {ONE} (i=1) does",),),
    ),
}

SHARED = {
    "first and first": Case(
        ("{first: {name: c}, second: {name: a}}", "{first: {name: c}, second: {name: e}, into: z}"),
        (used("c.weight"),),
    ),
    "first and second": Case(
        (AB, "{first: {name: b}, second: {name: c}}"),
        (used("b.weight", ONE, TWO, "are one entry, chain: [a, b, c]"),),
    ),
    "second and first": Case(
        ("{first: {name: b}, second: {name: c}}", AB),
        (used("b.weight", ONE, TWO, "are one entry, chain: [a, b, c]"),),
    ),
    "second and second": Case(
        (AB, "{first: {name: e}, second: {name: b}}"),
        (used("b.weight"),),
    ),
    "middle of a chain": Case(
        ("{chain: [{name: a}, {name: b}, {name: c}]}", "{first: {name: e}, second: {name: b}}"),
        (used("b.weight"),),
    ),
    "a branch of a sum": Case(
        ("{into: s, sum: [{name: a}, {name: e}]}", AB),
        (used("a.weight"), used("a.bias")),
    ),
    "a norm": Case(
        (
            "{chain: [{name: a}, {name: n, type: batch_norm, eps: 0.1}]}",
            "{chain: [{name: e}, {name: n, type: batch_norm, eps: 0.1}]}",
        ),
        (used("n.running_mean"), used("n.running_var")),
    ),
    "placeholders that share": Case(
        (XS, '{first: {name: "x.{i}.v"}, second: {name: c}}'),
        (
            (f"{TWO} (i=0): x.0.v.weight is used 2 times", "chain: [x.0.u, x.0.v, c]"),
            (f"{TWO} (i=1): x.1.v.weight is used 2 times", "chain: [x.1.u, x.1.v, c]"),
            (f"{TWO} (i=1): c.weight is used 2 times (by {TWO} (i=0) and {TWO} (i=1))",),
        ),
    ),
    "two placeholders that are all combined": Case(
        ('{first: {name: "x.{i}.u"}, second: {name: "x.{j}.v"}, into: "x.{i}.{j}"}',),
        (
            (f"{ONE} (i=0, j=1): x.0.u.weight is used 2 times",),
            (f"{ONE} (i=1, j=1): x.1.u.weight is used 2 times",),
            (f"{ONE} (i=1, j=0): x.0.v.weight is used 2 times",),
            (f"{ONE} (i=1, j=1): x.1.v.weight is used 2 times",),
        ),
    ),
    "dropped and merged": Case(
        (AB, "{first: {name: c}, second: {name: d}, drop: [b]}"), (used("b.weight"),)
    ),
    "merged and dropped": Case(
        ("{first: {name: c}, second: {name: d}, drop: [b.weight]}", AB), (used("b.weight"),)
    ),
    "dropped twice": Case(
        (
            "{first: {name: c}, second: {name: d}, drop: [x.0]}",
            "{first: {name: a}, second: {name: b}, drop: [x.0.u]}",
        ),
        (used("x.0.u.weight"),),
    ),
    "a weight by its own name": Case(
        (AB, "{first: {weight: e.weight}, second: {weight: b.weight}, into: z}"),
        (used("b.weight"),),
    ),
    "a bias by its own name": Case(
        (AB, "{first: {weight: e.weight, bias: a.bias}, second: {name: x.0.v}, into: z}"),
        (used("a.bias"),),
    ),
    "a bias twice in one entry": Case(
        ("{first: {name: a}, second: {name: up, bias: a.bias}, into: z}",),
        ((f"{ONE}.second", "up", "8", "16"),),
    ),
    "one layer twice in one chain": Case(
        ("{chain: [{name: c}, {name: c}]}",),
        ((f"{ONE}: c.weight is used 2 times (by {ONE}). Use it once.",),),
    ),
    "one layer twice in one entry, nested": Case(
        ("{chain: [{name: a}, {sum: [{name: b}, {chain: [{name: b}]}]}]}",),
        ((f"{ONE}: b.weight is used 2 times (by {ONE})",),),
    ),
}

WRONG_ORDER = "would fit: are they given in the wrong order?"

ORDERS = {
    "a pair turned round": Case(
        ("{first: {name: up}, second: {name: a}}",),
        ((f"{ONE}.second: a: 16 channels leave", f"a then up {WRONG_ORDER}"),),
    ),
    "a chain turned round": Case(
        ("{chain: [{name: out}, {name: wide}, {name: up}, {name: a}]}",),
        ((f"{ONE}.chain[1]: wide: 3 channels leave", f"wide then out {WRONG_ORDER}"),),
    ),
    "the last of three before the others": Case(
        ("{chain: [{name: up}, {name: wide}, {name: a}]}",),
        ((f"{ONE}.chain[2]: a: 32 channels leave", f"a then (up, wide) {WRONG_ORDER}"),),
    ),
    "with a pool, which takes any channels": Case(
        ("{chain: [{name: up}, {type: avg_pool, kernel_size: 2}, {name: a}]}",),
        ((f"{ONE}.chain[2]: a: 16 channels leave", f"a then (up, avg_pool) {WRONG_ORDER}"),),
    ),
    "with a sum": Case(
        ("{chain: [{name: up}, {sum: [{name: a}, {name: e}]}]}",),
        ((f"{ONE}.chain[1]", f"(a, e) then up {WRONG_ORDER}"),),
    ),
    "in a branch": Case(
        ("{into: z, sum: [{name: odd}, {chain: [{name: up}, {name: a}]}]}",),
        ((f"{ONE}.sum[1].chain[1]: a:", f"a then up {WRONG_ORDER}"),),
    ),
}

NO_ORDER = {
    "two of a chain exchanged": Case(
        ("{chain: [{name: a}, {name: wide}, {name: up}, {name: out}]}",),
        ((f"{ONE}.chain[1]: wide: 8 channels leave the first layer, but 16 enter the second",),),
    ),
    "a norm behind the wrong layer": Case(
        ("{chain: [{name: a}, {name: up}, {name: n, type: batch_norm, eps: 0.1}, {name: wide}]}",),
        ((f"{ONE}.chain[2]: n: 16 channels leave the first layer, but 8 enter the second",),),
    ),
    "a scale behind the wrong layer": Case(
        ("{chain: [{name: a}, {name: up}, {type: scale, weight: g}]}",),
        ((f"{ONE}.chain[2]: g:",),),
    ),
    "a pair that fits neither way": Case(
        ("{first: {name: up}, second: {name: odd}}",), ((f"{ONE}.second: odd: 16 channels leave",),)
    ),
    "a chain that fits no way": Case(
        ("{chain: [{name: out}, {name: odd}, {name: a}]}",),
        ((f"{ONE}.chain[1]: odd",),),
    ),
    "groups that make it fit neither way": Case(
        ("{first: {name: up, groups: 2}, second: {name: d}}",),
        ((f"{ONE}.second: d: 16 channels leave",),),
    ),
}
