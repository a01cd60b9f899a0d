"""What the graph of a corrected layer does at the ends of each axis, and for which input sizes.

Whole numbers from the corrections; builds no node.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np

from convsqueeze.algebra.border.corrections import (
    AxisCorrections,
    SizeClass,
    Span,
    hull,
    span_length,
)
from convsqueeze.algebra.border.strips import entries
from convsqueeze.algebra.geometry import Axis
from convsqueeze.module import SqueezedConv


@dataclass(frozen=True)
class AxisEnds:
    """What the graph does at the ends of one axis, for sizes from `smallest` on."""

    axis: Axis
    found: AxisCorrections

    @cached_property
    def classes(self) -> tuple[SizeClass, ...]:
        """The kinds of large sizes, in the order of their remainders; where the manifest fixes a
        small one, that.
        """
        large = tuple(one for one in self.found.classes if one.size >= self.found.settled)
        return large or self.found.classes

    @cached_property
    def sizes(self) -> frozenset[int]:
        """The size that stands for each kind."""
        return frozenset(one.size for one in self.classes)

    @property
    def only(self) -> int | None:
        """The one size that there is, if there is no other of its kind."""
        size = self.classes[0].size
        return size if size < self.found.settled else None

    @cached_property
    def rows(self) -> tuple[Span, ...]:
        return hull([one.rows for one in self.classes])

    @cached_property
    def columns(self) -> tuple[Span, ...]:
        return hull([one.columns for one in self.classes])

    @cached_property
    def smallest(self) -> int:
        """The first size with room for every row and column at its own end."""
        if self.only is not None:
            return self.only
        columns = max((max(stop, -start) for start, stop in self.columns), default=1)
        sizes = count(max(self.found.settled, columns))
        return next(size for size in sizes if self.axis.accepts(size) and self._has_room(size))

    def _has_room(self, size: int) -> bool:
        """Whether the output has all the rows that are cut off its ends."""
        low = max((stop for start, stop in self.rows if start >= 0), default=0)
        high = max((-start for start, stop in self.rows if start < 0), default=0)
        return self.axis.output_size(size) >= low + high

    def legal(self, first: int) -> Iterator[int]:
        """Sizes from the first on that the layer takes: one, if there is only one."""
        if self.only is not None:
            return iter([self.only])
        return filter(self._is_legal, count(first))

    def _is_legal(self, size: int) -> bool:
        return self.axis.accepts(size) and self.found.class_size(size) in self.sizes

    @property
    def leaves_sizes_out(self) -> bool:
        """Whether there are large sizes that the corrections are not for."""
        return self.only is not None or len(self.classes) < self.found.period

    @property
    def fails_by_itself(self) -> bool:
        """Whether no output can be cut for any size but those that the graph is for."""
        smaller = any(self._has_room(size) for size in range(1, self.smallest))
        return not self.leaves_sizes_out and not smaller

    def taps(self, role: str) -> int:
        """How many border taps there are to add up."""
        return self.found.taps if role == "weight" else self.found.bias_taps

    def table(self, role: str) -> "np.ndarray[Any, Any]":
        """The border taps that each place of a strip adds up, for each kind of size.

        int64 (kinds, terms, rows, columns), of a `bias` (kinds, terms, rows, 1): tap `i` is `i + 1`
        where it is added, `-i - 1` where it is subtracted; 0 adds nothing.
        """
        found = [entries(one, self.rows, self.columns)[role == "bias"] for one in self.classes]
        added = [
            [
                [n for tap, f in one for n in [tap + 1 if f > 0 else -tap - 1] * abs(f)]
                for one in places
            ]
            for places in found
        ]
        terms = max((len(place) for places in added for place in places), default=0)
        filled = [[[*place, *[0] * terms][:terms] for place in places] for places in added]
        table = np.array(filled, np.int64).reshape(len(added), -1, terms)
        rows = span_length(self.rows)
        columns = span_length(self.columns) if role == "weight" else 1
        return table.transpose(0, 2, 1).reshape(len(added), terms, rows, columns)


def ends_of(layer: SqueezedConv) -> tuple[AxisEnds, ...]:
    """What a graph does on each axis of a layer."""
    plain = (AxisCorrections(1, 1, 0, 0, (SizeClass(1),)),) * len(layer.axes)
    return tuple(
        map(AxisEnds, layer.axes, layer.border.corrections.axes if layer.border else plain)
    )


def smallest_size(layer: SqueezedConv) -> tuple[int, ...]:
    """The smallest input on each axis that the graph of a layer takes; 1 where any does."""
    return tuple(1 if ends.found.is_empty else ends.smallest for ends in ends_of(layer))


def sizes_in_words(layer: SqueezedConv) -> str | None:
    """Which inputs the graph of a layer takes, in words; None where the layer takes no others."""
    if layer.border is None:
        return None
    words = []
    for ends in ends_of(layer):
        first = min(one.size for one in ends.found.classes)
        if ends.only is not None:
            words.append(str(ends.only))
        elif len(ends.classes) < ends.found.period:
            rests = sorted(one.size % ends.found.period for one in ends.classes)
            shown = " or ".join(map(str, rests))
            words.append(f"{ends.smallest} and more that leave {shown} modulo {ends.found.period}")
        else:
            words.append(f"{ends.smallest} and more" if ends.smallest > first else "")
    if not any(words):
        return None
    return " by ".join(one or "any number of" for one in words) + " samples"
