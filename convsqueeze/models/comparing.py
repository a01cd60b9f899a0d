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
from convsqueeze.models.layerwise import FirstDifference, first_difference
from convsqueeze.models.running import (
    FACTOR,
    ROUNDINGS,
    NamedTensors,
    Running,
    Steps,
    distances,
    largest_value,
    named_tensors,
    nearest,
    rounding_steps,
)
from convsqueeze.module import SqueezedConv
from convsqueeze.tracing.raised import describe_error
from convsqueeze.verify import Worst

MEASURED = 3
"""So many times rounding is measured at most: once, and again where a difference is beyond that."""
GROSS = 1e-3
"""Of the largest output: more than storing mostly moves it, less than other code does."""
REPEATED = 3
"""So many times a run is repeated where noise moves an output by more than `GROSS`."""


class _NotRunError(ModelInputError):
    """The first model does not run on an input."""


class Comparison:
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
        self.times_measured, self.is_unsteady = 0, False
        self.runs, self.largest = 0, 0.0
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
        except Exception as error:
            if lacks_memory(error):
                raise
            self.problem = f"does not run: {describe_error(error)}"
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

        The first time the model starts from another seed.
        """
        seed = int(self.times_measured == 0)
        noise = self._movement(self.one, self.one.noise_steps(self.unit), given, wanted, seed)
        self.noise |= noise
        self.is_unsteady |= _is_gross(noise, wanted, FACTOR * self.unit)
        if found is not None and self.steps:
            self.rounding |= self._movement(self.two, self.steps, given, found)
        self.times_measured += 1

    def _movement(
        self,
        running: Running,
        steps: Steps,
        given: tuple[Any, ...],
        gave: NamedTensors,
        seed: int = 0,
    ) -> Any:
        """By place, how far steps of the weights move what a model gave. Where that is more than
        rounding may be, the runs are repeated: raises ModelInputError where one gives something
        else then.
        """
        granted = {p: FACTOR * self.unit * largest_value(t) for p, t in gave.items()}
        with running.moved(steps, self.times_measured):
            moved = running.run(given, seed)
            far = distances(gave, moved)
            if all(far[place] <= granted[place] for place in gave):
                return Counter(far)
            times = REPEATED if _is_gross(far, gave) else 1
            pairs = [(moved, running.run(given, seed)) for _ in range(times)]
        pairs += [(gave, running.run(given, seed)) for _ in range(times)]
        repeated = [distances(*pair) for pair in pairs]
        if place := next((p for p in gave if any(d[p] > granted[p] for d in repeated)), None):
            raise ModelInputError(
                f"{self.name}: gives another {place} when it runs on the same input again, in eval "
                "mode too, so nothing can be compared. Switch off what is random in it (dropout "
                "that ignores eval mode, noise), or what it keeps from one call to the next."
            )
        return Counter(far)

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


def _is_gross(moved: Mapping[str, float], outputs: NamedTensors, least: float = GROSS) -> bool:
    most = max(GROSS, least)
    return any(moved[place] > most * largest_value(t) for place, t in outputs.items())


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
