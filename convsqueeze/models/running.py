"""A model as a function in float64 and eval mode, and how far rounding can move what it gives.

Rounding is measured, not estimated: a copy of the model whose weights are moved by a few units of
rounding shows what this network makes of such errors, however deep it is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from convsqueeze.algebra.precision import half_ulp
from convsqueeze.copying import Sandbox, as_wide
from convsqueeze.errors import ModelInputError
from convsqueeze.hooks import has_hooks
from convsqueeze.models.outputs import NamedTensors, given_tensors, named_tensors
from convsqueeze.tracing.raised import describe_error, exits_caught
from convsqueeze.verify import Worst, worst_of

Steps = Mapping[str, Tensor]
"""By parameter, how far each of its values is moved, up or down."""

ROUNDINGS = 16
"""So many units of rounding, relative to the largest weight of its tensor, weights are moved by:
more than the sums of a layer lose, which are rounded anew in each.
"""


class Running:
    """A model in `dtype` (None: its own dtypes) and eval mode on the CPU; `module` is converted."""

    def __init__(self, module: nn.Module, dtype: torch.dtype | None) -> None:
        self.dtype = dtype
        module.cpu()
        if dtype is not None:
            module._apply(lambda tensor: as_wide(tensor, dtype))
        self.module = module.eval().requires_grad_(False)

    @property
    def coarsest(self) -> torch.dtype:
        """The coarsest dtype of its parameters."""
        dtypes = [p.dtype for p in self.module.parameters() if p.is_floating_point()]
        return max(dtypes or [self.dtype or torch.float32], key=_eps)

    def output(self, arguments: Sequence[Any], seed: int = 0) -> Any:
        """What it gives; `seed` is for a model that draws random numbers itself."""
        with torch.no_grad():
            return self._output(arguments, seed)

    def run(self, arguments: Sequence[Any], seed: int = 0) -> NamedTensors:
        """The tensors of what it gives."""
        return named_tensors(self.output(arguments, seed))

    def _output(self, arguments: Sequence[Any], seed: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            given = tree_map_only(Tensor, torch.clone, tuple(arguments))
            with exits_caught():
                return self.module(*given)

    def run_with_gradients(
        self, arguments: Sequence[Any], names: Sequence[str]
    ) -> tuple[NamedTensors, frozenset[str]]:
        """The tensors of what it gives, and those parameters of `names` whose gradient says that
        they move with them; the others may do so, where the model's code cannot be differentiated
        or its gradient vanishes. A model with hooks is not asked: some are called with gradients.
        """
        if not names or any(map(has_hooks, self.module.modules())):
            return self.run(arguments), frozenset()
        own = dict(self.module.named_parameters())
        chosen = [own[name].requires_grad_() for name in names]
        try:
            with torch.enable_grad():
                output = self._output(arguments, seed=0)
                outputs = [tensor for _, tensor in given_tensors(output) if tensor.requires_grad]
                generator = torch.Generator().manual_seed(0)
                weights = [_random_like(tensor, generator) for tensor in outputs]
                found = torch.autograd.grad(outputs, chosen, weights, allow_unused=True)
        except RuntimeError:
            self.module.requires_grad_(False)
            return self.run(arguments), frozenset()
        finally:
            self.module.requires_grad_(False)
        moving = (
            name
            for name, gradient in zip(names, found, strict=True)
            if gradient is not None and gradient.isfinite().all() and gradient.any()
        )
        return named_tensors(output), frozenset(moving)

    def parameters(self) -> dict[str, Tensor]:
        return {name: p.data for name, p in self.module.named_parameters()}

    @contextmanager
    def with_values(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Parameters with other values meanwhile."""
        named = dict(self.module.named_parameters())
        with _replaced(
            {named[name]: value.to(named[name].dtype) for name, value in values.items()}
        ):
            yield

    @contextmanager
    def computing_in(self, dtype: torch.dtype) -> Iterator[None]:
        """All tensors in another dtype meanwhile."""
        tensors = (*self.module.parameters(), *self.module.buffers())
        with _replaced({tensor: as_wide(tensor.data, dtype) for tensor in tensors}):
            yield

    def moved(self, steps: Steps, seed: int) -> dict[str, Tensor]:
        """The values of parameters after a step each, its sign drawn from the seed."""
        generator = torch.Generator().manual_seed(seed)
        own = self.parameters()
        return {
            name: own[name]
            + step * (torch.randint(0, 2, own[name].shape, generator=generator) * 2 - 1)
            for name, step in steps.items()
        }

    def noise_steps(self, unit: float) -> Steps:
        """`unit` of each tensor's largest value."""
        return {
            name: torch.full_like(p, unit * largest_value(p))
            for name, p in self.parameters().items()
            if p.is_floating_point() and p.numel()
        }


