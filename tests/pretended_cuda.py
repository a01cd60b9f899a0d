"""A CUDA device where there is none: tensors that say `cuda:0` and compute on the CPU.

Such a tensor wraps one of the CPU. What torch refuses of a real one is refused: an operator that
meets a tensor of the CPU beside it (a number without dimensions, and indices, may be), and values
read by an address or as an array. Views share memory as theirs do, in place is in place, and moving
always copies. Beyond torch's rules a product of matrices or a convolution in anything but float64
is refused too: TF32 could lose digits there.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from convsqueeze.module import border

CUDA = torch.device("cuda", 0)
ANY_DEVICE = ("_to_copy", "copy_", "copy")
"""Operators that go from one device to another."""
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
"""Those whose second argument, the indices, may be on the CPU where the first is not."""
TAKES_INDEX_TENSOR = (
    *("index_select", "index_add", "index_add_", "index_copy", "index_copy_"),
    *("index_fill", "index_fill_", "gather", "scatter", "scatter_", "cat", "stack"),
)
"""Those for which no tensor of the CPU will do, however few dimensions it has."""
MULTIPLIES = (
    *("mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_", "mv", "addmv", "dot", "vdot"),
    *("linear", "convolution", "_convolution", "matmul", "addbmm"),
)

READS_MEMORY = ("numpy", "__array__", "data_ptr", "untyped_storage", "storage", "__dlpack__")
LOOKS_FOR_A_GPU = {
    "copy_": torch.ops.aten.copy_.default,
    "nonzero": torch.ops.aten.nonzero.default,
    "__invert__": torch.ops.aten.bitwise_not.default,
}
"""Methods that choose a GPU before any operator is met, and the operators that they are."""


class MixedDevices(RuntimeError):
    """Worded as torch words it."""


class OnCuda(Tensor):
    """A tensor of the pretended device around one of the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnCuda":
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=CUDA,
        )
        made.inner = inner
        return made

    def __init__(self, inner: Tensor) -> None:
        pass

    def __repr__(self, **_: Any) -> str:
        return f"OnCuda({self.inner!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _called(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatched(func, args, kwargs or {})


def _is_cuda(device: Any) -> bool:
    return device is not None and str(device).startswith("cuda")


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnCuda) else value


def moved(tensor: Tensor) -> OnCuda:
    """A copy on the pretended device."""
    return OnCuda(tensor.detach().clone())


