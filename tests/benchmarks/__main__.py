"""`python -m tests.benchmarks [--rounds N] [--threads N] [--size N]`; exit 1 if a claim fails."""

import argparse
import sys
from dataclasses import replace

import torch
from rich.console import Console

from tests.benchmarks.borders import LARGEST_COST, measure, print_table
from tests.benchmarks.geometries import PAIRS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="times that each way is run")
    parser.add_argument("--threads", type=int, default=1, help="threads of either runtime")
    parser.add_argument("--size", type=int, default=256, help="samples on each side of the image")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    console = Console(width=170)
    found = []
    for pair in PAIRS:
        found.append(measure(replace(pair, size=given.size), given.rounds, given.threads))
    print_table(console, found)
    broken = [claim for one in found for claim in one.broken]
    for claim in broken:
        console.print(f"[red]not held[/]: {claim}")
    if not broken:
        console.print(
            f"held: at most {LARGEST_COST} times a plain merge's time, and faster than the pair "
            "wherever the plan says that it pays"
        )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
