"""Padding alone: `torch.nn.functional.pad` and the modules that pad."""

from typing import Literal

import torch
from torch import Tensor

from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import Axis
from convsqueeze.errors import GeometryError
from convsqueeze.kinds import fields, oracle
from convsqueeze.kinds.layer import Layer, Tensors
from convsqueeze.kinds.operators import Padding, padding_pairs


class PadLayer(Layer):
    """Padding alone; negative amounts crop."""

    type: Literal["pad"]
    padding: fields.Padding
    padding_mode: fields.PaddingMode = "zeros"

    def operator(self, tensors: Tensors, rank: int, channels: int) -> Conv:
        return pad(channels, padding=self.padding, rank=rank, padding_mode=self.padding_mode)

    def run(self, x: Tensor, tensors: Tensors) -> Tensor:
        return oracle.padded(x, self.padding, self.padding_mode)


def pad(channels: int, *, padding: Padding, rank: int, padding_mode: str = "zeros") -> Conv:
    """`torch.nn.functional.pad`: padding and nothing else; negative amounts crop."""
    pairs = padding_pairs(padding, rank)
    if padding_mode == "circular" and any(min(pair) < 0 < max(pair) for pair in pairs):
        raise GeometryError(
            f"circular padding {[list(pair) for pair in pairs]} crops one side and wraps what is "
            "left to the other, which is not the padding of one convolution"
        )
    axes = tuple(
        Axis(before=before, after=after, padding_mode=padding_mode) for before, after in pairs
    )
    return Conv(torch.ones(channels, 1, *(1,) * rank, dtype=torch.float64), None, axes, channels)
