"""A squeezed model against its original, both run by torch in float64; and what must be merged."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

import convsqueeze
from convsqueeze.models import SqueezeReport

from .cases import Case, Seen, Shape
from .pairs import obvious_pairs

ROUNDING = 1e-10
"""Of the largest value of an output: what float64 may lose on the way through a model."""


class Disagreement(AssertionError):
    """Squeezing a model did something to it."""

    def __init__(self, case: Case, what: str) -> None:
        super().__init__(f"{what}\n{case}")
        self.what = what


@dataclass(frozen=True)
class Outcome:
    """What came of a case that agrees."""

    case: Case
    merges: int
    pairs: int
    weights: tuple[int, int]
    reasons: tuple[str, ...]
    sizes: int


def examine(case: Case) -> Outcome:
    """Squeezes the model of a case and compares; raises Disagreement."""
    seen: Seen = []
    model = case.built(seen)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    example = case.image(case.sizes[0])
    try:
        squeezed, report = convsqueeze.squeeze(model, example.clone(), **case.settings)  # type: ignore[arg-type]
    except Exception as error:
        told = f"squeeze raises {type(error).__name__}: {error}"
        raise Disagreement(case, told) from error
    _check_untouched(case, model, before, modes)
    _check_weights(case, model, squeezed, report)
    _check_pairs(case, before, squeezed.state_dict())
    if case.settings.get("minimize") == "macs" and "border" not in case.settings:
        _check_multiplications(case, model, squeezed, example)
    for size in case.sizes:
        _compare(case, model, squeezed, size, seen)
    return Outcome(
        case,
        len(report.merged.plan.merges) if report.merged else 0,
        len(list(obvious_pairs(case))),
        (_numbers(before), _numbers(squeezed.state_dict())),
        tuple(one.reason.kind for one in report.left),
        len(case.sizes),
    )


def _check_untouched(
    case: Case, model: nn.Module, before: Mapping[str, Tensor], modes: list[bool]
) -> None:
    after = model.state_dict()
    if list(after) != list(before):
        raise Disagreement(case, "the given model has other tensors than before")
    changed = [name for name in before if not _same_bits(before[name], after[name])]
    if changed:
        raise Disagreement(case, f"the given model's {', '.join(changed)} changed")
    if modes != [module.training for module in model.modules()]:
        raise Disagreement(case, "modules of the given model are in another mode")


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(
        one.contiguous().view(torch.int64), other.contiguous().view(torch.int64)
    )


def _numbers(state: Mapping[str, Tensor]) -> int:
    """Numbers that are stored, without the counters of norms."""
    return sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point())


def _check_weights(
    case: Case, model: nn.Module, squeezed: nn.Module, report: SqueezeReport
) -> None:
    before, after = _numbers(model.state_dict()), _numbers(squeezed.state_dict())
    told = (report.weights_before, report.weights_after)
    if before - after != told[0] - told[1]:
        raise Disagreement(case, f"{before} numbers became {after}, told are {told}")
    may_grow = case.settings.get("minimize") == "macs" and case.settings.get("growth") == "allow"
    if after > before and not may_grow:
        raise Disagreement(case, f"{before} numbers grew to {after}")
    merged = {} if report.merged is None else {m.into: m for m in report.merged.plan.merges}
    for name, merge in merged.items():
        held = _numbers(squeezed.get_submodule(name).state_dict())
        if held != merge.weights_after:
            raise Disagreement(case, f"{name} holds {held} numbers, {merge.weights_after} are told")


def _check_pairs(case: Case, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Raises Disagreement where a pair that is obviously one layer stayed as it was."""
    for pair in obvious_pairs(case):
        alone = [name for name in (pair.first, pair.second) if _stays(name, before, after)]
        if len(alone) == 2 or (pair.second_goes and pair.second in alone):
            raise Disagreement(case, f"{pair} is not merged")


def _stays(name: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    """Whether all tensors of a layer are as they were."""
    own = [key for key in before if key.startswith(f"{name}.")]
    return all(key in after and _same_bits(before[key], after[key]) for key in own)


def _check_multiplications(
    case: Case, model: nn.Module, squeezed: nn.Module, example: Tensor
) -> None:
    counts = []
    for one in (model, squeezed):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            one(example.clone())
        counts.append(counter.get_total_flops())
    if counts[1] > counts[0]:
        raise Disagreement(case, f"{counts[0]} operations became {counts[1]}")


def _compare(case: Case, model: nn.Module, squeezed: nn.Module, size: Shape, seen: Seen) -> None:
    """Outputs, what hooks see, and the running statistics of norms in training mode."""
    x = case.image(size)
    found: list[tuple[Any, Seen]] = []
    for one in (model, squeezed):
        seen.clear()
        with torch.no_grad():
            try:
                output = one(x.clone())
            except Exception as error:
                what = "squeezed" if one is squeezed else "given"
                told = f"the {what} model fails on {size}: {type(error).__name__}: {error}"
                raise Disagreement(case, told) from error
        found.append((output, list(seen)))
    (wanted, wanted_seen), (given, given_seen) = found
    wanted_leaves, form = tree_flatten(wanted)
    given_leaves, other_form = tree_flatten(given)
    if form != other_form:
        raise Disagreement(case, f"the output on {size} is {other_form}, {form} was needed")
    for index, (one, other) in enumerate(zip(wanted_leaves, given_leaves, strict=True)):
        _check_alike(case, one, other, f"output {index} on {size}")
    if [place for place, _ in wanted_seen] != [place for place, _ in given_seen]:
        told = f"hooks on {size} see {[place for place, _ in given_seen]}"
        raise Disagreement(case, f"{told}, {[place for place, _ in wanted_seen]} was needed")
    for (place, one), (_, other) in zip(wanted_seen, given_seen, strict=True):
        _check_alike(case, one, other, f"what the hook of {place} on {size}")
    for name in case.training:
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            pair = [getattr(m.get_submodule(name), key).double() for m in (model, squeezed)]
            _check_alike(case, *pair, f"{name}.{key} behind {size}")


def _check_alike(case: Case, wanted: Tensor, given: Tensor, what: str) -> None:
    if wanted.shape != given.shape:
        told = f"{what} is {tuple(given.shape)}, {tuple(wanted.shape)} was needed"
        raise Disagreement(case, told)
    largest = float(wanted.abs().max())
    error = float((wanted - given).abs().max())
    if not error <= ROUNDING * largest:
        raise Disagreement(case, f"{what} differs by {error:.3g}, the largest is {largest:.3g}")
