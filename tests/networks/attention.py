"""Attention made of depthwise convolutions with large kernels, and the 1x1 behind them.

VAN: Guo et al., "Visual Attention Network", CVMJ 2023. SegNeXt: Guo et al., NeurIPS 2022.
"""

from torch import Tensor, nn


class LargeKernelAttention(nn.Module):
    """VAN: depthwise 5x5, depthwise 7x7 of dilation 3, 1x1; the result weighs the input."""

    def __init__(self, channels: int = 32, *, bias: bool = True) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=bias)
        self.conv_spatial = nn.Conv2d(
            channels, channels, 7, padding=9, dilation=3, groups=channels, bias=bias
        )
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=bias)

    def depthwise_part(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv_spatial(self.conv0(x))
        return y

    def linear_part(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv1(self.depthwise_part(x))
        return y

    def forward(self, x: Tensor) -> Tensor:
        return x * self.linear_part(x)


class MultiScaleAttention(nn.Module):
    """SegNeXt: depthwise 5x5, three pairs of strips added, 1x1; the result weighs the input."""

    STRIPS = (7, 11, 21)

    def __init__(self, channels: int) -> None:
        super().__init__()

        def depthwise(*kernel_size: int) -> nn.Conv2d:
            padding = tuple(n // 2 for n in kernel_size)
            return nn.Conv2d(channels, channels, kernel_size, padding=padding, groups=channels)

        self.conv0 = depthwise(5, 5)
        for index, length in enumerate(self.STRIPS):
            self.add_module(f"conv{index}_1", depthwise(1, length))
            self.add_module(f"conv{index}_2", depthwise(length, 1))
        self.conv3 = nn.Conv2d(channels, channels, 1)

    def depthwise_part(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv0(x)
        strips = [
            self.get_submodule(f"conv{index}_2")(self.get_submodule(f"conv{index}_1")(y))
            for index in range(len(self.STRIPS))
        ]
        return sum(strips, y)

    def linear_part(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv3(self.depthwise_part(x))
        return y

    def forward(self, x: Tensor) -> Tensor:
        return x * self.linear_part(x)


class SpatialAttention(nn.Module):
    """SegNeXt: 1x1 and GELU, the attention, 1x1, and the input added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(channels, channels, 1)
        self.activation = nn.GELU()
        self.spatial_gating_unit = MultiScaleAttention(channels)
        self.proj_2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.spatial_gating_unit(self.activation(self.proj_1(x)))
        return x + self.proj_2(y)


class SegNext(nn.Module):
    """The first stage of SegNeXt's backbone, attention only; 32 channels in its smallest size."""

    def __init__(self, channels: int = 32, blocks: int = 1) -> None:
        super().__init__()
        self.block1 = nn.Sequential()
        for index in range(blocks):
            block = nn.Sequential()
            block.add_module("attn", SpatialAttention(channels))
            self.block1.add_module(str(index), block)
