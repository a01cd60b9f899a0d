"""Copies of modules, tensors included."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


def copied(module: nn.Module) -> nn.Module:
    """A deep copy, also of a module that keeps a computed tensor, as the older weight norm does."""
    computed: dict[int, Any] = {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    with torch.no_grad():  # else the copied tensors of a ScriptModule are computed ones
        return copy.deepcopy(module, computed)
