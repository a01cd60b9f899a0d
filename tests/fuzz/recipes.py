"""Recipes: the JSON inside a squeezed file, altered, beside the sound original."""

import json
import pickle
from collections import OrderedDict
from typing import Any

import torch

from .choices import HUGE, SIZES, Choices, altered, damaged
from .isolation import Case
from .manifests import NAMES, OTHER, WORDS
from .samples import framed, parts, pickled, squeezed

HOSTILE: tuple[Any, ...] = (
    *(*SIZES, *SIZES, *HUGE, *NAMES, *OTHER, *WORDS),
    *(
        None,
        True,
        1.5,
        1e308,
        [],
        {},
        [0],
        [1, 1],
        [-1, -1],
        [[0, 0]],
        [[1 << 40, 0], [0, 0]],
        "{}",
    ),
    *([1 << 31, 1], [[-5, -5], [-5, -5]], ["zeros", "reflect"], [[0, 0, 0, 1]], [[1, 1, 1 << 60]]),
)
RAW = (
    *("", "{", "null", "[]", '{"version":1}', "x\ud800", "\x00", "9" * 5000, "[" * 100_000, "NaN"),
    *('{"a":' * 5000, '"\\ud800"', '{"version":1,"version":1}', " ", "\ufeff{}", "{}" * 2),
)
TENSORS = ("body.0.weight", "body.0.bias", "up.weight", "flat.weight", "body.0.border.0.weight")


def make(choices: Choices) -> Case:
    """A squeezed file whose recipe, and seldom a tensor, says what is not so."""
    suffix = ".safetensors" if choices.below(4) < 3 else ".pt"
    original, done = squeezed(suffix)
    content = (_safetensors if suffix == ".safetensors" else _pickle)(choices, done)
    options = {
        "name": "squeezed" + suffix,
        "original": "original" + suffix,
        "export": choices.chance(25),
    }
    return Case({"original" + suffix: original, "squeezed" + suffix: content}, options)


def _recipe(choices: Choices, text: str) -> str:
    if choices.chance(10):
        return choices.pick(RAW)
    data = json.loads(text)
    for _ in range(choices.below(4)):
        _set_one(choices, data)
    data = altered(choices, data, HOSTILE, choices.pick((0, 0, 1, 4)))
    result = json.dumps(data)
    if choices.chance(10):
        return damaged(choices, result.encode()).decode("utf-8", "replace")
    return result


def _set_one(choices: Choices, data: Any) -> None:
    """One value, wherever it lies, becomes a hostile one: the rest stays as it was."""
    node = data
    for _ in range(12):
        if isinstance(node, dict) and node:
            key: Any = choices.pick(list(node))
        elif isinstance(node, list) and node:
            key = choices.below(len(node))
        else:
            return
        inside = node[key]
        if not isinstance(inside, dict | list) or not inside or choices.chance(15):
            node[key] = choices.pick(HOSTILE)
            return
        node = inside


def _safetensors(choices: Choices, done: bytes) -> bytes:
    header, data = parts(done)
    metadata = header["__metadata__"]
    metadata["convsqueeze"] = _recipe(choices, metadata["convsqueeze"])
    if choices.chance(15):
        name = choices.pick([name for name in header if name != "__metadata__"])
        change = choices.below(4)
        if change == 0:
            header[choices.pick(TENSORS) + choices.pick(("", ".x"))] = header.pop(name)
        elif change == 1:
            header[name]["shape"] = [*header[name]["shape"], 1]
        elif change == 2:
            header[name]["shape"] = header[name]["shape"][::-1]
        else:
            header[name]["dtype"] = choices.pick(("I32", "U32", "F32"))
    if choices.chance(5):
        data = damaged(choices, data)
    return framed(json.dumps(header).encode(), data)


def _pickle(choices: Choices, done: bytes) -> bytes:
    import io

    state: OrderedDict[str, Any] = torch.load(io.BytesIO(done), weights_only=True)
    metadata = state._metadata  # type: ignore[attr-defined]
    metadata["convsqueeze"] = _recipe(choices, metadata["convsqueeze"])
    if choices.chance(15):
        name = choices.pick(list(state))
        change = choices.below(4)
        if change == 0:
            state[choices.pick(TENSORS)] = state.pop(name)
        elif change == 1:
            state[name] = state[name].to(choices.pick((torch.int32, torch.complex64, torch.bool)))
        elif change == 2:
            state[name] = state[name].to_sparse()
        else:
            state[name] = torch.full_like(state[name], choices.pick((torch.nan, torch.inf)))
    try:
        return pickled(state)
    except (pickle.PicklingError, UnicodeEncodeError):
        return done
