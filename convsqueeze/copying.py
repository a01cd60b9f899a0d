"""Copies of modules, tensors included."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from convsqueeze.errors import ModelCodeError


def copied(module: nn.Module) -> nn.Module:
    """A deep copy, also of a module that keeps a computed tensor, as the older weight norm does.

    Raises ModelCodeError for a module that holds what cannot be copied, as a lock or an open file.
    """
    computed: dict[int, Any] = {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        with torch.no_grad():  # else the copied tensors of a ScriptModule are computed ones
            return copy.deepcopy(module, computed)
    except Exception as error:  # the model's own code may raise anything
        raise ModelCodeError(
            f"{type(module).__name__}: cannot be copied ({type(error).__name__}: {error}), and the "
            "given model is left as it is. Keep what cannot be copied out of the model, or give "
            "its class a __deepcopy__."
        ) from error
