"""Hooks of the user's own on a module: what they see or change would be lost with it."""

from torch import nn
from torch.nn.utils.weight_norm import WeightNorm


def has_hooks(module: nn.Module) -> bool:
    """Whether a module calls a hook; weight norm's is a part of the layer."""
    hooks = [
        *(*module._forward_hooks.values(), *module._forward_pre_hooks.values()),
        *(*module._backward_hooks.values(), *module._backward_pre_hooks.values()),
    ]
    return bool(hooks) and any(not isinstance(hook, WeightNorm) for hook in hooks)
