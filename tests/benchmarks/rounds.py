"""Ways to do the same, timed in turn: what slows the machine down for a while slows all of them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

LEAST_SECONDS = 1.0
"""How long ways are timed at least, however short one round is."""

Run = Callable[[], object]


@dataclass(frozen=True)
class Rounds:
    """Seconds that each way took, round by round."""

    seconds: Mapping[str, list[float]]

    def milliseconds(self, way: str) -> float:
        """The median."""
        return 1e3 * median(self.seconds[way])

    def ratio(self, way: str, other: str) -> float:
        """The median over the rounds of the time of one way by that of another."""
        return median(a / b for a, b in zip(self.seconds[way], self.seconds[other], strict=True))


def in_turn(runs: Mapping[str, Run], rounds: int) -> Rounds:
    """Run each way once in every round, each round beginning with another, after a warm-up."""
    for run in runs.values():
        for _ in range(3):
            run()
    taken: dict[str, list[float]] = {way: [] for way in runs}
    index, begin, ways = 0, time.perf_counter(), list(runs)
    while index < rounds or time.perf_counter() - begin < LEAST_SECONDS:
        for way in ways[index % len(ways) :] + ways[: index % len(ways)]:
            start = time.perf_counter()
            runs[way]()
            taken[way].append(time.perf_counter() - start)
        index += 1
    return Rounds(taken)
