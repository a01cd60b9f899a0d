"""A whole model before and after, on the same random inputs: equal but for rounding, or where not.

The models run in float64 and eval mode, copies of them, so neither is touched. Two kinds of
rounding remain, and how far each moves an output is measured on these very models: float64's own,
by moving all weights of the first by a few units of it, and that of storing merged weights, by
moving each of those by half a unit in its last place. A difference may be `FACTOR` times what was
measured. Where the merged weights are known before they were rounded, the second model runs with
them too, and only the noise of float64 is granted, so that nothing hides in a coarse dtype.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convsqueeze.errors import ModelInputError, VerificationError
from convsqueeze.models.inputs import Inputs
from convsqueeze.models.layerwise import FirstDifference, first_difference
from convsqueeze.models.outputs import Named
from convsqueeze.models.running import (
    ROUNDINGS,
    Running,
    differences,
    largest_difference,
    largest_value,
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
"""So many times rounding is measured."""

Track = Callable[[str, int, int], None]


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


def compare_models(
    before: nn.Module,
    after: nn.Module,
    inputs: Inputs,
    *,
    exact: Mapping[str, Tensor] | None = None,
    trials: int = 3,
    seed: int = 0,
    track: Track = lambda what, done, total: None,
) -> WholeReport:
    """Run both models on `trials` random inputs and compare every tensor that they give.

    `exact` are values of parameters of `after` in float64 before they were rounded, by full name.
    Merged are those parameters of `after` that `before` has not, or has otherwise. Raises
    ModelInputError where `before` does not run, gives nothing to compare, or is random in eval
    mode.
    """
    name = type(before).__name__
    one, coarsest = runnable(before, lambda dtype: inputs.first(dtype), name)
    two = Running(after, one.dtype)
    found = _Comparison(one, two, inputs, seed, coarsest, _merged(before, after), exact or {})
    _check_fit_for_comparison(one, inputs.first(one.dtype), found.unit, name)
    report = WholeReport(str(inputs), 0, seed, str(coarsest).removeprefix("torch."), Worst(), 0.0)
    for trial in range(trials):
        track("running the whole model", trial, trials)
        report = found.after_trial(report, trial)
        if not report.ok:
            break
    return replace(report, notes=(*report.notes, *_notes(after, report, found)))


def _merged(before: nn.Module, after: nn.Module) -> dict[str, Tensor]:
    """Parameters of `after`, as stored, that are not bit for bit those of `before`."""
    known = dict(before.named_parameters())
    return {
        name: p
        for name, p in after.named_parameters()
        if p.is_floating_point()
        and not (name in known and p.dtype == known[name].dtype and p.equal(known[name]))
    }


def _check_fit_for_comparison(
    one: Running, arguments: tuple[Any, ...], unit: float, name: str
) -> None:
    """Raises ModelInputError for a model that is random, or gives no finite number."""
    first, again = one.run(arguments, seed=1), one.run(arguments, seed=2)
    if not any(bool(t.isfinite().any()) for t in first.values()):
        raise ModelInputError(
            f"{name}: gives no finite number on these inputs, so nothing can be compared. Give "
            "--input (in Python example_inputs) with shapes that it works on, and weights that "
            "were trained."
        )
    for place, tensor in first.items():
        if largest_difference(tensor, again.get(place)) > FACTOR * unit * largest_value(tensor):
            raise ModelInputError(
                f"{name}: gives another {place} when it runs on the same input again, in eval mode "
                "too, so nothing can be compared. Switch off what is random in it (dropout that "
                "ignores eval mode, noise), or what it keeps from one call to the next."
            )


@dataclass
class _Comparison:
    """Two runnable models and what rounding was seen to do to their outputs so far."""

    one: Running
    two: Running
    inputs: Inputs
    seed: int
    coarsest: torch.dtype
    merged: Mapping[str, Tensor]
    exact: Mapping[str, Tensor]
    noise: dict[str, float] = field(default_factory=dict)
    rounding: dict[str, float] = field(default_factory=dict)

    @property
    def unit(self) -> float:
        return ROUNDINGS * torch.finfo(self.coarsest).eps

    def after_trial(self, report: WholeReport, trial: int) -> WholeReport:
        """The report after one more input."""
        arguments = self._arguments(trial)
        wanted = self.one.run(arguments)
        try:
            found = self.two.run(arguments)
        except Exception as error:  # noqa: BLE001  the user's code may raise anything
            text = str(error).strip().partition("\n")[0]
            return replace(report, problem=f"does not run: {type(error).__name__}: {text}")
        if trial < MEASURED:
            self._measure(arguments, wanted, found, trial)
        report = self._judged(report, wanted, found, self._bounds(wanted, rounded=True))
        if report.ok and self.exact:
            with self.two.with_values(self.exact):
                found = self.two.run(arguments)
                bounds = self._bounds(wanted, rounded=False)
                inner = replace(report, worst=report.before_rounding or Worst())
                inner = self._judged(inner, wanted, found, bounds)
                report = replace(inner, worst=report.worst, before_rounding=inner.worst)
                if not report.ok:
                    return replace(report, first=self._first(arguments, rounded=False))
        if not report.ok:
            return replace(report, first=self._first(arguments, rounded=True))
        return replace(report, runs=report.runs + 1)

    def _arguments(self, trial: int) -> tuple[Any, ...]:
        if trial == 0 and any(spec.example is not None for spec in self.inputs.tensors):
            return self.inputs.first(self.one.dtype)
        return self.inputs.drawn(self.seed + trial, self.one.dtype)

    def _measure(self, arguments: tuple[Any, ...], wanted: Named, found: Named, trial: int) -> None:
        """Adds to what rounding was seen to do."""
        steps = self.one.noise_steps(self.unit)
        moved = spread(self.one, arguments, wanted, steps, trial)
        self.noise = {p: max(self.noise.get(p, 0.0), m) for p, m in moved.items()}
        moved = spread(self.two, arguments, found, rounding_steps(self.merged), trial)
        self.rounding = {p: max(self.rounding.get(p, 0.0), m) for p, m in moved.items()}

    def _bounds(self, wanted: Named, *, rounded: bool) -> dict[str, float]:
        bounds = {}
        for place, tensor in wanted.items():
            measured = self.noise.get(place, 0.0)
            if rounded:
                measured += self.rounding.get(place, 0.0)
            if not tensor.is_floating_point() or not isfinite(measured):
                measured = 0.0
            bounds[place] = FACTOR * measured + self.unit * largest_value(tensor)
        return bounds

    def _judged(
        self, report: WholeReport, wanted: Named, found: Named, bounds: Mapping[str, float]
    ) -> WholeReport:
        if wanted.keys() != found.keys():
            given = ", ".join(found) or "nothing"
            return replace(report, problem=f"gives {given}, {', '.join(wanted)} was needed")
        for place, tensor in wanted.items():
            if tensor.shape != found[place].shape:
                shapes = f"shape {tuple(found[place].shape)}, {tuple(tensor.shape)} was needed"
                return replace(report, problem=f"gives {place} of {shapes}")
            worst = _worst(tensor, found[place], bounds[place], place)
            report = replace(report, largest=max(report.largest, largest_value(tensor)))
            if worst.share >= report.worst.share:
                report = replace(report, worst=worst)
            if worst.share > 1.0:
                return replace(
                    report,
                    problem=f"differs by {worst.error:.3e} where at most {worst.bound:.3e} is "
                    f"rounding and the largest output is {largest_value(tensor):.3e}, "
                    f"{worst.place}",
                )
        return report

    def _first(self, arguments: tuple[Any, ...], *, rounded: bool) -> FirstDifference | None:
        steps = rounding_steps(self.merged) if rounded else {}
        return first_difference(
            self.one, self.two, arguments, unit=self.unit, steps=steps, factor=FACTOR
        )


def _worst(wanted: Tensor, found: Tensor, bound: float, place: str) -> Worst:
    if wanted.numel() == 0:
        return Worst(place=place)
    error = differences(wanted, found)
    index = np.unravel_index(int(error.argmax()), error.shape)  # torch's own imports sympy
    largest = float(error[index])
    share = 0.0 if largest == 0 else (largest / bound if bound > 0 else torch.inf)
    return Worst(largest, bound, share, f"{place} at {[int(i) for i in index]}")


def _notes(after: nn.Module, report: WholeReport, found: _Comparison) -> list[str]:
    notes = []
    if found.coarsest != torch.float64:
        notes.append(
            f"the model's own code computes in {report.dtype}: equal within rounding to that alone"
        )
    unseen = _unseen(found) if report.ok else []
    if unseen:
        notes.append(
            f"{', '.join(unseen)}: no output depends on it with these weights and inputs, so the "
            "whole model says nothing of it"
        )
    return notes


def _unseen(found: _Comparison) -> list[str]:
    """Squeezed layers whose weights move no output: they are multiplied by zero, or not run."""
    own = dict(found.two.module.named_parameters())
    arguments = found.inputs.first(found.two.dtype)
    layers = {
        f"{name}.weight" if name else "weight": name
        for name, module in found.two.module.named_modules()
        if isinstance(module, SqueezedConv)
    }
    seen = found.two.moves_outputs(arguments, list(layers)) if layers else frozenset()
    base = found.two.run(arguments)
    generator = torch.Generator().manual_seed(0)
    unseen = []
    for key in (one for one in layers if one not in seen):
        values = own[key].data
        drawn = torch.rand(values.shape, generator=generator, dtype=values.dtype)
        moved = values + values.abs().max() * drawn / 16 + 1e-6
        with found.two.with_values({key: moved}):
            again = found.two.run(arguments)
        if all(largest_difference(base[place], again.get(place)) == 0 for place in base):
            unseen.append(layers[key])
    return unseen
