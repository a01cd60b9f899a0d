"""A whole model before and after, on the same random inputs: equal but for rounding, or where not.

The models run in float64 and eval mode, copies of them, so neither is touched. Two kinds of
rounding remain, and how far each moves an output is measured on these very models. The noise of
float64 is measured by moving all weights of the first model by a few units of it; where the merged
weights are known before they were rounded, nothing else is granted to the second model with those,
so that nothing hides in a coarse dtype. What storing them costs is then seen by running it with
the stored ones too. Where they are not known, it is measured by moving each merged weight by half a
unit in its last place. A difference may be `FACTOR` times what was measured.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from convsqueeze.copying import Sandbox, copied
from convsqueeze.errors import ModelInputError
from convsqueeze.models.inputs import Inputs
from convsqueeze.models.layerwise import FirstDifference, first_difference
from convsqueeze.models.outputs import NamedTensors, named_tensors
from convsqueeze.models.report import WholeReport
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
from convsqueeze.pipeline.tracking import Track, untracked
from convsqueeze.verify import Worst

FACTOR = 16.0
"""Of the movement that was measured: rounding errors are drawn anew in every run, and of some ten
drawings none is 16 times smaller than another but for an output of a single number.
"""
MEASURED = 3
"""So many times rounding is measured at most: once, and again where a difference is beyond that."""
TRIALS = 2
"""Random inputs."""


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

    With `exact` values the second is held to the noise of float64, otherwise, as it is stored, to
    what storing `merged` costs too.
    """

    def __init__(
        self,
        name: str,
        one: Runnable,
        two: Running,
        merged: Mapping[str, Tensor],
        exact: Mapping[str, Tensor],
    ) -> None:
        self.name, self.one, self.two = name, one, two
        self.exact = {name: exact[name] for name in exact if name in two.parameters()}
        self.steps = {} if self.exact else rounding_steps(merged)
        self.unit = ROUNDINGS * torch.finfo(one.coarsest).eps
        self.wanted = named_tensors(one.output)
        self.noise: dict[str, float] = {}
        self.rounding: dict[str, float] = {}
        self.times_measured = 0
        self.silent: list[str] = []
        self.stored: NamedTensors = {}

    def after_first(self, report: WholeReport) -> WholeReport:
        """The report after the input that the first model has run on.

        The second runs with its stored weights, then, where they are known, with the exact ones and
        another seed: what is random, or kept from one call to the next, shows as a difference.
        Raises ModelInputError where that is why they differ, and for outputs that are not finite.
        """
        given, wanted = self.one.arguments, self.wanted
        if not any(bool(t.isfinite().any()) for t in wanted.values()):
            raise ModelInputError(
                f"{self.name}: gives no finite number on these inputs, so nothing can be compared. "
                "Give --input (in Python example_inputs) with shapes that it works on, and weights "
                "that were trained."
            )
        if not self.exact:
            self._measure(given, wanted)
        weights = _squeezed_weights(self.two.module)
        try:
            self.stored, moving = self.two.run_with_gradients(given, weights)
            exact = self._run(given, seed=1) if self.exact else self.stored
        except Exception as error:  # noqa: BLE001  the user's code may raise anything
            return _does_not_run(report, error)
        self.silent = [one for one in weights if one not in moving]
        report = self._judged(report, given, wanted, exact)
        if report.ok and self.exact:
            storing = distances(exact, self.stored)
            _, worst = nearest(wanted, self.stored, self._bounds(wanted, storing))
            report = replace(report, worst=worst)
        return replace(report, runs=int(report.ok))

    def after_another(self, report: WholeReport, given: tuple[Any, ...]) -> WholeReport:
        """The report after one more input."""
        wanted = self.one.running.run(given)
        try:
            found = self._run(given)
        except Exception as error:  # noqa: BLE001  the user's code may raise anything
            return _does_not_run(report, error)
        report = self._judged(report, given, wanted, found)
        return replace(report, runs=report.runs + int(report.ok))

    def _run(self, given: tuple[Any, ...], seed: int = 0) -> NamedTensors:
        """The second model, with the exact values where they are known."""
        with self.two.with_values(self.exact):
            return self.two.run(given, seed)

    def _judged(
        self, report: WholeReport, given: tuple[Any, ...], wanted: NamedTensors, found: NamedTensors
    ) -> WholeReport:
        """The report with what the second model gives."""
        problem = _other_form(wanted, found)
        if problem is None:
            place, worst = nearest(wanted, found, self._bounds(wanted, self.rounding))
            while worst.share > 1.0 and self.times_measured < MEASURED:
                self._measure(given, wanted, found)
                place, worst = nearest(wanted, found, self._bounds(wanted, self.rounding))
            known = report.before_rounding or report.worst
            held = "before_rounding" if self.exact else "worst"
            largest = max(report.largest, *map(largest_value, wanted.values()))
            nearer: Any = {held: worst if worst.share >= known.share else known}
            report = replace(report, largest=largest, **nearer)
            if worst.share > 1.0:
                problem = (
                    f"differs by {worst.error:.3e} where at most {worst.bound:.3e} is rounding and "
                    f"the largest output is {largest_value(wanted[place]):.3e}, {worst.place}"
                )
        return (
            report
            if problem is None
            else replace(report, problem=problem, first=self._first(given))
        )

    def _bounds(self, wanted: NamedTensors, rounding: Mapping[str, float]) -> dict[str, float]:
        """What rounding may change of each output; infinite measurements are none."""
        bounds = {}
        for place, tensor in wanted.items():
            measured = self.noise.get(place, 0.0) + rounding.get(place, 0.0)
            if not tensor.is_floating_point() or not isfinite(measured):
                measured = 0.0
            bounds[place] = FACTOR * measured + self.unit * largest_value(tensor)
        return bounds

    def _measure(
        self, given: tuple[Any, ...], wanted: NamedTensors, found: NamedTensors | None = None
    ) -> None:
        """Adds to what the noise of float64 was seen to do, and storing to what is `found`.

        The first time the model starts from another seed: raises ModelInputError where that is what
        moves its outputs.
        """
        running, is_first = self.one.running, self.times_measured == 0
        steps = running.noise_steps(self.unit)
        moved = spread(running, given, wanted, steps, self.times_measured, seed=int(is_first))
        self.noise = _larger(self.noise, moved)
        if found is not None and self.steps:
            moved = spread(self.two, given, found, self.steps, self.times_measured)
            self.rounding = _larger(self.rounding, moved)
        self.times_measured += 1
        if is_first:
            self._check_repeats(given, wanted)

    def _check_repeats(self, given: tuple[Any, ...], wanted: NamedTensors) -> None:
        """Raises ModelInputError for a model that gives something else when it runs again, which
        moves it by far more than rounding.
        """
        granted = {p: FACTOR * self.unit * largest_value(t) for p, t in wanted.items()}
        if all(self.noise[place] <= granted[place] for place in wanted):
            return
        again = distances(wanted, self.one.running.run(given, seed=1))
        if place := next((p for p in wanted if again[p] > granted[p]), None):
            raise ModelInputError(
                f"{self.name}: gives another {place} when it runs on the same input again, in eval "
                "mode too, so nothing can be compared. Switch off what is random in it (dropout "
                "that ignores eval mode, noise), or what it keeps from one call to the next."
            )

    def _first(self, given: tuple[Any, ...]) -> FirstDifference | None:
        """Where they begin to differ."""
        granted: Any = {"unit": self.unit, "steps": self.steps, "factor": FACTOR}
        with self.two.with_values(self.exact):
            return first_difference(self.one.running, self.two, given, **granted)

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


def _squeezed_weights(model: nn.Module) -> list[str]:
    layers = (n for n, m in model.named_modules() if isinstance(m, SqueezedConv))
    return [f"{name}.weight" if name else "weight" for name in layers]


def _larger(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {place: max(one.get(place, 0.0), value) for place, value in other.items()}


def _does_not_run(report: WholeReport, error: Exception) -> WholeReport:
    text = str(error).strip().partition("\n")[0]
    return replace(report, problem=f"does not run: {type(error).__name__}: {text}")


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
