"""Copies of modules, and a copy to run a model's own code on."""

import copy
from collections.abc import Iterable, Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule

from convsqueeze.errors import ModelCodeError


def copied(module: nn.Module) -> nn.Module:
    """A deep copy, also of a module that keeps a computed tensor, as the older weight norm does.

    Raises ModelCodeError for a module that holds what cannot be copied, as a lock or an open file.
    """
    return _copied(module, {})


def _copied(module: nn.Module, known: dict[int, Any]) -> nn.Module:
    """`known` are the copies of some objects, by identity."""
    computed = {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        with torch.no_grad():  # else the copied tensors of a ScriptModule are computed ones
            return copy.deepcopy(module, computed | known)
    except Exception as error:  # the model's own code may raise anything
        raise ModelCodeError(
            f"{type(module).__name__}: cannot be copied ({type(error).__name__}: {error}), and the "
            "given model is left as it is. Keep what cannot be copied out of the model, or give "
            "its class a __deepcopy__."
        ) from error


class Sandbox:
    """A copy of a model to run the model's code on, for as long as nothing is left in it.

    Code may keep what it computes (a mask, a counter, a list of features): the next run would see
    that. So the copy is made anew where it holds something else than when it was made.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._copy: nn.Module | None = None
        self._wide: nn.Module | None = None
        self._held: list[Any] = []
        self._wide_held: list[Any] = []

    def module(self) -> nn.Module:
        """A copy as the model is. Its tensors share the memory of the model's, so only code that
        computes without values may run on it. Raises ModelCodeError as `copied` does.
        """
        tensors = _shareable(self.model)
        if self._copy is None or not _is_same(self._held, [*tensors, *_held(self._copy)]):
            self._copy = _copied(self.model, {id(tensor): _alias(tensor) for tensor in tensors})
            self._held = [*tensors, *_held(self._copy)]
        return self._copy

    def in_float64(self) -> nn.Module:
        """A copy in float64 and eval mode on the CPU, with memory of its own, to be run: the same
        one again, while nothing is left in it. Raises ModelCodeError as `copied` does.
        """
        versions = [tensor._version for tensor in _shareable(self.model)]
        if self._wide is None or not _is_same(self._wide_held, [*versions, *_held(self._wide)]):
            module = self.given_away().cpu().eval().requires_grad_(False)
            self._wide = module._apply(lambda tensor: as_wide(tensor, torch.float64))
            self._wide_held = [*versions, *_held(self._wide)]
        return self._wide

    def given_away(self) -> nn.Module:
        """A copy with memory of its own, for any use. Raises ModelCodeError as `copied` does."""
        if self._copy is None or any(isinstance(m, ScriptModule) for m in self.model.modules()):
            return copied(self.model)
        module, self._copy = self.module(), None
        for tensor in _shareable(module):
            tensor.data = tensor.data.clone()
        return module


def as_wide(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A float in `dtype` (None: its own), a complex number with both of its parts in it."""
    if dtype is None:
        return tensor
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _shareable(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once, that are nothing but their numbers."""
    held = (
        t for part in model.modules() for t in (*part._parameters.values(), *part._buffers.values())
    )
    plain = (
        t
        for t in held
        if t is not None and type(t) in (Tensor, nn.Parameter) and t.is_leaf and not vars(t)
    )
    return [*{id(tensor): tensor for tensor in plain if not tensor.is_inference()}.values()]


def _alias(tensor: Tensor) -> Tensor:
    """Another tensor in the same memory."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.data, tensor.requires_grad)
    return tensor.data.requires_grad_(tensor.requires_grad)


PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
"""Values that are the same where they are equal."""
CODE = (type, ModuleType, FunctionType, MethodType, BuiltinFunctionType)
"""What a copy shares with the model."""


def _held(root: nn.Module) -> Iterator[Any]:
    """Every object that a module holds, and that these hold, in a fixed order: containers by their
    type and length, tensors also by how often they were written to.
    """
    seen: set[int] = set()
    left: list[Any] = [root]
    while left:
        value = left.pop()
        inside: Iterable[Any] = ()
        if isinstance(value, dict):
            inside = (*value.keys(), *value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            inside = value
        elif isinstance(value, Tensor):
            inside = () if value.is_inference() else (value._version,)
        elif not isinstance(value, (*PLAIN, *CODE)):
            inside = getattr(value, "__dict__", {}).values()
        is_container = isinstance(value, dict | list | tuple | set | frozenset)
        yield f"{type(value)} {len(value)}" if is_container else value
        if id(value) not in seen:
            left += inside
        seen.add(id(value))


def _is_same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        a is b or (isinstance(a, PLAIN) and type(a) is type(b) and a == b)
        for a, b in zip(one, other, strict=True)
    )
