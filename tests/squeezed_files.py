"""Squeezed files taken apart and put together again without the program: what faults are made in.

Reads and writes with torch and the safetensors library alone, so that a mistake in the program's
own reading cannot hide one in its writing.
"""

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

RECIPE_KEY = "convsqueeze"
SAME_WIDTH = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


@dataclass
class Parts:
    """A squeezed file: its tensors in order, its recipe, and in a pickle what is around them."""

    tensors: "OrderedDict[str, Any]"
    recipe: dict[str, Any] | None
    around: dict[str, Any] | None = None
    wrapper: str = ""

    def layer(self, name: str) -> dict[str, Any]:
        """The recipe's entry for a merged layer."""
        assert self.recipe is not None
        found: dict[str, Any] = next(x for x in self.recipe["layers"] if x["name"] == name)
        return found


def taken_apart(path: Path, wrapper: str = "") -> Parts:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            tensors = OrderedDict((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
            return Parts(tensors, json.loads(file.metadata()[RECIPE_KEY]))
    whole = torch.load(path, weights_only=True)
    tensors = whole[wrapper] if wrapper else whole
    recipe = json.loads(tensors._metadata[RECIPE_KEY])
    return Parts(tensors, recipe, whole if wrapper else None, wrapper)


def put_together(parts: Parts, path: Path) -> Path:
    text = None if parts.recipe is None else json.dumps(parts.recipe)
    if path.suffix == ".safetensors":
        plain = {name: tensor.contiguous() for name, tensor in parts.tensors.items()}
        save_file(plain, path, {"format": "pt", **({} if text is None else {RECIPE_KEY: text})})
        return path
    metadata = parts.tensors._metadata  # type: ignore[attr-defined]
    metadata.pop(RECIPE_KEY, None)
    if text is not None:
        metadata[RECIPE_KEY] = text
    torch.save(parts.tensors if parts.around is None else parts.around, path)
    return path


def moved_by_ulps(tensor: Tensor, place: tuple[int, ...], ulps: int) -> Tensor:
    """A copy with the value at `place` moved away from zero (or, if negative, towards it)."""
    moved = tensor.clone()
    moved.view(SAME_WIDTH[tensor.dtype])[place] += ulps
    return moved


def with_bit_flipped(tensor: Tensor, place: tuple[int, ...], bit: int = 0) -> Tensor:
    """A copy with one bit of the value at `place` turned over."""
    flat = tensor.clone().contiguous().reshape(-1)
    element = 0
    for index, size in zip(place, tensor.shape, strict=True):
        element = element * size + index
    flat.view(torch.uint8)[element * tensor.element_size() + bit // 8] ^= 1 << bit % 8
    return flat.reshape(tensor.shape)
