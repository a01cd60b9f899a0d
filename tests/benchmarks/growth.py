"""How time and memory of a merge grow with the size of the file, with channels and with pairs.

Each is a whole process, beside one that only imports torch; the medians of some rounds.
`--plot FILE` draws them.
"""

import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from tests.benchmarks.large_files import Pairs, make
from tests.benchmarks.processes import convsqueeze, python, ran

TITLE = "growth of time and memory"
ROUNDS = 3


@dataclass(frozen=True)
class Point:
    """A merge: what grows, how large it is, seconds, and resident bytes above importing torch."""

    what: str
    amount: float
    seconds: float
    resident: float


GROWING = {
    "GB in the file": [(size, int(size * 1e9), Pairs(10, 64)) for size in (0.25, 1, 4)],
    "channels": [(channels, 0, Pairs(1, channels)) for channels in (64, 128, 256, 512, 1024)],
    "pairs": [(count, 0, Pairs(count, 16)) for count in (1, 10, 100, 1000)],
}


def run(console: Console, options: Namespace) -> list[str]:
    """Measure and print; nothing is claimed but that the memory does not grow with the file."""
    points = list(_points(options))
    table = Table()
    for column in ("what grows", "", "seconds", "resident above torch, MB"):
        table.add_column(column, justify="left" if column == "what grows" else "right")
    for point in points:
        row = f"{point.amount:g}", f"{point.seconds:.2f}", f"{point.resident / 1e6:.0f}"
        table.add_row(point.what, *row)
    console.print(table)
    if options.plot:
        draw(points, options.plot)
    resident = [point.resident for point in points if point.what == "GB in the file"]
    grown = max(resident) - min(resident)
    return [] if grown < 50e6 else [f"{grown / 1e6:.0f} MB more for a larger file"]


def _points(options: Namespace) -> Iterator[Point]:
    for what, cases in GROWING.items():
        for amount, nbytes, pairs in cases:
            if nbytes > 1e9 * options.gigabytes:
                continue
            with tempfile.TemporaryDirectory(prefix="convsqueeze-") as name:
                folder = Path(name)
                manifest = make(folder / "in.safetensors", nbytes, pairs)
                merge = convsqueeze("merge", folder / "in.safetensors", "--pairs", manifest)
                merge += ["-q", "--overwrite", "-o", folder / "out.safetensors"]
                rounds = [(ran(python("import torch")), ran(merge)) for _ in range(ROUNDS)]
            yield Point(
                what,
                amount,
                median(merged.seconds for _, merged in rounds),
                median(merged.resident - torch.resident for torch, merged in rounds),
            )


def draw(points: Sequence[Point], path: Path) -> None:
    """A column for each thing that grows: seconds above, memory below."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots(2, len(GROWING))
    for column, what in enumerate(GROWING):
        found = [point for point in points if point.what == what]
        amounts = [point.amount for point in found]
        rows = [[point.seconds for point in found], [point.resident / 1e6 for point in found]]
        for row, (values, label) in enumerate(
            zip(rows, ("seconds", "MB above torch"), strict=True)
        ):
            axis = axes[row][column]
            axis.plot(amounts, values, marker="o", color="#2a6f97")
            axis.set_xscale("log")
            axis.set_xticks(amounts, [f"{amount:g}" for amount in amounts])
            axis.minorticks_off()
            axis.set_ylim(0, 1.15 * max(values))
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_xlabel(what if row else "")
            axis.set_ylabel("" if column else label)
    figure.savefig(path, dpi=110)
