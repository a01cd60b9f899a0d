"""What verifying a layer takes, beside merging it: in `merge`, and in `verify`, which recomputes.

Processor time of one thread, as merging uses: what else the machine does then counts little. Within
a round each is run once, in turn, and the median is told. Memory is the peak of a child process
that does one of them, beyond what it held before, and beside the float64 size of what is merged.
"""

import ctypes
import gc
import multiprocessing
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from convsqueeze.checkpoint import from_state_dict
from convsqueeze.manifest import manifest_from_data
from convsqueeze.module import module_of
from convsqueeze.plan import Merge, make_plan
from convsqueeze.squeezing import exact_values, recipe_layer, squeeze_one
from convsqueeze.verify import LayerReport, check_layer

TITLE = "time and memory of verifying a layer, beside merging it"
MOMENT = 0.1
"""Seconds that verification may take beyond the merge."""
ONCE = 1.0
"""Seconds of a merge beyond which a case is run in few rounds."""


@dataclass(frozen=True)
class Case:
    """Two layers: channels, kernel sizes, and what else their entries and the pair's say."""

    channels: tuple[int, int, int]
    kernels: tuple[int, int]
    first: Mapping[str, Any] | None = None
    second: Mapping[str, Any] | None = None
    border: str = "exact"
    rank: int = 2

    @property
    def name(self) -> str:
        sizes = " ".join("x".join([str(k)] * self.rank) for k in self.kernels)
        groups = [(entry or {}).get("groups", 1) for entry in (self.first, self.second)]
        told = f", groups {groups[0]} and {groups[1]}" if max(groups) > 1 else ""
        kind = ", corrected" if self.border == "corrected" else ""
        return f"{' -> '.join(map(str, self.channels))}, {sizes}{told}{kind}"

    def made(self) -> tuple[Merge, Callable[[str], Tensor]]:
        torch.manual_seed(0)
        tensors = {}
        given, middle, out = self.channels
        for name, entry, shape in (
            ("a", self.first, (middle, given)),
            ("b", self.second, (out, middle)),
        ):
            kernel = self.kernels["ab".index(name)]
            inputs = shape[1] // (entry or {}).get("groups", 1)
            weight = torch.randn(shape[0], inputs, *[kernel] * self.rank)
            tensors[f"{name}.weight"] = weight / (inputs * kernel**self.rank) ** 0.5
            tensors[f"{name}.bias"] = torch.randn(shape[0])
        chain = [{"name": "a", **(self.first or {})}, {"name": "b", **(self.second or {})}]
        pairs = [{"into": "c", "chain": chain}]
        data = {"version": 1, "border": self.border, "pairs": pairs}
        checkpoint = from_state_dict(tensors)
        (merge,) = make_plan(manifest_from_data(data), checkpoint, growth="allow").merges
        return merge, checkpoint.load


def corrected(*channels: int) -> Case:
    return Case(channels, (3, 3), {"padding": 1}, {"padding": 1}, "corrected")  # type: ignore[arg-type]


CASES = (
    Case((16, 64, 16), (3, 3)),
    corrected(16, 64, 16),
    Case((16, 256, 16), (5, 1)),
    Case((64, 256, 64), (3, 3)),
    corrected(64, 256, 64),
    Case((128, 512, 128), (3, 3)),
    Case((256, 256, 256), (3, 3)),
    corrected(256, 256, 256),
    Case((512, 512, 512), (1, 3)),
    Case((512, 2048, 512), (3, 1)),
    Case((512, 512, 512), (3, 3)),
    Case(
        (64, 64, 64), (5, 7), {"padding": 2, "groups": 64},
        {"padding": 9, "dilation": 3, "groups": 64}, "corrected",
    ),
    Case((256, 512, 256), (3, 3), {"groups": 4}, {"groups": 8}),
    Case((128, 128, 128), (31, 5), {"padding": 15, "groups": 128}, {"groups": 128}),
    Case((512, 512, 512), (3, 3), {"padding": 1, "groups": 512}, {"groups": 512}),
    Case((1024, 1024, 1024), (13, 5), {"padding": 6, "groups": 1024}, {"groups": 1024}),
    Case((1024, 1024, 1024), (13, 3), {"stride": 2, "groups": 1024}, {"groups": 1024}),
    Case((20_000, 20_000, 20_000), (3, 3), {"groups": 20_000}, {"groups": 20_000}),
    Case((3, 64, 128), (4, 1), {"stride": 4}),
    Case((64, 128, 64), (3, 3), rank=3),
    Case((16, 32, 16), (3, 3), {"padding": 1}, {"padding": 1}, "corrected", rank=3),
)  # fmt: skip
WAYS = ("merge", "merge's check", "values", "verify's check")


