"""Faults planted in the tracer, in the search for regions and in surgery, each with a case that
shows it.

The program's own checks of the outcome are off while a fault is planted: the oracle is to see it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest
from torch import nn

from convsqueeze.graph import find
from convsqueeze.kinds import batch_norm, conv, conv_transpose, pad, registry, scale
from convsqueeze.kinds.batch_norm import BatchNormLayer
from convsqueeze.kinds.semantics import Adding, Identity, Linear, Semantics
from convsqueeze.scan import placing, scanning
from convsqueeze.surgery import checks
from convsqueeze.tracing import exported, hooks

from .cases import fixed_case
from .oracle import Disagreement, examine

Patch = pytest.MonkeyPatch

squeezing, apply = map(import_module, ("convsqueeze.models.squeeze", "convsqueeze.surgery.apply"))


@dataclass(frozen=True)
class Fault:
    """`case` is the number of a fixed case that shows it; `--faults` of the command finds more."""

    name: str
    plant: Callable[[Patch], None]
    case: int


def without_own_checks(patch: Patch) -> None:
    """Nothing but the oracle compares the squeezed model with the given one."""

    class Unseen:
        def raise_if_failed(self) -> None:
            pass

    patch.setattr(squeezing, "verify_whole", lambda *given, **options: Unseen())
    patch.setattr(apply, "module_problems", lambda *given: ())


# In the search for regions.


def readers_not_counted(patch: Patch) -> None:
    def end(self: Any, one: Any, before: Any) -> Any:
        differs = None not in (one.rank, before.rank) and one.rank != before.rank
        return find.Reason("axes", "") if differs else self._stays.get(one.source)

    patch.setattr(find._Search, "_why_apart", end)


def identity_branch_forgotten(patch: Patch) -> None:
    ways = find._Search._ways

    def without(self: Any, op: Any, index: int, links: Any) -> Any:
        return ways(self, op, index, links) if links else ()

    patch.setattr(find._Search, "_ways", without)


def shared_by_none(patch: Patch, *kinds: str) -> None:
    """Reasons of these kinds why a layer's tensors are not its own are forgotten."""
    shared = find._shared

    def fewer(*given: Any) -> Iterator[Any]:
        return (reason for reason in shared(*given) if reason.kind not in kinds)

    patch.setattr(find, "_shared", fewer)


def calls_not_counted(patch: Patch) -> None:
    shared_by_none(patch, "used twice")
    patch.setattr(placing.Placing, "_calls", defaultdict(lambda: 1))


def nothing_found(patch: Patch) -> None:
    patch.setattr(scanning, "find_regions", lambda graph: ((), {}))


# In the tracer.


def dead_readers_ignored(patch: Patch) -> None:
    """Of what code reads in vain, stored tensors alone are told."""
    told = exported._read_in_vain

    def stored(program: Any) -> Iterator[Any]:
        return (one for one in told(program) if one[0].op == "placeholder")

    patch.setattr(exported, "_read_in_vain", stored)


def hooks_ignored(patch: Patch) -> None:
    for module in (hooks, checks):
        patch.setattr(module, "has_hooks", lambda module: False)


def ties_ignored(patch: Patch) -> None:
    shared_by_none(patch, "tied", "read elsewhere")


def training_taken_for_eval(patch: Patch) -> None:
    patch.setattr(exported, "marked", lambda model: hooks.marked(model.eval()))


def wrong_eps(patch: Patch) -> None:
    def norm(**settings: Any) -> BatchNormLayer:
        return BatchNormLayer(**{**settings, "eps": 1e-5})

    patch.setattr(batch_norm, "BatchNormLayer", norm)


def pads_swapped(patch: Patch) -> None:
    pairs = pad.axis_pairs
    patch.setattr(pad, "axis_pairs", lambda flat: [(b, a) for a, b in pairs(flat)])


def stride_forgotten(patch: Patch) -> None:
    settings = conv.kernel_settings

    def without(*given: Any) -> dict[str, Any]:
        return {k: v for k, v in settings(*given).items() if k != "stride"}

    for kind in (conv, conv_transpose):
        patch.setattr(kind, "kernel_settings", without)


def subtraction_as_addition(patch: Patch) -> None:
    several = registry._of_several

    def added(*given: Any) -> Semantics:
        meaning = several(*given)
        return Adding() if isinstance(meaning, Adding) else meaning

    patch.setattr(registry, "_of_several", added)


def factor_forgotten(patch: Patch) -> None:
    patch.setattr(scale, "scaling_by", lambda **numbers: Identity())


def mode_forgotten(patch: Patch) -> None:
    padding = pad.padding_by

    def zeros(pairs: Any, mode: str = "zeros") -> Linear | Identity:
        return padding(pairs)

    patch.setattr(pad, "padding_by", zeros)


# In surgery.


def branches_pass(patch: Patch) -> None:
    patch.setattr(apply, "_silent", lambda part, merge: nn.Identity())


def in_the_given_model(patch: Patch) -> None:
    patch.setattr(apply, "copied", lambda model: model)


FAULTS = (
    Fault("readers are not counted", readers_not_counted, 10),
    Fault("the identity branch is forgotten", identity_branch_forgotten, 56),
    Fault("calls are not counted", calls_not_counted, 124),
    Fault("nothing is found", nothing_found, 1),
    Fault("dead readers are ignored", dead_readers_ignored, 238),
    Fault("hooks are ignored", hooks_ignored, 5),
    Fault("ties are ignored", ties_ignored, 3),
    Fault("training is taken for eval", training_taken_for_eval, 7),
    Fault("another eps", wrong_eps, 1),
    Fault("before and after are swapped", pads_swapped, 24),
    Fault("stride is forgotten", stride_forgotten, 14),
    Fault("subtraction is addition", subtraction_as_addition, 4),
    Fault("factors are forgotten", factor_forgotten, 10),
    Fault("padding modes are forgotten", mode_forgotten, 24),
    Fault("branches pass what they add", branches_pass, 133),
    Fault("surgery on the given model", in_the_given_model, 1),
)


def is_seen(fault: Fault, number: int) -> bool:
    """Whether a fixed case disagrees while a fault is planted."""
    with pytest.MonkeyPatch.context() as patch:
        without_own_checks(patch)
        fault.plant(patch)
        try:
            examine(*fixed_case(number))
        except Disagreement:
            return True
    return False
