"""Many random manifests: prints what they came to, leaves with 1 at the first disagreement.

With `--verified` each is merged and verified in every policy, and time and memory are told.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch

from . import verified
from .corrected import FORMS, depends_on_size, form_of, leaves_out_zeros
from .manifests import KINDS
from .original import Disagreement, workable_case
from .trial import VERDICTS, Outcome, examine
from .verified import examined


def summary(outcomes: Sequence[Outcome]) -> str:
    """The counts, in lines."""
    verdicts = Counter(o.verdict for o in outcomes)
    sizes = sum(o.sizes for o in outcomes)
    lines = [
        f"{len(outcomes):,} cases: {verdicts['exact']:,} exact, {verdicts['border']:,} refused at "
        f"the border, {verdicts['not one']:,} not one convolution; {sizes:,} input sizes run"
    ]
    for verdict in VERDICTS:
        lines.append(f"  {verdict}: {_counts(o.reason for o in outcomes if o.verdict == verdict)}")
    for kind in KINDS:
        counts = Counter(o.verdict for o in outcomes if o.case.kind == kind)
        listed = ", ".join(f"{counts[verdict]:,} {verdict}" for verdict in VERDICTS)
        lines.append(f"  by kind, {kind}: {listed}")
    lines.append(f"  by rank: {_counts(str(o.case.rank) for o in outcomes)}")
    lines.append(f"  by dtype: {_counts(_dtype(o) for o in outcomes)}")
    lines += _forms(outcomes)
    flagged, spared = sum(o.flagged for o in outcomes), sum(o.spared for o in outcomes)
    lines.append(f"  rows called wrong: {flagged:,}, of which {spared:,} held no wrong output")
    return "\n".join(lines)


def _forms(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What `border: corrected` made of the cases that merge, and what of that was tried."""
    merged = [o.corrected for o in outcomes if o.corrected is not None]
    forms = Counter(form_of(one.merge) for one in merged)
    told = (f"{forms[form]:,} {form} ({forms[form] / len(merged):.0%})" for form in FORMS if merged)
    yield f"  corrected: {', '.join(told)}"
    for form in FORMS[1:]:
        found = [one for one in merged if form_of(one.merge) == form]
        zeros = sum(leaves_out_zeros(one.merge) for one in found)
        sizes = sum(depends_on_size(one.merge) for one in found)
        yield (
            f"    {form}: {zeros:,} leave out structural zeros, {sizes:,} depend on the size; "
            f"by rank {_counts(str(one.case.rank) for one in found)}"
        )


def _counts(names: Iterable[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in Counter(names).most_common())


def _dtype(outcome: Outcome) -> str:
    weight = next(iter(outcome.case.tensors.values()))
    return str(weight.dtype).removeprefix("torch.")


def examine_verified(seeds: range, processes: int) -> int:
    """Prints faults as they are found, counts, and the slowest ten."""
    with ProcessPoolExecutor(processes) as pool:
        outcomes = []
        for of_one in pool.map(examined, seeds, chunksize=5):
            outcomes += of_one
            for outcome in of_one:
                if outcome.is_fault:
                    print(outcome, file=sys.stderr, flush=True)
    print(verified_summary(outcomes))
    return int(any(outcome.is_fault for outcome in outcomes))


def verified_summary(outcomes: Sequence[verified.Outcome]) -> str:
    """The counts, and the ten that took longest, in lines."""
    cases = len({o.seed for o in outcomes})
    lines = [
        f"{cases:,} manifests, {len(outcomes):,} merges: {_counts(_verdict(o) for o in outcomes)}"
    ]
    for key in ("dtype", "border"):
        lines += [
            f"  {name}: {_counts(_verdict(o) for o in outcomes if getattr(o, key) == name)}"
            for name in sorted({getattr(o, key) for o in outcomes})
        ]
    peak = max((o.peak_bytes for o in outcomes), default=0)
    lines.append(f"  largest resident size {peak / 1e6:,.0f} MB; the slowest:")
    for one in sorted(outcomes, key=lambda o: -o.seconds)[:10]:
        told = f", {one.told[:160]}" if one.told else ""
        lines.append(
            f"  {one.seconds:5.1f} s, {one.peak_bytes / 1e6:,.0f} MB: seed {one.seed}, "
            f"{one.dtype}, {one.border}, {one.verdict}, {one.reason}{told}"
        )
    return "\n".join(lines)


def _verdict(outcome: verified.Outcome) -> str:
    return outcome.verdict


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.random_networks", description=__doc__)
    parser.add_argument("--cases", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-going", action="store_true", help="collect every disagreement")
    parser.add_argument("--verified", action="store_true", help="merge and verify, see `verified`")
    parser.add_argument("--processes", type=int, default=1, help="of --verified")
    given = parser.parse_args()
    if given.verified:
        first = given.seed * 1_000_000
        return examine_verified(range(first, first + given.cases), given.processes)
    torch.set_num_threads(1)
    started, outcomes, bad = time.monotonic(), [], 0
    for index in range(given.cases):
        try:
            outcomes.append(examine(workable_case(given.seed * 1_000_000 + index)))
        except Disagreement as disagreement:
            print(disagreement, file=sys.stderr)
            bad += 1
            if not given.keep_going:
                break
    print(summary(outcomes))
    print(f"  {bad} disagreements, {time.monotonic() - started:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
