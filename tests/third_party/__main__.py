"""Squeeze every network of the table: regions, weights, time, difference."""

import sys

import torch

from .cases import CASES, Case
from .running import squeezed
from .scanning import regions, scanned

HEADER = "| network | regions | numbers stored | milliseconds | largest difference |\n" + (
    "| --- | --- | --- | --- | --- |"
)


def line(case: Case, border: str) -> str:
    """A row of the table; the difference is by the largest output, in float64."""
    found = len(regions(scanned(case, case.factory(), border)))
    one = squeezed(case, border)
    before, after = one.weights
    difference = one.difference
    slow, fast = one.milliseconds()
    return (
        f"| {case.name} | {found} | {before:,} -> {after:,} | {slow:.2f} -> {fast:.2f} "
        f"| {difference:.1e} |"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(HEADER)
    for case in CASES:
        for border in sys.argv[1:] or ["exact"]:
            print(line(case, border), flush=True)
