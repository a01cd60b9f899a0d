"""How fast kernels merge, beside the copied snippet and beside the machine's own matrix product.

The snippet convolves the first kernel with the second one reversed, in float64. Every round runs
the snippet, the merge and one large square product in turn, all with the threads that torch has by
default, and ratios are medians over the rounds; what is short runs several times in a row, as the
merges of a checkpoint do. Both start from float32 weights and end with float64 ones.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import median

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from convsqueeze import layers

TITLE = "time of merging two kernels, beside the snippet and the machine's product of matrices"
SIDE = 2048
LEAST_GAIN = 3.0
"""Geometric mean over the listed cases of how many times faster than the snippet merging is."""
LEAST_RATE = 0.8
"""Share of the rate of `torch.mm` on large cases."""
LARGE = 1e9
"""Multiplications of a large case."""
REST = 0.02
"""Seconds before each, as threads of a product that has ended keep a core busy for a while."""
IN_A_ROW = 0.02
"""Seconds that each runs at least: one short run after a rest times how cores wake up."""
LONG = 0.5
"""Seconds of a round from which on a case has only three rounds."""


@dataclass(frozen=True)
class Case:
    """Two layers with square kernels; `listed` cases count for the claims."""

    channels: tuple[int, int, int]
    kernel_sizes: tuple[int, int]
    groups: int = 1
    listed: bool = True

    @property
    def multiplications(self) -> int:
        first, middle, last = self.channels
        taps = self.kernel_sizes[0] ** 2 * self.kernel_sizes[1] ** 2
        return first * middle * last * taps // self.groups**2

    @property
    def name(self) -> str:
        kernels = " ".join(f"{k}x{k}" for k in self.kernel_sizes)
        groups = f", {self.groups} groups" if self.groups > 1 else ""
        return f"{'-'.join(map(str, self.channels))} {kernels}{groups}"

    def weights(self) -> tuple[Tensor, Tensor]:
        """float32, of the first and the second layer."""
        first, middle, last = self.channels
        generator = torch.Generator().manual_seed(0)
        shapes = (
            (middle, first // self.groups, *(self.kernel_sizes[0],) * 2),
            (last, middle // self.groups, *(self.kernel_sizes[1],) * 2),
        )
        one, other = (torch.randn(shape, generator=generator) for shape in shapes)
        return one, other


CASES = (
    Case((16, 256, 16), (5, 1)),
    Case((64, 256, 64), (3, 3)),
    Case((128, 512, 128), (3, 3)),
    Case((256, 256, 256), (3, 3)),
    Case((512, 512, 512), (1, 3)),
    Case((512, 2048, 512), (3, 1)),
    Case((512, 512, 512), (3, 3)),
    Case((512, 512, 512), (3, 3), groups=512, listed=False),
    Case((256, 256, 256), (7, 7), groups=256, listed=False),
    Case((256, 512, 256), (3, 3), groups=64, listed=False),
    Case((256, 512, 256), (3, 3), groups=8, listed=False),
    Case((128, 128, 128), (5, 5), listed=False),
)


@dataclass(frozen=True)
class Measured:
    """Medians: milliseconds, and ratios within rounds."""

    case: Case
    snippet: float
    merge: float
    rate: float
    share: float
    gain: float

    @property
    def broken(self) -> list[str]:
        """Claims that did not hold in this run."""
        found = []
        large = self.case.listed and self.case.multiplications >= LARGE
        if large and self.share < LEAST_RATE:
            share = f"{self.share:.0%} of the rate of torch.mm"
            found.append(f"{self.case.name}: {share}, {LEAST_RATE:.0%} was needed")
        if not self.case.listed and self.gain < 1:
            found.append(f"{self.case.name}: {self.gain:.2f} times as fast as the snippet")
        return found


def run(console: Console, options: Namespace) -> list[str]:
    """Time every case; returns the claims that did not hold."""
    found = [measure(case, options.rounds) for case in CASES]
    gain = exp(
        sum(log(one.gain) for one in found if one.case.listed) / sum(c.listed for c in CASES)
    )
    print_table(console, found)
    console.print(f"times faster than the snippet, geometric mean of the listed cases: {gain:.1f}")
    broken = [claim for one in found for claim in one.broken]
    if gain < LEAST_GAIN:
        broken.append(f"{gain:.1f} times faster than the snippet, {LEAST_GAIN} was needed")
    return broken


def snippet(first: Tensor, second: Tensor, groups: int) -> Tensor:
    """The widely copied merge of two kernels, with groups side by side in one convolution."""
    inner, outer = first.double(), second.double()
    signal = inner.unflatten(0, (groups, -1)).permute(2, 0, 1, 3, 4).flatten(1, 2)
    padding = outer.shape[-1] - 1
    return F.conv2d(signal, outer.flip(-1, -2), padding=padding, groups=groups).permute(1, 0, 2, 3)


def measure(case: Case, rounds: int) -> Measured:
    """Time the three in turn, once their results have been seen to agree."""
    first, second = case.weights()
    inner, outer = (layers.convolution(w, groups=case.groups) for w in (first, second))
    square = torch.randn(2, SIDE, SIDE, dtype=torch.float64)
    result = torch.empty(SIDE, SIDE, dtype=torch.float64)

    def merge() -> Tensor:
        return (outer @ inner).weight

    ways: list[Callable[[], object]] = [
        lambda: snippet(first, second, case.groups),
        merge,
        lambda: torch.mm(square[0], square[1], out=result),
    ]
    torch.testing.assert_close(ways[0](), ways[1](), rtol=1e-4, atol=1e-4)
    runs = [max(1, round(IN_A_ROW / duration(way, 1))) for way in ways]
    taken: list[list[float]] = []
    while len(taken) < (3 if taken and sum(taken[0]) > LONG else rounds):
        taken.append([])
        for way, count in zip(ways, runs, strict=True):
            time.sleep(REST)
            taken[-1].append(duration(way, count))
    copied, ours, product = zip(*taken, strict=True)
    full = [SIDE**3 / seconds for seconds in product]
    rates = [case.multiplications / seconds for seconds in ours]
    return Measured(
        case,
        1e3 * median(copied),
        1e3 * median(ours),
        2e-9 * median(rates),
        median(rate / limit for rate, limit in zip(rates, full, strict=True)),
        median(theirs / mine for theirs, mine in zip(copied, ours, strict=True)),
    )


def duration(way: Callable[[], object], count: int) -> float:
    """Seconds that each of `count` runs in a row takes."""
    start = time.perf_counter()
    for _ in range(count):
        way()
    return (time.perf_counter() - start) / count


def print_table(console: Console, found: Sequence[Measured]) -> None:
    """One row a case."""
    title = f"merging two kernels, medians; {torch.get_num_threads()} threads"
    table = Table(title=title, title_justify="left")
    columns = (
        "channels, kernels",
        "ms: snippet",
        "ms: merge",
        "GFLOP/s",
        "of torch.mm",
        "times faster",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for one in found:
        table.add_row(
            one.case.name,
            f"{one.snippet:,.2f}",
            f"{one.merge:,.2f}",
            f"{one.rate:.1f}",
            f"{one.share:.0%}",
            f"{one.gain:.1f}",
        )
    console.print(table)
