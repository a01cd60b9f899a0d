"""A squeezed model and its original, whole, on the same random inputs: equal but for rounding, or
where not.

The models run in float64 and eval mode, copies of them, so neither is touched. Two kinds of
rounding remain, and how far each moves an output is measured on these very models. The noise of
float64 is measured by moving all weights of the first model by a few units of it; where the merged
weights are known before they were rounded, nothing else is granted to the second model with those,
so that nothing hides in a coarse dtype. What storing them costs is then seen by running it with
the stored ones too. Where they are not known, it is measured by moving each merged weight by half a
unit in its last place. A difference may be some times what was measured (`distances.granted_of`),
in each band of values of like size.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor, nn

from convsqueeze.copying import Sandbox, copied
from convsqueeze.errors import VerificationError
from convsqueeze.models.branching import Others, other_inputs
from convsqueeze.models.comparing import GROSS, Comparison
from convsqueeze.models.inputs import Inputs
from convsqueeze.models.kept import kept_state
from convsqueeze.models.layerwise import FirstDifference
from convsqueeze.models.running import Running, runnable
from convsqueeze.module import SqueezedConv
from convsqueeze.names import listed
from convsqueeze.pipeline.tracking import Track, untracked
from convsqueeze.plan import Merge, Plan
from convsqueeze.squeezing import stored_layout
from convsqueeze.verify import Worst
from convsqueeze.verify.numbers import unfit, worst_number

TRIALS = 2
"""Random inputs."""
LOST = 0.1
"""Of an output, by storing merged weights: that much is told."""
SLACK = 2.0**-44
"""Of a tensor's largest value: what another order of float64 sums can come to."""


@dataclass(frozen=True)
class WholeReport:
    """What two models gave on the same inputs.

    `worst` is the output nearest to its bound with the stored weights, `before_rounding` the same
    with the merged weights in float64, where those are known. `largest` is the largest output.
    `dtype` is the coarsest in which the models computed. `first` is the first module whose output
    differs, where one was found. `others` are other inputs on which they were run as well, each
    with the line of the model's code that takes another way there.
    """

    inputs: str
    runs: int
    seed: int
    dtype: str
    worst: Worst
    largest: float
    problem: str | None = None
    first: FirstDifference | None = None
    notes: tuple[str, ...] = ()
    before_rounding: Worst | None = None
    others: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.problem is None

    @property
    def failures(self) -> tuple[str, ...]:
        if self.problem is None:
            return ()
        details = f" {self.first.describe()}" if self.first is not None else ""
        return (f"the whole model {self.problem}.{details}",)

    def raise_if_failed(self) -> None:
        """Raises VerificationError with what differs and where it begins."""
        if self.problem is not None:
            raise VerificationError(self.failures)

    def describe(self) -> str:
        """In a sentence, of models that agree."""
        worst = self.before_rounding or self.worst
        how = "" if self.before_rounding is None else ", merged weights before rounding"
        runs = self.runs - len(self.others)
        inputs = "1 random input" if runs == 1 else f"{runs} random inputs"
        others = "".join(f", one of {other}" for other in self.others)
        same = "no more than rounding between" if worst.bound > self.largest else "same"
        return (
            f"{same} output before and after on {inputs} of {self.inputs}{others} (largest error "
            f"{self.worst.error:.2e} of {self.largest:.3g}; in {self.dtype}{how}: "
            f"{worst.error:.2e} / {worst.bound:.2e}, seed {self.seed})"
        )

    def to_data(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "ok": self.ok, "notes": list(self.notes)}


