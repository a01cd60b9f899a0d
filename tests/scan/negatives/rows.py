"""A row of a table of negatives: a small model, what is left alone in it and why, and what is
merged all the same. The models of a table are scanned and squeezed as one, which is faster.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import convsqueeze
from convsqueeze.graph import ReasonKind
from convsqueeze.scan import Scan
from tests.scan.code import OfOne, image, made, merged_layers, reasons

Layers = tuple[str, ...]
Left = tuple[Layers, ReasonKind, str]
"""Layers, and the kind and a part of the reason why they stay as they are."""
Parts = Mapping[str, Callable[[], Any]]
"""Modules and parameters of a model by name, each still to be made."""

PAIRS: tuple[Layers, ...] = (("a", "b"), ("c", "d"))
"""What is merged where something stands between `b` and `c`."""
CD: tuple[Layers, ...] = (("c", "d"),)
EVERY: tuple[Layers, ...] = (("a", "b", "c", "d"),)
COSTS: tuple[ReasonKind, ...] = ("no gain", "growth", "border")
"""Reasons that depend on sizes, which no table is about."""


def pairs(width: int = 4, taken: int = 4) -> dict[str, Callable[[], nn.Module]]:
    """Four convolutions that are one where nothing stands between: `b` gives `width` channels, `c`
    takes `taken`.
    """
    return {
        "a": lambda: nn.Conv2d(3, 8, 1),
        "b": lambda: nn.Conv2d(8, width, 1),
        "c": lambda: nn.Conv2d(taken, 8, 3),
        "d": lambda: nn.Conv2d(8, 3, 1),
    }


def head(model: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = model.b(model.a(x))
    return y


def tail(model: nn.Module, y: Tensor) -> Tensor:
    z: Tensor = model.d(model.c(y))
    return z


def unprepared(model: nn.Module) -> None:
    """Leaves a model as it was made."""


@dataclass(frozen=True)
class Row:
    """`forward(model, x)` over `parts`, of which `left` are left alone and `merged` are merged;
    `prepare` changes the model when it has its values.
    """

    name: str
    forward: Callable[[Any, Tensor], Any]
    parts: Parts
    left: tuple[Left, ...]
    merged: tuple[Layers, ...] = PAIRS
    prepare: Callable[[Any], None] = unprepared


def between(
    name: str,
    obstacle: Callable[[Any, Tensor], Any],
    *left: Left,
    width: int = 4,
    taken: int = 4,
    prepare: Callable[[Any], None] = unprepared,
    **parts: Callable[[], Any],
) -> Row:
    """An obstacle between two pairs of convolutions, and behind them what is not linear, so that no
    merge is all that the model does.
    """

    def forward(model: Any, x: Tensor) -> Any:
        return tail(model, obstacle(model, head(model, x))).sin()

    return Row(name, forward, {**pairs(width, taken), **parts}, left, prepare=prepare)


def whole(
    name: str,
    forward: Callable[[Any, Tensor], Any],
    *left: Left,
    merged: tuple[Layers, ...] = PAIRS,
    prepare: Callable[[Any], None] = unprepared,
    without: str = "",
    **parts: Callable[[], Any],
) -> Row:
    """A model over the four convolutions, some left out, and other parts."""
    convolutions = {name: build for name, build in pairs().items() if name not in without}
    return Row(name, forward, {**convolutions, **parts}, left, merged, prepare)


def apart(kind: ReasonKind, words: str) -> Left:
    return (("b", "c"), kind, words)


def activation(words: str) -> Left:
    return apart("activation", words)


def other(words: str) -> Left:
    return apart("not linear", words)


def in_code(label: str) -> tuple[Left, Left]:
    """A layer that no module does, so that it goes with neither pair."""
    words = f"{label} stands in the code"
    return (("a", "b", label), "in code", words), ((label, "c", "d"), "in code", words)


def numbers(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


class Table(nn.Module):
    """The models of all rows, side by side on one input."""

    def __init__(self, rows: Sequence[Row]) -> None:
        super().__init__()
        self.rows = nn.ModuleList(
            OfOne(row.forward, **{name: build() for name, build in row.parts.items()})
            for row in rows
        )

    def forward(self, x: Tensor) -> list[Any]:
        return [row(x) for row in self.rows]


@dataclass(frozen=True, eq=False)
class Squeezed:
    """A table before and after squeezing, in float64."""

    rows: Sequence[Row]
    before: nn.Module
    after: nn.Module
    scan: Scan

    def models(self, row: Row) -> tuple[nn.Module, nn.Module]:
        name = self._name(row)
        return self.before.get_submodule(name), self.after.get_submodule(name)

    def merged(self, row: Row) -> tuple[Layers, ...]:
        """The layers of every merge in a row's model, by the names that they have there."""
        return tuple(
            self._bare(row, one) for one in merged_layers(self.scan) if self._has(row, one)
        )

    def left(self, row: Row) -> list[tuple[Layers, str, str]]:
        """What of a row's model is left alone, but for what would cost more."""
        return [
            (self._bare(row, layers), kind, *self._bare(row, (text,)))
            for layers, kind, text in reasons(self.scan)
            if self._has(row, layers) and kind not in COSTS
        ]

    def _name(self, row: Row) -> str:
        return f"rows.{self.rows.index(row)}"

    def _has(self, row: Row, layers: Layers) -> bool:
        return any(f"{self._name(row)}." in f"{layer}." for layer in layers)

    def _bare(self, row: Row, told: Layers) -> Layers:
        """What is told, as it would be of the row's model alone."""
        name = self._name(row)
        return tuple(one.replace(f"{name}.", "").replace(f" in {name}", "") for one in told)


INPUT = (2, 3, 9, 9)


def squeezed_table(rows: Sequence[Row], table: type[Table] = Table) -> Squeezed:
    """All rows squeezed at once."""
    model = made(lambda: table(rows)).double()
    for row, one in zip(rows, model.rows, strict=True):
        row.prepare(one)
    after, report = convsqueeze.squeeze(model, image(*INPUT).double())
    return Squeezed(rows, model, after, report.scan)
