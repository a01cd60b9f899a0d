"""What a pickle gave: plain values and tensors, nested, maybe containing itself.

Attributes of mappings and tensors come out of the pickle as well, so nothing here calls a method
that an attribute could stand in for.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping

import torch

from convsqueeze.names import shown


def walk(saved: object) -> Iterator[tuple[str, object]]:
    """Every tensor and every mapping, each once, with the dotted way to it."""
    waiting: list[tuple[str, object]] = [("", saved)]
    seen: set[int] = set()
    while waiting:
        place, value = waiting.pop()
        if id(value) in seen or not isinstance(value, torch.Tensor | Mapping | list | tuple | set):
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor | Mapping):
            yield place, value
        if isinstance(value, dict):
            waiting += [(_below(place, key), inner) for key, inner in dict.items(value)]
        elif isinstance(value, list | tuple | set):
            waiting += [(_below(place, index), inner) for index, inner in enumerate(value)]


def _below(place: str, key: object) -> str:
    named = key if isinstance(key, str | int) else type(key).__name__
    return f"{place}.{named}" if place else str(named)


def tensors_in(saved: object) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor, each once, with the dotted way to it."""
    for place, value in walk(saved):
        if isinstance(value, torch.Tensor):
            yield place, value


def hidden_method(saved: object) -> str | None:
    """What stands in for a method of a mapping or a tensor, in words; None where nothing does."""
    for place, value in walk(saved):
        kind = torch.Tensor if isinstance(value, torch.Tensor) else OrderedDict
        for name in getattr(value, "__dict__", ()):
            if hasattr(kind, str(name)) and not str(name).startswith("__"):
                return f"{shown(place or 'the saved object')} has an attribute {shown(str(name))}"
    return None
