"""Pairs of layers that anyone would merge, found in the description: nothing stands between them,
nothing else sees what does, the border does not matter and numbers are saved.

Shares nothing with how convsqueeze finds them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from .cases import Case
from .description import (
    ChannelsLast,
    Coded,
    Gated,
    Layer,
    Node,
    Row,
    Sum,
    Wasteful,
    children,
)

Step = tuple[str, Layer] | None
"""A layer by name, or None for anything that keeps the layers on its sides apart."""


@dataclass(frozen=True)
class Obvious:
    """`gone` layers must be merged away; without any, one of `first` and `second` must be merged
    with something.
    """

    first: str
    second: str
    second_goes: bool

    def __str__(self) -> str:
        return f"{self.first} then {self.second}"


def obvious_pairs(case: Case) -> Iterator[Obvious]:
    """Pairs of which merging makes less, whatever else is merged."""
    runs: list[list[Step]] = []
    runs.append(_steps(case, case.model.row, "body", runs, case.model.taps))
    for run in runs:
        for one, other in pairwise(run):
            if one is not None and other is not None:
                yield from _pair(case, *one, *other)


def _steps(
    case: Case, node: Node, path: str, runs: list[list[Step]], taps: tuple[int, ...] = ()
) -> list[Step]:
    """What a value goes through in a node; what it goes through beside that, as other `runs`."""
    parts = [(f"{path}.{name}", part) for name, part in children(node)]
    found: list[Step] = [None]
    if isinstance(node, Layer):
        found = _of_layer(case, node, path)
    elif isinstance(node, Row):
        found = []
        for index, (name, part) in enumerate(parts):
            found += _steps(case, part, name, runs)
            found += [None] if index in taps else []
    elif isinstance(node, Wasteful):
        found = [None, *_steps(case, node.part, f"{path}.part", runs)]
    elif isinstance(node, Coded):
        inside = _steps(case, node.part, f"{path}.part", runs)
        found = inside if node.kind in ("clone", "view") else [*inside, None]
    elif isinstance(node, Sum | Gated | ChannelsLast):
        runs += [_steps(case, part, name, runs) for name, part in parts]
    return [None, *found, None] if path in case.hooks else found


def _of_layer(case: Case, layer: Layer, path: str) -> list[Step]:
    tied = any(path in pair for pair in case.ties)
    if tied or path in case.hooks or path in case.training:
        return [None]
    if layer.kind in ("dropout", "identity"):
        return []
    return [(path, layer)] if layer.kind in _NUMBERS else [None]


def _pair(case: Case, first: str, one: Layer, second: str, other: Layer) -> Iterator[Obvious]:
    with_kernel = one.kind in ("conv", "conv_transpose", "linear")
    if with_kernel and _is_diagonal(other) and one.rank == other.rank:
        yield Obvious(first, second, second_goes=True)
    elif case.settings.get("minimize") != "macs" and one.rank == other.rank:
        outer_moves_nothing = _is_pointwise(other) or other.kind == "linear"
        inner_leaks_nothing = _is_pointwise(one) and not one.settings["bias"]
        dense = all(layer.settings.get("groups", 1) == 1 for layer in (one, other))
        kinds = {one.kind, other.kind} <= {"conv", "linear"}
        plain = "padding_mode" not in other.settings
        exact = outer_moves_nothing or (inner_leaks_nothing and plain)
        if kinds and dense and exact and _saves(one, other):
            yield Obvious(first, second, second_goes=False)


def _is_diagonal(layer: Layer) -> bool:
    """A norm, or a factor that is stored, of which merging leaves nothing."""
    forms = ("parameter", "scalar", "buffer")
    return layer.kind == "batch_norm" or (layer.kind == "scale" and layer.settings["form"] in forms)


def _is_pointwise(layer: Layer) -> bool:
    """A convolution of one tap on each sample."""
    settings = layer.settings
    return (
        layer.kind == "conv"
        and _kernel(layer) == (1,) * layer.rank
        and settings.get("stride", 1) in (1, (1,) * layer.rank)
        and settings.get("padding", 0) in (0, (0,) * layer.rank, "same")
    )


def _saves(one: Layer, other: Layer) -> bool:
    """Whether both as one dense layer hold fewer numbers."""
    kernel = prod(_kernel(one)) * prod(_kernel(other))  # one of them has one tap
    bias = other.out_channels * any(layer.settings["bias"] for layer in (one, other))
    merged = one.in_channels * other.out_channels * kernel + bias
    return merged < _NUMBERS[one.kind](one) + _NUMBERS[other.kind](other)


def _kernel(layer: Layer) -> tuple[int, ...]:
    kernel = layer.settings.get("kernel_size", ())
    return (kernel,) * layer.rank if isinstance(kernel, int) else tuple(kernel)


def _dense_numbers(layer: Layer) -> int:
    bias = layer.out_channels * layer.settings["bias"]
    return layer.in_channels * layer.out_channels * prod(_kernel(layer)) + bias


def _channels(layer: Layer) -> int:
    return layer.in_channels


_NUMBERS = {
    **dict.fromkeys(("conv", "linear", "conv_transpose"), _dense_numbers),
    **dict.fromkeys(("batch_norm", "scale"), _channels),
}
"""Kinds with stored numbers, and how many a dense one has."""