def exact_parameters(
    plan: Plan, prefix: str, exact_of: Callable[[Merge], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """What the merges of a plan store before it is rounded, as `exact_values` gives it for each, by
    parameter of the squeezed model, in float64 and the layout in which it is stored; `prefix`
    stands before the names of all tensors of the model.
    """
    return {
        f"{prefix}{merge.into}.{name}": value
        for merge in plan.merges
        for name, value in stored_layout(merge, exact_of(merge)).items()
    }


def verify_whole(
    original: nn.Module, squeezed: nn.Module, inputs: Inputs, **options: Any
) -> WholeReport:
    """The report of `verified`, with its options."""
    return verified(original, squeezed, inputs, **options)[0]


def verified(
    original: nn.Module,
    squeezed: nn.Module,
    inputs: Inputs,
    *,
    exact: Mapping[str, Tensor] | None = None,
    trials: int = TRIALS,
    seed: int = 0,
    track: Track = untracked,
    sandbox: Sandbox | None = None,
) -> tuple[WholeReport, Running, Running]:
    """Whether a squeezed model gives every tensor that its original gives, on `trials` random
    inputs; and both as they ran.

    `exact` are the values of parameters before they were rounded, as `exact_parameters` gives them:
    then every stored number must be its value rounded too. A layer merged with `border: interior`
    may differ, which is measured and told. `sandbox` is that of the original. Raises
    ModelInputError where the original does not run on these inputs, gives nothing to compare, or is
    random in eval mode.
    """
    track("running the whole model", 0, trials)
    sandbox = sandbox or Sandbox(original)
    others = other_inputs(sandbox, inputs)
    before = runnable(sandbox, lambda dtype: inputs.first(dtype, seed=seed))
    kept = kept_state(before.module)
    after = Running(copied(squeezed), before.dtype)
    found = Comparison(original, squeezed, before, after, exact or {})
    found.compare(before.given)
    for trial in range(1, trials):
        if found.problem is None:
            track("running the whole model", trial, trials)
            found.compare(inputs.drawn(seed + trial, before.dtype))
    compared, notes = [], list[str]()
    for done, other in enumerate(others.found):
        if found.problem is None:
            track(f"running the whole model on {other}", done, len(others.found))
            if found.compare_on(other, seed):
                compared.append(str(other))
            elif other.place:
                notes.append(f"the model does not run on {other}, so it was not compared there")
    if found.problem is None:
        found.check_steady()
        now = kept_state(before.module)
        if changed := [name for name in now if kept.get(name, now[name]) != now[name]]:
            notes.append(
                f"the model's code changes {listed(changed)} from one call to the next: what was "
                "compared holds for the calls that were made"
            )
    dtype = str(before.coarsest).removeprefix("torch.")
    notes += _notes(found, dtype, others)
    if found.problem is None and (unseen := found.unseen()):
        notes.append(
            f"{', '.join(unseen)}: no output depends on it with these weights and inputs, so the "
            "whole model says nothing of it"
        )
    problem, first = found.problem, found.first
    if wrong := next(_wrong_numbers(squeezed, exact or {}), None):
        problem, first = wrong, None
    elif problem is not None and (excuse := _excuse(found, original, squeezed)):
        problem, first, notes = None, None, [*notes, excuse]
    report = WholeReport(
        *(str(inputs), found.runs, seed, dtype, found.stored, found.largest, problem, first),
        notes=tuple(notes),
        before_rounding=found.before_rounding,
        others=tuple(compared),
    )
    return report, before, after


def _notes(found: Comparison, dtype: str, others: Others) -> Iterator[str]:
    """For what the comparison of an original that ran does not stand."""
    before = found.one
    if before.coarsest != torch.float64:
        yield f"the model's own code computes in {dtype}: equal within rounding to that alone"
    if found.blind > GROSS:
        shown = "of it nothing is shown" if found.blind > 1 else "a smaller difference is not seen"
        yield (
            f"rounding may move an output by {found.blind:.2g} of its largest value, as code does "
            f"that computes in few digits, rounds or chooses: {shown}"
        )
    if found.lost > LOST:
        yield (
            f"storing the merged weights moves an output by {found.lost:.2g} of its largest value: "
            "the model makes much of rounding"
        )
    if before.draws:
        yield (
            "the model's code draws random numbers, in eval mode too: what was compared holds for "
            "those that were drawn"
        )
    if others.numbers:
        yield (
            f"the model's code makes a number of its batch ({listed(others.numbers)}): what was "
            "compared holds for the batches that were run"
        )
    if others.unreached:
        yield (
            f"the model's code asks for sizes of its input ({listed(others.unreached)}); inputs "
            "for which the answer is another were not found, or are too large or too many, and "
            "were not compared"
        )


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


def _excuse(found: Comparison, original: nn.Module, squeezed: nn.Module) -> str | None:
    """What is told of a difference where a border that is let differ may be all of it."""
    worst = max(found.stored, found.before_rounding or Worst(), key=lambda one: one.share)
    before = dict(original.named_modules())
    interior = [
        name
        for name, module in squeezed.named_modules()
        if isinstance(module, SqueezedConv)
        and module.layer.border == "interior"
        and module.layer != getattr(before.get(name), "layer", None)
    ]
    if not interior or worst.share <= 1.0 or not isfinite(worst.error):
        return None
    share = worst.error / found.largest if found.largest else inf
    return (
        f"differs by up to {worst.error:.3g} ({share:.1%} of the largest output): "
        f"{', '.join(interior)} may at the border (border: interior), so the whole model shows "
        "nothing more"
    )
