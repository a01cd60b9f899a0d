"""A squeezed model against its original: stored numbers, then the whole models."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import inf, isfinite

from torch import Tensor, nn

from convsqueeze.algebra.apply import transposed_layout
from convsqueeze.algebra.precision import half_ulp, round_once
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.models.inputs import Inputs
from convsqueeze.models.whole import Track, WholeReport, compare_models
from convsqueeze.module import SqueezedConv
from convsqueeze.plan import Plan
from convsqueeze.recipe import Recipe
from convsqueeze.squeezing import exact_values
from convsqueeze.surgery import plan_of
from convsqueeze.verify import Worst

SLACK = 2.0**-44
"""Of a tensor's largest value: what another order of float64 sums can come to."""


def untracked(what: str, done: int, total: int) -> None:
    """Tells nobody."""


def verify_whole(
    original: nn.Module,
    squeezed: nn.Module,
    inputs: Inputs,
    *,
    plan: Plan | Recipe | None = None,
    trials: int = 3,
    seed: int = 0,
    track: Track = untracked,
) -> WholeReport:
    """Whether a squeezed model computes what its original does, on random inputs.

    With the `plan` that was made for the original's state dict (or the recipe of the squeezed
    file), its layers are merged anew in float64: every stored number must be its value rounded, and
    the models must agree within the noise of float64. Without, storing merged weights is granted
    what it was seen to cost. Where a layer was merged with `border: interior` a difference is
    measured and told, and not held against it.

    Raises ModelInputError where the original does not run on these inputs or is random,
    ModelMismatchError where its layers are not the recipe's.
    """
    if isinstance(plan, Recipe):
        plan = plan_of(from_state_dict(original.state_dict()), plan)
    exact = {} if plan is None else exact_parameters(original, plan)
    wrong = next(_wrong_numbers(squeezed, exact), None)
    if wrong is not None:
        return WholeReport(str(inputs), 0, seed, "float64", Worst(), 0.0, problem=wrong)
    report = compare_models(
        original, squeezed, inputs, exact=exact, trials=trials, seed=seed, track=track
    )
    return _excused(report, original, squeezed)


def exact_parameters(original: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """What the merges of a plan store before it is rounded, by parameter of the squeezed model, in
    float64 and the layout in which it is stored.
    """
    own = from_state_dict(original.state_dict())
    found = {}
    for merge in plan.merges:
        for name, value in exact_values(merge, own.load).items():
            if name == "weight" and merge.geometry.is_transposed:
                value = transposed_layout(value, merge.geometry.groups)
            found[f"{own.prefix}{merge.into}.{name}"] = value
    return found


def _wrong_numbers(squeezed: nn.Module, exact: Mapping[str, Tensor]) -> Iterator[str]:
    """Stored numbers that are not their value within half a unit in the last place."""
    named = dict(squeezed.named_parameters())
    for name, value in exact.items():
        stored = named.get(name)
        if stored is None or stored.shape != value.shape:
            shape = "is missing" if stored is None else f"has shape {tuple(stored.shape)}"
            yield f"is not what its layers give: {name} {shape}, {tuple(value.shape)} was needed"
            continue
        held = stored.detach().cpu()
        granted = half_ulp(round_once(value, held.dtype)) * (1 + 2.0**-20)
        granted = granted + SLACK * value.abs().max() if value.numel() else granted
        beyond = ~((held.double() - value).abs() <= granted)
        for place in beyond.nonzero()[:1].tolist():
            at = tuple(place)
            yield (
                f"is not what its layers give: {name} holds {held[at].item()!r} at {place}, "
                f"{value[at].item()!r} was needed"
            )


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
