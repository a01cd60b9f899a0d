"""A squeezed model and its original, whole, on the same random inputs: equal but for rounding, or
where not.

The models run in float64 and eval mode, copies of them, so neither is touched. Two kinds of
rounding remain, and how far each moves an output is measured on these very models. The noise of
float64 is measured by moving all weights of the first model by a few units of it; where the merged
weights are known before they were rounded, nothing else is granted to the second model with those,
so that nothing hides in a coarse dtype. What storing them costs is then seen by running it with
the stored ones too. Where they are not known, it is measured by moving each merged weight by half a
unit in its last place. A difference may be `FACTOR` times what was measured.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor, nn

from convsqueeze.copying import Sandbox, copied
from convsqueeze.errors import ModelInputError, VerificationError
from convsqueeze.models.inputs import Inputs
from convsqueeze.models.layerwise import FirstDifference, first_difference
from convsqueeze.models.running import (
    FACTOR,
    ROUNDINGS,
    NamedTensors,
    Running,
    distances,
    largest_value,
    named_tensors,
    nearest,
    rounding_steps,
    runnable,
)
from convsqueeze.module import SqueezedConv
from convsqueeze.pipeline.tracking import Track, untracked
from convsqueeze.plan import Merge, Plan
from convsqueeze.squeezing import stored_layout
from convsqueeze.verify import Worst
from convsqueeze.verify.numbers import unfit, worst_number

MEASURED = 3
"""So many times rounding is measured at most: once, and again where a difference is beyond that."""
TRIALS = 2
"""Random inputs."""
GROSS = 1e-3
"""Of the largest output: more than storing mostly moves it, less than other code does."""
SLACK = 2.0**-44
"""Of a tensor's largest value: what another order of float64 sums can come to."""


