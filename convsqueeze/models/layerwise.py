"""Where two models begin to differ: every module's output, in the order in which they run."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from convsqueeze.models.distances import (
    FACTOR,
    Distances,
    Granted,
    NamedTensors,
    compared,
    distances,
    named_tensors,
    nearest,
)
from convsqueeze.models.running import Running, Steps
from convsqueeze.module import SqueezedConv
from convsqueeze.verify import Worst

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
        message = f"Layer by layer, {name} ({self.kind}{again}) is the first that differs"
        message += f" (by {self.error:.3e}, {self.bound:.3e} is rounding)"
        if self.after:
            message += f"; {self.agreeing} outputs before it agree, the last is {self.after}'s"
        if self.suspects:
            message += f". Squeezed in between: {', '.join(self.suspects)}"
        return message + "."


def first_difference(
    one: Running, two: Running, arguments: Sequence[Any], granted: Granted, steps: Steps
) -> FirstDifference | None:
    """Both models again, with every module's output kept. None where none of them differs.

    `granted.unit` and `steps` are the roundings of all weights of the first and of merged ones of
    the second model, whose effect on every output is measured and some times that granted.
    """
    wanted, found = _outputs(one, arguments), _outputs(two, arguments)
    with one.moved(one.noise_steps(granted.unit), 0):
        noise = _outputs(one, arguments)
    with two.moved(steps, 0):
        rounding = _outputs(two, arguments) if steps else found
    before, after = (dict(each.module.named_modules(remove_duplicate=False)) for each in (one, two))
    inside = _inside_merges(list(wanted), after)
    agreeing: list[Call] = []
    for call, output in wanted.items():
        name, number = call
        if call in inside or call not in found or not _comparable(before[name], after[name]):
            continue
        measured = dict[str, float]()
        for base, others, factor in (
            (wanted, noise, granted.factor),
            (found, rounding, FACTOR),
        ):
            for band, moved in distances(base[call], others.get(call, base[call])).items():
                measured[band] = measured.get(band, 0.0) + factor * moved
        worst = _worst(output, found[call], granted, measured)
        if worst.share > 1.0:
            calls = list(found)
            start = calls.index(agreeing[-1]) + 1 if agreeing else 0
            since = [after_name for after_name, _ in calls[start : calls.index(call) + 1]]
            return FirstDifference(
                *(
                    name,
                    type(before[name]).__name__,
                    number,
                    worst.error,
                    worst.bound,
                    len(agreeing),
                ),
                after=agreeing[-1][0] if agreeing else "",
                suspects=tuple(one for one in since if isinstance(after[one], SqueezedConv)),
            )
        agreeing.append(call)
    return None


def _outputs(running: Running, arguments: Sequence[Any]) -> dict[Call, NamedTensors]:
    """Every module's output, in the order in which they end; an exception ends that early."""
    found: dict[Call, NamedTensors] = {}
    calls: Counter[str] = Counter()

    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            tensors = named_tensors(output)
            found[name, calls[name]] = {place: t.clone() for place, t in tensors.items()}
            calls[name] += 1

        return hook

    with ExitStack() as hooks, suppress(Exception):
        for name, module in running.module.named_modules():
            hooks.callback(module.register_forward_hook(hook_of(name)).remove)
        running.run(arguments)
    return found


def _worst(one: NamedTensors, other: NamedTensors, granted: Granted, measured: Distances) -> Worst:
    """Beyond every bound where not even the shapes agree."""
    if any(p not in other or other[p].shape != tensor.shape for p, tensor in one.items()):
        return Worst(torch.inf, 0.0, torch.inf)
    return nearest(compared(one, other, granted, measured)).worst


def _comparable(one: nn.Module, two: nn.Module) -> bool:
    """Whether a module should give the same in both: it was not merged, or holds a whole merge."""
    is_layer = isinstance(
        one, nn.modules.conv._ConvNd | nn.modules.batchnorm._BatchNorm | nn.Linear
    )
    return type(one) is type(two) or (any(True for _ in one.children()) and not is_layer)


def _inside_merges(order: Sequence[Call], after: dict[str, nn.Module]) -> set[Call]:
    """Calls that end between those of two layers of one merge: what they give is not there any
    more, or something else.
    """
    inside: set[Call] = set()
    for module in after.values():
        if isinstance(module, SqueezedConv):
            ends = tuple(f".{source}" for source in module.layer.sources)
            at = [index for index, (name, _) in enumerate(order) if f".{name}".endswith(ends)]
            if at:
                inside.update(order[at[0] : at[-1]])
    return inside
