"""Where two models begin to differ: every module's output, in the order in which they run."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from torch import nn

from convsqueeze.models.outputs import NamedTensors, named_tensors
from convsqueeze.models.running import Running, Steps, distances, largest_value
from convsqueeze.module import SqueezedConv

Call = tuple[str, int]
"""A module's name, and which of its calls it is, from 0 on."""


@dataclass(frozen=True)
class FirstDifference:
    """The first module, in the order in which they run, whose output differs by more than rounding.

    `agreeing` modules before it gave the same, the last of them `after`. `suspects` are the
    squeezed layers that ran since then. `call` counts a module's calls from 0 on.
    """

    name: str
    kind: str
    call: int
    error: float
    bound: float
    agreeing: int
    after: str
    suspects: tuple[str, ...]

    def describe(self) -> str:
        """In a sentence or two."""
        again = f", call {self.call + 1}" if self.call else ""
        name = self.name or "the model's own output"
        told = f"Layer by layer, {name} ({self.kind}{again}) is the first that differs"
        told += f" (by {self.error:.3e}, {self.bound:.3e} is rounding)"
        if self.after:
            told += f"; {self.agreeing} outputs before it agree, the last is {self.after}'s"
        if self.suspects:
            told += f". Squeezed in between: {', '.join(self.suspects)}"
        return told + "."


def first_difference(
    one: Running,
    two: Running,
    arguments: Sequence[Any],
    *,
    unit: float,
    steps: Steps,
    factor: float,
) -> FirstDifference | None:
    """Both models again, with every module's output kept. None where none of them differs.

    `unit` and `steps` are the roundings of all weights of the first and of merged ones of the
    second model, whose effect on every output is measured; `factor` times that is granted.
    """
    wanted, found = _outputs(one, arguments), _outputs(two, arguments)
    noise = _moved(one, arguments, wanted, one.noise_steps(unit))
    rounding = _moved(two, arguments, found, steps) if steps else {}
    kinds = dict(one.module.named_modules())
    inside = _inside_merges(list(wanted), two.module)
    agreeing: list[Call] = []
    for call, output in wanted.items():
        if call in inside or call not in found or not _comparable(call[0], one.module, two.module):
            continue
        error = _distance(output, found[call])
        largest = max(map(largest_value, output.values()), default=0.0)
        bound = factor * (noise.get(call, 0.0) + rounding.get(call, 0.0)) + unit * largest
        if not error <= bound:
            return FirstDifference(
                *(call[0], type(kinds[call[0]]).__name__, call[1], error, bound, len(agreeing)),
                after=agreeing[-1][0] if agreeing else "",
                suspects=_squeezed(two.module, list(found), call, agreeing),
            )
        agreeing.append(call)
    return None


def _squeezed(
    model: nn.Module, calls: Sequence[Call], last: Call, agreeing: Sequence[Call]
) -> tuple[str, ...]:
    """The squeezed layers that ran between the last call that agrees and another."""
    start = calls.index(agreeing[-1]) + 1 if agreeing else 0
    names = (name for name, _ in calls[start : calls.index(last) + 1])
    return tuple(name for name in names if isinstance(model.get_submodule(name), SqueezedConv))


def _outputs(running: Running, arguments: Sequence[Any]) -> dict[Call, NamedTensors]:
    """Every module's output, in the order in which they end."""
    found: dict[Call, NamedTensors] = {}

    def keep(call: Call, output: NamedTensors) -> None:
        found[call] = {place: tensor.clone() for place, tensor in output.items()}

    _listen(running, arguments, keep)
    return found


def _moved(
    running: Running, arguments: Sequence[Any], base: dict[Call, NamedTensors], steps: Steps
) -> dict[Call, float]:
    """How far every module's output moves when parameters take a step."""
    found: dict[Call, float] = {}

    def measure(call: Call, output: NamedTensors) -> None:
        if call in base:
            found[call] = _distance(base[call], output)

    with running.with_values(running.moved(steps, 0)):
        _listen(running, arguments, measure)
    return found


def _distance(one: NamedTensors, other: NamedTensors) -> float:
    return max(distances(one, other).values(), default=0.0)


def _listen(
    running: Running, arguments: Sequence[Any], hear: Callable[[Call, NamedTensors], None]
) -> None:
    """Run once; `hear` is told of every module's output as it comes. An exception ends it early."""
    calls: Counter[str] = Counter()

    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            calls[name] += 1
            hear((name, calls[name] - 1), named_tensors(output))

        return hook

    with ExitStack() as hooks, suppress(Exception):  # what ran until then has been heard
        for name, module in running.module.named_modules():
            hooks.callback(module.register_forward_hook(hook_of(name)).remove)
        running.run(arguments)


def _comparable(name: str, before: nn.Module, after: nn.Module) -> bool:
    """Whether a module should give the same in both: it was not merged, or holds a whole merge."""
    one, two = before.get_submodule(name), after.get_submodule(name)
    is_layer = isinstance(
        one, nn.modules.conv._ConvNd | nn.modules.batchnorm._BatchNorm | nn.Linear
    )
    return type(one) is type(two) or (any(True for _ in one.children()) and not is_layer)


def _inside_merges(order: Sequence[Call], after: nn.Module) -> set[Call]:
    """Calls that end between those of two layers of one merge: what they give is not there any
    more, or something else.
    """
    inside: set[Call] = set()
    for module in after.modules():
        if isinstance(module, SqueezedConv):
            sources = module.layer.sources
            at = [
                index
                for index, (name, _) in enumerate(order)
                if any(name == one or name.endswith(f".{one}") for one in sources)
            ]
            if at:
                inside.update(order[at[0] : at[-1]])
    return inside
