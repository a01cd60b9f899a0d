"""A network squeezed as a whole: what it stores, what it answers and how long it takes."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import convsqueeze
from convsqueeze.latency.timing import torch_run
from tests.benchmarks.rounds import in_turn

from .cases import Case

BATCH = 2
ROUNDS = 15


@dataclass(frozen=True)
class Squeezing:
    """A network and its squeezed twin, both in float64, and the report of the squeezing."""

    case: Case
    before: nn.Module
    after: nn.Module
    report: object

    @cached_property
    def difference(self) -> float:
        """Largest, over the outputs, of the largest difference by the largest number."""
        x = example(self.case)
        with torch.no_grad():
            pairs = zip(tensors(self.before(x)), tensors(self.after(x)), strict=True)
            return max(_difference(before, after) for before, after in pairs)

    @property
    def weights(self) -> tuple[int, int]:
        return stored_numbers(self.before), stored_numbers(self.after)

    def milliseconds(self) -> tuple[float, float]:
        """Of one image, before and after: medians, timed in turn in float32."""
        x = example(self.case, batch=1).float()
        runs = {
            name: torch_run(module.float(), x)
            for name, module in (("before", self.before), ("after", self.after))
        }
        rounds = in_turn(runs, ROUNDS)
        return rounds.milliseconds("before"), rounds.milliseconds("after")


def squeezed(case: Case, border: str = "exact") -> Squeezing:
    before = case.factory().double()
    after, report = convsqueeze.squeeze(before, (example(case),), border=border)
    return Squeezing(case, before, after, report)


def example(case: Case, batch: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, *case.shape, generator=generator, dtype=torch.float64)


def tensors(output: object) -> list[Tensor]:
    """Every tensor of floating-point numbers in what a network returns."""
    found = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return [leaf for leaf in found if leaf.is_floating_point() and leaf.numel()]


def stored_numbers(network: nn.Module) -> int:
    """Of the state dict, without the counters of norms."""
    state = network.state_dict()
    return sum(t.numel() for name, t in state.items() if not name.endswith("num_batches_tracked"))


def _difference(before: Tensor, after: Tensor) -> float:
    if after.shape != before.shape or not bool(after.isfinite().all()):
        return float("inf")
    return float((after - before).abs().max() / before.abs().max().clamp_min(1e-300))
