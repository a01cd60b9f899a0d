"""Hooks leave a mark while a model is traced.

A hook sees the value that a module takes or gives, which no operation of the graph tells. So every
module with a hook of the user's own passes both through `convsqueeze::seen`, an operation that
gives what it takes.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_map

_LIBRARY = torch.library.Library("convsqueeze", "FRAGMENT")
_LIBRARY.define("seen(Tensor value, str module) -> Tensor")


@torch.library.impl(_LIBRARY, "seen", "CompositeExplicitAutograd")
def _seen(value: Tensor, module: str) -> Tensor:
    return value.clone()


def has_hooks(module: nn.Module) -> bool:
    """Whether a module calls a hook of the user's own: weight norm's is a part of the layer."""
    hooks = [
        *(*module._forward_hooks.values(), *module._forward_pre_hooks.values()),
        *(*module._backward_hooks.values(), *module._backward_pre_hooks.values()),
    ]
    return bool(hooks) and any(not isinstance(hook, WeightNorm) for hook in hooks)


def hooked(model: nn.Module) -> Iterator[str]:
    """Modules with hooks of the user's own."""
    return (name for name, module in model.named_modules() if has_hooks(module))


@contextmanager
def marked(model: nn.Module) -> Iterator[nn.Module]:
    """What modules with hooks take and give is marked meanwhile."""
    with ExitStack() as marks:
        for name in [name for name in hooked(model) if name]:
            _mark(model.get_submodule(name), name, marks)
        yield model


def _mark(module: nn.Module, name: str, marks: ExitStack) -> None:
    def passed(value: Any) -> Any:
        if not isinstance(value, Tensor | Proxy):
            return value
        return torch.ops.convsqueeze.seen(value, name)

    handle = module.register_forward_pre_hook(
        lambda module, args, kwargs: (tree_map(passed, args), tree_map(passed, kwargs)),
        prepend=True,
        with_kwargs=True,
    )
    marks.callback(handle.remove)
    after = module.register_forward_hook(
        lambda module, args, result: tree_map(passed, result), prepend=True
    )
    marks.callback(after.remove)
