"""Many random models: prints what they came to, leaves with 1 if any disagrees."""

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

import torch

from .cases import FIXED, SETTINGS, Settings, workable_case
from .faults import FAULTS, is_seen
from .oracle import Disagreement, Outcome, examine
from .shrinking import shrunk

HEADER = (
    "| settings | models | merges | none | numbers | obvious pairs | sizes |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)


def named(settings: Settings) -> str:
    return " ".join(settings.values()) or "exact"


def table(outcomes: Sequence[Outcome]) -> str:
    """A row for each of the settings and one for all, and why layers were left alone."""
    lines = [HEADER]
    for settings in SETTINGS:
        lines += _row(named(settings), [o for o in outcomes if o.settings == settings])
    lines += _row("all", outcomes)
    ranks = Counter(o.case.rank for o in outcomes if o.settings == SETTINGS[0])
    kinds = Counter(kind for o in outcomes for kind in o.reasons)
    told = (f"{count:,} of {rank} axes" for rank, count in sorted(ranks.items()))
    lines.append(f"models: {', '.join(told)}")
    left = (f"{count:,} {kind}" for kind, count in kinds.most_common())
    lines.append(f"left alone: {', '.join(left)}")
    return "\n".join(lines)


def _row(name: str, outcomes: Sequence[Outcome]) -> Iterator[str]:
    before, after = (sum(o.weights[i] for o in outcomes) for i in (0, 1))
    counts = (
        *(len(outcomes), sum(o.merges for o in outcomes), sum(not o.merges for o in outcomes)),
        f"{before:,} -> {after:,}",
        *(sum(o.pairs for o in outcomes), sum(o.sizes for o in outcomes)),
    )
    yield f"| {name} | {' | '.join(str(count) for count in counts)} |"


MOST_TOLD = 3


def _tell_faults() -> int:
    """Fixed cases that show each fault; 1 where none shows one."""
    missed = 0
    for fault in FAULTS:
        shows = list(islice((n for n in FIXED if is_seen(fault, n)), MOST_TOLD))
        missed += not shows
        print(f"{fault.name}: {', '.join(map(str, shows)) or 'not seen'}", flush=True)
    return 1 if missed else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.random_models", description=__doc__)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the first case of the seed")
    parser.add_argument("--faults", action="store_true", help="which fixed cases show which fault")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if given.faults:
        return _tell_faults()
    started, bad = time.monotonic(), 0
    outcomes: list[Outcome] = []
    for index in range(given.first, given.first + given.cases):
        case = workable_case(given.seed * 1_000_000 + index)
        try:
            outcomes += examine(case)
        except Disagreement as found:
            bad += 1
            print(f"case {index}: {shrunk(case, found)}\n", file=sys.stderr)
    print(table(outcomes))
    print(f"{bad} disagreements, {time.monotonic() - started:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
