"""The report on one layer, and what comparing one batch of outputs adds to it.

Knows outputs, bounds and places; nothing of how inputs are chosen or layers are run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from convsqueeze.algebra.border.mismatches import wrong_rows
from convsqueeze.plan import Merge
from convsqueeze.verify.comparison import Comparison, size_text
from convsqueeze.verify.probes import Size
from convsqueeze.verify.worst import UNMEASURED, Worst, nearer, share_of, worst_of


@dataclass(frozen=True)
class LayerReport:
    """What verification saw of one squeezed layer.

    `interior` and `border` are the worst stored numbers and outputs, apart; under the `interior`
    policy the border's are measured and not held to the bound, and `border_error` is their largest
    absolute difference, `border_range` the largest output there, both for random images of the
    largest of the `sizes`. `largest` is the largest error of an output that is held to the bound,
    wherever it came nearest to it. `inputs` counts the images that were run.
    """

    name: str
    policy: str
    interior: Worst = UNMEASURED
    border: Worst = UNMEASURED
    border_error: float = 0.0
    border_range: float = 0.0
    sizes: tuple[Size, ...] = ()
    inputs: int = 0
    largest: Worst = UNMEASURED
    problem: str | None = None

    @property
    def ok(self) -> bool:
        return self.problem is None

    @property
    def worst(self) -> Worst:
        """The part that counts for the verdict."""
        if self.policy == "interior":
            return self.interior
        return max(self.interior, self.border, key=lambda worst: (worst.share, bool(worst.place)))


@dataclass(frozen=True)
class Probe:
    """A batch of inputs, made on the CPU so that a seed means the same everywhere, and the two
    functions that must agree on it, whose outputs have the `channels` of the layer's outputs, by
    default all. What is `measured` goes into the report, of other probes only what is wrong.
    """

    kind: str
    x: Tensor
    both: Comparison
    channels: Sequence[int] | None = None
    measured: bool = True

    def place(self, index: Sequence[int]) -> str:
        """Where an output stands: `index` is its batch entry, channel and position."""
        kind = self.kind if bool(self.x[index[0]].any()) else "zero"
        channel = index[1] if self.channels is None else self.channels[index[1]]
        return f"{kind} input of {size_text(self.x)}, output channel {channel}, at {index[2:]}"


def compared(report: LayerReport, merge: Merge, probe: Probe) -> LayerReport:
    """The report after a probe. Raises GeometryError as `Comparison`."""
    expected, actual, difference, bound = probe.both(probe.x)
    infinite = (~actual.isfinite()).nonzero()
    if len(infinite):
        at = infinite[0].tolist()
        return replace(report, problem=f"is {actual[tuple(at)].item()}, {probe.place(at)}")
    size, interior = tuple(probe.x.shape[2:]), merge.border == "interior"
    at_border = _border_mask(merge, size, expected.shape[2:]).to(expected.device)
    held = ~at_border if interior else torch.ones_like(at_border)
    share = share_of(difference, bound)

    def worst_in(mask: Tensor, rank: Tensor) -> Worst:
        if not mask.any():
            return UNMEASURED
        return worst_of(difference, bound, probe.place, torch.where(mask, rank, -1.0))

    problem = worst_in(held, share).problem
    report = replace(report, inputs=report.inputs + len(probe.x), problem=problem)
    if not probe.measured:
        return report
    largest = worst_in(held, difference)
    report = replace(
        report,
        interior=nearer(report.interior, worst_in(~at_border, share)),
        border=nearer(report.border, worst_in(at_border, share)),
        largest=max(report.largest, largest, key=lambda one: (bool(one.place), one.error)),
    )
    if not interior or size != max(report.sizes, key=prod):
        return report
    return replace(
        report,
        border_error=max(report.border_error, float((difference * at_border).max())),
        border_range=max(report.border_range, float((expected.abs() * at_border).max())),
    )


def rows_mask(shape: Sequence[int], rows: Iterable[Iterable[int]]) -> Tensor:
    """True where an output is in one of the `rows` of its axis; bool (*shape)."""
    mask = torch.zeros(tuple(shape), dtype=torch.bool)
    for axis, some in enumerate(rows):
        mask.index_fill_(axis, torch.tensor(sorted(some), dtype=torch.long), True)
    return mask


def _border_mask(merge: Merge, size: Size, output: Sequence[int]) -> Tensor:
    """Which outputs the border can touch: under `interior` those that the plan excuses, otherwise
    those whose window leaves the image. Shape (*output_size).
    """
    if merge.border == "interior":
        tree = merge.geometry_tree
        return rows_mask(output, [wrong_rows(tree, axis, n) for axis, n in enumerate(size)])
    rows = []
    for axis, given, count in zip(merge.geometry.axes, size, output, strict=True):
        low, high = -axis.taps[0], axis.upsample * (given - 1) - axis.taps[-1]
        rows.append([row for row in range(count) if not low <= axis.stride * row <= high])
    return rows_mask(output, rows)
