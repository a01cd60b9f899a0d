"""A squeezed model against its original, both run by torch in float64; and what must be merged."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from math import prod
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

import convsqueeze
from convsqueeze.models import SqueezeReport

from .cases import SETTINGS, Case, Seen, Settings, Shape
from .pairs import obvious_pairs

ROUNDING = 1e-10
"""Of the largest value of an output: what float64 may lose on the way through a model."""


def _of_each_number(*given: Any, out_shape: Any, **named: Any) -> int:
    shape = out_shape if isinstance(out_shape, torch.Size) else out_shape[0]
    return 2 * prod(shape)


ELEMENTWISE = {
    torch.ops.aten._native_batch_norm_legit_no_training: _of_each_number,
    torch.ops.aten.mul: _of_each_number,
}
"""Operators of which torch counts nothing by itself."""


class Disagreement(AssertionError):
    """Squeezing a model with some `settings` did something to it."""

    def __init__(self, case: Case, settings: Settings, what: str) -> None:
        super().__init__(f"{what}\n{dict(settings)}\n{case}")
        self.settings, self.what = settings, what


@dataclass(frozen=True)
class Outcome:
    """What came of a case that agrees."""

    case: Case
    settings: Settings
    merges: int
    pairs: int
    weights: tuple[int, int]
    reasons: tuple[str, ...]
    sizes: int


def examine(case: Case, every: Sequence[Settings] = SETTINGS) -> list[Outcome]:
    """Squeezes the model of a case with all settings and compares; raises Disagreement.

    The model's code is followed once, as that is what takes the time.
    """
    seen: Seen = []
    model = case.built(seen)
    with _traced_once():
        return [_Trial(case, settings, model, seen).outcome() for settings in every]


@contextmanager
def _traced_once() -> Iterator[None]:
    home = import_module("convsqueeze.models.squeeze")
    follow, known = home.traced, []

    def traced(*given: Any) -> Any:
        if not known:
            known.append(follow(*given))
        return known[0]

    with patch.object(home, "traced", traced):
        yield


@dataclass(frozen=True)
class _Trial:
    case: Case
    settings: Settings
    model: nn.Module
    seen: Seen

    def disagreement(self, what: str) -> Disagreement:
        return Disagreement(self.case, self.settings, what)

    def outcome(self) -> Outcome:
        case, model = self.case, self.model
        before = copy.deepcopy(model.state_dict())
        modes = [module.training for module in model.modules()]
        example = case.image(case.sizes[0])
        try:
            squeezed, report = convsqueeze.squeeze(model, example.clone(), **self.settings)  # type: ignore[arg-type]
        except Exception as error:
            told = f"squeeze raises {type(error).__name__}: {error}"
            raise self.disagreement(told) from error
        self.check_untouched(before, modes)
        self.check_weights(squeezed, report)
        self.check_pairs(before, squeezed.state_dict())
        if self.settings == {"minimize": "macs"} and not _has_full_padding(case):
            self.check_multiplications(squeezed, example)
        for size in case.sizes:
            self.compare(squeezed, size)
        return Outcome(
            case,
            self.settings,
            len(report.merged.plan.merges) if report.merged else 0,
            len(list(obvious_pairs(case, self.settings))),
            (_numbers(model), _numbers(squeezed)),
            tuple(one.reason.kind for one in report.left),
            len(case.sizes),
        )

    def check_untouched(self, before: Mapping[str, Tensor], modes: list[bool]) -> None:
        after = self.model.state_dict()
        if list(after) != list(before):
            raise self.disagreement("the given model has other tensors than before")
        changed = [name for name in before if not _same_bits(before[name], after[name])]
        if changed:
            raise self.disagreement(f"the given model's {', '.join(changed)} changed")
        if modes != [module.training for module in self.model.modules()]:
            raise self.disagreement("modules of the given model are in another mode")

    def check_weights(self, squeezed: nn.Module, report: SqueezeReport) -> None:
        before, after = _numbers(self.model), _numbers(squeezed)
        told = (report.weights_before, report.weights_after)
        if before - after != told[0] - told[1]:
            raise self.disagreement(f"{before} numbers became {after}, told are {told}")
        may_grow = self.settings.get("minimize") == "macs" and "growth" in self.settings
        if after > before and not may_grow:
            raise self.disagreement(f"{before} numbers grew to {after}")
        for merge in report.merged.plan.merges if report.merged else ():
            held = _numbers(squeezed.get_submodule(merge.into))
            if held != merge.weights_after:
                what = f"{merge.into} holds {held} numbers, {merge.weights_after} are told"
                raise self.disagreement(what)

    def check_pairs(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
        """Raises Disagreement where a pair that is obviously one layer stayed as it was."""
        for pair in obvious_pairs(self.case, self.settings):
            alone = [name for name in (pair.first, pair.second) if _stays(name, before, after)]
            if len(alone) == 2 or (pair.second_goes and pair.second in alone):
                raise self.disagreement(f"{pair} is not merged")

    def check_multiplications(self, squeezed: nn.Module, example: Tensor) -> None:
        counts = []
        for one in (self.model, squeezed):
            counted = FlopCounterMode(display=False, custom_mapping=ELEMENTWISE)
            with counted as counter, torch.no_grad():
                one(example.clone())
            counts.append(counter.get_total_flops())
        if counts[1] > counts[0]:
            raise self.disagreement(f"{counts[0]} operations became {counts[1]}")

    def compare(self, squeezed: nn.Module, size: Shape) -> None:
        """Outputs, what hooks see, and the running statistics of norms in training mode."""
        wanted, wanted_seen = self.run(self.model, size, "given")
        given, given_seen = self.run(squeezed, size, "squeezed")
        (wanted_leaves, form), (given_leaves, other) = tree_flatten(wanted), tree_flatten(given)
        if form != other:
            raise self.disagreement(f"the output on {size} is {other}, {form} was needed")
        for index, pair in enumerate(zip(wanted_leaves, given_leaves, strict=True)):
            self.check_alike(*pair, f"output {index} on {size}")
        places, others = ([place for place, _ in one] for one in (wanted_seen, given_seen))
        if places != others:
            raise self.disagreement(f"hooks on {size} see {others}, {places} was needed")
        for (place, one), (_, other) in zip(wanted_seen, given_seen, strict=True):
            self.check_alike(one, other, f"what the hook of {place} on {size}")
        for name in self.case.training:
            for key in ("running_mean", "running_var", "num_batches_tracked"):
                norms = (one.get_submodule(name) for one in (self.model, squeezed))
                values = (getattr(norm, key).double() for norm in norms)
                self.check_alike(*values, f"{name}.{key} behind {size}")

    def run(self, model: nn.Module, size: Shape, which: str) -> tuple[Any, Seen]:
        self.seen.clear()
        try:
            with torch.no_grad():
                return model(self.case.image(size)), list(self.seen)
        except Exception as error:
            told = f"the {which} model fails on {size}: {type(error).__name__}: {error}"
            raise self.disagreement(told) from error

    def check_alike(self, wanted: Tensor, given: Tensor, what: str) -> None:
        if wanted.shape != given.shape:
            told = f"{what} is {tuple(given.shape)}, {tuple(wanted.shape)} was needed"
            raise self.disagreement(told)
        largest = float(wanted.abs().max())
        error = float((wanted - given).abs().max())
        if not error <= ROUNDING * largest:
            raise self.disagreement(f"{what} differs by {error:.3g}, the largest is {largest:.3g}")


def _has_full_padding(case: Case) -> bool:
    """Whether a transposed convolution of stride 1 may become a convolution, of which torch counts
    more multiplications though they are of zeros.
    """
    return any(layer.kind == "conv_transpose" for _, layer in case.layers)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(
        one.contiguous().view(torch.int64), other.contiguous().view(torch.int64)
    )


def _numbers(module: nn.Module) -> int:
    """Numbers that are stored, without the counters of norms; what is tied counts once."""
    kept = {id(tensor): tensor for tensor in module.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() for tensor in kept.values() if tensor.is_floating_point())


def _stays(name: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    """Whether all tensors of a layer are as they were."""
    own = [key for key in before if key.startswith(f"{name}.")]
    return all(key in after and _same_bits(before[key], after[key]) for key in own)
