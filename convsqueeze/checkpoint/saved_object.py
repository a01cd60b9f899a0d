"""What torch.save was given: a state dict, and the plain values around it.

Values are nested and may contain themselves. Attributes of mappings and tensors come out of the
pickle as well, so nothing here calls a method that an attribute could stand in for.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from convsqueeze.names import shown

KeyPath = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class SavedObject:
    """A state dict that lies at `key_path` in the `whole` object."""

    whole: Any = field(repr=False)
    key_path: KeyPath = ()

    @cached_property
    def state_dict(self) -> Mapping[Any, Any]:
        return at(self.whole, self.key_path)

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Those of the state dict, by name."""
        return {
            name: value
            for name, value in self.state_dict.items()
            if isinstance(name, str) and isinstance(value, torch.Tensor)
        }

    def replaced(self, state_dict: object) -> Any:
        """The whole object with another state dict; what leads to it is copied."""
        return _replaced(self.whole, self.key_path, state_dict)

    def other_tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor but those of the state dict."""
        entries = {k: v for k, v in self.state_dict.items() if not isinstance(v, torch.Tensor)}
        return (tensor for _, tensor in tensors_in(self.replaced(entries)))

    def other_names(self) -> list[str]:
        """Dotted names of all that is no tensor of the state dict."""
        names: list[str] = []
        level = self.whole
        for depth, key in enumerate(self.key_path):
            names += [dotted((*self.key_path[:depth], other)) for other in level if other != key]
            level = level[key]
        return names + [dotted((name,)) for name in self.state_dict if name not in self.tensors]


def at(value: Any, place: KeyPath) -> Any:
    """What lies at a path of keys."""
    for key in place:
        value = value[key]
    return value


def dotted(place: Iterable[object]) -> str:
    return ".".join(key if isinstance(key, str) else repr(key) for key in place)


def _replaced(saved: Any, place: KeyPath, new: object) -> Any:
    if not place:
        return new
    result = copy.copy(saved)
    result[place[0]] = _replaced(saved[place[0]], place[1:], new)
    return result


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
