"""What torch.save was given: a state dict, and the plain values around it.

Training scripts save it bare, or under one of a few keys beside epoch counters and optimizer
state, and often twice: as it was trained and averaged over time. A path is a tuple of keys; its
dotted form is what a user reads and types.

Values are nested and may contain themselves. Attributes of mappings and tensors come out of the
pickle as well, so nothing here calls a method of a pickle's that an attribute could stand in for.
"""

import copy
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from convsqueeze.errors import CheckpointError
from convsqueeze.names import listed, nearest, shown

KeyPath = tuple[str, ...]
KNOWN = (
    "state_dict",
    "model_state_dict",
    "model",
    "params_ema",
    "params",
    "ema",
    "net",
    "generator",
)
AVERAGED = {"ema", "swa", "average", "averaged", "averaging", "avg", "polyak", "teacher"}
"""Words in a key that say of weights that they are an average of others, in lower case."""
WORD = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
DEPTH = 4
"""How deep a state dict is looked for; a saved object may contain itself."""


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


def find_state_dict(path: Path, saved: object, key: str | None) -> KeyPath:
    """Raises CheckpointError where there is no state dict, or several and no `key` to choose."""
    if key is not None:
        return _asked(path, saved, key)
    for candidates in _ranked(saved):
        if len(candidates) > 1:
            names = ", ".join(shown(dotted(place)) for place in candidates)
            averaged = next((place for place in candidates if _averaged(place)), None)
            example = shown(dotted(averaged or candidates[0]))
            raise CheckpointError(
                f"{path}: holds {len(candidates)} state dicts ({names}), one was needed. Choose "
                f"with --key, for example --key {example}{', the average' if averaged else ''}."
            )
        if candidates:
            return candidates[0]
    raise CheckpointError(
        f"{path}: holds {contents_of(saved)}, a state dict (tensors by name) was needed. "
        "Save model.state_dict() with torch.save."
    )


def _ranked(saved: object) -> Iterator[list[KeyPath]]:
    """Known keys come before the top level, which may hold a stray tensor, such as an anchor box,
    and single numbers last. An average and what it is of are never passed over for each other.
    """
    places = list(_mappings(saved))
    below = [place for place in places if _has_tensors(at(saved, place), least_rank=1)]
    known = _known(below)
    if any(map(_averaged, below)):
        known += [place for place in below if place not in known]
    yield known
    yield [()] if _has_tensors(saved, least_rank=1) else []
    yield below
    yield _known(place for place in places if _has_tensors(at(saved, place), least_rank=0))
    yield [()] if _has_tensors(saved, least_rank=0) else []


def _known(places: Iterable[KeyPath]) -> list[KeyPath]:
    known = [place for place in places if set(place) <= set(KNOWN)]
    return sorted(known, key=lambda place: [KNOWN.index(key) for key in place])


def _averaged(place: KeyPath) -> bool:
    return any(word.lower() in AVERAGED for key in place for word in WORD.findall(key))


def _mappings(saved: object) -> Iterator[KeyPath]:
    """All mappings below the top that string keys lead to, but for what an optimizer holds."""
    waiting: list[tuple[KeyPath, object]] = [((), saved)]
    seen: set[int] = set()
    for place, value in waiting:  # grows while it is walked
        if not isinstance(value, Mapping) or id(value) in seen or len(place) > DEPTH:
            continue
        seen.add(id(value))
        if place:
            yield place
        waiting += [
            ((*place, key), inner)
            for key, inner in value.items()
            if isinstance(key, str) and "optim" not in key.lower()
        ]


def _asked(path: Path, saved: object, key: str) -> KeyPath:
    places = [
        place for place in _spelled(saved, key) if _has_tensors(at(saved, place), least_rank=0)
    ]
    if places:
        return places[0]
    there = [
        dotted(place) for place in _mappings(saved) if _has_tensors(at(saved, place), least_rank=0)
    ]
    without = f"Leave --key away; the file holds {contents_of(saved)}."
    advice = nearest(key, there, f"There is {listed(there)}." if there else without)
    raise CheckpointError(f"{path}: no state dict under the key {shown(key)}. {advice}")


def _spelled(value: object, key: str) -> Iterator[KeyPath]:
    """The paths that the dotted `key` may mean: a dot may also be part of a key."""
    if key == "":
        yield ()
    if not isinstance(value, Mapping):
        return
    for own, inner in value.items():
        if own == key:
            yield (own,)
        elif isinstance(own, str) and own and key.startswith(own + "."):
            yield from ((own, *rest) for rest in _spelled(inner, key[len(own) + 1 :]) if rest)


def _has_tensors(value: object, least_rank: int) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(key, str) and isinstance(entry, torch.Tensor) and entry.ndim >= least_rank
        for key, entry in value.items()
    )


def contents_of(saved: object) -> str:
    """`epoch (int) and optimizer (dict)`: what a saved object holds, for a message."""
    if isinstance(saved, Mapping):
        return (
            listed([f"{key} ({type(entry).__name__})" for key, entry in saved.items()]) or "nothing"
        )
    return f"one {type(saved).__name__}"
