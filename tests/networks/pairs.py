"""Two or three convolutions in a row, as published networks have them.

ConvNeXt `*_ols` stems (timm), the heads of Depth Anything V2 and the ends of Stable Diffusion's
autoencoder, the pointwise-depthwise pairs of Restormer and NAFNet, the stem of X3D, and separable
convolutions of Xception and DeepLab.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class OverlappingStem(nn.Module):
    """ConvNeXt-Atto-OLS: two 3x3 of stride 2 in place of one 4x4 of stride 4, then a norm."""

    def __init__(self, in_channels: int = 3, middle: int = 24, out_channels: int = 40) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, middle, 3, stride=2, padding=1),
            nn.Conv2d(middle, out_channels, 3, stride=2, padding=1),
            nn.GroupNorm(1, out_channels),
        )

    def linear_part(self, x: Tensor) -> Tensor:
        y: Tensor = self.stem[1](self.stem[0](x))
        return y


class DepthHead(nn.Module):
    """Depth Anything V2: the third of four features, projected, (not resized,) and refined."""

    def __init__(self, channels: int = 1024, features: int = 256) -> None:
        super().__init__()
        scratch = nn.Module()
        scratch.layer3_rn = nn.Conv2d(channels, features, 3, padding=1, bias=False)
        self.depth_head = nn.Module()
        self.depth_head.projects = nn.ModuleList(
            nn.Conv2d(channels, channels if index == 2 else 1, 1) for index in range(4)
        )
        self.depth_head.scratch = scratch

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.depth_head.scratch.layer3_rn(self.depth_head.projects[2](x))
        return y


class LatentEnds(nn.Module):
    """Stable Diffusion's autoencoder: the last layers before the latents, the first after them."""

    def __init__(self, channels: int = 512) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.conv_out = nn.Conv2d(channels, 8, 3, padding=1)
        self.quant_conv = nn.Conv2d(8, 8, 1)
        self.post_quant_conv = nn.Conv2d(4, 4, 1)
        self.decoder = nn.Module()
        self.decoder.conv_in = nn.Conv2d(4, channels, 3, padding=1)

    def encode(self, x: Tensor) -> Tensor:
        y: Tensor = self.quant_conv(self.encoder.conv_out(x))
        return y

    def decode(self, x: Tensor) -> Tensor:
        y: Tensor = self.decoder.conv_in(self.post_quant_conv(x))
        return y


class TransposedAttention(nn.Module):
    """Restormer: queries, keys and values from one 1x1 and one depthwise 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 3 * channels
        self.qkv = nn.Conv2d(channels, wide, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def queries_keys_values(self, x: Tensor) -> Tensor:
        y: Tensor = self.qkv_dwconv(self.qkv(x))
        return y

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.queries_keys_values(x).flatten(2).chunk(3, dim=1)
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).softmax(-1)
        y: Tensor = self.project_out((weights @ v).unflatten(2, x.shape[2:]))
        return y


class Restormer(nn.Module):
    """The first level of Restormer's encoder, attention only."""

    def __init__(self, channels: int = 48, blocks: int = 1) -> None:
        super().__init__()
        self.encoder_level1 = nn.Sequential()
        for index in range(blocks):
            block = nn.Sequential()
            block.add_module("attn", TransposedAttention(channels))
            self.encoder_level1.add_module(str(index), block)


class NafBlock(nn.Module):
    """NAFNet: 1x1 to twice the channels, depthwise 3x3, then a gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv2 = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)

    def linear_part(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.conv1(x))
        return y

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.linear_part(x).chunk(2, dim=1)
        return x + left * right


class NafNet(nn.Module):
    """The first encoder of NAFNet with width 32."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.encoders = nn.ModuleList([nn.Sequential(NafBlock(width))])


class VideoStem(nn.Module):
    """X3D: a convolution in space, a depthwise one in time, on (N, 3, T, H, W)."""

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        self.conv_t = nn.Conv3d(
            3, channels, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False
        )
        self.conv_xy = nn.Conv3d(
            channels, channels, (5, 1, 1), padding=(2, 0, 0), groups=channels, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv_xy(self.conv_t(x))
        return y


class SeparableConv(nn.Module):
    """Xception and DeepLab: depthwise 3x3 with dilation, in DeepLab a norm, then 1x1."""

    def __init__(self, channels: int, dilation: int, eps: float | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            channels,
            channels,
            3,
            padding=dilation,
            dilation=dilation,
            groups=channels,
            bias=False,
        )
        self.bn = None if eps is None else nn.BatchNorm2d(channels, eps=eps)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        y = self.pointwise(y if self.bn is None else self.bn(y))
        return y
