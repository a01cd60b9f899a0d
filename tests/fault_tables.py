"""Faults in the squeezed mixed checkpoint, each with the words that must be told of it."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.squeezed_files import Parts

# Places of a weight.

SPOTS: dict[str, Callable[[Tensor], int]] = {
    "first corner": lambda weight: 0,
    "last corner": lambda weight: weight.numel() - 1,
    "middle": lambda weight: weight.numel() // 2,
    "largest": lambda weight: int(weight.double().abs().argmax()),
    "nearest zero": lambda weight: int(weight.double().abs().argmin()),
}


def index_of(element: int, tensor: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(element), tensor.shape))


# What the recipe may say wrongly: a layer, a key, another value.

GEOMETRY_FAULTS: list[tuple[str, str, Any]] = [
    ("stem", "stride", [1, 1]),
    ("stem", "stride", [2, 2]),
    ("stem", "stride", [1, 2]),
    ("grouped.0", "stride", [1, 2]),
    ("up", "stride", [1]),
    ("up", "stride", [4]),
    ("stem", "padding", [[0, 1], [2, 1]]),
    ("stem", "padding", [[1, 0], [1, 2]]),
    ("stem", "padding", [[2, 1], [1, 0]]),
    ("stem", "padding", [[1, 1], [2, 1]]),
    ("stem", "padding", [[0, 0], [0, 0]]),
    ("grouped.0", "padding", [[1, 3], [2, 2]]),
    ("up", "padding", [[0, 2]]),
    ("up", "padding", [[2, 2]]),
    ("around", "padding_mode", "zeros"),
    ("around", "padding_mode", "reflect"),
    ("around", "padding_mode", "replicate"),
    ("branches", "padding_mode", "circular"),
    ("grouped.0", "dilation", [1, 1]),
    ("grouped.0", "dilation", [2, 1]),
    ("grouped.0", "dilation", [3, 2]),
    ("stem", "dilation", [1, 2]),
    ("grouped.0", "groups", 1),
    ("grouped.0", "groups", 4),
    ("grouped.0", "groups", 0),
    ("grouped.0", "groups", -2),
    ("branches", "groups", 2),
    ("stem", "kernel_size", [3, 5]),
    ("stem", "kind", "conv_transpose"),
    ("up", "kind", "conv"),
]


# What its manifest may say wrongly, and the layer that shows it.


def edited_manifest(parts: Parts, change: Callable[[Any], None]) -> None:
    assert parts.recipe is not None
    change(parts.recipe["manifest"]["pairs"])


MANIFEST_FAULTS: dict[str, tuple[Callable[[Any], None], str]] = {
    "eps": (lambda pairs: pairs[0]["chain"][1].update(eps=1e-5), "stem"),
    "eps of a branch": (lambda pairs: pairs[3]["sum"][1]["chain"][1].update(eps=1e-3), "branches"),
    "stride": (lambda pairs: pairs[0]["chain"][0].update(stride=2), "stem"),
    "padding": (lambda pairs: pairs[0]["chain"][0].update(padding=[[0, 1], [2, 1]]), "stem"),
    "groups": (lambda pairs: pairs[1]["second"].pop("groups"), "grouped.1"),
    "dilation": (lambda pairs: pairs[1]["first"].update(dilation=1), "grouped.0"),
    "padding mode": (
        lambda pairs: [pairs[2][key].update(padding_mode="reflect") for key in ("first", "second")],
        "around",
    ),
    "branch left out": (lambda pairs: pairs[3]["sum"].pop(), "branches"),
    "another layer": (lambda pairs: pairs[3]["sum"][0].update(name="branches.other"), "branches"),
    "entry left out": (lambda pairs: pairs.pop(2), "around"),
    "into": (lambda pairs: pairs[2].update(into="round"), "round"),
}


# What may have become of a tensor.


def removed(name: str) -> Callable[[Parts], None]:
    return lambda parts: parts.tensors.pop(name)


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Parts], None]:
    return lambda parts: parts.tensors.update({name: change(parts.tensors[name])})


def renamed(old: str, new: str) -> Callable[[Parts], None]:
    return lambda parts: parts.tensors.update({new: parts.tensors.pop(old)})


def filled_at(place: tuple[int, ...], value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        result = tensor.clone()
        result[place] = value
        return result

    return change


TENSOR_FAULTS: dict[str, tuple[Callable[[Parts], None], tuple[str, ...]]] = {
    "untouched as float64": (
        changed("embed.weight", Tensor.double),
        ("embed.weight", "float64", "float32"),
    ),
    "untouched as float16": (changed("acts.slope", Tensor.half), ("acts.slope", "float16")),
    "untouched integer narrowed": (changed("steps", Tensor.int), ("steps", "int32", "int64")),
    "untouched reshaped": (
        changed("embed.weight", lambda t: t.reshape(7, 5)),
        ("embed.weight", "(7, 5)", "(5, 7)"),
    ),
    "untouched removed": (removed("steps"), ("steps is missing",)),
    "untouched renamed": (renamed("mask", "masks"), ("masks is in neither",)),
    "merged weight removed": (removed("stem.weight"), ("stem.weight is missing",)),
    "bias dropped": (removed("stem.bias"), ("stem.bias is missing",)),
    "bias dropped, seen in its layer": (removed("up.bias"), ("up: ", "up.bias is missing")),
    "bias of zeros": (changed("grouped.0.bias", torch.zeros_like), ("grouped.0: ", "channel")),
    "bias too long": (changed("up.bias", lambda t: torch.cat([t, t])), ("up", "bias", "(8,)")),
    "key added": (
        lambda parts: parts.tensors.update(extra=torch.ones(1)),
        ("extra is in neither",),
    ),
    "consumed tensor kept": (
        lambda parts: parts.tensors.update({"stem.conv.weight": torch.ones(12, 3, 3, 3)}),
        ("stem.conv.weight is in neither",),
    ),
    "not a number": (
        changed("around.weight", filled_at((1, 2, 0, 4), math.nan)),
        ("around: ", "output channel 1"),
    ),
    "infinity": (
        changed("around.weight", filled_at((3, 0, 2, 2), math.inf)),
        ("around: ", "output channel 3"),
    ),
    "nothing but not a number": (
        changed("branches.weight", lambda t: t * math.nan),
        ("branches: ", "output channel"),
    ),
    "bias not a number": (
        changed("head.bias", filled_at((4,), math.nan)),
        ("head: ", "output channel 4"),
    ),
    "merged weight as float64": (
        changed("stem.weight", Tensor.double),
        ("stem", "float64", "float32 was needed"),
    ),
    "merged weight as float16": (
        changed("branches.weight", Tensor.half),
        ("branches", "float16", "float32 was needed"),
    ),
    "merged bias as bfloat16": (
        changed("head.bias", Tensor.bfloat16),
        ("head", "bfloat16", "float32 was needed"),
    ),
    "merged weight as integers": (
        changed("head.weight", Tensor.int),
        ("head", "int32", "float32 was needed"),
    ),
    "channels turned round": (
        changed("stem.weight", lambda t: t.transpose(0, 1).contiguous()),
        ("stem: ",),
    ),
    "kernel mirrored": (changed("around.weight", lambda t: t.flip(-1)), ("around: ", "channel")),
    "output channels swapped": (changed("branches.weight", lambda t: t.flip(0)), ("branches: ",)),
    "kernel cropped": (changed("around.weight", lambda t: t[..., 1:]), ("around", "kernel_size")),
    "input channel lost": (changed("stem.weight", lambda t: t[:, 1:]), ("stem: ", "(6, 3, 3, 3)")),
    "weight a single number": (changed("head.weight", lambda t: t[0, 0]), ("head", "shape")),
}
