"""Copies of modules, and a copy to run a model's own code on."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.jit import ScriptModule

from convsqueeze.errors import ModelCodeError


def copied(module: nn.Module, known: Mapping[int, Any] | None = None) -> nn.Module:
    """A deep copy, also of a module that keeps computed tensors, as the older weight norm does and
    hooks that collect features. `known` are the copies of some objects, by identity.

    Raises ModelCodeError for a module that holds what cannot be copied, as a lock or an open file.
    """
    copies = dict(known or {})
    for value in _objects_in(module):
        if isinstance(value, Tensor) and not value.is_leaf:
            copies.setdefault(id(value), value.detach().clone())
    try:
        with torch.no_grad():  # else the copied tensors of a ScriptModule are computed ones
            return copy.deepcopy(module, copies)
    except Exception as error:  # the model's own code may raise anything
        raise ModelCodeError(
            f"{type(module).__name__}: cannot be copied ({type(error).__name__}: {error}), and the "
            "given model is left as it is. Keep what cannot be copied out of the model, or give "
            "its class a __deepcopy__."
        ) from error


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Every part of a module in eval mode meanwhile, then in its own again."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


class Sandbox:
    """A copy of a model to run the model's code on, for as long as nothing is left in it.

    Code may keep what it computes (a mask, a counter, a list of features): the next run would see
    that. So the copy is made anew where it holds something else than when it was made. A hook may
    know the model itself, and leave what it was given without values there: `restore` undoes that.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._made: dict[str, tuple[nn.Module, list[Any]]] = {}
        self._held = _contents(model)

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def restore(self) -> None:
        """What the model's lists, dicts, sets and attributes held, of those that have come to hold
        tensors without values.
        """
        for holder, before in self._held:
            if any(isinstance(one, FakeTensor) for one in _inside(holder)):
                held = holder if isinstance(holder, dict | list | set) else vars(holder)
                held.clear()
                held.extend(before) if isinstance(held, list) else held.update(before)

    def module(self) -> nn.Module:
        """A copy as the model is. Its tensors share the memory of the model's, so only code that
        computes without values may run on it. Raises ModelCodeError as `copied` does.
        """
        tensors = _shareable(self.model)

        def shared() -> nn.Module:
            # torch computes with single numbers where it computes without values
            several = [tensor for tensor in tensors if tensor.numel() > 1]
            return copied(self.model, {id(tensor): _alias(tensor) for tensor in several})

        return self._kept("shared", tensors, shared)

    def in_float64(self) -> nn.Module:
        """A copy in float64 and eval mode on the CPU, with memory of its own, to be run: the same
        one again, while nothing is left in it. Raises ModelCodeError as `copied` does.
        """

        def wide() -> nn.Module:
            module = self.given_away().cpu().eval().requires_grad_(False)
            return module._apply(lambda tensor: as_wide(tensor, torch.float64))

        return self._kept("wide", [tensor._version for tensor in _shareable(self.model)], wide)

    def given_away(self) -> nn.Module:
        """A copy with memory of its own, for any use. Raises ModelCodeError as `copied` does."""
        self.restore()
        if "shared" not in self._made or any(
            isinstance(m, ScriptModule) for m in self.model.modules()
        ):
            return copied(self.model)
        module = self.module()
        del self._made["shared"]
        for tensor in _shareable(module):
            tensor.data = tensor.data.clone()
        return module

    def _kept(self, kind: str, of: list[Any], make: Callable[[], nn.Module]) -> nn.Module:
        """The copy of a kind; made anew where it, or what it is `of`, is not what it was."""
        self.restore()
        if kind in self._made:
            module, before = self._made[kind]
            if _is_same(before, [*of, *_objects_in(module)]):
                return module
        module = make()
        self._made[kind] = module, [*of, *_objects_in(module)]
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
    found: dict[int, Tensor] = {}
    for part in model.modules():
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if type(tensor) not in (Tensor, nn.Parameter) or tensor is None or vars(tensor):
                continue
            if tensor.is_leaf and not tensor.is_inference():
                found[id(tensor)] = tensor
    return [*found.values()]


def _alias(tensor: Tensor) -> Tensor:
    """Another tensor in the same memory."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.data, tensor.requires_grad)
    return tensor.data.requires_grad_(tensor.requires_grad)


PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
"""Values that are the same where they are equal."""
CODE = (type, ModuleType, FunctionType, MethodType, BuiltinFunctionType)
"""What a copy shares with the model."""


def _objects_in(root: nn.Module) -> list[Any]:
    """Every object that a module holds, and that these hold, in a fixed order: containers by their
    type and length, tensors also by how often they were written to.
    """
    found: list[Any] = []
    for value, _ in _walked(root):
        is_container = isinstance(value, dict | list | tuple | set | frozenset)
        found += [type(value), len(value)] if is_container else [value]
    return found


def _walked(root: nn.Module) -> Iterator[tuple[Any, bool]]:
    """Every object that a module holds, and that these hold, as often as they do, and whether it
    is one that holds something and is met for the first time.
    """
    seen: set[int] = set()
    left: list[Any] = [root]
    while left:
        value = left.pop()
        is_new = id(value) not in seen and not isinstance(value, (*PLAIN, *CODE))
        yield value, is_new
        if is_new:
            seen.add(id(value))
            left += _inside(value)
            if isinstance(value, Tensor) and not value.is_inference():
                left.append(value._version)


def _inside(value: Any) -> list[Any]:
    """What an object holds: items, or the values of attributes; of a tensor nothing."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return [*value]
    return [] if isinstance(value, Tensor) else [*getattr(value, "__dict__", {}).values()]


def _contents(root: nn.Module) -> list[tuple[Any, Any]]:
    """Every container that a module holds, with what is in it, and every other object with its
    attributes.
    """
    found: list[tuple[Any, Any]] = []
    for value in [value for value, is_new in _walked(root) if is_new]:
        if isinstance(value, dict | list | set):
            found.append((value, value.copy()))
        elif hasattr(value, "__dict__"):
            found.append((value, dict(vars(value))))
    return found


def _is_same(one: list[Any], other: list[Any]) -> bool:
    if len(one) != len(other):
        return False
    for a, b in zip(one, other, strict=True):
        is_equal = a is b or (type(a) is type(b) and isinstance(a, PLAIN) and a == b)
        if not is_equal:
            return False
    return True
