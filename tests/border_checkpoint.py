"""A checkpoint whose merges are exact by correction tensors only, one entry for each geometry.

Channels are few, so that every single number can be tried. All of it merges with `border:
corrected` and grows, as small layers do; `plain` needs no corrections and has none.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

Layer = dict[str, Any]
Shape = tuple[int, ...]


def pair(first: Layer, second: Layer) -> Layer:
    return {"chain": [first, second]}


TABLE: dict[str, tuple[list[Shape], Layer]] = {
    "twice": (
        [(3, 2, 3, 3), (2, 3, 3, 3)],
        pair({"padding": 1}, {"padding": 1}),
    ),
    "constant": (
        [(3, 2, 1, 1), (2, 3, 3, 3)],
        pair({}, {"padding": 1}),
    ),
    "strided": (
        [(3, 1, 3, 3), (2, 3, 3, 3)],
        pair({"padding": 1, "stride": 2}, {"padding": 1, "stride": 2}),
    ),
    "dilated": (
        [(3, 1, 3, 2), (2, 3, 2, 3)],
        pair({"padding": [2, 0], "dilation": [2, 1]}, {"padding": [1, 2], "dilation": [1, 2]}),
    ),
    "mirrored": (
        [(3, 2, 3), (2, 3, 3)],
        pair({"padding": 1}, {"padding": 1, "padding_mode": "reflect"}),
    ),
    "around": (
        [(3, 2, 3, 1), (2, 3, 3, 1)],
        pair({"padding": [1, 0]}, {"padding": [1, 0], "padding_mode": "circular"}),
    ),
    "three": (
        [(2, 2, 3), (3, 2, 3), (2, 3, 3)],
        {"chain": [{"padding": 1}, {"padding": 1}, {"padding": 1}]},
    ),
    "depthwise": (
        [(2, 1, 3, 3), (2, 1, 3, 3)],
        pair({"padding": 1, "groups": 2}, {"padding": 1, "groups": 2}),
    ),
    "branches": (
        [(2, 2, 1, 3), (2, 2, 1, 3), (2, 2, 3, 1), (2, 2, 3, 1)],
        {
            "sum": [
                {"chain": [{"padding": [0, 1]}, {"padding": [0, 1]}]},
                {"chain": [{"padding": [1, 0]}, {"padding": [1, 0]}]},
            ]
        },
    ),
    "line": (
        [(3, 2, 5), (2, 3, 3)],
        pair({"padding": 2}, {"padding": 1}),
    ),
    "volume": (
        [(2, 1, 3, 2, 3), (1, 2, 2, 3, 3)],
        pair({"padding": [[1, 1], [0, 1], [1, 1]]}, {"padding": [[1, 0], [1, 1], [1, 1]]}),
    ),
    "up": (
        [(2, 3, 3), (2, 3, 3)],
        pair({"type": "conv_transpose", "stride": 2, "padding": 1}, {"padding": 1}),
    ),
    "plain": (
        [(3, 2, 3), (2, 3, 1)],
        pair({"padding": 1}, {}),
    ),
}
CORRECTED = tuple(name for name in TABLE if name != "plain")


def manifest_of(*names: str) -> dict[str, Any]:
    """The manifest with the entries that give these merged layers."""
    pairs = [{"into": name, **_named(TABLE[name][1], name)} for name in names]
    return {"version": 1, "border": "corrected", "pairs": pairs}


def _named(tree: Layer, into: str) -> Layer:
    """The table's layers in order as `into.0`, `into.1` and so on."""
    numbers = iter(range(len(TABLE[into][0])))

    def named(part: Layer) -> Layer:
        for parts in ("chain", "sum"):
            if parts in part:
                return {parts: [named(child) for child in part[parts]]}
        return {**part, "name": f"{into}.{next(numbers)}"}

    return named(tree)


def border_state_dict(
    dtype: torch.dtype = torch.float32, names: tuple[str, ...] = tuple(TABLE)
) -> "OrderedDict[str, Tensor]":
    """The original layers of some entries, each with a bias."""
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    for seed, (into, (shapes, tree)) in enumerate(TABLE.items()):
        generator = torch.Generator().manual_seed(seed)
        for number, shape in enumerate(shapes):
            fan_in = torch.Size(shape[1:]).numel()
            weight = torch.randn(shape, generator=generator, dtype=torch.float64) / fan_in**0.5
            first = tree.get("chain", [{}])[number] if "chain" in tree else {}
            channels = shape[first.get("type") == "conv_transpose"]
            bias = torch.randn(channels, generator=generator, dtype=torch.float64)
            if into in names:
                tensors[f"{into}.{number}.weight"] = weight.to(dtype)
                tensors[f"{into}.{number}.bias"] = bias.to(dtype)
    return tensors


def dominated(dtype: torch.dtype) -> "OrderedDict[str, Tensor]":
    """Weights for `twice` of which every correction outweighs the plain weight it is added to.

    On an axis the taps (1, s, 1) and then (1, 1, -1) give the merged kernel s in its middle, where
    1 is to be taken off before the image and -1 after it.
    """
    generator = torch.Generator().manual_seed(0)
    tensors = border_state_dict(dtype, ("twice",))
    for number, taps in enumerate([(1.0, 0.3, 1.0), (1.0, 1.0, -1.0)]):
        line = torch.tensor(taps, dtype=torch.float64)
        name = f"twice.{number}.weight"
        channels = tensors[name].shape[:2]
        size = 0.5 + torch.rand(*channels, 1, 1, generator=generator, dtype=torch.float64)
        tensors[name] = (size * line.outer(line)).to(dtype)
    return tensors
