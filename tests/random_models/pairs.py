"""Pairs of layers that anyone would merge, found in the description: nothing stands between them,
nothing else sees what does, the border does not matter and numbers are saved.

Shares nothing with how convsqueeze finds them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from .cases import Case, Settings
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
    """`second_goes`: it must be merged away; else one of the two must be merged with something."""

    first: str
    second: str
    second_goes: bool

    def __str__(self) -> str:
        return f"{self.first} then {self.second}"


def obvious_pairs(case: Case, settings: Settings) -> Iterator[Obvious]:
    """Pairs of which merging makes less, whatever else is merged."""
    fewer_numbers = settings.get("minimize") != "macs"
    runs: list[list[Step]] = []
    runs.append(_steps(case, case.model.row, "body", runs, case.model.taps))
    for run in runs:
        for one, other in pairwise(run):
            if one is None or other is None or one[1].rank != other[1].rank:
                continue
            if _has_kernel(one[1]) and _is_diagonal(other[1]) and _is_told(case, other[1]):
                yield Obvious(one[0], other[0], second_goes=True)
            elif fewer_numbers and _are_dense(one[1], other[1]):
                yield Obvious(one[0], other[0], second_goes=False)


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
        # the code of a view asks for the value's size, which may have to stay for that
        found = inside if node.kind == "clone" else [*inside, None]
    elif isinstance(node, ChannelsLast):
        # torch may count the view to the first layer, where it is one of what code changed in place
        runs += [_steps(case, part, name, runs)[1:] for name, part in parts]
    elif isinstance(node, Sum | Gated):
        runs += [_steps(case, part, name, runs) for name, part in parts]
    return [None, *found, None] if path in case.hooks else found


def _of_layer(case: Case, layer: Layer, path: str) -> list[Step]:
    tied = any(path in pair for pair in case.ties)
    if tied or path in case.hooks or path in case.training:
        return [None]
    if layer.kind in ("dropout", "identity"):
        return []
    return [(path, layer)] if layer.kind in _NUMBERS else [None]


def _are_dense(one: Layer, other: Layer) -> bool:
    """Whether two layers are exactly one dense layer, which holds less."""
    dense = all(layer.settings.get("groups", 1) == 1 for layer in (one, other))
    if not dense or not {one.kind, other.kind} <= {"conv", "linear"}:
        return False
    outer_moves_nothing = _is_pointwise(other) or other.kind == "linear"
    inner_leaks_nothing = _is_pointwise(one) and not one.settings["bias"]
    plain = "padding_mode" not in other.settings
    return (outer_moves_nothing or (inner_leaks_nothing and plain)) and _saves(one, other)


def _is_told(case: Case, layer: Layer) -> bool:
    """Whether a graph tells on which axis the channels of a diagonal layer are. Without a batch it
    may be the first, and of pools that round up torch may make a graph without shapes only.
    """
    rounds_up = any("ceil_mode" in one.settings for _, one in case.layers)
    return case.batch and (layer.rank > 0 or not rounds_up)


def _has_kernel(layer: Layer) -> bool:
    return layer.kind in ("conv", "conv_transpose", "linear")


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
