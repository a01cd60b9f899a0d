"""Where in a saved object the state dict lies.

Training scripts save it bare, or under one of a few keys beside epoch counters and optimizer
state, and often twice: as it was trained and averaged over time. A path is a tuple of keys; its
dotted form is what a user reads and types.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from convsqueeze.checkpoint.saved_object import KeyPath, at, dotted
from convsqueeze.errors import CheckpointError
from convsqueeze.names import listed, nearest, shown

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
    """Known keys come before the top level: it may hold a stray tensor, such as the best score.

    An average is never passed over for the weights that it is of, nor they for it.
    """
    known = list(_known(saved, ()))
    below = [place for place in _mappings(saved) if _has_tensors(at(saved, place), least_rank=1)]
    if any(map(_averaged, below)):
        known += [place for place in below if place not in known]
    yield known
    yield [()] if _has_tensors(saved, least_rank=1) else []
    yield below
    yield [()] if _has_tensors(saved, least_rank=0) else []


def _averaged(place: KeyPath) -> bool:
    return any(word.lower() in AVERAGED for key in place for word in WORD.findall(key))


def _known(value: object, place: KeyPath) -> Iterator[KeyPath]:
    if not isinstance(value, Mapping) or len(place) > DEPTH:
        return
    for key in KNOWN:
        inner = value.get(key)
        deeper = list(_known(inner, (*place, key)))
        if deeper:
            yield from deeper
        elif _has_tensors(inner, least_rank=0):
            yield (*place, key)


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
