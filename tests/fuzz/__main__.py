"""Searches for files that the program does not answer as it should; leaves with 1 where it found
one. Findings are written, files and all, below --keep.
"""

import argparse
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import torch

from .isolation import PACKAGE, SECONDS, written
from .search import Finding, Search
from .targets import TARGETS

SITE = str(Path(torch.__file__).parent)
GUIDES = (
    PACKAGE,
    *(f"{SITE}/{name}" for name in ("_weights_only_unpickler.py", "serialization.py", "_utils.py")),
    zipfile.__file__,
)
"""Files whose lines tell the search that it came to something new."""
TURN_SECONDS = 20.0


def kept(finding: Finding, folder: Path, number: int) -> Path:
    """Where the files of a finding were written, with what is known of it beside them."""
    place = folder / f"{finding.target}-{number:03}"
    place.mkdir(parents=True, exist_ok=True)
    written(finding.case, place)
    told = [
        str(finding),
        f"options {dict(finding.case.options)}",
        f"choices {list(finding.choices)}",
    ]
    told += [*finding.verdict.words[:3], finding.verdict.trace]
    (place / "finding.txt").write_text("\n".join(told), errors="replace")
    return place


def found(searches: Sequence[Search], seconds: float) -> Iterator[Finding]:
    """What all of them find, by turns, in so many seconds each."""
    while any(search.tally.seconds < seconds for search in searches):
        for search in searches:
            stop = min(search.tally.seconds + TURN_SECONDS, seconds)
            while search.tally.seconds < stop:
                finding = search.step()
                if finding is not None:
                    yield finding


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=list(TARGETS))
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that an example may take")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = given.target or list(TARGETS)
    seconds, number = given.minutes * 60 / len(names), 0
    with ExitStack() as stack:
        searches = [
            stack.enter_context(Search(TARGETS[name], given.seed, GUIDES, given.seconds))
            for name in names
        ]
        with suppress(KeyboardInterrupt):  # what was found so far is told all the same
            for finding in found(searches, seconds):
                number += 1
                place = kept(finding, given.keep, number)
                print(f"FOUND {finding}\n      {place}", flush=True)
        print(*(search.tally for search in searches), sep="\n")
        for search in searches:
            for key, times in search.tally.repeats.most_common():
                print(f"  {search.target.name}: {times:,} times {key}")
    return int(number > 0)


if __name__ == "__main__":
    started = time.monotonic()
    status = main()
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")
    sys.exit(status)
