"""One case as torch computes it, the sizes it is tried on, and what a disagreement looks like."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from convsqueeze.algebra.geometry import Axis

from .manifests import Case, random_case
from .torch_layers import BranchesDisagreeError, network, runs, smallest_size

Size = tuple[int, ...]

NOISE = 1e-12
"""What float64 sums of at most a few thousand products lose, relative to their magnitude."""
WRONG = 1e-6
"""A difference that no rounding makes, relative to the magnitude of the output."""

ROOMY: dict[int, tuple[Size, ...]] = {
    0: ((),),
    1: ((40,), (110,)),
    2: ((12, 12), (36, 36)),
    3: ((7,) * 3, (15,) * 3),
}
_MOST_SIZES = {0: 1, 1: 36, 2: 30, 3: 27}


class Disagreement(AssertionError):
    """The program and torch do not agree about a case."""

    def __init__(self, case: Case, what: str) -> None:
        shapes = {k: f"{tuple(t.shape)} {t.dtype}" for k, t in case.tensors.items()}
        entry = json.dumps(case.entry)
        super().__init__(f"seed {case.seed} ({case.kind}): {what}\n  {entry}\n  {shapes}")


@dataclass(frozen=True)
class Original:
    """The original layers in float64, and the sizes they take."""

    case: Case

    @cached_property
    def module(self) -> nn.Module:
        return network(self.case.entry, self.case.tensors, self.case.rank)

    @cached_property
    def magnitude(self) -> nn.Module:
        return network(self.case.entry, self.case.tensors, self.case.rank, magnitude=True)

    @cached_property
    def roomy(self) -> Size | None:
        """A size that is large enough on every axis, None if that is beyond what is tried."""
        options = ROOMY[self.case.rank]
        return next((s for s in options if runs(self.module, self.case.channels, s)), None)

    @cached_property
    def smallest(self) -> Size:
        return smallest_size(self.module, self.case.channels, self.roomy or ())

    def image(self, size: Size, count: int = 2) -> Tensor:
        generator = torch.Generator().manual_seed(self.case.seed + sum(size))
        return torch.randn(count, self.case.channels, *size, generator=generator).double()


def in_float64(case: Case) -> Case:
    """The same case with its numbers stored in float64."""
    wide = {k: t.double() if t.is_floating_point() else t for k, t in case.tensors.items()}
    return replace(case, tensors=wide)


def workable_case(seed: int) -> Case:
    """The random case of a seed, small enough to be tried; now and then for one input size only."""
    for attempt in range(1000):
        case = random_case(seed + 1_000_003 * attempt)
        original = Original(case)
        try:
            if original.roomy is None:
                continue
        except BranchesDisagreeError:
            return case
        rng = random.Random(case.seed)
        if case.rank and rng.random() < 0.08:
            size = [n + rng.randint(0, 6) for n in original.smallest]
            return replace(case, entry=case.entry | {"input": size})
        return case
    raise ValueError(f"no workable case grows from seed {seed}")


def input_sizes(original: Original, axes: Sequence[Axis]) -> Iterator[Size]:
    """From the smallest that torch takes to past the kernel of the merged `axes`, each through its
    range: one after the other at first, every rest of the strides at the end.
    """
    case = original.case
    if case.entry.get("input"):
        yield tuple(case.entry["input"])
        return
    if not case.rank:
        yield ()
        return
    rng = random.Random(case.seed)
    spans = [
        min(axis.extent + abs(axis.before) + abs(axis.after) + axis.stride, 60 // case.rank)
        for axis in axes
    ]
    yield original.smallest
    seen = {original.smallest}
    for along, span in enumerate(spans):
        for step in _steps(span, axes[along].stride, _MOST_SIZES[case.rank] // case.rank, rng):
            beside = (0 if rng.random() < 0.3 else rng.randint(0, min(s, 10)) for s in spans)
            steps = [step if a == along else other for a, other in enumerate(beside)]
            size = tuple(low + more for low, more in zip(original.smallest, steps, strict=True))
            if size not in seen:
                seen.add(size)
                yield size


def _steps(span: int, stride: int, most: int, rng: random.Random) -> list[int]:
    """At most `most` numbers up to `span`: the first ones, the last `stride` ones, some between."""
    near = list(range(1, span + 1))[: most // 2]
    far = list(range(near[-1] + 1, span + 1))
    last = far[-min(stride, most - len(near)) :]
    between = far[: -len(last)] if last else far
    count = min(most - len(near) - len(last), len(between))
    return [*near, *rng.sample(between, count), *last]


def half_spacing(tensor: Tensor) -> Tensor:
    """Half the distance to the next stored number, by the definition of the format, in float64."""
    info = torch.finfo(tensor.dtype)
    exponents = torch.frexp(tensor.double().abs().clamp(min=info.tiny)).exponent - 1
    return torch.ldexp(torch.full_like(tensor, info.eps / 2, dtype=torch.float64), exponents)


def places(mask: Tensor) -> str:
    """Where a mask (batch, ...) is true, in words."""
    found = mask.nonzero()[:, 1:].unique(dim=0).tolist()
    shown = ", ".join(map(str, found[:6]))
    return f"{shown} and {len(found) - 6} more" if len(found) > 6 else shown
