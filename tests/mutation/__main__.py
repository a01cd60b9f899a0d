"""`python -m tests.mutation --reach FILE --results FILE [--module PART ...] [--sample N]`.

Measures once which tests meet which lines (the file is made where it is missing), then tries
every fault, or a sample of each module. A results file that there is already is gone on with.
"""

import argparse
import os
import random
import sys
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy  # noqa: F401  (imported before any fork)
import onnxruntime  # noqa: F401
import pydantic  # noqa: F401
import torch
from hypothesis import Phase

from tests.mutation.reach import ROOT, Reach, collect
from tests.mutation.sites import sites
from tests.mutation.trials import Limits, Results, Served, Trial, key, read, serve, trial, try_alone

MODULES = (
    *(f"algebra/{name}.py" for name in ("conv", "precision", "tree", "geometry", "groups")),
    *(f"algebra/{name}.py" for name in ("apply", "sizes")),
    *(f"algebra/border/{name}.py" for name in ("trace", "taps", "corrections", "values")),
    *(f"algebra/border/{name}.py" for name in ("mismatches", "strips")),
    *(f"kinds/{name}.py" for name in ("conv", "conv_transpose", "linear", "batch_norm", "scale")),
    *(f"kinds/{name}.py" for name in ("avg_pool", "pad", "identity", "operators", "oracle")),
    "squeezing.py",
    *(f"verify/{name}.py" for name in ("layer", "probes", "reference", "files", "maps")),
    *(f"verify/{name}.py" for name in ("comparison", "groups", "magnitudes")),
    *(f"verify/{name}.py" for name in ("numbers", "outcome", "worst")),
    *(f"module/{name}.py" for name in ("layer", "border")),
)


def main() -> int:
    given = _arguments()
    torch.set_num_threads(1)
    hypothesis.settings.register_profile(
        "mutation",
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),  # a fault seen is enough, however large
        report_multiple_bugs=False,
    )
    hypothesis.settings.load_profile("mutation")
    if not given.reach.exists() and not _reach_collected(given.reach, given.test or ["tests"]):
        return 2
    done = {row["key"]: row for row in read(given.results)}
    only = {
        row["key"]
        for row in read(given.again or Path())
        if row["outcome"] in ("survived", "uncovered")
    }
    reach = Reach.read(given.reach)
    limits = Limits(given.tests, given.seconds, given.first)
    wanted = []
    for name in MODULES:
        if given.module and not any(part in name for part in given.module):
            continue
        file = f"convsqueeze/{name}"
        found = list(sites((ROOT / file).read_text()))
        if given.sample and given.sample < len(found):
            found = random.Random(given.seed).sample(found, given.sample)
        found.sort(key=lambda site: (site.line, site.node))
        wanted += [(file, site) for site in found]
    with given.results.open("a") as stream:
        results = Results(stream)
        for row in (*read(given.again or Path()), *done.values()):
            results.learn(row)

        def serve_all(served: Served | None) -> None:
            for file, site in wanted:
                name = key(file, site)
                if name in done or (given.again and name not in only):
                    continue
                one = trial(file, site, reach, limits, results.likely(file, site))
                _try(one, served, results)

        if given.alone:
            serve_all(None)
        else:
            if not (pid := os.fork()):
                serve(serve_all)
                os._exit(0)
            os.waitpid(pid, 0)
            done |= {row["key"]: row for row in read(given.results)}
            serve_all(None)
    print_table(given.results)
    return 0


def _reach_collected(path: Path, tests: list[str]) -> bool:
    """Run the tests in a process of their own, so that faults are loaded by one that ran none."""
    if not (pid := os.fork()):
        os._exit(0 if collect(path, tests) else 2)
    return os.waitpid(pid, 0)[1] == 0


def _try(one: Trial, served: Served | None, results: Results) -> None:
    """Try a fault; in the serving process one that needs another is left to the next round."""
    start = os.times().elapsed
    source = (ROOT / one.file).read_text()
    if not one.tests:
        found: tuple[str, str] | None = ("uncovered", "")
    else:
        found = served.try_one(one, source) if served else try_alone(one, source)
    if found is not None:
        results.add(one, *found, os.times().elapsed - start)


def print_table(results: Path) -> None:
    """For each module how many faults were seen."""
    last = {row["key"]: row for row in read(results)}
    counts: dict[str, Counter[str]] = {}
    for row in last.values():
        counts.setdefault(row["file"], Counter())[row["outcome"]] += 1
    total: Counter[str] = sum(counts.values(), Counter())
    for file, found in [*counts.items(), ("all", total)]:
        seen = found["killed"] + found["timeout"]
        parts = ", ".join(f"{found[key]} {key}" for key in sorted(found))
        print(f"{file}: {found.total()} faults, {parts}: {seen / found.total():.1%}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--reach", type=Path, default=Path(".cache/mutation-reach.json"))
    parser.add_argument("--results", type=Path, default=Path(".cache/mutation.jsonl"))
    parser.add_argument("--again", type=Path, help="results whose survivors to try")
    parser.add_argument("--module", action="append", help="only files whose path holds this")
    parser.add_argument("--test", action="append", help="where to look for tests")
    parser.add_argument("--sample", type=int, default=0, help="faults of each module, 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--tests", type=int, default=40, help="most tests for a fault")
    parser.add_argument("--seconds", type=float, default=40.0, help="most seconds of these tests")
    parser.add_argument("--first", default="", help="tests to try first, by how they begin")
    parser.add_argument("--alone", action="store_true", help="import anew for every fault")
    given = parser.parse_args()
    for path in (given.reach, given.results):
        path.parent.mkdir(parents=True, exist_ok=True)
    return given


if __name__ == "__main__":
    sys.exit(main())