@dataclass(frozen=True)
class WholeReport:
    """What two models gave on the same inputs.

    `worst` is the output nearest to its bound with the stored weights, `before_rounding` the same
    with the merged weights in float64, where those are known. `largest` is the largest output.
    `dtype` is the coarsest in which the models computed. `first` is the first module whose output
    differs, where one was found.
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
        inputs = "1 random input" if self.runs == 1 else f"{self.runs} random inputs"
        return (
            f"same output before and after on {inputs} of {self.inputs} (largest error "
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
    before = runnable(sandbox or Sandbox(original), lambda dtype: inputs.first(dtype, seed=seed))
    after = Running(copied(squeezed), before.dtype)
    found = _Comparison(original, squeezed, before, after, exact or {})
    found.compare(before.given)
    for trial in range(1, trials):
        if found.problem is None:
            track("running the whole model", trial, trials)
            found.compare(inputs.drawn(seed + trial, before.dtype))
    dtype = str(before.coarsest).removeprefix("torch.")
    notes = []
    if before.coarsest != torch.float64:
        notes = [f"the model's own code computes in {dtype}: equal within rounding to that alone"]
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
    )
    return report, before, after


class _Comparison:
    """What two models and rounding were seen to do; `one` and `two` are they as they run. Movements
    by place are added, and the larger of two taken, as counters are.

    With `exact` values the second is held to the noise of float64, otherwise, as it is stored, to
    what storing the parameters costs too that the first has not, or has otherwise.
    """

    def __init__(
        self,
        original: nn.Module,
        squeezed: nn.Module,
        one: Running,
        two: Running,
        exact: Mapping[str, Tensor],
    ) -> None:
        self.name, self.one, self.two = type(original).__name__, one, two
        current, known = dict(squeezed.named_parameters()), dict(original.named_parameters())
        self.exact = {name: exact[name] for name in exact if name in current}
        merged = {
            name: p
            for name, p in current.items()
            if p.is_floating_point()
            and not (name in known and p.dtype == known[name].dtype and p.equal(known[name]))
        }
        self.steps = {} if self.exact else rounding_steps(merged)
        self.unit = ROUNDINGS * torch.finfo(one.coarsest).eps
        self.noise: Any = Counter()
        self.rounding: Any = Counter()
        self.times_measured = 0
        self.runs, self.largest = 0, 0.0
        self.problem: str | None = None
        self.first: FirstDifference | None = None
        self.stored = Worst()
        self.before_rounding: Worst | None = None
        layers = (n for n, m in squeezed.named_modules() if isinstance(m, SqueezedConv))
        self.silent = [f"{name}.weight" if name else "weight" for name in layers]
        self.gave: NamedTensors = {}

    def compare(self, given: tuple[Any, ...]) -> None:
        """Run both on an input, which the first model may have run on.

        On that the second runs with its stored weights, then, where they are known, with the exact
        ones and another seed: what is random, or kept from one call to the next, shows as a
        difference. Raises ModelInputError where that is why they differ, and for outputs that are
        not finite.
        """
        is_first = given is self.one.given
        wanted = named_tensors(self.one.gave) if is_first else self.one.run(given)
        if is_first and not any(bool(t.isfinite().any()) for t in wanted.values()):
            raise ModelInputError(
                f"{self.name}: gives no finite number on these inputs, so nothing can be compared. "
                "Give --input (in Python example_inputs) with shapes that it works on, and weights "
                "that were trained."
            )
        if is_first and not self.exact:
            self._measure(given, wanted)
        try:
            if is_first:
                self.gave, moving = self.two.run_with_gradients(given, self.silent)
                self.silent = [name for name in self.silent if name not in moving]
            found = self.gave
            if self.exact or not is_first:
                with self.two.with_values(self.exact):
                    found = self.two.run(given, seed=int(is_first))
        except Exception as error:  # noqa: BLE001  the user's code may raise anything
            text = str(error).strip().partition("\n")[0]
            self.problem = f"does not run: {type(error).__name__}: {text}"
            return
        self.problem = _other_form(wanted, found) or self._difference(given, wanted, found)
        if self.problem is not None:
            with self.two.with_values(self.exact):
                self.first = first_difference(self.one, self.two, given, self.unit, self.steps)
            return
        self.runs += 1
        if is_first and self.exact:
            storing = Counter(distances(found, self.gave))
            _, self.stored = nearest(wanted, self.gave, self.unit, self.noise + storing)
            gross = _is_gross(storing, wanted)  # or `gave`, run with gradients, is of other code
            if gross and _is_gross(distances(self.two.run(given), self.gave), wanted):
                self.problem = "gives something else where gradients are recorded"

    def _difference(
        self, given: tuple[Any, ...], wanted: NamedTensors, found: NamedTensors
    ) -> str | None:
        """What is more than rounding, which is measured again before it is told."""
        place, worst = nearest(wanted, found, self.unit, self.noise + self.rounding)
        while worst.share > 1.0 and self.times_measured < MEASURED:
            self._measure(given, wanted, found)
            place, worst = nearest(wanted, found, self.unit, self.noise + self.rounding)
        self.largest = max(self.largest, *map(largest_value, wanted.values()))
        if self.exact and worst.share >= (self.before_rounding or Worst()).share:
            self.before_rounding = worst
        elif not self.exact and worst.share >= self.stored.share:
            self.stored = worst
        if worst.share <= 1.0:
            return None
        return (
            f"differs by {worst.error:.3e} where at most {worst.bound:.3e} is rounding and "
            f"the largest output is {largest_value(wanted[place]):.3e}, {worst.place}"
        )

    def _measure(
        self, given: tuple[Any, ...], wanted: NamedTensors, found: NamedTensors | None = None
    ) -> None:
        """Adds to what the noise of float64 was seen to do, and storing to what is `found`.

        The first time the model starts from another seed: raises ModelInputError where that moves
        its outputs by far more than rounding, as running it again does.
        """
        seed = int(self.times_measured == 0)
        with self.one.moved(self.one.noise_steps(self.unit), self.times_measured):
            self.noise |= Counter(distances(wanted, self.one.run(given, seed)))
        if found is not None and self.steps:
            with self.two.moved(self.steps, self.times_measured):
                self.rounding |= Counter(distances(found, self.two.run(given)))
        self.times_measured += 1
        granted = {p: FACTOR * self.unit * largest_value(t) for p, t in wanted.items()}
        if seed == 0 or all(self.noise[place] <= granted[place] for place in wanted):
            return
        again = distances(wanted, self.one.run(given, seed))
        if place := next((p for p in wanted if again[p] > granted[p]), None):
            raise ModelInputError(
                f"{self.name}: gives another {place} when it runs on the same input again, in eval "
                "mode too, so nothing can be compared. Switch off what is random in it (dropout "
                "that ignores eval mode, noise), or what it keeps from one call to the next."
            )

    def unseen(self) -> list[str]:
        """Squeezed layers whose weights move no output: they are multiplied by zero, or not run."""
        current, found = self.two.parameters(), []
        generator = torch.Generator().manual_seed(0)
        for name in self.silent:
            values = current[name]
            drawn = torch.rand(values.shape, generator=generator, dtype=values.dtype)
            moved = values + values.abs().max() * drawn / 16 + 1e-6
            with self.two.with_values({name: moved}):
                again = self.two.run(self.one.given)
            if not any(distances(self.gave, again).values()):
                found.append(name.removesuffix("weight").removesuffix("."))
        return found


def _is_gross(moved: Mapping[str, float], outputs: NamedTensors) -> bool:
    return any(moved[place] > GROSS * largest_value(t) for place, t in outputs.items())


def _other_form(wanted: NamedTensors, found: NamedTensors) -> str | None:
    """What is wrong with the names and shapes of outputs."""
    if wanted.keys() != found.keys():
        given = ", ".join(found) or "nothing"
        return f"gives {given}, {', '.join(wanted)} was needed"
    for place, tensor in wanted.items():
        if tensor.shape != found[place].shape:
            shapes = f"shape {tuple(found[place].shape)}, {tuple(tensor.shape)} was needed"
            return f"gives {place} of {shapes}"
    return None


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


def _excuse(found: _Comparison, original: nn.Module, squeezed: nn.Module) -> str | None:
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
