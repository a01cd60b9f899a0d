"""Merging large files: time beside `cp`, memory beside `import torch`.

Every round runs the merge of a file that has only a small pair (the start-up), then `cp` of the
large file and its merge, every other round the other way round; ratios are medians over the rounds.
`cp` leaves its copy to the kernel's cache, a merge flushes it to the disk, so `cp` and `sync` is
shown as well. Memory that a virtual machine has given back costs time when it is used again, so
each of the two begins a few seconds after the last copy was removed.
"""

import shutil
import tempfile
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.benchmarks.large_files import Pairs, make
from tests.benchmarks.processes import Ran, convsqueeze, python, ran

TITLE = "time and memory of merging large files"
OF_CP = 1.5
"""What a merge may take of the time of `cp`, beside starting."""
ALLOWANCE = 300e6
"""Bytes that a merge may hold above those of importing torch."""
OF_MERGE = 1.3
"""What it may hold, in a `.pt`, of the tensors of its largest merge beside that."""
PAIRS = Pairs()
SETTLE_S = 4
ROUNDS = 6
"""At most: files are large, but how soon a system has free memory for them differs much."""


@dataclass(frozen=True)
class Measured:
    """One file: its size and, for each round, what was run."""

    name: str
    nbytes: int
    rounds: list[dict[str, Ran]]

    def seconds(self, what: str) -> float:
        return median(one[what].seconds for one in self.rounds)

    def peak(self, what: str, kind: str) -> int:
        return max(getattr(one[what], kind) for one in self.rounds)

    @property
    def of_cp(self) -> float:
        """Beside the start-up."""
        return median(
            (one["merge"].seconds - one["start-up"].seconds) / one["cp"].seconds
            for one in self.rounds
        )

    def above_torch(self, kind: str) -> int:
        return self.peak("merge", kind) - self.peak("import torch", kind)

    @property
    def broken(self) -> list[str]:
        found = []
        if self.name != ".pt" and self.of_cp > OF_CP:
            found.append(f"{self.name}: {self.of_cp:.2f} times the time of cp, beside starting")
        if self.name != ".pt" and self.above_torch("resident") > ALLOWANCE:
            found.append(f"{self.name}: {self.above_torch('resident') / 1e6:.0f} MB above torch")
        if self.above_torch("anonymous") > ALLOWANCE + OF_MERGE * PAIRS.nbytes:
            held = self.above_torch("anonymous") / 1e6
            found.append(f"{self.name}: {held:.0f} MB of anonymous memory above torch")
        return found


def run(console: Console, options: Namespace) -> list[str]:
    """Make the files, measure, print; returns the claims that did not hold."""
    total = int(1e9 * options.gigabytes)
    found = []
    for name, nbytes in ((".safetensors", total), ("shards", total), (".pt", total // 2)):
        with tempfile.TemporaryDirectory(prefix="convsqueeze-") as folder:
            found.append(_measured(name, Path(folder), nbytes, max(1, min(options.rounds, ROUNDS))))
    console.print(_table(found))
    return [claim for one in found for claim in one.broken]


def _measured(name: str, folder: Path, nbytes: int, rounds: int) -> Measured:
    suffix = ".safetensors.index.json" if name == "shards" else name
    large, small = folder / "large", folder / "small"
    for place in (large, small):
        place.mkdir()
    manifest = make(large / f"in{suffix}", nbytes, PAIRS)
    tiny = make(small / "in.safetensors", 0, Pairs(1, 4))
    merge = convsqueeze("merge", large / f"in{suffix}", "--pairs", manifest, "-q")
    start = convsqueeze("merge", small / "in.safetensors", "--pairs", tiny, "-q")
    files = [path for path in large.iterdir() if path != manifest]
    taken = []
    for number in range(rounds):
        copy, output = folder / "copy", folder / "output"
        for place in (copy, output):
            place.mkdir()
        one = {"import torch": ran(python("import torch"))}
        one["start-up"] = ran([*start, "-o", output / "small.safetensors"])
        for what in ("cp", "merge") if number % 2 == 0 else ("merge", "cp"):
            time.sleep(SETTLE_S)
            if what == "merge":
                one["merge"] = ran([*merge, "-o", output / f"out{suffix}"])
                shutil.rmtree(output)
                continue
            one["cp"] = ran(["cp", *files, copy])
            one["sync"] = ran(["sync", *copy.iterdir()])
            shutil.rmtree(copy)
        taken.append(one)
    return Measured(name, sum(path.stat().st_size for path in files), taken)


def _table(found: list[Measured]) -> Table:
    table = Table(title=f"{PAIRS.count} pairs, {PAIRS.channels} channels", title_justify="left")
    table.add_column("file")
    for column in ("GB", "cp s", "cp, sync s", "start-up s", "merge s", "of cp, beside starting"):
        table.add_column(column, justify="right")
    for column in ("resident above torch, MB", "anonymous above torch, MB"):
        table.add_column(column, justify="right")
    for one in found:
        both = median(r["cp"].seconds + r["sync"].seconds for r in one.rounds)
        table.add_row(
            one.name,
            f"{one.nbytes / 1e9:.2f}",
            f"{one.seconds('cp'):.2f}",
            f"{both:.2f}",
            f"{one.seconds('start-up'):.2f}",
            f"{one.seconds('merge'):.2f}",
            f"{one.of_cp:.2f}",
            f"{one.above_torch('resident') / 1e6:.0f}",
            f"{one.above_torch('anonymous') / 1e6:.0f}",
        )
    return table
