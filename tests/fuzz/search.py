"""The search: choices that reached new lines are kept and altered; what was found is shortened."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from random import Random

from .choices import Choices
from .isolation import SECONDS, Case, Isolated, Run, Verdict

MOST_SHORTENING = 80
SHORTENING_SECONDS = 20.0
FRESH = 0.35
"""Share of examples that are not made from kept choices."""


@dataclass(frozen=True)
class Target:
    """Files of one kind and what the command line does with them."""

    name: str
    make: Callable[[Choices], Case]
    run: Run


@dataclass(frozen=True)
class Finding:
    """The shortest choices known that lead to one kind of failure."""

    target: str
    choices: tuple[int, ...]
    case: Case
    verdict: Verdict

    def __str__(self) -> str:
        verdict = self.verdict
        return (
            f"{self.target}: {verdict.key} ({verdict.kind}, {verdict.seconds:.1f} s, "
            f"{verdict.growth / 1e6:.0f} MB, files of {self.case.size} bytes)"
        )


@dataclass
class Tally:
    """What a search of one target came to."""

    target: str
    verdicts: Counter[str] = field(default_factory=Counter)
    repeats: Counter[str] = field(default_factory=Counter)
    findings: dict[str, Finding] = field(default_factory=dict)
    seconds: float = 0.0
    slowest: float = 0.0
    growth: int = 0
    lines: int = 0

    @property
    def examples(self) -> int:
        return sum(self.verdicts.values())

    def __str__(self) -> str:
        counts = ", ".join(f"{n:,} {kind}" for kind, n in sorted(self.verdicts.items()))
        rate = self.examples / self.seconds if self.seconds else 0.0
        return (
            f"{self.target}: {self.examples:,} examples in {self.seconds:.0f} s ({rate:.0f} a "
            f"second): {counts}; slowest {self.slowest:.2f} s, peak growth "
            f"{self.growth / 1e6:.0f} MB, {self.lines:,} lines reached"
        )


class Search:
    """The search of one target; `traced` are the files whose lines guide it, none for no guide."""

    def __init__(
        self, target: Target, seed: int, traced: tuple[str, ...] = (), seconds: float = SECONDS
    ) -> None:
        self.target = target
        self.tally = Tally(target.name)
        self._random = Random(f"{target.name} {seed}")
        self._kept: list[list[int]] = []
        self._lines: set[tuple[str, int]] = set()
        self._stack = ExitStack()
        warm = target.make(Choices())
        self._guided = self._stack.enter_context(
            Isolated(target.run, warm, traced=traced, seconds=seconds)
        )
        self._plain = self._guided
        if traced:
            self._plain = self._stack.enter_context(Isolated(target.run, warm, seconds=seconds))

    @property
    def warmed(self) -> Verdict | None:
        """What became of the plainest example; None before the first step."""
        return self._guided.warmed

    def __enter__(self) -> "Search":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def step(self) -> Finding | None:
        """One example; a finding of a kind that was not known before, shortened."""
        begin = time.monotonic()
        choices = Choices(self._next(), self._random)
        case = self.target.make(choices)
        verdict = self._guided(case)
        known = verdict.key in self.tally.findings
        if verdict.kind == "hang" and self._plain is not self._guided and not known:
            verdict = self._plain(case)  # tracing takes time, too
        self._count(verdict)
        if verdict.lines - self._lines:
            self._lines |= verdict.lines
            self.tally.lines = len(self._lines)
            self._kept.append(choices.taken)
        found = None
        if verdict.is_finding:
            self.tally.repeats[verdict.key] += 1
            if verdict.key not in self.tally.findings:
                found = self._shortened(
                    Finding(self.target.name, tuple(choices.taken), case, verdict)
                )
                self.tally.findings[verdict.key] = found
        self.tally.seconds += time.monotonic() - begin
        return found

    def _count(self, verdict: Verdict) -> None:
        self.tally.verdicts[verdict.kind] += 1
        if not verdict.is_finding:
            self.tally.slowest = max(self.tally.slowest, verdict.seconds)
            self.tally.growth = max(self.tally.growth, verdict.growth)

    def _next(self) -> Sequence[int]:
        random = self._random
        if not self._kept or random.random() < FRESH:
            return ()
        # the later ones are the rarer ones
        place = max(random.randrange(len(self._kept)), random.randrange(len(self._kept)))
        return changed(self._kept[place], random, random.choice(self._kept))

    def _shortened(self, found: Finding) -> Finding:
        begin, best = time.monotonic(), found
        attempts = Shorter(found.choices)
        for _ in range(MOST_SHORTENING):
            attempt = attempts.next()
            if attempt is None or time.monotonic() - begin > SHORTENING_SECONDS:
                break
            choices = Choices(attempt)
            case = self.target.make(choices)
            verdict = self._plain(case)
            if verdict.is_finding and verdict.key == found.verdict.key:
                attempts.best = without_zeros(choices.taken)
                best = replace(best, choices=tuple(attempts.best), case=case, verdict=verdict)
        return best


def changed(kept: Sequence[int], random: Random, other: Sequence[int]) -> list[int]:
    """Choices near those that were kept."""
    result = list(kept)
    for _ in range(1 + int(random.expovariate(0.7))):
        at = random.randrange(len(result) + 1)
        kind = random.randrange(6)
        if kind <= 1:
            result[at : at + 1] = [random.getrandbits(24)]
        elif kind == 2:
            del result[at : at + 1 + random.randrange(8)]
        elif kind == 3:
            result[at:at] = [random.getrandbits(24) for _ in range(1 + random.randrange(4))]
        elif kind == 4:
            result[at:] = other[at:]
        else:
            del result[at:]
    return result


def without_zeros(choices: Sequence[int]) -> list[int]:
    """The choices without the zeros at their end, which need not be said."""
    end = max((index + 1 for index, choice in enumerate(choices) if choice), default=0)
    return list(choices[:end])


class Shorter:
    """Attempts to do with fewer choices than `best`, or with more zeros among them; whoever finds
    that one of them will do says so by setting `best`.
    """

    def __init__(self, choices: Sequence[int]) -> None:
        self.best = without_zeros(choices)
        self._size, self._at = max(1, len(self.best) // 2), 0
        self._zeroing = False

    def next(self) -> list[int] | None:
        """The next attempt; None where there is nothing more to try."""
        while self._size:
            if self._at >= len(self.best):
                self._size, self._at, self._zeroing = self._size // 2, 0, False
                continue
            piece = self.best[self._at : self._at + self._size]
            rest = self.best[self._at + self._size :]
            if self._zeroing:
                attempt = self.best[: self._at] + [0] * len(piece) + rest
                self._at += self._size
            else:
                attempt = self.best[: self._at] + rest
            self._zeroing = not self._zeroing
            if attempt != self.best and without_zeros(attempt) != self.best:
                return attempt
        return None
