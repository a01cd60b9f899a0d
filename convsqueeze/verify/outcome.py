"""The report on one layer, and what comparing one batch of outputs adds to it.

Knows outputs, bounds and places; nothing of how inputs are chosen or layers are run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from torch import Tensor

from convsqueeze.algebra.border.corrections import BORDER
from convsqueeze.algebra.border.mismatches import wrong_rows
from convsqueeze.errors import GeometryError
from convsqueeze.plan import Merge
from convsqueeze.verify.comparison import Comparison
from convsqueeze.verify.probes import Size


@dataclass(frozen=True)
class Worst:
    """The largest share of the bound met in one part of the outputs, and where."""

    error: float = 0.0
    bound: float = 0.0
    share: float = 0.0
    place: str = ""

    @property
    def problem(self) -> str | None:
        """What is told of it where it is beyond the bound."""
        if self.share <= 1.0:
            return None
        told = f"differs by {self.error:.3e} where at most {self.bound:.3e} is rounding"
        return f"{told}, {self.place}"


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
    interior: Worst
    border: Worst
    border_error: float
    border_range: float
    sizes: tuple[Size, ...]
    inputs: int
    largest: Worst = Worst()
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
    """Inputs of one kind, made on the CPU so that a seed means the same everywhere, and the two
    functions that must agree on them, whose outputs have the `channels` of the layer's outputs, by
    default all. What is `measured` goes into the report, of other probes only what is wrong.
    """

    kind: str
    inputs: Iterator[Tensor]
    both: Comparison
    channels: Sequence[int] | None = None
    measured: bool = True


def checked(report: LayerReport, merge: Merge, probe: Probe) -> LayerReport:
    """The report after the inputs of a probe, or those up to the first that differs."""
    for x in probe.inputs:
        report = _compared(report, merge, probe, x.to(probe.both.device))
        if not report.ok:
            break
    return report


def _compared(report: LayerReport, merge: Merge, probe: Probe, x: Tensor) -> LayerReport:
    """The report after one batch of inputs."""
    size = tuple(x.shape[2:])
    expected = probe.both.original(x)
    try:
        actual = probe.both.squeezed(x)
        bound = probe.both.bound(x) if actual.shape == expected.shape else None
    except torch.OutOfMemoryError:  # of a GPU, which says nothing of the layer
        raise
    except (RuntimeError, GeometryError) as error:
        first = str(error).split("\n")[0]
        return replace(
            report, problem=f"the squeezed layer does not run on {_shown(size)}: {first}"
        )
    if bound is None:
        return replace(
            report,
            problem=f"on an input of {_shown(size)} the output has shape "
            f"{tuple(actual.shape[1:])}, the original's has {tuple(expected.shape[1:])}",
        )
    infinite = (~actual.isfinite()).nonzero()
    if len(infinite):
        place = _place(probe, x, infinite[0].tolist())
        return replace(report, problem=f"is {actual[tuple(infinite[0])].item()}, {place}")
    difference = (actual - expected).abs().nan_to_num(torch.inf, torch.inf, torch.inf)
    share = torch.where(difference > 0, difference / bound, 0.0)
    at_border = _border_mask(merge, size, expected.shape[2:]).to(expected.device)
    held = ~at_border if merge.border == "interior" else torch.ones_like(at_border)

    def worst_of(mask: Tensor, rank: Tensor, known: Worst) -> Worst:
        return _worse(known, difference, bound, rank, mask, lambda at: _place(probe, x, at))

    problem = worst_of(held, share, Worst()).problem
    report = replace(report, inputs=report.inputs + x.shape[0], problem=problem)
    if not probe.measured:
        return report
    report = replace(
        report,
        interior=worst_of(~at_border, share, report.interior),
        border=worst_of(at_border, share, report.border),
        largest=worst_of(held, difference, report.largest),
    )
    if merge.border != "interior" or size != max(report.sizes, key=prod):
        return report
    return replace(
        report,
        border_error=max(report.border_error, _largest(difference, at_border)),
        border_range=max(report.border_range, _largest(expected.abs(), at_border)),
    )


def with_number(report: LayerReport, name: str, worst: Worst, problem: str | None) -> LayerReport:
    """The report after the stored numbers of one tensor, by name within the layer."""
    if name.startswith(f"{BORDER}."):
        report = replace(report, border=_nearer(report.border, worst))
    else:
        report = replace(report, interior=_nearer(report.interior, worst))
    return replace(report, problem=problem)


def _nearer(known: Worst, found: Worst) -> Worst:
    return found if not known.place or found.share > known.share else known


def _largest(values: Tensor, mask: Tensor) -> float:
    return float((values * mask).max())


def _border_mask(merge: Merge, size: Size, output: torch.Size) -> Tensor:
    """Which outputs the border can touch: under `interior` those that the plan excuses, otherwise
    those whose window leaves the image. Shape (*output_size).
    """
    mask = torch.zeros(tuple(output), dtype=torch.bool)
    for axis, (given, count) in enumerate(zip(size, output, strict=True)):
        if merge.border == "interior":
            rows = sorted(wrong_rows(merge.geometry_tree, axis, given))
        else:
            own = merge.geometry.axes[axis]
            low, high = -own.taps[0], own.upsample * (given - 1) - own.taps[-1]
            rows = [row for row in range(count) if not low <= own.stride * row <= high]
        mask.index_fill_(axis, torch.tensor(rows, dtype=torch.long), True)
    return mask


def _worse(
    known: Worst,
    error: Tensor,
    bound: Tensor,
    rank: Tensor,
    mask: Tensor,
    place: Callable[[list[int]], str],
) -> Worst:
    """The output that ranks highest where the mask holds, or the known one if that ranks higher.

    `rank` is the error itself or its share of the bound.
    """
    if not bool(mask.any()):
        return known
    masked = torch.where(mask, rank, -1.0)
    index = np.unravel_index(int(masked.argmax()), masked.shape)  # torch's own imports sympy
    found = float(error[index]), float(bound[index])
    share = _share_of(*found)
    by_error = rank is error
    if known.place and (found[0] <= known.error if by_error else share <= known.share):
        return known
    return Worst(*found, share, place([int(i) for i in index]))


def _place(probe: Probe, x: Tensor, index: list[int]) -> str:
    """Where an output stands: `index` is its batch entry, channel and position."""
    kind = probe.kind if bool(x[index[0]].any()) else "zero"
    channel = index[1] if probe.channels is None else probe.channels[index[1]]
    size = _shown(tuple(x.shape[2:]))
    return f"{kind} input of {size}, output channel {channel}, at {index[2:]}"


def _share_of(error: float, bound: float) -> float:
    if error == 0:
        return 0.0
    return error / bound if bound > 0 else torch.inf


def _shown(size: Size) -> str:
    return "x".join(map(str, size)) or "one vector"
