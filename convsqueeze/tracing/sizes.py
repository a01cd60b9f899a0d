"""Sizes of inner values that a model's code asks for while torch.export follows it.

They are no operations of the graph: what the code makes of them are numbers, or sizes of the input.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from traceback import walk_stack
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from convsqueeze.graph import SizeRead
from convsqueeze.tracing.raised import is_user_code

ASKS = {
    Tensor.size,
    Tensor.shape.__get__,  # type: ignore[attr-defined]
    Tensor.stride,
    Tensor.numel,
    Tensor.nelement,
    Tensor.__len__,
    Tensor.expand_as,
    Tensor.view_as,
    Tensor.reshape_as,
    torch.empty_like,
    torch.full_like,
    torch.ones_like,
    torch.rand_like,
    torch.randint_like,
    torch.randn_like,
    torch.zeros_like,
}
"""What gives a size of a tensor, or a tensor of its size."""


class SizesAsked(TorchFunctionMode):
    """While it is entered, every call of `model` adds to `found`, and to the modules `called`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found: dict[SizeRead, None] = {}
        self.called: set[str] = set()
        self._model = model
        self._hooks = ExitStack()
        self._made: dict[int, tuple[Tensor, str]] = {}
        self._running: list[str] = []

    def __enter__(self) -> "SizesAsked":
        for name, module in self._model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                self.called.add(name)
            elif name:
                entering, leaving = self._entering(name), self._leaving()
                before = module.register_forward_pre_hook(entering, prepend=True)
                after = module.register_forward_hook(leaving, always_call=True)
                self._hooks.callback(before.remove)
                self._hooks.callback(after.remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        self._hooks.close()

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any) -> None:
            if not is_dynamo_compiling():  # it takes branches of control flow apart, and no notes
                self._running.append(name)
                self.called.add(name)

        return enter

    def _leaving(self) -> Callable[..., None]:
        def leave(module: nn.Module, args: Any, result: Any) -> None:
            if is_dynamo_compiling():
                return
            name = self._running.pop()
            for value in tree_leaves(result):
                if isinstance(value, Tensor):  # held, so that no other gets its identity
                    self._made.setdefault(id(value), (value, name))

        return leave

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not is_dynamo_compiling() and func in ASKS:
            for value in args:
                self._ask(value)
        return func(*args, **(kwargs or {}))

    def _ask(self, value: Any) -> None:
        if id(value) in self._made:
            by = self._running[-1] if self._running else ""
            self.found[SizeRead(self._made[id(value)][1], by, _place())] = None


def _place() -> str:
    """The innermost line of the model's own code: `net.py:12`."""
    for frame, number in walk_stack(sys._getframe(1)):
        path = Path(frame.f_code.co_filename)
        if is_user_code(path):
            return f"{path.name}:{number}"
    return "the model's code"
