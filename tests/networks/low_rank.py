"""LoCon: low-rank additions to a trained convolution, as LyCORIS stores them.

Yeh et al., "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation",
ICLR 2024.
"""

import torch
from torch import Tensor, nn


class Addition(nn.Module):
    """`alpha / rank` times a k x k convolution to `rank` channels and a 1x1 back.

    Tucker's form has a 1x1, a k x k on `rank` channels, and a 1x1.
    """

    def __init__(self, base: nn.Conv2d, rank: int, alpha: float, *, tucker: bool) -> None:
        super().__init__()
        geometry = {"stride": base.stride, "padding": base.padding, "bias": False}
        if tucker:
            self.lora_down = nn.Conv2d(base.in_channels, rank, 1, bias=False)
            self.lora_mid = nn.Conv2d(rank, rank, base.kernel_size, **geometry)
        else:
            self.lora_down = nn.Conv2d(base.in_channels, rank, base.kernel_size, **geometry)
            self.lora_mid = None
        self.lora_up = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        self.register_buffer("alpha", torch.tensor(alpha))
        self.rank = rank

    def forward(self, x: Tensor) -> Tensor:
        y = self.lora_down(x)
        if self.lora_mid is not None:
            y = self.lora_mid(y)
        y = self.lora_up(y) * (self.alpha / self.rank)
        return y


class LowRankConv(nn.Module):
    """A trained convolution and its addition."""

    def __init__(self, channels: int = 24, rank: int = 4, *, tucker: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.lora = Addition(self.conv, rank, 2.5, tucker=tucker)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) + self.lora(x)
        return y
