"""The copy of a model that is traced: its tensors are the model's own, its hooks leave a mark.

A hook sees the value that a module takes or gives, which no operation of the graph tells. So every
module with a hook of the user's own passes both through `convsqueeze::seen`, an operation that
gives what it takes. Whatever the model's code keeps of a traced call, it keeps in the copy.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.utils._pytree import tree_map

from convsqueeze.hooks import has_hooks

_LIBRARY = torch.library.Library("convsqueeze", "FRAGMENT")
_LIBRARY.define("seen(Tensor value, str module) -> Tensor")


@torch.library.impl(_LIBRARY, "seen", "CompositeExplicitAutograd")
def _seen(value: Tensor, module: str) -> Tensor:
    return value.clone()


def watched(model: nn.Module) -> nn.Module:
    """A copy of `model` that shares its tensors, to be traced and thrown away."""
    shared: dict[int, Any] = {
        id(value): value
        for part in model.modules()
        for value in (*part._parameters.values(), *part._buffers.values(), *vars(part).values())
        if isinstance(value, Tensor)
    }
    made = copy.deepcopy(model, shared)
    for name in [name for name in hooked(made) if name]:
        _mark(made.get_submodule(name), name)
    return made


def hooked(model: nn.Module) -> Iterator[str]:
    """Modules with hooks of the user's own."""
    return (name for name, module in model.named_modules() if has_hooks(module))


def _mark(module: nn.Module, name: str) -> None:
    """Marks what a module takes and gives."""

    def marked(value: Any) -> Any:
        if not isinstance(value, Tensor | Proxy):
            return value
        return torch.ops.convsqueeze.seen(value, name)

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return tree_map(marked, args), tree_map(marked, kwargs)

    def after(module: nn.Module, args: Any, result: Any) -> Any:
        return tree_map(marked, result)

    module.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
    module.register_forward_hook(after, prepend=True)
