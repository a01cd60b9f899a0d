"""What a model's own code keeps from one call to the next, as a counter."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from convsqueeze.tracing.raised import is_user_code

MANY = 64
"""Things at most that are looked at in one value."""
_OF_TORCH = frozenset(vars(nn.Module()))
_PLAIN = (int, float, complex, bool, str, bytes, type(None))


def kept_state(module: nn.Module) -> dict[str, str]:
    """Numbers, text and what holds them that a model's modules, their classes and the files of its
    own code keep, by name; and how often their buffers were written to.
    """
    places: dict[str, Mapping[str, Any]] = {}
    found = {}
    for name, one in module.named_modules():
        places[f"self.{name}".removesuffix(".")] = vars(one)
        for buffer, tensor in one.named_buffers(recurse=False):
            found[f"self.{name}.{buffer}".replace("..", ".")] = f"written {tensor._version} times"
        for kind in type(one).mro():
            file = getattr(sys.modules.get(kind.__module__), "__file__", None)
            if file and is_user_code(Path(file)):
                places[kind.__name__] = vars(kind)
                places[kind.__module__] = vars(sys.modules[kind.__module__])
    for place, held in places.items():
        for key, value in held.items():
            if key not in _OF_TORCH and not key.startswith("__") and _is_plain(value):
                found[f"{place}.{key}"] = repr(value)
    return found


def _is_plain(value: Any, depth: int = 2) -> bool:
    """Of these types themselves, as nothing of the user's own is to be called."""
    if type(value) in (list, tuple, set, frozenset) and depth and len(value) <= MANY:
        return all(_is_plain(one, depth - 1) for one in value)
    if type(value) is dict and depth and len(value) <= MANY:
        return all(_is_plain(one, depth - 1) for pair in value.items() for one in pair)
    return type(value) in _PLAIN
