"""A squeezed model against its original: stored numbers, then the whole models."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import inf, isfinite
from typing import Any

from torch import Tensor, nn

from convsqueeze.checkpoint import from_state_dict
from convsqueeze.models.inputs import Inputs
from convsqueeze.models.report import WholeReport
from convsqueeze.models.whole import Compared, compared
from convsqueeze.module import SqueezedConv
from convsqueeze.pipeline.merging import Result
from convsqueeze.plan import Merge, Plan
from convsqueeze.squeezing import exact_values
from convsqueeze.verify import Worst
from convsqueeze.verify.comparison import stored_layout
from convsqueeze.verify.numbers import unfit, worst_number

SLACK = 2.0**-44
"""Of a tensor's largest value: what another order of float64 sums can come to."""


def verify_whole(
    original: nn.Module, squeezed: nn.Module, inputs: Inputs, **options: Any
) -> WholeReport:
    """What `verified` shows, with its options."""
    return verified(original, squeezed, inputs, **options).report


def verified(
    original: nn.Module,
    squeezed: nn.Module,
    inputs: Inputs,
    *,
    exact: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> Compared:
    """Whether a squeezed model computes what its original does, on random inputs.

    `exact` are the values of merged parameters before they were rounded, as `exact_parameters` and
    `merged_parameters` give them: every stored number must be its value rounded, and with these
    values the models must agree within the noise of float64. Without them, storing merged weights
    is granted what it was seen to cost. Where a layer was merged with `border: interior` a
    difference is measured and told, and not held against it. `options` are those of `compared`.

    Raises ModelInputError where the original does not run on these inputs or is random.
    """
    both = compared(original, squeezed, inputs, exact=exact, **options)
    report = both.report
    if wrong := next(_wrong_numbers(squeezed, exact or {}), None):
        report = replace(report, problem=wrong, first=None)
    return replace(both, report=_excused(report, original, squeezed))


def exact_parameters(original: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """What the merges of a plan store before it is rounded, by parameter of the squeezed model, in
    float64 and the layout in which it is stored.
    """
    own = from_state_dict(original.state_dict())
    found: dict[str, Tensor] = {}
    for merge in plan.merges:
        found |= by_parameter(merge, exact_values(merge, own.load), own.prefix)
    return found


def merged_parameters(result: Result, prefix: str) -> dict[str, Tensor]:
    """As `exact_parameters`, from a result that kept the values."""
    found: dict[str, Tensor] = {}
    for merge in result.plan.merges:
        found |= by_parameter(merge, result.exact[merge.into], prefix)
    return found


def by_parameter(merge: Merge, exact: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The values that `exact_values` gives for a merge, by full name, in the layout in which they
    are stored.
    """
    stored = stored_layout(merge, exact)
    return {f"{prefix}{merge.into}.{name}": value for name, value in stored.items()}


def _wrong_numbers(squeezed: nn.Module, exact: Mapping[str, Tensor]) -> Iterator[str]:
    """Stored numbers that are not their value within half a unit in the last place."""
    named = dict(squeezed.named_parameters())
    for name, value in exact.items():
        stored = named.get(name)
        problem = unfit(name, stored, value)
        if stored is not None and problem is None and value.numel():
            slack = SLACK * value.abs().max()
            at, worst = worst_number(stored.detach().cpu(), value, slack.expand_as)
            if worst.share > 1.0:
                held, needed = stored[at].item(), value[at].item()
                problem = f"{name} holds {held!r} at {list(at)}, {needed!r} was needed"
        if problem is not None:
            yield f"is not what its layers give: {problem}"


def _excused(report: WholeReport, original: nn.Module, squeezed: nn.Module) -> WholeReport:
    before = dict(original.named_modules())
    interior = [
        name
        for name, module in squeezed.named_modules()
        if isinstance(module, SqueezedConv)
        and module.layer.border == "interior"
        and module.layer != getattr(before.get(name), "layer", None)
    ]
    worst = max(report.worst, report.before_rounding or Worst(), key=lambda one: one.share)
    if report.ok or not interior or worst.share <= 1.0 or not isfinite(worst.error):
        return report
    share = worst.error / report.largest if report.largest else inf
    note = (
        f"differs by up to {worst.error:.3g} ({share:.1%} of the largest output): "
        f"{', '.join(interior)} may at the border (border: interior), so the whole model shows "
        "nothing more"
    )
    return replace(report, problem=None, first=None, notes=(*report.notes, note))
