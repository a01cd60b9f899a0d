"""What a partition of a region is: which runs of its layers become one layer each, what that costs,
and why the rest stays apart. Knows no way to find one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from convsqueeze.manifest import ChainEntry, Request, SumEntry, entry_of
from convsqueeze.plan.model import Merge
from convsqueeze.plan.resolve import ResolvedLayer

Minimize = Literal["weights", "macs", "latency"]
Cause = Literal["geometry", "tensors", "border", "growth", "time", "veto", "cost"]


@dataclass(frozen=True)
class Part:
    """A run of links of a chain, or some branches of a sum, that could become one layer.

    `request` has their region, with the `into` that the result would get. `whole`: they are all
    that there is.
    """

    request: Request[ResolvedLayer]
    whole: bool

    @property
    def layers(self) -> tuple[ResolvedLayer, ...]:
        return self.request.region.layers

    @property
    def labels(self) -> tuple[str, ...]:
        """What messages call the layers, in execution order."""
        return tuple(op.label for op in self.layers)


@dataclass(frozen=True)
class Timing:
    """What the layers of a part take, apart and as one, in nanoseconds for one image.

    `faster`: the difference is more than the noise of the measurement.
    """

    before: int
    after: int
    faster: bool


@dataclass(frozen=True)
class Merged:
    """A part that becomes one layer. `timing` is there where latency is minimised."""

    part: Part
    merge: Merge
    timing: Timing | None = None


@dataclass(frozen=True)
class Rejected:
    """A part that does not, and why: a sentence without its final stop's place in a file.

    `geometry`: not one convolution. `tensors`: a tensor that something else uses. `border`: the
    policy. `growth`: more weights, or `time`: no less time than apart. `veto`: the caller's.
    `cost`: it could be one layer, but what was chosen is better.
    """

    part: Part
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
        others = {
            "weights": (self.weights, self.macs),
            "macs": (self.macs, self.weights),
            "latency": (self.nanoseconds, self.weights, self.macs),
        }
        return (*others[minimize], self.layers, self.links)


Allowed = Callable[[Part], str | None]
Name = Callable[[Part], str | None]
Latency = Callable[[Merge], Timing]


@dataclass(frozen=True)
class Partition:
    """The best way to merge an entry: `merged` are its parts, everything else stays `apart`.

    `request` is what was given, with an input of `size`. `before` and `after` cost all of its
    layers. `given` is the region as a whole: merged, or why it is not.
    `kept_apart` has for each boundary that stays the reason why what meets there is not one layer;
    `rejected` every part that was looked at and could not be merged.
    """

    request: Request[ResolvedLayer]
    minimize: Minimize
    size: tuple[int, ...]
    merged: tuple[Merged, ...]
    apart: tuple[str, ...]
    before: Cost
    after: Cost
    given: Merged | Rejected
    kept_apart: tuple[Rejected, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def entries(self) -> tuple[ChainEntry | SumEntry, ...]:
        """The merged parts as entries of a manifest."""
        return tuple(entry_of(one.part.request) for one in self.merged)

    @property
    def is_given(self) -> bool:
        """Whether it merges the entry as a whole."""
        return len(self.merged) == 1 and self.merged[0].part.whole

    @property
    def timing(self) -> Timing | None:
        """Of all merged parts together; None where none was measured."""
        timings = [one.timing for one in self.merged if one.timing is not None]
        if self.minimize != "latency":
            return None
        return Timing(sum(t.before for t in timings), sum(t.after for t in timings), bool(timings))
