"""SESR: a small super-resolution network made of collapsible linear blocks.

After Bhardwaj et al., "Collapsible Linear Blocks for Super-Efficient Super Resolution",
MLSys 2022. It works on the luminance alone; values run from 0 to 1.
"""

import torch
from torch import Tensor, nn


class LinearBlock(nn.Module):
    """A wide k x k convolution and a 1x1 convolution, with nothing non-linear between them.

    It takes (N, in_channels, H, W) to (N, out_channels, H, W), by way of `expanded` channels.
    With `residual` the input is added to the result, so in_channels must equal out_channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        expanded: int = 256,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if residual and in_channels != out_channels:
            raise ValueError(f"a residual block cannot take {in_channels} to {out_channels}")
        self.expand = nn.Conv2d(
            in_channels, expanded, kernel_size, padding=kernel_size // 2, bias=False
        )
        self.project = nn.Conv2d(expanded, out_channels, 1)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.expand(x))
        return x + y if self.residual else y


class SESR(nn.Module):
    """Take a luminance picture (N, 1, H, W) to (N, 1, scale * H, scale * W)."""

    def __init__(
        self, channels: int = 16, expanded: int = 256, blocks: int = 5, scale: int = 2
    ) -> None:
        super().__init__()
        self.head = LinearBlock(1, channels, 5, expanded)
        self.body = nn.ModuleList(
            LinearBlock(channels, channels, 3, expanded, residual=True) for _ in range(blocks)
        )
        self.acts = nn.ModuleList(nn.PReLU(channels) for _ in range(blocks + 1))
        self.tail = LinearBlock(channels, scale**2, 5, expanded)
        self.shuffle = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = self.acts[0](self.head(x))  # (N, channels, H, W)
        y = first
        for block, act in zip(self.body, self.acts[1:], strict=True):
            y = act(block(y))
        y = self.tail(y + first)  # (N, scale**2, H, W)
        repeated = torch.cat([x] * y.shape[1], dim=1)
        out: Tensor = self.shuffle(y + repeated)
        return out
