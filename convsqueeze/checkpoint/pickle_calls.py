"""What torch's weights-only unpickler may call, and whether that is harmless at its size.

A call is described by the names and values that a pickle holds (see `pickle_scan`). What is not
known here is not called.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

LARGEST_EXPANSION = 64
"""How many times the size of its file a tensor may be."""
LATIN = ("latin1", "latin-1")

Item = Any
"""A value's description: itself for None, a number or a string, else one of the classes below."""


@dataclass(frozen=True)
class Global:
    """A class or function by its name."""

    name: str


@dataclass(frozen=True)
class Tuple:
    items: tuple[Item, ...]
    depth: int
    size: int


@dataclass(eq=False)
class Made:
    """Anything else: the name of what made it, the strings of a list, what stands under the string
    keys of a mapping, the state that was given to an object, and the elements of a tensor or a
    storage.
    """

    maker: str
    strings: list[str] = field(default_factory=list)
    entries: dict[str, Item] = field(default_factory=dict)
    state: Item = None
    numel: float = 0


class UnsafePickle(ValueError):
    """Says what a pickle does that no state dict needs."""


Given = Sequence[Item]


def _whole(items: Item) -> bool:
    return isinstance(items, Tuple) and all(type(n) is int and n >= 0 for n in items.items)


def view_numel(given: Given) -> float:
    """The elements of a view: storage, offset, sizes and strides. Raises UnsafePickle for one that
    does not lie within its storage, which torch would enlarge.
    """
    if len(given) < 4 or not _whole(given[2]) or not _whole(given[3]) or type(given[1]) is not int:
        raise UnsafePickle("makes a tensor of a shape that it does not hold")
    storage, offset, sizes, strides = given[0], given[1], given[2].items, given[3].items
    numel = prod(sizes)
    reaches = offset + 1 + sum((n - 1) * s for n, s in zip(sizes, strides, strict=False))
    held = storage.numel if isinstance(storage, Made) else 0
    if len(sizes) != len(strides) or offset < 0 or (numel and reaches > held):
        raise UnsafePickle("makes a tensor that is larger than its storage")
    return numel


def _view(given: Given, most: float) -> float:
    return view_numel(given)


def _quantized(given: Given, most: float) -> float:
    if view_numel(given) > most:
        raise UnsafePickle("makes a quantized tensor far larger than the file")
    return view_numel(given)


def _same(given: Given, most: float) -> float:
    """What takes no memory of its own."""
    return given[0].numel if given and isinstance(given[0], Made) else 0


def _copy(given: Given, most: float) -> float:
    for part in given:
        inner = part.items if isinstance(part, Tuple) else (part,)
        if any(one.numel > most for one in inner if isinstance(one, Made)):
            raise UnsafePickle("copies a tensor that expands far beyond the file")
    return _same(given, most)


def _nothing(given: Given, most: float) -> float:
    """A tensor or a storage, which would be of the size that is given."""
    if given:
        raise UnsafePickle("makes a tensor or a storage of a size that it does not hold")
    return 0


def _bytes(given: Given, most: float) -> float:
    if given and not (isinstance(given[0], str) and len(given) == 2 and given[1] in LATIN):
        raise UnsafePickle("makes a bytearray of a size that it does not hold")
    return 0


def _encoded(given: Given, most: float) -> float:
    if len(given) != 2 or not isinstance(given[0], str) or given[1] not in LATIN:
        raise UnsafePickle("encodes text by another code than torch does")
    return 0


def _collected(given: Given, most: float) -> float:
    """A set or a mapping of what the pickle holds."""
    if any(not isinstance(one, Tuple) and getattr(one, "maker", "") not in HELD for one in given):
        raise UnsafePickle("collects values that it does not hold")
    return 0


def _plain(given: Given, most: float) -> float:
    if not all(one is None or isinstance(one, str | bool | int | float) for one in given):
        raise UnsafePickle("makes a number or a device of what is none")
    return 0


def _typed(given: Given, most: float) -> float:
    """`func(*args)` as a subclass."""
    if len(given) != 4 or not isinstance(given[0], Global) or not isinstance(given[2], Tuple):
        raise UnsafePickle("makes a tensor that it does not describe")
    if given[0].name not in TENSORS:
        raise UnsafePickle("makes a tensor by what makes none")
    return TENSORS[given[0].name](given[2].items, most)


HELD = ("list", "dict", "set", "collections.OrderedDict", "collections.Counter")
Check = Callable[[Given, float], float]
TENSORS: dict[str, Check] = {
    "torch._utils._rebuild_tensor": _view,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_tensor_v3": _view,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_parameter": _same,
    "torch._utils._rebuild_parameter_with_state": _same,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _copy,
    "torch._utils._rebuild_sparse_tensor": _copy,
    "torch._utils._rebuild_nested_tensor": _copy,
    "torch._utils._rebuild_meta_tensor_no_storage": lambda given, most: 0,
}
CALLS: dict[str, Check] = {
    **TENSORS,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch.nn.parameter.Parameter": _same,
    "torch.Size": _collected,
    "torch.device": _plain,
    "torch.serialization._get_layout": _plain,
    "builtins.bytearray": _bytes,
    "builtins.complex": _plain,
    "builtins.set": _collected,
    "collections.OrderedDict": _collected,
    "collections.Counter": _collected,
    "_codecs.encode": _encoded,
}


def check_call(name: str, given: Given, size: int) -> float | None:
    """The elements of the tensor that a call makes, 0 for what is none; None for a call that is not
    known. `size` is that of the file. Raises UnsafePickle for one whose arguments do not bear out
    what it costs.
    """
    most = LARGEST_EXPANSION * max(size, 1 << 16) / 8
    if name in CALLS:
        return CALLS[name](given, most)
    if name.startswith("torch.") and name.endswith(("Tensor", "Storage")):
        return _nothing(given, most)
    return None
