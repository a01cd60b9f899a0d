"""Values that are seldom seen in a checkpoint, and what is said of those that make no merge.

Each case changes the tensors of one chain (a 3x3 convolution with a bias, a batch norm, a 1x1) and
says with which eps the norm is merged. No words: it merges, and computes what the layers compute.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def tensors(dtype: torch.dtype = torch.float32) -> "OrderedDict[str, Tensor]":
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return OrderedDict(
        {
            "conv.weight": normal(8, 4, 3, 3),
            "conv.bias": normal(8),
            "norm.weight": normal(8),
            "norm.bias": normal(8),
            "norm.running_mean": normal(8),
            "norm.running_var": normal(8).abs() + 0.1,
            "point.weight": normal(2, 8, 1, 1),
        }
    )


def manifest(eps: str = "1.0e-5") -> str:
    return (
        "version: 1\npairs:\n  - {into: conv, chain: [{name: conv}, "
        f"{{name: norm, type: batch_norm, eps: {eps}}}, {{name: point}}]}}\n"
    )


@dataclass(frozen=True)
class Strange:
    """Tensors changed in place, the norm's eps, words of the refusal or else of the note."""

    change: Callable[[dict[str, Tensor]], None]
    eps: str = "1.0e-5"
    refused: tuple[str, ...] = ()
    note: str = ""
    dtype: torch.dtype = torch.float32


def variance(value: float) -> Callable[[dict[str, Tensor]], None]:
    """The variance of channel 5."""

    def change(changed: dict[str, Tensor]) -> None:
        changed["norm.running_var"][5] = value

    return change


def zeroed(name: str, *places: object) -> Callable[[dict[str, Tensor]], None]:
    def change(changed: dict[str, Tensor]) -> None:
        changed[name][places] = 0.0

    return change


def scaled(**factors: float) -> Callable[[dict[str, Tensor]], None]:
    def change(changed: dict[str, Tensor]) -> None:
        for name, factor in factors.items():
            changed[f"{name}.weight"] *= factor

    return change


def both(*changes: Callable[[dict[str, Tensor]], None]) -> Callable[[dict[str, Tensor]], None]:
    def change(changed: dict[str, Tensor]) -> None:
        for one in changes:
            one(changed)

    return change


NORMS = {
    "no variance, carried by eps": Strange(variance(0.0)),
    "no variance and no eps": Strange(
        variance(0.0), "0", ("norm.running_var", "holds 0.0 at [5]", "eps 0.0", "above zero")
    ),
    "some variance and no eps": Strange(variance(1e-3), "0"),
    "denormal variance and no eps": Strange(variance(1e-40), "0"),
    "no variance in any channel": Strange(zeroed("norm.running_var", slice(None))),
    "no variance in any channel and no eps": Strange(
        zeroed("norm.running_var", slice(None)), "0", ("at [0]", "8 such channels", "above zero")
    ),
    "negative variance": Strange(
        variance(-0.25), refused=("norm.running_var", "holds -0.25 at [5]", "eps 1e-05")
    ),
    "negative variance that eps carries": Strange(
        variance(-0.25), "0.5", note="norm.running_var holds -0.25 at [5], a negative variance"
    ),
    "negative variance as large as eps": Strange(
        variance(-0.5), "0.5", ("norm.running_var", "holds -0.5 at [5]", "above zero")
    ),
    "negative zero": Strange(variance(-0.0)),
    "negative denormal that eps carries": Strange(
        variance(-1e-40), note="a negative variance (1 such channels): eps 1e-05 carries it"
    ),
    "not a number": Strange(variance(math.nan), refused=("norm.running_var", "nan at [5]")),
    "infinite variance": Strange(variance(math.inf), refused=("norm.running_var", "inf at [5]")),
    "huge variance": Strange(variance(3e38)),
    "eps that leaves float32": Strange(
        variance(0.0), "1.0e-90", ("conv.weight would hold", "finite float32", "--widen")
    ),
    "factor of zero": Strange(zeroed("norm.weight", slice(None))),
}

EMPTY = {
    "zero output channel of the first": Strange(zeroed("conv.weight", 3)),
    "zero input channel of the first": Strange(zeroed("conv.weight", slice(None), 2)),
    "zero output channel of the last": Strange(zeroed("point.weight", 1)),
    "zero input channel of the last": Strange(zeroed("point.weight", slice(None), 6)),
    "nothing but zeros": Strange(both(zeroed("conv.weight", ...), zeroed("point.weight", ...))),
    "zero biases": Strange(zeroed("conv.bias", ...)),
    "zero output channel in float16": Strange(zeroed("point.weight", 1), dtype=torch.float16),
}

DENORMAL = {
    "denormal weights on the way": Strange(scaled(conv=1e-42, point=1e38)),
    "denormal weights on the way, the other way round": Strange(scaled(conv=1e35, point=1e-41)),
    "denormal results": Strange(
        scaled(conv=1e-20, point=1e-20), refused=("conv.weight would lose", "float32", "--widen")
    ),
    "denormal results of float64": Strange(scaled(conv=1e-155, point=1e-155), dtype=torch.float64),
    "denormal results of float16": Strange(
        scaled(conv=1e-2, point=1e-4),
        refused=("conv.weight would lose", "float16", "--widen"),
        dtype=torch.float16,
    ),
    "one denormal channel": Strange(
        lambda changed: changed["point.weight"][1].mul_(1e-41),
        refused=("would lose", "of output channel 1", "float32"),
    ),
}
