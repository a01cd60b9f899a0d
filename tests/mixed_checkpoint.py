"""A checkpoint in which every kind of geometry is merged once, and some tensors are not merged.

A chain with a batch norm, strides and padding of its own on each side; a grouped, strided and
dilated pair; circular padding; a sum of three branches; a transposed convolution in one dimension;
two fully connected layers. No merge grows, so nothing has to be allowed.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

MANIFEST: dict[str, Any] = {
    "version": 1,
    "pairs": [
        {
            "into": "stem",
            "chain": [
                {"name": "stem.conv", "stride": [2, 1], "padding": [[1, 0], [2, 1]]},
                {"name": "stem.bn", "type": "batch_norm", "eps": 1e-3},
                {"name": "stem.project"},
            ],
        },
        {
            "first": {"name": "grouped.0", "stride": 2, "padding": 2, "dilation": 2, "groups": 4},
            "second": {"name": "grouped.1", "groups": 2},
        },
        {
            "into": "around",
            "first": {"name": "around.0", "padding": 1, "padding_mode": "circular"},
            "second": {"name": "around.1", "padding": 1, "padding_mode": "circular"},
        },
        {
            "into": "branches",
            "sum": [
                {"name": "branches.dense", "padding": 1},
                {
                    "chain": [
                        {"name": "branches.point"},
                        {"name": "branches.bn", "type": "batch_norm", "eps": 1e-5},
                    ]
                },
                {"type": "identity"},
            ],
        },
        {
            "into": "up",
            "first": {"name": "up.0", "type": "conv_transpose", "stride": 2, "padding": 1},
            "second": {"name": "up.1"},
        },
        {
            "into": "head",
            "chain": [{"name": "head.0", "type": "linear"}, {"name": "head.1", "type": "linear"}],
        },
    ],
}
MERGED = ("stem", "grouped.0", "around", "branches", "up", "head")
UNTOUCHED = ("acts.slope", "steps", "mask", "embed.weight")


def manifest_of(*names: str) -> dict[str, Any]:
    """The manifest with only the entries that give these merged layers."""
    entries = zip(MERGED, MANIFEST["pairs"], strict=True)
    return {"version": 1, "pairs": [entry for name, entry in entries if name in names]}


def mixed_state_dict(dtype: torch.dtype = torch.float32, seed: int = 0) -> OrderedDict[str, Tensor]:
    """The original, its floating-point tensors in `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    for name, tensor in _tensors(generator):
        tensors[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return tensors


def _tensors(generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    def normal(*shape: int) -> Tensor:
        fan_in = torch.Size(shape[1:]).numel()
        return torch.randn(shape, generator=generator, dtype=torch.float64) / fan_in**0.5

    def norm(name: str, channels: int) -> Iterator[tuple[str, Tensor]]:
        yield f"{name}.weight", 1 + 0.2 * normal(channels)
        yield f"{name}.bias", normal(channels)
        yield f"{name}.running_mean", normal(channels)
        yield f"{name}.running_var", normal(channels).abs() + 0.1
        yield f"{name}.num_batches_tracked", torch.tensor(12)

    slope = normal(6)
    slope[3] = 0.0
    yield "acts.slope", slope
    yield "stem.conv.weight", normal(12, 3, 3, 3)
    yield from norm("stem.bn", 12)
    yield "stem.project.weight", normal(6, 12, 1, 1)
    yield "stem.project.bias", normal(6)
    yield "grouped.0.weight", normal(16, 2, 3, 3)
    yield "grouped.0.bias", normal(16)
    yield "grouped.1.weight", normal(8, 8, 3, 3)
    yield "steps", torch.tensor(28_000)
    yield "around.0.weight", normal(16, 4, 3, 3)
    yield "around.0.bias", normal(16)
    yield "around.1.weight", normal(4, 16, 3, 3)
    yield "mask", torch.tensor([True, False, True])
    yield "branches.dense.weight", normal(6, 6, 3, 3)
    yield "branches.dense.bias", normal(6)
    yield "branches.point.weight", normal(6, 6, 1, 1)
    yield from norm("branches.bn", 6)
    yield "embed.weight", normal(5, 7)
    yield "up.0.weight", normal(6, 10, 4)
    yield "up.0.bias", normal(10)
    yield "up.1.weight", normal(4, 10, 1)
    yield "up.1.bias", normal(4)
    yield "head.0.weight", normal(24, 6)
    yield "head.0.bias", normal(24)
    yield "head.1.weight", normal(5, 24)
