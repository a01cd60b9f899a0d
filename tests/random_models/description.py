"""A random model as plain data: layers in rows, sums and other containers, and what is done to it.

Knows what a model is made of, no modules and nothing of convsqueeze.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

RowForm = Literal["sequential", "list"]
SumForm = Literal["operators", "in place", "stack"]
CodeKind = Literal["factor", "divide", "negate", "gamma", "beta", "relu", "pad", "clone", "view"]
HookKind = Literal["forward", "pre", "changing", "changing pre", "backward"]


@dataclass(frozen=True)
class Layer:
    """A module without children. `rank` is the number of axes behind the channels."""

    kind: str
    rank: int
    in_channels: int
    out_channels: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One part after the other, as a Sequential or by code that runs over a list."""

    parts: tuple["Node", ...]
    form: RowForm = "sequential"


@dataclass(frozen=True)
class Branch:
    """What a sum adds, by a factor that stands in the code; no part is the input itself."""

    part: "Node | None"
    factor: float = 1.0


@dataclass(frozen=True)
class Sum:
    branches: tuple[Branch, ...]
    form: SumForm = "operators"


@dataclass(frozen=True)
class Repeated:
    """A part that is called twice, one call after the other."""

    part: "Node"


@dataclass(frozen=True)
class Wasteful:
    """A part beside one that is called on the same value and whose result nothing uses."""

    part: "Node"
    unused: "Node"


@dataclass(frozen=True)
class Gated:
    """The input times what a part makes of it, averaged over the axes and without negatives."""

    part: "Node"


@dataclass(frozen=True)
class Coded:
    """A part and something that is done in code to what it gives."""

    part: "Node"
    kind: CodeKind
    channels: int
    rank: int
    number: float = 1.0


@dataclass(frozen=True)
class ChannelsLast:
    """A part that works on the channels as the last axis of a signal (N, channels, ...)."""

    part: "Node"


Node: TypeAlias = Layer | Row | Sum | Repeated | Wasteful | Gated | Coded | ChannelsLast


@dataclass(frozen=True)
class Model:
    """Parts in a row; with the value behind each of `taps`, its number, given as output too."""

    row: Row
    taps: tuple[int, ...] = ()
    output: Literal["tensor", "tuple", "dict"] = "tensor"


def children(node: Node) -> Iterator[tuple[str, Node]]:
    """The parts of a node, each by the name of its module within that of the node."""
    if isinstance(node, Row):
        stem = "" if node.form == "sequential" else "parts."
        yield from ((f"{stem}{index}", part) for index, part in enumerate(node.parts))
    elif isinstance(node, Sum):
        for index, branch in enumerate(node.branches):
            if branch.part is not None:
                yield f"branch{index}", branch.part
    elif isinstance(node, Wasteful):
        yield from (("part", node.part), ("unused", node.unused))
    elif not isinstance(node, Layer):
        yield "part", node.part


def walk(node: Node, path: str) -> Iterator[tuple[str, Node]]:
    """A node and all within it, each with the name of its module."""
    yield path, node
    for name, part in children(node):
        yield from walk(part, f"{path}.{name}" if path else name)


def layers(node: Node, path: str) -> Iterator[tuple[str, Layer]]:
    return ((name, one) for name, one in walk(node, path) if isinstance(one, Layer))
