"""A whole model before and after, on the same random inputs: equal but for rounding, or where not.

The models run in float64 and eval mode, copies of them, so neither is touched. Two kinds of
rounding remain, and how far each moves an output is measured on these very models. The noise of
float64 is measured by moving all weights of the first model by a few units of it; where the merged
weights are known before they were rounded, nothing else is granted to the second model with those,
so that nothing hides in a coarse dtype. What storing them costs is then seen by running it with
the stored ones too. Where they are not known, it is measured by moving each merged weight by half a
unit in its last place. A difference may be `FACTOR` times what was measured.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from convsqueeze.copying import Sandbox, copied
from convsqueeze.errors import ModelInputError, VerificationError
from convsqueeze.models.inputs import Inputs
from convsqueeze.models.layerwise import FirstDifference, first_difference
from convsqueeze.models.outputs import Named, named_tensors
from convsqueeze.models.running import (
    ROUNDINGS,
    Runnable,
    Running,
    distances,
    largest_value,
    nearest,
    rounding_steps,
    runnable,
    spread,
)
from convsqueeze.module import SqueezedConv
from convsqueeze.verify import Worst

FACTOR = 16.0
"""Of the movement that was measured: rounding errors are drawn anew in every run, and of some ten
drawings none is 16 times smaller than another but for an output of a single number.
"""
MEASURED = 3
"""So many times rounding is measured at most: once, and again where a difference is beyond that."""
TRIALS = 2
"""Random inputs."""

Track = Callable[[str, int, int], None]


def untracked(what: str, done: int, total: int) -> None:
    """Tells nobody."""


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
        told = f" {self.first.told()}" if self.first is not None else ""
        return (f"the whole model {self.problem}.{told}",)

    def raise_if_failed(self) -> None:
        """Raises VerificationError with what differs and where it begins."""
        if self.problem is not None:
            raise VerificationError(self.failures)

    def to_data(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "ok": self.ok, "notes": list(self.notes)}


@dataclass(frozen=True, eq=False)
class Compared:
    """What comparing two models showed, and both as they ran."""

    report: WholeReport
    before: Runnable
    after: Running


def compare_models(
    before: nn.Module,
    after: nn.Module,
    inputs: Inputs,
    *,
    exact: Mapping[str, Tensor] | None = None,
    trials: int = TRIALS,
    seed: int = 0,
) -> WholeReport:
    """What `compared` shows of two models."""
    return compared(before, after, inputs, exact=exact, trials=trials, seed=seed).report


def compared(
    before: nn.Module,
    after: nn.Module,
    inputs: Inputs,
    *,
    exact: Mapping[str, Tensor] | None = None,
    trials: int = TRIALS,
    seed: int = 0,
    track: Track = untracked,
    sandbox: Sandbox | None = None,
) -> Compared:
    """Run both models on `trials` random inputs and compare every tensor that they give.

    `exact` are values of parameters of `after` in float64 before they were rounded, by full name.
    Merged are those parameters of `after` that `before` has not, or has otherwise. `sandbox` is
    that of `before`. Raises ModelInputError where `before` does not run, gives nothing to compare,
    or is random in eval mode.
    """

    def arguments(trial: int, dtype: torch.dtype | None) -> tuple[Any, ...]:
        if trial == 0 and any(spec.example is not None for spec in inputs.tensors):
            return inputs.first(dtype)
        return inputs.drawn(seed + trial, dtype)

    track("running the whole model", 0, trials)
    one = runnable(sandbox or Sandbox(before), lambda dtype: arguments(0, dtype))
    two = Running(copied(after), one.running.dtype)
    dtype = str(one.coarsest).removeprefix("torch.")
    found = _Comparison(type(before).__name__, one, two, _merged(before, after), exact or {})
    report = found.after_first(WholeReport(str(inputs), 0, seed, dtype, Worst(), 0.0))
    for trial in range(1, trials):
        if not report.ok:
            break
        track("running the whole model", trial, trials)
        report = found.after_another(report, arguments(trial, one.running.dtype))
    report = replace(report, notes=(*report.notes, *found.notes(report)))
    return Compared(report, one, two)


def _merged(before: nn.Module, after: nn.Module) -> dict[str, Tensor]:
    """Parameters of `after`, as stored, that are not bit for bit those of `before`."""
    known = dict(before.named_parameters())
    return {
        name: p
        for name, p in after.named_parameters()
        if p.is_floating_point()
        and not (name in known and p.dtype == known[name].dtype and p.equal(known[name]))
    }


class _Comparison:
    """Two models that run, the first of class `name`, and what rounding was seen to do so far.

    With `exact` the second is held to the noise of float64 with these values, otherwise, as it is
    stored, to what storing `merged` costs too.
    """

    def __init__(
        self,
        name: str,
        one: Runnable,
        two: Running,
        merged: Mapping[str, Tensor],
        exact: Mapping[str, Tensor],
    ) -> None:
        self.name, self.one, self.two, self.merged = name, one, two, merged
        self.exact = {name: exact[name] for name in exact if name in two.parameters()}
        self.unit = ROUNDINGS * torch.finfo(one.coarsest).eps
        self.wanted = named_tensors(one.output)
        self.noise: dict[str, float] = {}
        self.rounding: dict[str, float] = {}
        self.times_measured = 0
        self.silent: list[str] = []
        self.stored: Named = {}

    def after_first(self, report: WholeReport) -> WholeReport:
        """The report after the input that the first model has run on.

        The second runs with its stored weights, then, where they are known, with the exact ones and
        another seed: what is random, or kept from one call to the next, shows as a difference.
        Raises ModelInputError where that is why they differ, and for outputs that are not finite.
        """
        given = self.one.arguments
        if not any(bool(t.isfinite().any()) for t in self.wanted.values()):
            raise ModelInputError(
                f"{self.name}: gives no finite number on these inputs, so nothing can be compared. "
                "Give --input (in Python example_inputs) with shapes that it works on, and weights "
                "that were trained."
            )
        if not self.exact:
            self._measure(given, self.wanted)
        try:
            self.stored, moving = self.two.run_with_gradients(given, self._squeezed_weights())
            exact = self._exact(given, seed=1) if self.exact else None
        except Exception as error:  # noqa: BLE001  the user's code may raise anything
            return _does_not_run(report, error)
        self.silent = [one for one in self._squeezed_weights() if one not in moving]
        if exact is not None:
            report = self._judged(report, given, self.wanted, exact, rounded=False)
            self.rounding = distances(exact, self.stored)
        if report.ok:
            report = self._judged(report, given, self.wanted, self.stored, rounded=True)
        return replace(report, runs=int(report.ok))

    def after_another(self, report: WholeReport, given: tuple[Any, ...]) -> WholeReport:
        """The report after one more input."""
        wanted = self.one.running.run(given)
        try:
            found = self._exact(given) if self.exact else self.two.run(given)
        except Exception as error:  # noqa: BLE001  the user's code may raise anything
            return _does_not_run(report, error)
        report = self._judged(report, given, wanted, found, rounded=not self.exact)
        return replace(report, runs=report.runs + int(report.ok))

    def _exact(self, given: tuple[Any, ...], seed: int = 0) -> Named:
        with self.two.with_values(self.exact):
            return self.two.run(given, seed)

    def _judged(
        self,
        report: WholeReport,
        given: tuple[Any, ...],
        wanted: Named,
        found: Named,
        *,
        rounded: bool,
    ) -> WholeReport:
        """The report with what the second model gives, with `rounded` weights or exact ones."""
        if problem := _other_form(wanted, found):
            return replace(report, problem=problem, first=self._first(given, rounded=rounded))
        place, worst = self._nearest(wanted, found, rounded=rounded)
        while worst.share > 1.0 and self.times_measured < MEASURED:
            self._measure(given, wanted)
            if rounded and not self.exact:
                self._measure_rounding(given, found)
            place, worst = self._nearest(wanted, found, rounded=rounded)
        report = replace(report, largest=max(report.largest, *map(largest_value, wanted.values())))
        if rounded:
            report = replace(report, worst=_nearer(report.worst, worst))
        else:
            known = report.before_rounding or Worst()
            report = replace(report, before_rounding=_nearer(known, worst))
        if worst.share <= 1.0:
            return report
        told = (
            f"differs by {worst.error:.3e} where at most {worst.bound:.3e} is rounding and the "
            f"largest output is {largest_value(wanted[place]):.3e}, {worst.place}"
        )
        return replace(report, problem=told, first=self._first(given, rounded=rounded))

    def _nearest(self, wanted: Named, found: Named, *, rounded: bool) -> tuple[str, Worst]:
        """The output nearest to its bound."""
        bounds = {}
        for place, tensor in wanted.items():
            measured = self.noise.get(place, 0.0)
            if rounded:
                measured += self.rounding.get(place, 0.0)
            if not tensor.is_floating_point() or not isfinite(measured):
                measured = 0.0
            bounds[place] = FACTOR * measured + self.unit * largest_value(tensor)
        return nearest(wanted, found, bounds)

    def _measure(self, given: tuple[Any, ...], wanted: Named) -> None:
        """Adds to what the noise of float64 was seen to do. The first time the model starts from
        another seed: raises ModelInputError where that is what moves its outputs.
        """
        running, is_first = self.one.running, self.times_measured == 0
        steps = running.noise_steps(self.unit)
        moved = spread(running, given, wanted, steps, self.times_measured, seed=int(is_first))
        self.noise = _larger(self.noise, moved)
        self.times_measured += 1
        granted = {p: FACTOR * self.unit * largest_value(t) for p, t in wanted.items()}
        if is_first and any(moved[place] > granted[place] for place in wanted):
            again = distances(wanted, running.run(given, seed=1))
            if place := next((p for p in wanted if again[p] > granted[p]), None):
                raise ModelInputError(
                    f"{self.name}: gives another {place} when it runs on the same input again, in "
                    "eval mode too, so nothing can be compared. Switch off what is random in it "
                    "(dropout that ignores eval mode, noise), or what it keeps from one call to "
                    "the next."
                )

    def _measure_rounding(self, given: tuple[Any, ...], found: Named) -> None:
        steps = rounding_steps(self.merged)
        moved = spread(self.two, given, found, steps, self.times_measured)
        self.rounding = _larger(self.rounding, moved)

    def _first(self, given: tuple[Any, ...], *, rounded: bool) -> FirstDifference | None:
        """Where they begin to differ."""
        steps = rounding_steps(self.merged) if rounded else {}
        with self.two.with_values({} if rounded else self.exact):
            return first_difference(
                *(self.one.running, self.two, given),
                unit=self.unit,
                steps=steps,
                factor=FACTOR,
            )

    def _squeezed_weights(self) -> list[str]:
        modules = self.two.module.named_modules()
        return [f"{n}.weight" if n else "weight" for n, m in modules if isinstance(m, SqueezedConv)]

    def notes(self, report: WholeReport) -> Iterator[str]:
        """What is good to know of the comparison."""
        if self.one.coarsest != torch.float64:
            yield (
                f"the model's own code computes in {report.dtype}: equal within rounding to that "
                "alone"
            )
        unseen = [*self._unseen()] if report.ok else []
        if unseen:
            yield (
                f"{', '.join(unseen)}: no output depends on it with these weights and inputs, so "
                "the whole model says nothing of it"
            )

    def _unseen(self) -> Iterator[str]:
        """Squeezed layers whose weights move no output: they are multiplied by zero, or not run."""
        own = self.two.parameters()
        generator = torch.Generator().manual_seed(0)
        for name in self.silent:
            values = own[name]
            drawn = torch.rand(values.shape, generator=generator, dtype=values.dtype)
            moved = values + values.abs().max() * drawn / 16 + 1e-6
            with self.two.with_values({name: moved}):
                again = self.two.run(self.one.arguments)
            if not any(distances(self.stored, again).values()):
                yield name.removesuffix("weight").removesuffix(".")


def _larger(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {place: max(one.get(place, 0.0), value) for place, value in other.items()}


def _nearer(one: Worst, other: Worst) -> Worst:
    return other if other.share >= one.share else one


def _does_not_run(report: WholeReport, error: Exception) -> WholeReport:
    text = str(error).strip().partition("\n")[0]
    return replace(report, problem=f"does not run: {type(error).__name__}: {text}")


def _other_form(wanted: Named, found: Named) -> str | None:
    """What is wrong with the names and shapes of outputs."""
    if wanted.keys() != found.keys():
        given = ", ".join(found) or "nothing"
        return f"gives {given}, {', '.join(wanted)} was needed"
    for place, tensor in wanted.items():
        if tensor.shape != found[place].shape:
            shapes = f"shape {tuple(found[place].shape)}, {tuple(tensor.shape)} was needed"
            return f"gives {place} of {shapes}"
    return None
