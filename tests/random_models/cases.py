"""One case: a random model, what its user has done to it, and inputs that it takes."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tests.networks.values import filled

from .description import HookKind, Layer, Model, layers, walk
from .drawn import Source
from .modules import Whole

Shape = tuple[int, ...]
Settings = Mapping[str, str]

SETTINGS: tuple[Settings, ...] = (
    {},
    {"border": "corrected"},
    {"border": "corrected", "growth": "allow"},
    {"minimize": "macs"},
    {"border": "corrected", "minimize": "macs", "growth": "allow"},
)
HOOKS: tuple[HookKind, ...] = ("forward", "pre", "changing", "changing pre", "backward")
SIZES: dict[int, tuple[tuple[int, int], ...]] = {
    0: ((1, 1),),
    1: ((17, 30), (40, 60)),
    2: ((9, 14), (18, 26)),
    3: ((6, 8), (10, 12)),
}
"""Ranges of the sizes of an example, tried one after the other."""

Seen = list[tuple[str, Tensor]]


@dataclass(frozen=True)
class Case:
    """`ties` are pairs of layers with one weight, `training` norms in training mode; `sizes` the
    example's and others.
    """

    seed: int
    rank: int
    channels: int
    model: Model
    ties: tuple[tuple[str, str], ...] = ()
    hooks: Mapping[str, HookKind] = field(default_factory=dict)
    training: frozenset[str] = frozenset()
    sizes: tuple[Shape, ...] = ()
    batch: bool = True

    def built(self, seen: Seen | None = None) -> nn.Module:
        """The model in float64, always with the same values; its hooks add to `seen`."""
        torch.manual_seed(self.seed)
        whole = Whole(self.model)
        for one, other in self.ties:
            whole.get_submodule(other).weight = whole.get_submodule(one).weight
        filled(whole, self.seed).double()
        for name in self.training:
            whole.get_submodule(name).train()
        for name, kind in self.hooks.items():
            _hook(whole.get_submodule(name), name, kind, [] if seen is None else seen)
        return whole

    def image(self, size: Shape) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + sum(size))
        shape = (*((3,) if self.batch else ()), self.channels, *size)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    @cached_property
    def layers(self) -> tuple[tuple[str, Layer], ...]:
        return tuple(layers(self.model.row, "body"))

    def __str__(self) -> str:
        told = [f"seed {self.seed}, sizes {list(self.sizes)}, channels {self.channels}"]
        told += [] if self.batch else ["without a batch"]
        told += [f"tied: {ties}" for ties in self.ties]
        told += [f"hook: {kind} on {name or 'the model'}" for name, kind in self.hooks.items()]
        told += [f"training: {name}" for name in self.training]
        return "\n".join([*told, str(self.built())])


def _hook(module: nn.Module, name: str, kind: HookKind, seen: Seen) -> None:
    """Hooks that keep what they see, and those that give something else."""

    def kept(place: str, value: Any) -> None:
        if isinstance(value, Tensor):
            seen.append((f"{name} {place}", value.detach().clone()))

    def after(module: nn.Module, args: Any, result: Any) -> Any:
        kept("takes", args[0])
        kept("gives", result)
        return result * 1.5 if kind == "changing" and isinstance(result, Tensor) else None

    def before(module: nn.Module, args: Any) -> Any:
        kept("takes", args[0])
        return (args[0] * 1.5,) if kind == "changing pre" else None

    if kind in ("forward", "changing"):
        module.register_forward_hook(after)
    elif kind in ("pre", "changing pre"):
        module.register_forward_pre_hook(before)
    else:
        module.register_full_backward_hook(lambda module, gives, takes: None)


def workable_case(seed: int, most: int = 40) -> Case:
    """The case of a seed: the first that torch runs, and that has no more than so many layers."""
    for attempt in range(1000):
        case = _drawn_case(seed + 1_000_003 * attempt)
        if case.sizes and len(case.layers) <= most:
            return case
    raise ValueError(f"no workable case grows from seed {seed}")


FIXED = (*range(57), 124, 133, 238)
"""Cases that the tests examine: the first ones, and those that alone show a planted fault."""


def fixed_case(number: int) -> tuple[Case, tuple[Settings, Settings]]:
    """A case of few layers, and two of the settings."""
    return workable_case(number, most=7), (SETTINGS[0], SETTINGS[1 + number % 4])


def _drawn_case(seed: int) -> Case:
    source = Source(seed)
    model, channels = source.model()
    rng = random.Random(seed + 1)
    found = list(layers(model.row, "body"))
    training = [n for n, one in found if one.kind == "batch_norm" and rng.random() < 0.08]
    names = ["", *(name for name, _ in walk(model.row, "body"))]
    hooked = rng.sample(names, rng.randint(1, 2)) if rng.random() < 0.2 else []
    batch = rng.random() > 0.08 or not source.rank or source.rank == 1
    case = Case(
        seed,
        source.rank,
        channels,
        model,
        _ties(found, rng),
        {name: rng.choice(HOOKS) for name in hooked},
        frozenset(training),
        batch=batch,
    )
    return _with_sizes(case, rng)


def _ties(found: Sequence[tuple[str, Layer]], rng: random.Random) -> tuple[tuple[str, str], ...]:
    """Now and then two layers whose weights have the same shape."""
    plain = [(n, one) for n, one in found if one.kind in ("conv", "linear")]
    pairs = [
        (name, other)
        for index, (name, one) in enumerate(plain)
        for other, two in plain[index + 1 :]
        if _weight_shape(one) == _weight_shape(two)
        and not {"normed"} & {*one.settings, *two.settings}
    ]
    return (rng.choice(pairs),) if pairs and rng.random() < 0.35 else ()


def _weight_shape(layer: Layer) -> Any:
    kernel, groups = layer.settings.get("kernel_size"), layer.settings.get("groups", 1)
    each = (kernel,) * layer.rank if isinstance(kernel, int) else kernel
    return layer.kind, layer.in_channels // groups, layer.out_channels, each


def _with_sizes(case: Case, rng: random.Random) -> Case:
    """The case with sizes that its model takes; none where the example's is not one."""
    if not any(True for _ in case.built().state_dict()):
        return case
    for low, high in SIZES[case.rank]:
        example = tuple(rng.randint(low, high) for _ in range(case.rank))
        if takes(case, example):
            others = [tuple(n + rng.randint(-4, 5) for n in example) for _ in range(2)]
            kept = [size for size in dict.fromkeys(others) if min(size, default=1) > 0]
            sizes = [size for size in kept if size != example and takes(case, size)]
            return replace(case, sizes=(example, *sizes))
    return case


def takes(case: Case, size: Shape) -> bool:
    """Whether torch runs the model on an input of this size and something comes out."""
    try:
        with torch.no_grad():
            output = case.built()(case.image(size))
    except (RuntimeError, ValueError, IndexError):
        return False
    return all(one.numel() > 0 for one in tree_leaves(output))
