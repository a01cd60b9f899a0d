"""What a partition of a region is: which runs of its layers become one layer each, what that costs,
and why the rest stays apart. Knows no way to find one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from convsqueeze.manifest import ChainEntry, Request, SumEntry, entry_of
from convsqueeze.plan.model import Merge, Timing
from convsqueeze.plan.parameters import Cause
from convsqueeze.plan.resolve import ResolvedLayer

Minimize = Literal["weights", "macs", "latency"]
Name = Callable[[Request[ResolvedLayer]], str | None]
Latency = Callable[[Merge], Timing]


@dataclass(frozen=True)
class Rejected:
    """A part of a region that does not become one layer, and why: a sentence without its final
    stop's place in a file.
    """

    request: Request[ResolvedLayer]
    cause: Cause
    reason: str


@dataclass(frozen=True)
class Cost:
    """What layers cost: numbers stored, multiplications for one image, how many layers they are.

    `nanoseconds` is the time that merging changed, zero for layers apart and where none is
    measured. Identities are among the `links` but no `layers`.
    """

    weights: int = 0
    macs: int = 0
    layers: int = 0
    links: int = 0
    nanoseconds: int = 0

    @classmethod
    def of(cls, merge: Merge) -> "Cost":
        """The cost of the one layer that a merge gives."""
        timing = merge.timing
        change = 0 if timing is None else timing.after - timing.before
        return cls(merge.weights_after, merge.macs_after, 1, 1, change)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.weights + other.weights,
            self.macs + other.macs,
            self.layers + other.layers,
            self.links + other.links,
            self.nanoseconds + other.nanoseconds,
        )

    def under(self, minimize: Minimize) -> int:
        """The chosen measure alone."""
        return self.nanoseconds if minimize == "latency" else getattr(self, minimize)

    def order(self, minimize: Minimize) -> tuple[int, ...]:
        """What decides between two partitions: the measure, then the others, then fewer layers."""
        others = (self.macs, self.weights) if minimize == "macs" else (self.weights, self.macs)
        return (self.under(minimize), *others, self.layers, self.links)


@dataclass(frozen=True)
class Partition:
    """The best way to merge an entry: `merged` are its parts, everything else stays `apart`.

    `request` is what was given, with an input of `size`. `before` and `after` cost all of its
    layers. `given` is the region as a whole: merged, or why it is not.
    `kept_apart` has for each boundary that stays the reason why what meets there is not one layer.
    """

    request: Request[ResolvedLayer]
    minimize: Minimize
    size: tuple[int, ...]
    merged: tuple[Merge, ...]
    apart: tuple[str, ...]
    before: Cost
    after: Cost
    given: Merge | Rejected
    kept_apart: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def entries(self) -> tuple[ChainEntry | SumEntry, ...]:
        """The merged parts as entries of a manifest."""
        return tuple(entry_of(merge.request) for merge in self.merged)

    @property
    def is_given(self) -> bool:
        """Whether it merges the entry as a whole."""
        return self.apart == () and len(self.merged) == 1
