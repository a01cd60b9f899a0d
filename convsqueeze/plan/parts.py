"""What a partition of an entry is: which runs of its layers become one layer each, what that costs,
and why the rest stays apart. Knows no way to find one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from convsqueeze.manifest import ChainEntry, ChainItem, Entry, Item, PairEntry, SumEntry, SumItem
from convsqueeze.plan.model import Merge

Minimize = Literal["weights", "macs", "latency"]
Cause = Literal["geometry", "tensors", "border", "growth", "time", "veto", "cost"]
Place = tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """A run of links of a chain, or some branches of a sum, that could become one layer.

    `entry` holds them as an entry of a manifest, with the `into` that it would get. `within` leads
    from the flat entry (`convsqueeze.manifest.flat`) to the chain or sum that holds the items,
    an index for each step, and `indices` are theirs in there. `whole`: they are all there is.
    """

    entry: ChainEntry | SumEntry
    within: Place
    indices: Place
    whole: bool

    @property
    def labels(self) -> tuple[str, ...]:
        """What messages call the layers, in execution order."""
        return layer_labels(self.entry)


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

    `entry` is the flat form of the one that was given, with `size` at its input. `before` and
    `after` cost all of its layers. `given` is the entry as a whole: merged, or why it is not.
    `kept_apart` has for each boundary that stays the reason why what meets there is not one layer;
    `rejected` every part that was looked at and could not be merged.
    """

    entry: ChainEntry | SumEntry
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
        return tuple(one.part.entry for one in self.merged)

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


def layer_labels(item: Entry | Item) -> tuple[str, ...]:
    """What messages call the layers of an entry or item, in execution order."""
    if isinstance(item, ChainItem):
        return tuple(label for link in item.chain for label in layer_labels(link))
    if isinstance(item, SumItem):
        return tuple(label for branch in item.sum for label in layer_labels(branch))
    if isinstance(item, PairEntry):
        return (*layer_labels(item.first), *layer_labels(item.second))
    return (item.label,)
