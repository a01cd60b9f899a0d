"""Squeeze every network of the table: regions, weights, time, difference.

Arguments are border policies, by default `exact`; the exit status is 1 where squeezing fails.
"""

import sys
import warnings

import torch

from convsqueeze.errors import ConvsqueezeError

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


def main(borders: list[str]) -> int:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    failed = 0
    print(HEADER)
    for case in CASES:
        for border in borders:
            try:
                print(line(case, border), flush=True)
            except ConvsqueezeError as error:
                failed = 1
                print(f"| {case.name} | {type(error).__name__}: {error} |", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["exact"]))
