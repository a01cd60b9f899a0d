"""Checkpoints with a merge whose values their dtype does not hold: one tensor of it, or several.

Each case says which tensors of the merged layer `net` are stored in which wider dtype. Beside it
stands a layer that merges as it is, and a tensor that is not merged.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PLAIN = {"into": "plain", "chain": [{"name": "plain.0"}, {"name": "plain.1"}]}


@dataclass(frozen=True)
class Widening:
    """A checkpoint, the entry that merges `net.0` and `net.1`, and what has to be stored wider."""

    dtype: torch.dtype
    tensors: Callable[[torch.Generator], dict[str, Tensor]]
    wider: dict[str, torch.dtype]
    why: str = "overflow"
    first: dict[str, Any] = field(default_factory=dict)
    second: dict[str, Any] = field(default_factory=dict)
    border: str = "exact"

    @property
    def manifest(self) -> dict[str, Any]:
        layers = {"name": "net.0", **self.first}, {"name": "net.1", **self.second}
        entry = {"into": "net", "chain": list(layers), "border": self.border}
        return {"version": 1, "pairs": [entry, PLAIN]}

    def state_dict(self) -> "OrderedDict[str, Tensor]":
        generator = torch.Generator().manual_seed(0)
        tensors = {**self.tensors(generator), "kept": torch.arange(5.0, dtype=torch.float64)}
        for name, shape in (("plain.0.weight", (6, 3, 1, 1)), ("plain.1.weight", (2, 6, 3, 3))):
            tensors[name] = torch.randn(shape, generator=generator)
        return OrderedDict((name, tensor.to(self.dtype)) for name, tensor in tensors.items())


def pair(
    first: tuple[int, ...], second: tuple[int, ...], scale: float, bias: float = 1.0
) -> Callable[[torch.Generator], dict[str, Tensor]]:
    """Two layers of normal weights times `scale`, the second with a bias."""

    def make(generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "net.0.weight": scale * torch.randn(first, generator=generator),
            "net.1.weight": scale * torch.randn(second, generator=generator),
            "net.1.bias": bias * torch.randn(second[0], generator=generator),
        }

    return make


def large_biases(generator: torch.Generator) -> dict[str, Tensor]:
    tensors = pair((8, 4, 1, 1), (2, 8, 3, 3), 1.0)(generator)
    tensors["net.0.weight"] *= 0.01
    tensors["net.1.weight"] *= 100.0
    return {**tensors, "net.0.bias": 1000.0 * (1 + torch.rand(8, generator=generator))}


def large_at_the_border(generator: torch.Generator) -> dict[str, Tensor]:
    """90,000 less 90,000 within the image; where the outer layer pads, one of the two is left."""
    tensors = pair((8, 2, 3), (2, 8, 3), 0.05)(generator)
    first, second = tensors["net.0.weight"], tensors["net.1.weight"]
    for layer in (first[:2], second[:, :2]):
        layer.zero_()
    first[0, 0, 2] = second[0, 0, 0] = 300.0
    first[1, 0, 1] = 300.0
    second[0, 1, 1] = -300.0
    return tensors


def large_throughout(generator: torch.Generator) -> dict[str, Tensor]:
    tensors = pair((8, 4, 1, 1), (2, 8, 3, 3), 300.0)(generator)
    return {**tensors, "net.large": 1000.0 * torch.ones(8)}


CASES = {
    "weight": Widening(
        torch.float16, pair((8, 4, 1, 1), (2, 8, 3, 3), 300.0), {"weight": torch.float32}
    ),
    "bias": Widening(torch.float16, large_biases, {"bias": torch.float32}),
    "border": Widening(
        torch.float16,
        large_at_the_border,
        {"border.0.weight": torch.float32},
        first={"padding": 1},
        second={"padding": 1},
        border="corrected",
    ),
    "transposed": Widening(
        torch.float16,
        pair((4, 8, 4, 4), (2, 8, 1, 1), 300.0),
        {"weight": torch.float32},
        first={"type": "conv_transpose", "stride": 2, "padding": 1},
    ),
    "linear": Widening(
        torch.float16,
        pair((24, 6), (5, 24), 300.0),
        {"weight": torch.float32},
        first={"type": "linear"},
        second={"type": "linear"},
    ),
    "both": Widening(
        torch.float16,
        large_throughout,
        {"weight": torch.float32, "bias": torch.float32},
        first={"bias": "net.large"},
    ),
    "bfloat16": Widening(
        torch.bfloat16, pair((8, 4, 1, 1), (2, 8, 3, 3), 3e19), {"weight": torch.float64}
    ),
    "float32": Widening(
        torch.float32, pair((8, 4, 1, 1), (2, 8, 3, 3), 1e25), {"weight": torch.float64}
    ),
    "small": Widening(
        torch.float16,
        pair((8, 4, 1, 1), (2, 8, 3, 3), 3e-4),
        {"weight": torch.float32},
        "underflow",
    ),
    "small bfloat16": Widening(
        torch.bfloat16,
        pair((8, 4, 1, 1), (2, 8, 3, 3), 2e-20),
        {"weight": torch.float32},
        "underflow",
    ),
    "small float32": Widening(
        torch.float32,
        pair((8, 4, 1, 1), (2, 8, 3, 3), 2e-20),
        {"weight": torch.float64},
        "underflow",
    ),
}