def _prepared(case: Case) -> dict[str, Callable[[], Any]]:
    """What is timed; the stored layer and its exact values are made beforehand."""
    merge, load = case.made()
    squeezed = squeeze_one(merge, load)
    module = module_of(recipe_layer(merge), squeezed.tensors())

    def check(exact: Mapping[str, Tensor] | None) -> LayerReport:
        report = check_layer(merge, module, load, trials=3, seed=0, exact=exact)
        if not report.ok:
            raise AssertionError(f"{case.name}: {report.problem}")
        return report

    return {
        "merge": lambda: squeeze_one(merge, load),
        "merge's check": lambda: check(squeezed.exact),
        "values": lambda: exact_values(merge, load),
        "verify's check": lambda: check(None),
    }


@dataclass(frozen=True)
class Measured:
    """Median seconds of each way, and megabytes that merging and verifying take at their peak."""

    case: Case
    seconds: Mapping[str, float]
    megabytes: Mapping[str, float]

    @property
    def broken(self) -> list[str]:
        """`verify` recomputes the values, which is counted beside what it checks."""
        merge, found = self.seconds["merge"], []
        for way, allowed in (
            ("merge's check", merge + MOMENT),
            ("verify's check", merge + self.seconds["values"] + MOMENT),
        ):
            if self.seconds[way] > allowed:
                took = f"{1e3 * self.seconds[way]:.0f} ms, {1e3 * allowed:.0f} ms are allowed"
                found.append(f"{self.case.name}: {way} takes {took}")
        return found


def run(console: Console, options: Namespace) -> list[str]:
    """Measure every case; returns the claims that did not hold."""
    torch.set_num_threads(1)
    table = Table(
        "layers", *(f"{way}, ms" for way in WAYS), "check / merge", "merge, MB", "check, MB"
    )
    broken = []
    for case in CASES:
        one = measured(case, options.rounds)
        times = [f"{1e3 * one.seconds[way]:,.1f}" for way in WAYS]
        ratio = one.seconds["merge's check"] / one.seconds["merge"]
        table.add_row(
            case.name,
            *times,
            f"{ratio:.2f}",
            *(f"{one.megabytes[way]:,.0f}" for way in ("merge", "check")),
        )
        broken += one.broken
    console.print(table)
    if not broken:
        console.print(f"held: no check takes more than merging does and {1e3 * MOMENT:.0f} ms")
    return broken


def measured(case: Case, rounds: int) -> Measured:
    ways = _prepared(case)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way, act in ways.items():
            started = time.process_time()
            act()
            if number:  # the first warms up
                times[way].append(time.process_time() - started)
        if number >= 3 and median(times["merge"]) * number > ONCE:
            break
    memory = {what: peak_of(case, what) for what in ("merge", "check")}
    return Measured(case, {way: median(found) for way, found in times.items()}, memory)


def peak_of(case: Case, what: str) -> float:
    """Megabytes at the peak of a process that does this, beyond what it held before."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak, (case, what))


def _peak(case: Case, what: str) -> float:
    torch.set_num_threads(1)
    merge, load = case.made()
    _prepared(Case((16, 16, 16), (3, 3)))["verify's check"]()  # what torch loads at first
    _prepared(Case((64, 256, 64), (3, 3)))["verify's check"]()
    if what == "merge":
        before = _reset_peak()
        squeeze_one(merge, load)
    else:
        module = module_of(recipe_layer(merge), squeeze_one(merge, load).tensors())
        gc.collect()
        before = _reset_peak()
        check_layer(merge, module, load, trials=3, seed=0)
    return _resident("VmHWM") - before


def _reset_peak() -> float:
    """What the process holds, from where the peak is counted; what was freed is given back."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _resident(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1e3