@contextmanager
def _replaced(values: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Tensors with other numbers meanwhile."""
    kept = {tensor: tensor.data for tensor in values}
    try:
        for tensor, value in values.items():
            tensor.data = value
        yield
    finally:
        for tensor, value in kept.items():
            tensor.data = value


def _random_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers from 0 to 1, which no sum of gradients is likely to cancel by."""
    return torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)


def rounding_steps(stored: Mapping[str, Tensor]) -> Steps:
    """Half a unit in the last place of each value as it is stored."""
    return {name: half_ulp(tensor.detach().cpu()) for name, tensor in stored.items()}


def spread(
    running: Running,
    arguments: Sequence[Any],
    base: NamedTensors,
    steps: Steps,
    signs: int,
    seed: int = 0,
) -> dict[str, float]:
    """How far each output moves, at most, when parameters take a step whose signs are drawn from
    `signs`; `seed` is for what the model draws itself.
    """
    with running.with_values(running.moved(steps, signs)):
        return distances(base, running.run(arguments, seed))


def distances(one: NamedTensors, other: NamedTensors) -> dict[str, float]:
    """The largest difference of each tensor of `one`."""
    return {place: largest_difference(one[place], other.get(place)) for place in one}


def largest_difference(one: Tensor, other: Tensor | None) -> float:
    """Infinite for other shapes, and where only one is finite; equal infinities and NaNs agree."""
    if other is None or one.shape != other.shape:
        return torch.inf
    if one.numel() == 0:
        return 0.0
    return float(differences(one, other).max())


def largest_value(tensor: Tensor) -> float:
    """The largest finite magnitude, 0 without any."""
    if tensor.numel() == 0:
        return 0.0
    return float(tensor.double().nan_to_num(0.0, 0.0, 0.0).abs().max())


def differences(one: Tensor, other: Tensor) -> Tensor:
    """Of two tensors of one shape, in float64."""
    a, b = one.double(), other.double()
    alike = (a == b) | (a.isnan() & b.isnan())
    found = (a - b).abs().nan_to_num(torch.inf, torch.inf, torch.inf)
    return torch.where(alike, 0.0, found)


def nearest(
    wanted: NamedTensors, found: NamedTensors, bounds: Mapping[str, float]
) -> tuple[str, Worst]:
    """The output nearest to its bound, or the furthest beyond one, and what it differs by."""
    every = {place: Worst(place=place) for place in wanted}
    for place in (one for one in wanted if wanted[one].numel()):
        error = differences(wanted[place], found[place])
        bound = torch.full_like(error, bounds[place])
        every[place] = worst_of(error, bound, f"{place} at {{}}".format, error)
    return max(every.items(), key=lambda one: one[1].share)


class Narrowed(TorchDispatchMode):
    """Sees the coarsest dtype that an operation makes of wider values: a model's own casts."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.coarsest: torch.dtype | None = None

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if _is_float(x) and x.numel() > 1]
        for made in filter(_is_float, tree_leaves(result)):
            if any(_eps(made.dtype) > _eps(x.dtype) for x in given):
                known = 0.0 if self.coarsest is None else _eps(self.coarsest)
                if _eps(made.dtype) > known:
                    self.coarsest = made.dtype
        return result


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@dataclass(frozen=True, eq=False)
class Runnable:
    """A model that runs, the coarsest dtype in which it then computes, and what it was given and
    gave first.
    """

    running: Running
    coarsest: torch.dtype
    arguments: tuple[Any, ...]
    output: Any


def runnable(
    sandbox: Sandbox,
    arguments_in: Callable[[torch.dtype | None], tuple[Any, ...]],
    given_as: str = "--input (in Python example_inputs)",
) -> Runnable:
    """The model in float64, or in float32 or its own dtypes where its code insists on them.

    `given_as` is what the user calls the arguments. Raises ModelInputError where it does not run.
    """
    raised: list[Exception] = []
    for dtype in (torch.float64, torch.float32, None):
        is_wide = dtype == torch.float64
        module = sandbox.in_float64() if is_wide else sandbox.given_away()
        running, arguments = Running(module, dtype), arguments_in(dtype)
        try:
            with Narrowed() as seen:
                output = running.output(arguments)
        except Exception as error:  # noqa: BLE001  the user's code may raise anything
            raised.append(error)
            continue
        coarsest = max(seen.coarsest or running.coarsest, running.coarsest, key=_eps)
        return Runnable(running, coarsest, arguments, output)
    raise ModelInputError(
        f"{type(sandbox.model).__name__}: does not run on these inputs "
        f"({describe_error(raised[0])}). Give {given_as} with the shapes that it takes."
    ) from raised[0]
