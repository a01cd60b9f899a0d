"""Pairs of layers whose merge has fewer weights, but is not exact at the border when plain."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from convsqueeze.checkpoint import from_state_dict
from convsqueeze.manifest import Border, manifest_from_data
from convsqueeze.module import SqueezedConv
from convsqueeze.pipeline import squeeze_checkpoint
from convsqueeze.plan import Merge, make_plan


@dataclass(frozen=True)
class Pair:
    """Two convolutions, each with half its kernel_size as padding, for an image of `size`."""

    name: str
    channels: tuple[int, int, int]
    kernel_sizes: tuple[int, int]
    stride: int = 1
    groups: tuple[int, int] = (1, 1)
    bias: bool = True
    size: int = 256

    def module(self) -> nn.Sequential:
        """The layers themselves, with random weights from a fixed seed."""
        torch.manual_seed(0)
        first, middle, last = self.channels
        return nn.Sequential(
            self._layer(first, middle, 0), self._layer(middle, last, 1)
        ).requires_grad_(False)

    def _layer(self, channels: int, out: int, index: int) -> nn.Conv2d:
        kernel_size = self.kernel_sizes[index]
        return nn.Conv2d(
            channels,
            out,
            kernel_size,
            stride=self.stride,
            padding=kernel_size // 2,
            groups=self.groups[index],
            bias=self.bias,
        )

    def manifest(self) -> Mapping[str, Any]:
        first, second = (
            {
                "name": str(index),
                "stride": self.stride,
                "padding": self.kernel_sizes[index] // 2,
                "groups": self.groups[index],
            }
            for index in (0, 1)
        )
        return {"version": 1, "pairs": [{"first": first, "second": second}]}

    def squeezed(self, border: Border) -> tuple[Merge, SqueezedConv]:
        """The merge of the pair and its module. Refused, as for users, if it grows."""
        checkpoint = from_state_dict(self.module().state_dict())
        plan = make_plan(manifest_from_data(self.manifest()), checkpoint, border=border)
        (module,) = squeeze_checkpoint(plan, checkpoint, border=border).modules().values()
        return plan.merges[0], module.requires_grad_(False)


PAIRS = (
    Pair("SESR-like, narrow", (16, 64, 16), (3, 3)),
    Pair("super-resolution body", (32, 128, 32), (3, 3), bias=False),
    Pair("wide body", (48, 192, 48), (3, 3)),
    Pair("first layers", (3, 64, 16), (3, 3)),
    Pair("last layers", (32, 96, 3), (3, 3)),
    Pair("5x5 then 3x3", (16, 96, 16), (5, 3)),
    Pair("3x3 then 5x5", (8, 64, 8), (3, 5)),
    Pair("1x1 with bias then 3x3", (64, 256, 64), (1, 3)),
    Pair("grouped", (32, 128, 32), (3, 3), groups=(4, 4)),
    Pair("ConvNeXt ols stem", (3, 24, 40), (3, 3), stride=2),
    Pair("wide strided stem", (3, 64, 64), (3, 3), stride=2),
)
