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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import torch

from convsqueeze.checkpoint.disk import RangeOfMemory, no_file
from convsqueeze.errors import CheckpointError
from convsqueeze.names import listed, nearest, shown

KeyPath = tuple[str, ...]
Place = tuple[Any, ...]
TOP = '"" (the top level)'
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
DEEPEST = 100
"""Mappings and lists in each other: what is looked at by each way that leads there."""
DEPTH = 4
"""How deep a state dict is looked for; a saved object may contain itself."""


@dataclass(frozen=True, eq=False)
class SavedObject:
    """A state dict that lies at `key_path` in the `whole` object, as the `key` that a user gave
    says. `range_of_memory` tells which tensors are maps of a file.
    """

    whole: Any = field(repr=False)
    key_path: KeyPath = ()
    key: str | None = None
    range_of_memory: RangeOfMemory = no_file

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

    def other_tensors(self) -> Iterable[torch.Tensor]:
        """Every tensor but those of the state dict."""
        entries = {k: v for k, v in self.state_dict.items() if not isinstance(v, torch.Tensor)}
        return tensors_in(self.replaced(entries)).values()

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
    return reduce(getitem, place, value)


def dotted(place: Iterable[object]) -> str:
    return ".".join(
        str(key) if isinstance(key, str | int | float | None) else type(key).__name__
        for key in place
    )


def _replaced(saved: Any, place: KeyPath, new: object) -> Any:
    if not place:
        return new
    result = copy.copy(saved)
    result[place[0]] = _replaced(saved[place[0]], place[1:], new)
    return result


class NestedTooDeeply(ValueError):
    """A saved object with more than DEEPEST mappings and lists in each other."""

    def __init__(self) -> None:
        super().__init__(f"nests more than {DEEPEST} mappings and lists")


Inside = Callable[[Place, Any], Iterable[tuple[Any, Any]]]
"""What to look at inside of a value at a place, by its keys."""


def walk(saved: Any, inside: Inside) -> Iterator[tuple[Place, Any]]:
    """Every value by each way that leads to it, breadth first; what lies in one that several lead
    to is walked once. Raises NestedTooDeeply.
    """
    waiting: list[tuple[Place, Any]] = [((), saved)]
    seen: set[int] = set()
    for place, value in waiting:  # grows while it is walked
        if len(place) > DEEPEST:
            raise NestedTooDeeply
        yield place, value
        if id(value) not in seen:
            seen.add(id(value))
            waiting += [((*place, key), inner) for key, inner in inside(place, value)]


def _everything(place: Place, value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return dict.items(value)
    return enumerate(value) if isinstance(value, list | tuple | set) else ()


def tensors_in(saved: object) -> dict[Place, torch.Tensor]:
    """Every tensor, each once, by the keys that lead to it."""
    found: dict[int, tuple[Place, torch.Tensor]] = {}
    for place, value in walk(saved, _everything):
        if isinstance(value, torch.Tensor):
            found.setdefault(id(value), (place, value))
    return dict(found.values())


def hidden_method(saved: object) -> str | None:
    """What stands in for a method of a mapping or a tensor, in words; None where nothing does."""
    for place, value in walk(saved, _everything):
        kind = torch.Tensor if isinstance(value, torch.Tensor) else OrderedDict
        for name in getattr(value, "__dict__", ()) if isinstance(value, kind | Mapping) else ():
            if hasattr(kind, str(name)) and not str(name).startswith("__"):
                where = shown(dotted(place) or "the saved object")
                return f"{where} has an attribute {shown(str(name))}"
    return None


def find_state_dict(path: Path, saved: object, key: str | None) -> KeyPath:
    """Raises CheckpointError where there is no state dict, or several and no `key` to choose."""
    if key is not None:
        return _asked(path, saved, key)
    candidates = _candidates(saved)
    if not candidates:
        raise CheckpointError(
            f"{path}: holds {contents_of(saved)}, a state dict (tensors by name) was needed. "
            "Save model.state_dict() with torch.save."
        )
    if len(candidates) > 1:
        names = ", ".join(shown(dotted(place)) or TOP for place in candidates)
        averaged = next((place for place in candidates if _averaged(place)), None)
        example = shown(dotted(averaged or candidates[0]))
        raise CheckpointError(
            f"{path}: holds {len(candidates)} state dicts ({names}), one was needed. Choose "
            f"with --key, for example --key {example}{', the average' if averaged else ''}."
        )
    return candidates[0]


def _candidates(saved: object) -> list[KeyPath]:
    """Known keys come before the top level, which may hold a stray tensor, such as an anchor box,
    and single numbers last. An average and what it is of are never passed over for each other.
    """
    below, top = _with_tensors(saved, least_rank=1)
    known = _known(below)
    if any(map(_averaged, below)):
        known += [place for place in below if place not in known]
        known += top if all(map(_averaged, known)) else []
    if known or top or below:
        return known or top or below
    below, top = _with_tensors(saved, least_rank=0)
    return _known(below) or top


def _known(places: Iterable[KeyPath]) -> list[KeyPath]:
    known = [place for place in places if set(place) <= set(KNOWN)]
    return sorted(known, key=lambda place: [KNOWN.index(key) for key in place])


def _averaged(place: KeyPath) -> bool:
    return any(word.lower() in AVERAGED for key in place for word in WORD.findall(key))


def _with_tensors(saved: object, least_rank: int) -> tuple[list[KeyPath], list[KeyPath]]:
    """The mappings with tensors below the top, and the top if it is one. String keys lead to them,
    but for what an optimizer holds.
    """

    def inside(place: Place, value: Any) -> Iterable[tuple[Any, Any]]:
        if not isinstance(value, Mapping) or len(place) == DEPTH:
            return ()
        return ((key, inner) for key, inner in value.items() if is_of_weights(key))

    found = walk(saved, inside)
    places = [place for place, value in found if _has_tensors(value, least_rank)]
    return [place for place in places if place], [place for place in places if not place]


def is_of_weights(key: object) -> bool:
    """Whether weights may lie under a key: under a string, but for what an optimizer holds."""
    return isinstance(key, str) and "optim" not in key.lower()


def _asked(path: Path, saved: object, key: str) -> KeyPath:
    for place in _spelled(saved, key):
        if _has_tensors(at(saved, place), least_rank=0):
            return place
    there = [dotted(place) for place in _with_tensors(saved, least_rank=0)[0]]
    without = f"Leave --key away; the file holds {contents_of(saved)}."
    advice = nearest(key, there, f"There is {listed(there)}." if there else without)
    raise CheckpointError(f"{path}: no state dict under the key {shown(key)}. {advice}")


def _spelled(value: object, key: str) -> Iterator[KeyPath]:
    """The paths that the dotted `key` may mean: a dot may also be part of a key."""
    if key == "":
        yield ()
    if not isinstance(value, Mapping):
        return
    for key_part, inner in value.items():
        if key_part == key:
            yield (key_part,)
        elif isinstance(key_part, str) and key_part and key.startswith(key_part + "."):
            yield from (
                (key_part, *rest) for rest in _spelled(inner, key[len(key_part) + 1 :]) if rest
            )


def _has_tensors(value: object, least_rank: int) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(key, str) and isinstance(entry, torch.Tensor) and entry.ndim >= least_rank
        for key, entry in value.items()
    )


def contents_of(saved: object) -> str:
    """`epoch (int) and optimizer (dict)`: what a saved object holds, for a message."""
    if not isinstance(saved, Mapping):
        return f"one {type(saved).__name__}"
    return listed([f"{key} ({type(entry).__name__})" for key, entry in saved.items()]) or "nothing"
