"""A model as a function in float64 and eval mode, with other weights if asked.

Rounding is measured, not estimated: a copy of the model whose weights are moved by a few units of
rounding shows what this network makes of such errors, however deep it is.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from convsqueeze.algebra.precision import half_ulp
from convsqueeze.copying import Sandbox, as_wide
from convsqueeze.errors import ModelCodeError, ModelInputError
from convsqueeze.models.distances import NamedTensors, largest_value, named_tensors, tensors_in
from convsqueeze.tracing.branches import SeenAs
from convsqueeze.tracing.hooks import has_hooks
from convsqueeze.tracing.raised import contained, describe_error

Steps = Mapping[str, Tensor]
"""By parameter, how far each of its values is moved, up or down."""


class Running:
    """A model in `dtype` (None: its own dtypes) and eval mode on the CPU; `module` is converted.

    `coarsest` is the coarsest dtype in which it computes, as far as that is known. `given` are the
    arguments that it ran on first and `gave` what it gave, if it did. `seen_as` is what its code
    sees of its dtype, if that is another. `draws` tells whether it has drawn random numbers.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype | None) -> None:
        self.dtype = dtype
        module.cpu()
        if dtype is not None:
            module._apply(lambda tensor: as_wide(tensor, dtype))
        self.module = module.eval().requires_grad_(False)
        dtypes = [p.dtype for p in module.parameters() if p.is_floating_point()]
        self.coarsest = max(dtypes or [dtype or torch.float32], key=_eps)
        self.given: tuple[Any, ...] = ()
        self.gave: Any = None
        self.seen_as: torch.dtype | None = None
        self.draws = False

    def output(self, arguments: Sequence[Any], seed: int = 0, *, gradients: bool = False) -> Any:
        """What it gives; `seed` is for a model that draws random numbers itself."""
        seen: AbstractContextManager[Any] = nullcontext()
        if self.seen_as is not None:
            seen = SeenAs(self.seen_as, self.dtype or self.seen_as)
        with (
            torch.set_grad_enabled(gradients),
            contained(),
            self._seeded(seed),
            seen,
        ):
            output = self.module(*tree_map_only(Tensor, torch.clone, tuple(arguments)))
        if any(isinstance(tensor, FakeTensor) for tensor in tree_leaves(output)):
            raise ModelCodeError(
                f"{type(self.module).__name__}: its code keeps what it computes outside the model, "
                "as functools.cache does, and following it has left a tensor without values there. "
                "Keep it in a buffer of the model, or compute it each time."
            )
        return output

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """The generators of torch, Python and numpy begin with a seed meanwhile."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % (1 << 32))
            before = _generators()
            try:
                yield
            finally:
                self.draws = self.draws or _generators() != before

    def run(self, arguments: Sequence[Any], seed: int = 0) -> NamedTensors:
        """The tensors of what it gives."""
        return named_tensors(self.output(arguments, seed))

    def run_with_gradients(
        self, arguments: Sequence[Any], names: Sequence[str]
    ) -> tuple[NamedTensors, frozenset[str]]:
        """The tensors of what it gives, and those parameters of `names` whose gradient says that
        they move with them; the others may do so, where the model's code cannot be differentiated
        or its gradient vanishes. A model with hooks is not asked: some are called with gradients.
        """
        if not names or any(map(has_hooks, self.module.modules())):
            return self.run(arguments), frozenset()
        by_name = dict(self.module.named_parameters())
        chosen = [by_name[name].requires_grad_() for name in names]
        generator = torch.Generator().manual_seed(0)
        try:
            output = self.output(arguments, gradients=True)
            outputs = [t for _, t in tensors_in(output) if t.requires_grad]
            # numbers from 0 to 1, by which no sum of gradients is likely to cancel
            weights = [
                torch.rand(t.shape, generator=generator, dtype=torch.float64).to(t.dtype)
                for t in outputs
            ]
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

    def parameters(self) -> NamedTensors:
        return {name: p.data for name, p in self.module.named_parameters()}

    @contextmanager
    def with_values(
        self, values: Mapping[str, Tensor], dtype: torch.dtype | None = None
    ) -> Iterator[None]:
        """Parameters and buffers with other values meanwhile, in their own dtype or another."""
        named = dict((*self.module.named_parameters(), *self.module.named_buffers()))
        kept = {name: named[name].data for name in values}
        try:
            for name, value in values.items():
                named[name].data = as_wide(value, dtype or kept[name].dtype)
            yield
        finally:
            for name, value in kept.items():
                named[name].data = value

    def moved(self, steps: Steps, seed: int) -> AbstractContextManager[None]:
        """Parameters after a step each meanwhile, its sign drawn from the seed."""
        generator = torch.Generator().manual_seed(seed)
        by_name = self.parameters() if steps else {}
        return self.with_values(
            {
                name: by_name[name]
                + step * (torch.randint(0, 2, step.shape, generator=generator) * 2 - 1)
                for name, step in steps.items()
            }
        )

    def noise_steps(self, unit: float) -> Steps:
        """`unit` of each tensor's largest value."""
        return {
            name: torch.full_like(p, unit * largest_value(p))
            for name, p in self.parameters().items()
            if p.is_floating_point() and p.numel()
        }


def _generators() -> tuple[Any, ...]:
    """The state of every generator of random numbers that code is likely to draw from."""
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


def rounding_steps(stored: Mapping[str, Tensor]) -> Steps:
    """Half a unit in the last place of each value as it is stored."""
    return {name: half_ulp(tensor.detach().cpu()) for name, tensor in stored.items()}


class Narrowed(TorchDispatchMode):
    """Sees the coarsest dtype that an operation makes of wider values: a model's own casts."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.coarsest = torch.float64

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in filter(_is_float, tree_leaves(result)):
            eps = _eps(made.dtype)
            if eps > _eps(self.coarsest) and any(
                _is_float(x) and x.numel() > 1 and eps > _eps(x.dtype)
                for x in tree_leaves((args, kwargs))
            ):
                self.coarsest = made.dtype
        return result


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def runnable(
    sandbox: Sandbox,
    arguments_in: Callable[[torch.dtype | None], tuple[Any, ...]],
    given_as: str = "--input (in Python example_inputs)",
) -> Running:
    """The model in float64, or in float32 or its own dtypes where its code insists on them, after
    it ran on the arguments.

    `given_as` is what the user calls them. Raises ModelInputError where it does not run.
    """
    raised: list[Exception] = []
    for dtype in (torch.float64, torch.float32, None):
        is_wide = dtype == torch.float64
        running = Running(sandbox.in_float64() if is_wide else sandbox.given_away(), dtype)
        running.given = arguments_in(dtype)
        try:
            with Narrowed() as seen:
                running.gave = running.output(running.given)
        except ModelCodeError:  # worded already
            raise
        except Exception as error:  # noqa: BLE001  the user's code may raise anything
            raised.append(error)
            continue
        running.coarsest = max(seen.coarsest, running.coarsest, key=_eps)
        return running
    raise ModelInputError(
        f"{type(sandbox.model).__name__}: does not run on these inputs "
        f"({describe_error(raised[0])}). Give {given_as} with the shapes that it takes."
    ) from raised[0]
