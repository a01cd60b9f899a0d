"""A squeezed model beside its original on one input after another, and how far rounding can move
what they give.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from convsqueeze.errors import ModelInputError, lacks_memory
from convsqueeze.models.branching import Other
from convsqueeze.models.distances import (
    FACTOR,
    Compared,
    Distances,
    NamedTensors,
    compared,
    distances,
    granted_of,
    is_beyond,
    largest_value,
    named_tensors,
    nearest,
)
from convsqueeze.models.layerwise import FirstDifference, first_difference
from convsqueeze.models.running import Running, Steps, rounding_steps
from convsqueeze.module import SqueezedConv
from convsqueeze.tracing.raised import describe_error
from convsqueeze.verify import Worst

MEASURED = 3
"""So many times rounding is measured at most where a difference on an input is beyond it."""
GROSS = 1e-3
"""Of the largest output: more than storing mostly moves it, less than other code does."""
REPEATED = 3
"""So many times a run is repeated where noise moves an output by more than `GROSS`."""


class _NotRunError(ModelInputError):
    """The first model does not run on an input."""


class Comparison:
    """What two models and rounding were seen to do; `one` and `two` are they as they run. Movements
    by band are added, and the larger of two taken, as counters are. `blind` is the largest share of
    an output up to which a difference passed for rounding, `lost` that by which storing moved one.

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
        self.granted = granted_of(one.coarsest)
        self.noise: Any = Counter()
        self.rounding: Any = Counter()
        self.times_measured = 0
        self.runs, self.largest, self.blind, self.lost = 0, 0.0, 0.0, 0.0
        self.problem: str | None = None
        self.first: FirstDifference | None = None
        self.stored = Worst()
        self.before_rounding: Worst | None = None
        layers = (n for n, m in squeezed.named_modules() if isinstance(m, SqueezedConv))
        self.silent = [f"{name}.weight" if name else "weight" for name in layers]
        self.gave: NamedTensors = {}

    def compare_on(self, other: Other, seed: int) -> bool:
        """Run both on an input for which the code may do something else; False where the first does
        not run on it.
        """
        self.one.seen_as = self.two.seen_as = other.seen_as
        try:
            self.compare(other.inputs.drawn(seed, self.one.dtype))
        except _NotRunError:
            return False
        finally:
            self.one.seen_as = self.two.seen_as = None
        if self.problem is not None:
            self.problem += f", on an input of {other}"
        return True

    def compare(self, given: tuple[Any, ...]) -> None:
        """Run both on an input, which the first model may have run on.

        On that the second runs with its stored weights, then, where they are known, with the exact
        ones and another seed: what is random, or kept from one call to the next, shows as a
        difference. Raises ModelInputError where that is why they differ, and for outputs that are
        not finite.
        """
        is_first = given is self.one.given
        wanted = named_tensors(self.one.gave) if is_first else self._run_first(given)
        if is_first and wanted and not any(t.numel() for t in wanted.values()):
            raise ModelInputError(
                f"{self.name}: gives empty tensors alone on these inputs, so nothing can be "
                "compared. In Python give example_inputs for which it gives more; or merge by a "
                "manifest (`convsqueeze scan -o pairs.yaml`), which verifies layer by layer."
            )
        if is_first and not any(bool(t.isfinite().any()) for t in wanted.values()):
            what = "no finite number" if wanted else "no tensor"
            raise ModelInputError(
                f"{self.name}: gives {what} on these inputs, so nothing can be compared. "
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
        except Exception as error:
            if lacks_memory(error):
                raise
            self.problem = f"does not run: {describe_error(error)}"
            return
        self.problem = _other_form(wanted, found) or self._difference(given, wanted, found)
        if self.problem is not None:
            with self.two.with_values(self.exact):
                self.first = first_difference(self.one, self.two, given, self.granted, self.steps)
            return
        self.runs += 1
        if is_first and self.exact:
            storing = distances(found, self.gave, wanted)
            self._compare_stored(given, wanted, storing)

    def _compare_stored(
        self, given: tuple[Any, ...], wanted: NamedTensors, storing: Distances
    ) -> None:
        """What storing the exact values costs; `gave` is of a run in which gradients are recorded,
        for which code may do something else.
        """
        every = compared(wanted, self.gave, self.granted, self._movements(storing))
        self.stored = nearest(every).worst
        self.lost = max(one.share(one.worst.error) for one in every)
        if is_beyond(storing, wanted, GROSS) is None:
            return
        without = self.two.run(given)
        if (place := is_beyond(distances(without, self.gave, wanted), wanted, GROSS)) is not None:
            again = self.two.run(given)
            if is_beyond(distances(without, again, wanted), wanted, GROSS) is not None:
                raise _unsteady(self.name, place)
            self.problem = (
                f"gives another {place} where gradients are recorded, as code does that asks "
                "torch.is_grad_enabled() or a tensor's requires_grad"
            )

    def _movements(self, more: Distances | None = None) -> Distances:
        """What was measured, with what is granted of it."""
        stored = Counter(self.rounding) + Counter(more or {})
        places = {*self.noise, *stored}
        factor = self.granted.factor
        return {one: factor * self.noise[one] + FACTOR * stored[one] for one in places}

    def _run_first(self, given: tuple[Any, ...]) -> NamedTensors:
        """Raises ModelInputError."""
        try:
            return self.one.run(given)
        except Exception as error:
            raise _NotRunError(
                f"{self.name}: ran once and does not run again ({describe_error(error)}), so "
                "nothing can be compared. Keep nothing in it from one call to the next."
            ) from error

    def _difference(
        self, given: tuple[Any, ...], wanted: NamedTensors, found: NamedTensors
    ) -> str | None:
        """What is more than rounding, which is measured again before it is told."""
        every = compared(wanted, found, self.granted, self._movements())
        for _ in range(MEASURED):
            if nearest(every).worst.share <= 1.0:
                break
            self._measure(given, wanted, found)
            every = compared(wanted, found, self.granted, self._movements())
        self.largest = max(self.largest, *map(largest_value, wanted.values()))
        self.blind = max(self.blind, *(one.share(one.worst.bound) for one in every))
        furthest = nearest(every)
        worst = furthest.worst
        if self.exact and worst.share >= (self.before_rounding or Worst()).share:
            self.before_rounding = worst
        elif not self.exact and worst.share >= self.stored.share:
            self.stored = worst
        return None if worst.share <= 1.0 else _told(furthest, wanted)

    def _measure(
        self, given: tuple[Any, ...], wanted: NamedTensors, found: NamedTensors | None = None
    ) -> None:
        """Adds to what the noise of float64 was seen to do, and storing to what is `found`.

        The first time the model starts from another seed.
        """
        seed, steps = int(self.times_measured == 0), self.one.noise_steps(self.granted.unit)
        self.noise |= self._movement(self.one, steps, given, wanted, wanted, seed)
        if found is not None and self.steps:
            self.rounding |= self._movement(self.two, self.steps, given, found, wanted)
        self.times_measured += 1

    def _movement(
        self,
        running: Running,
        steps: Steps,
        given: tuple[Any, ...],
        gave: NamedTensors,
        wanted: NamedTensors,
        seed: int = 0,
    ) -> Any:
        """By band of what is `wanted`, how far steps of the weights move what a model gave. Where
        that is more than rounding may be, the runs are repeated: raises ModelInputError where one
        gives something else then.
        """
        with running.moved(steps, self.times_measured):
            moved = running.run(given, seed)
            far = distances(gave, moved, wanted)
            if is_beyond(far, wanted, self._repeats) is None:
                return Counter(far)
            times = REPEATED if is_beyond(far, wanted, GROSS) else 1
            pairs = [(moved, running.run(given, seed)) for _ in range(times)]
        pairs += [(gave, running.run(given, seed)) for _ in range(times)]
        for pair in pairs:
            self._hold_steady(*pair)
        return Counter(far)

    def check_steady(self) -> None:
        """Raises ModelInputError where the first model, which has run on other inputs since, gives
        something else on its first ones.
        """
        self._hold_steady(named_tensors(self.one.gave), self._run_first(self.one.given))

    @property
    def _repeats(self) -> float:
        """The share of an output that may move between two runs on the same input."""
        return self.granted.factor * self.granted.unit

    def _hold_steady(self, gave: NamedTensors, again: NamedTensors) -> None:
        if (place := is_beyond(distances(gave, again), gave, self._repeats)) is not None:
            raise _unsteady(self.name, place)

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


def _unsteady(name: str, place: str) -> ModelInputError:
    return ModelInputError(
        f"{name}: gives another {place} when it runs on the same input again, in eval mode too, so "
        "nothing can be compared. Switch off what is random in it (dropout that ignores eval mode, "
        "noise), or what it keeps from one call to the next."
    )


def _told(one: Compared, wanted: NamedTensors) -> str:
    worst = one.worst
    if not wanted[one.place].is_floating_point():
        return (
            f"differs in {worst.error:.0f} of {one.largest:.0f} values where at most "
            f"{worst.bound:.0f} are the last digits' choice, {worst.place}"
        )
    return (
        f"differs by {worst.error:.3e} where at most {worst.bound:.3e} is rounding and "
        f"the largest output is {one.largest:.3e}, {worst.place}"
    )


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
