"""Modules of a model, run beside the layers that they are said to be."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from convsqueeze.algebra.sizes import merged, reach, smallest_size
from convsqueeze.algebra.tree import Tree
from convsqueeze.checkpoint import Checkpoint
from convsqueeze.copying import Sandbox
from convsqueeze.plan import ResolvedLayer, geometry_tree
from convsqueeze.tracing.raised import contained, describe_error
from convsqueeze.verify.reference import Run, reference

LARGE = 2.0**20
"""Where inputs are this large no bias keeps what comes out above zero, or below."""


class NotRunError(Exception):
    """A module whose own code raises, in a phrase."""


class Trials:
    """Runs modules of a model, whose tensors are `own`: on small images, or of the shape that they
    are given when the model runs on `arguments`, if it is known on which ones it does. `modules`
    are those of the model, by their names without its prefix.
    """

    def __init__(
        self, sandbox: Sandbox, model_state: Checkpoint, arguments: Sequence[Any] | None = None
    ) -> None:
        self._sandbox, self.model_state, self._arguments = sandbox, model_state, arguments
        self.modules = {
            f"{name}."[len(model_state.prefix) :].removesuffix("."): module
            for name, module in sandbox.model.named_modules(remove_duplicate=False)
            if f"{name}.".startswith(model_state.prefix)
        }

    def computes(self, name: str, tree: Tree[ResolvedLayer]) -> bool:
        """Whether the module of this name, without the prefix of the model, computes what the
        layers do. Raises NotRunError.
        """
        name = self.model_state.prefix + name
        module = self._sandbox.in_float64().get_submodule(name)
        return computes(module, self.model_state, tree, lambda: self._given_shapes.get(name))

    @cached_property
    def _given_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of the first tensor that each module is given; the model runs without values."""
        found: dict[str, tuple[int, ...]] = {}

        def hearing(name: str) -> Callable[[nn.Module, Any], None]:
            def hear(module: nn.Module, given: Any) -> None:
                shapes = (value.shape for value in tree_leaves(given) if isinstance(value, Tensor))
                if shape := next(shapes, None):
                    found.setdefault(name, tuple(map(int, shape)))

            return hear

        if self._arguments is None:
            return found
        model = Sandbox(self._sandbox.model).module().eval()
        for name, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                module.register_forward_pre_hook(hearing(name))
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        with suppress(Exception), fake, torch.no_grad(), contained():
            model(*self._arguments)  # what ran until it raised has been heard
        return found


def computes(
    module: nn.Module,
    model_state: Checkpoint,
    tree: Tree[ResolvedLayer],
    given_shape: Callable[[], Sequence[int] | None] = lambda: None,
) -> bool:
    """Whether a module in float64 and eval mode computes what the layers do, on random images:
    small and large values, each with its negative, as activations may pass what has one sign.

    The images are small ones of two sizes, for what rounds its output size another way; where the
    module takes none of them, they have the shape that the model gives it. Raises NotRunError where
    it takes neither.
    """
    geometry = geometry_tree(tree)
    channels, rank = merged(geometry).in_channels, len(merged(geometry).axes)
    small = [smallest_size(geometry, axis) + reach(geometry, axis) for axis in range(rank)]
    sizes = [(1, channels, *(size + more for size in small)) for more in (0, 1)]
    expected = reference(tree, model_state.load)
    try:
        return all(_agree(module, expected, size) for size in sizes)
    except NotRunError:
        shape = given_shape()
        if shape is None or len(shape) != rank + 2 or shape[1] != channels:
            raise
    return _agree(module, expected, shape)


def _agree(module: nn.Module, expected: Run, shape: Sequence[int]) -> bool:
    """On images of one shape. Raises NotRunError."""
    generator = torch.Generator().manual_seed(sum(shape))
    image = torch.randn(*shape, generator=generator, dtype=torch.float64)
    for factor in (1.0, -1.0, LARGE, -LARGE):
        with torch.no_grad():
            wanted = expected(factor * image)
            try:
                with contained():
                    found = module(factor * image)
            except Exception as error:
                size = "x".join(map(str, shape))
                raise NotRunError(f"{describe_error(error)}, on an input of {size}") from error
        if not isinstance(found, Tensor) or found.shape != wanted.shape:
            return False
        if not (found - wanted).abs().max() <= 1e-9 * wanted.abs().max():
            return False
    return True