def _called(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A call from Python: where torch would look for a GPU before any operator is met."""
    name = getattr(func, "__name__", "")
    if func is Tensor.to:
        return _to(args[0], args[1:], kwargs)
    if func is Tensor.cuda:
        return _to(args[0], (CUDA,), {})
    if name in READS_MEMORY and isinstance(args[0], OnCuda):
        raise TypeError(f"can't {name} a cuda:0 tensor. Use Tensor.cpu() first.")
    if name in ("item", "tolist", "__float__", "__int__", "__bool__", "__index__"):
        return func(_inner(args[0]))
    if name in LOOKS_FOR_A_GPU:
        func = LOOKS_FOR_A_GPU[name]
    if name in ("__getitem__", "__setitem__"):
        return _indexed(func, *args)
    makes_one = name.startswith("new_") or name.endswith("_like")
    first = args[0] if args else None
    device = kwargs.get("device", first.device if makes_one and first is not None else None)
    with torch._C.DisableTorchFunctionSubclass():
        if not _is_cuda(device):
            return func(*args, **kwargs)
        kept = {key: value for key, value in kwargs.items() if key != "device"}
        return OnCuda(func(*tree_map(_inner, args), **tree_map(_inner, kept)))


def _site() -> str | None:
    """The innermost line of the program that is being run."""
    frame = sys._getframe()
    while frame is not None:
        place = Path(frame.f_code.co_filename)
        if place.is_relative_to(PROGRAM):
            return f"{place.relative_to(PROGRAM)}:{frame.f_lineno} {frame.f_code.co_qualname}"
        frame = frame.f_back
    return None


def _indexed(func: Any, tensor: Tensor, index: Any, *value: Any) -> Any:
    """`tensor[index]`, or with a value to be put there: with slices alone that is a copy, which
    goes to any device.
    """
    by_tensor = [x for x in tree_leaves(index) if isinstance(x, Tensor) and x.ndim]
    strays = [x for x in by_tensor if isinstance(x, OnCuda)]
    if by_tensor:
        strays += [x for x in value if isinstance(x, OnCuda)]
    if not isinstance(tensor, OnCuda):
        if strays:
            raise MixedDevices(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        return func(tensor, index, *map(_inner, value))
    far = [x for x in value if isinstance(x, Tensor) and not isinstance(x, OnCuda) and x.ndim]
    if by_tensor and far:
        raise MixedDevices("index_put_: Expected all tensors to be on the same device")
    out = func(tensor.inner, tree_map(_inner, index), *map(_inner, value))
    return out if value else OnCuda(out)


def _to(tensor: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    devices = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.device | str)]
    with torch._C.DisableTorchFunctionSubclass():
        if not any(map(_is_cuda, devices)):
            return tensor.to(*args, **kwargs)
        rest = [x for x in args if not isinstance(x, torch.device | str)]
        named = {key: value for key, value in kwargs.items() if key != "device"}
        placed = tensor
        if not isinstance(tensor, OnCuda):
            site = _site()
            if site is not None:
                SITES.add(site)
                if site in FORGOTTEN:
                    return tensor.to(*rest, **named) if rest or named else tensor
            placed = moved(tensor)
        return placed.to(*rest, **named) if rest or named else placed


def _dispatched(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """An operator, run on the CPU's values if a GPU would run it."""
    name = func.overloadpacket.__name__
    tensors = [x for x in tree_leaves((args, dict(kwargs))) if isinstance(x, Tensor)]
    here = any(isinstance(x, OnCuda) for x in tensors)
    wanted = kwargs.get("device")
    if not here and not _is_cuda(wanted):
        SEEN["cpu", name] += 1
        return func(*args, **kwargs)
    SEEN["cuda", name] += 1
    if name not in ANY_DEVICE:
        _check(name, args, kwargs)
    stays = here if wanted is None else _is_cuda(wanted)
    given = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
    inner_args, inner_kwargs = tree_map(_inner, (tuple(args), given))
    if BACKWARDS and name in MULTIPLIES:
        inner_args = _backwards(name, inner_args)
    out = func(*inner_args, **inner_kwargs)
    if name == "copy_":
        return args[0]
    if name == "_to_copy" and stays:
        return OnCuda(out)
    owners = {id(x.inner): x for x in tensors if isinstance(x, OnCuda)}
    for owner in owners.values():  # an operator in place may not change what the wrapper says
        assert owner.shape == owner.inner.shape, name

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        owner = owners.get(id(value))
        return OnCuda(value) if owner is None else owner

    return tree_map(wrapped, out) if stays else out


def _backwards(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Operands that give the same sums, added up from the last channel to the first."""
    if name in ("convolution", "_convolution"):
        x, weight, *rest = args
        transposed, groups = rest[4], rest[6]
        if groups > 1:
            return args
        return x.flip(1), weight.flip(0 if transposed else 1), *rest
    *added, left, right = args
    return *added, left.flip(-1), right.flip(-2)


def _check(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises as torch does for tensors that are not where the operator runs."""
    looked_at: Any = (tuple(args), dict(kwargs))
    if name in INDEXING and isinstance(args[0], OnCuda):
        looked_at = (args[0], args[2:], dict(kwargs))
    tensors = [x for x in tree_leaves(looked_at) if isinstance(x, Tensor)]
    strays = [x for x in tensors if not isinstance(x, OnCuda)]
    strict = name in TAKES_INDEX_TENSOR or (name in INDEXING and not isinstance(args[0], OnCuda))
    in_place = name.endswith("_") and args and args[0] is not None
    target_stays = in_place and isinstance(args[0], Tensor) and not isinstance(args[0], OnCuda)
    if strays and (strict or target_stays or any(x.ndim for x in strays)):
        raise MixedDevices(
            f"{name}: Expected all tensors to be on the same device, but found at least two "
            "devices, cuda:0 and cpu!"
        )
    if name in MULTIPLIES and any(x.dtype != torch.float64 for x in tensors):
        raise MixedDevices(f"{name}: in {tensors[0].dtype}, which TF32 may shorten")


PROGRAM = Path(border.__file__).parent.parent
SITES: set[str] = set()
"""Lines of the program that moved something to the pretended device."""
BACKWARDS: set[str] = set()
"""Not empty where sums are added up in another order than the CPU's."""
FORGOTTEN: set[str] = set()
"""Those that leave it where it is."""
SEEN: Counter[tuple[str, str]] = Counter()
"""Operators by device since `pretended_cuda` began."""


class _Calls(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _called(func, args, kwargs or {})


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatched(func, args, kwargs or {})


@contextmanager
def pretended_cuda(
    count: int = 1, *, backwards: bool = False
) -> Iterator[Counter[tuple[str, str]]]:
    """What runs inside finds so many GPUs; gives the operators that were run, by device.

    `backwards`: they add up from the last channel to the first.
    """
    SEEN.clear()
    BACKWARDS.clear()
    BACKWARDS.update({"yes"} if backwards else ())
    found: dict[str, Callable[[], Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: count,
        "current_device": lambda: 0,
    }
    with ExitStack() as stack:
        for name, answer in found.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        # a wrapper counts as traced, so that nothing would be kept of how kernels are made
        stack.enter_context(mock.patch.object(border, "_is_traced", return_value=False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_Calls())
        stack.enter_context(_Operators())
        yield SEEN
