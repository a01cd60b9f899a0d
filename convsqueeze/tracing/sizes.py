"""What a model's code reads while torch.export follows it: sizes of inner values, and parameters of
other modules.

Much of it is no operation of the graph: what the code makes of a size or a dtype is a number, or a
size of the input.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from traceback import walk_stack
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.fx import _symbolic_trace
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from convsqueeze.graph import SizeRead
from convsqueeze.tracing.raised import is_user_code

_FILLED = ("empty", "full", "ones", "rand", "randint", "randn", "zeros")
ASKS = {
    Tensor.shape.__get__,  # type: ignore[attr-defined]
    *(getattr(Tensor, name) for name in ("size", "stride", "numel", "nelement", "__len__")),
    *(getattr(Tensor, f"{name}_as") for name in ("expand", "view", "reshape")),
    *(getattr(torch, f"{name}_like") for name in _FILLED),
}
"""What gives a size of a tensor, or a tensor of its size."""


@dataclass(frozen=True)
class StoredRead:
    """Code of the module `by` reads a parameter or buffer `name` of the module `of`."""

    of: str
    name: str
    by: str
    place: str


class Asked(TorchFunctionMode):
    """While `model` runs within it, the sizes that are asked for are `found`, and the names of
    modules that are `called`; `stored` are the parameters and buffers that other modules' code
    reads.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found: dict[SizeRead, None] = {}
        self.called: set[str] = set()
        self.stored: dict[StoredRead, None] = {}
        self._model = model
        self._hooks = ExitStack()
        self._made: dict[int, tuple[Tensor, str]] = {}
        self._running: list[str] = []
        self._names = {id(vars(module)): name for name, module in model.named_modules()}

    def __enter__(self) -> "Asked":
        self._hooks.enter_context(self._attributes_watched())
        for name, module in self._model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                self.called.add(name)
                continue
            before = module.register_forward_pre_hook(partial(self._enter, name), prepend=True)
            after = module.register_forward_hook(partial(self._leave, name), always_call=True)
            self._hooks.callback(before.remove)
            self._hooks.callback(after.remove)
        return self

    def __exit__(self, *raised: Any) -> None:
        if self._running:  # the code has raised what is no Exception, so no hook has seen it leave
            super().__exit__(*raised)  # type: ignore[no-untyped-call]
        self._hooks.close()

    @contextmanager
    def _attributes_watched(self) -> Iterator[None]:
        """While torch.fx, which torch.export follows code by, has its own `Module.__getattr__`."""
        before = _symbolic_trace._orig_module_getattr

        def watched(module: nn.Module, name: str) -> Any:
            held = vars(module)  # another object stands for the module, and has its attributes
            if self._running and (name in held["_parameters"] or name in held["_buffers"]):
                of, by = self._names.get(id(held)), self._running[-1]
                if of is not None and of != by:
                    self.stored[StoredRead(of, name, by, user_line())] = None
            return before(module, name)

        _symbolic_trace._orig_module_getattr = watched
        try:
            yield
        finally:
            _symbolic_trace._orig_module_getattr = before

    def _enter(self, name: str, module: nn.Module, args: Any) -> None:
        if is_dynamo_compiling():  # it takes branches of control flow apart, and no notes
            return
        if not name:
            super().__enter__()  # type: ignore[no-untyped-call]
        self._running.append(name)
        self.called.add(name)

    def _leave(self, name: str, module: nn.Module, args: Any, result: Any) -> None:
        if is_dynamo_compiling():
            return
        self._running.pop()
        if not name:
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]
            return
        for value in tree_leaves(result):
            if isinstance(value, Tensor):  # held, so that no other gets its identity
                self._made.setdefault(id(value), (value, name))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ASKS and not is_dynamo_compiling():
            for value in args:
                if id(value) in self._made:
                    made = self._made[id(value)][1]
                    self.found[SizeRead(made, self._running[-1], user_line())] = None
        return func(*args, **(kwargs or {}))


def user_line() -> str:
    """The innermost line of the model's own code: `net.py:12`."""
    for frame, number in walk_stack(sys._getframe(1)):
        path = Path(frame.f_code.co_filename)
        if is_user_code(path):
            return f"{path.name}:{number}"
    return "the model's code"
