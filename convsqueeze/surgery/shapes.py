"""The shapes of what a model's modules are given: for code that takes no others."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from convsqueeze.copying import Sandbox
from convsqueeze.tracing.raised import exits_caught


class InputShapes:
    """The shape of the first tensor that each module is given when a model runs on `arguments`.

    The model is run, without values and in eval mode, when a shape is first asked for.
    """

    def __init__(self, model: nn.Module, arguments: Sequence[Any] | None) -> None:
        self._model, self._arguments = model, arguments

    def of(self, name: str) -> tuple[int, ...] | None:
        """None for a module that does not run, and where there are no arguments."""
        return self._found.get(name)

    @cached_property
    def _found(self) -> Mapping[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        if self._arguments is None:
            return found
        model = Sandbox(self._model).module().eval()
        for name, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                module.register_forward_pre_hook(_hearing(name, found))
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), exits_caught():
                model(*self._arguments)
        except Exception:  # noqa: BLE001  the user's code; what ran until then has been heard
            pass
        return found


def _hearing(name: str, found: dict[str, tuple[int, ...]]) -> Callable[[nn.Module, Any], None]:
    def hear(module: nn.Module, given: Any) -> None:
        for value in tree_leaves(given):
            if isinstance(value, Tensor):
                found.setdefault(name, tuple(map(int, value.shape)))
                return

    return hear
