"""Blocks of parallel branches that are one convolution when they are used.

Diverse Branch Block: Ding et al., CVPR 2021. RepVGG: Ding et al., CVPR 2021.
MobileOne: Vasu et al., CVPR 2023.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv_bn(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    eps: float = 1e-5,
) -> nn.Sequential:
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False
    )
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels, eps=eps)))


class BiasedByIdentity(nn.Conv2d):
    """Diverse Branch Block `idconv1`: a 1x1 convolution that stores its weight minus identity."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        eye = torch.eye(self.in_channels, dtype=x.dtype)[:, :, None, None]
        return F.conv2d(x, self.weight + eye)


class NormAndPad(nn.Module):
    """Diverse Branch Block: a norm, then padding with what the norm makes of zero."""

    def __init__(self, channels: int, padding: int, eps: float) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, eps=eps)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        of_zero = self.bn(x.new_zeros(1, x.shape[1], 1, 1))
        y: Tensor = F.pad(self.bn(x) - of_zero, [self.padding] * 4) + of_zero
        return y


class DiverseBranchBlock(nn.Module):
    """Four branches over one input, 3x3. Depthwise (`groups`) it has no 1x1 branch, and its
    1x1-3x3 branch is twice as wide.
    """

    def __init__(
        self, channels: int, *, groups: int = 1, stride: int = 1, eps: float = 1e-5
    ) -> None:
        super().__init__()
        depthwise = groups == channels
        middle = 2 * channels if depthwise else channels
        first = nn.Conv2d(channels, middle, 1, groups=groups, bias=False)
        second = nn.Conv2d(middle, channels, 3, stride, groups=groups, bias=False)
        self.dbb_origin = _conv_bn(
            channels, channels, 3, stride=stride, padding=1, groups=groups, eps=eps
        )
        self.dbb_avg = nn.Sequential()
        self.dbb_1x1_kxk = nn.Sequential()
        if depthwise:
            self.dbb_avg.add_module("avg", nn.AvgPool2d(3, stride, padding=1))
            self.dbb_1x1_kxk.add_module("conv1", first)
        else:
            self.dbb_avg.add_module("conv", nn.Conv2d(channels, channels, 1, bias=False))
            self.dbb_avg.add_module("bn", NormAndPad(channels, 1, eps))
            self.dbb_avg.add_module("avg", nn.AvgPool2d(3, stride))
            self.dbb_1x1 = _conv_bn(channels, channels, 1, stride=stride, eps=eps)
            self.dbb_1x1_kxk.add_module("idconv1", BiasedByIdentity(channels))
        self.dbb_avg.add_module("avgbn", nn.BatchNorm2d(channels, eps=eps))
        self.dbb_1x1_kxk.add_module("bn1", NormAndPad(middle, 1, eps))
        self.dbb_1x1_kxk.add_module("conv2", second)
        self.dbb_1x1_kxk.add_module("bn2", nn.BatchNorm2d(channels, eps=eps))

    def forward(self, x: Tensor) -> Tensor:
        return sum((branch(x) for branch in self.children()), torch.zeros((), dtype=x.dtype))


class RepVggBlock(nn.Module):
    """3x3, 1x1 and, where the size stays, a norm alone (`branches`, the linear part); then ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, eps: float) -> None:
        super().__init__()
        self.nonlinearity = nn.ReLU()
        stays = in_channels == out_channels and stride == 1
        self.rbr_identity = nn.BatchNorm2d(in_channels, eps=eps) if stays else None
        self.rbr_dense = _conv_bn(in_channels, out_channels, 3, stride=stride, padding=1, eps=eps)
        self.rbr_1x1 = _conv_bn(in_channels, out_channels, 1, stride=stride, eps=eps)

    def branches(self, x: Tensor) -> Tensor:
        y: Tensor = self.rbr_dense(x) + self.rbr_1x1(x)
        return y if self.rbr_identity is None else y + self.rbr_identity(x)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.nonlinearity(self.branches(x))
        return y


class RepVgg(nn.Module):
    """The first stages of a RepVGG: (N, 3, H, W) to (N, channels, H/4, W/4)."""

    def __init__(self, channels: int = 16, eps: float = 1e-5) -> None:
        super().__init__()
        self.stage0 = RepVggBlock(3, channels, 2, eps)
        self.stage1 = nn.Sequential(
            RepVggBlock(channels, channels, 2, eps),
            RepVggBlock(channels, channels, 1, eps),
            RepVggBlock(channels, channels, 1, eps),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.stage1(self.stage0(x))
        return y


class MobileOneBlock(nn.Module):
    """Several k x k branches, a 1x1 where k > 1, a norm where the size stays (`branches`, the
    linear part); then ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        count: int = 4,
    ) -> None:
        super().__init__()
        stays = in_channels == out_channels and stride == 1
        self.rbr_skip = nn.BatchNorm2d(in_channels) if stays else None
        self.rbr_conv = nn.ModuleList(
            _conv_bn(
                in_channels,
                out_channels,
                kernel_size,
                stride=stride,
                padding=kernel_size // 2,
                groups=groups,
            )
            for _ in range(count)
        )
        self.rbr_scale = (
            _conv_bn(in_channels, out_channels, 1, stride=stride, groups=groups)
            if kernel_size > 1
            else None
        )

    def branches(self, x: Tensor) -> Tensor:
        every = [*self.rbr_conv, self.rbr_scale, self.rbr_skip]
        return torch.stack([branch(x) for branch in every if branch is not None]).sum(0)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branches(x))


class MobileOne(nn.Module):
    """MobileOne without its classifier, S0 by default: (N, 3, H, W) to (N, 1024, H/32, W/32)."""

    STAGES = ((48, 2), (128, 8), (256, 10), (1024, 1))
    """Output channels and the number of depthwise-pointwise pairs of each stage after the first."""

    def __init__(self, stages: Sequence[tuple[int, int]] = STAGES, first: int = 48) -> None:
        super().__init__()
        self.stage0 = MobileOneBlock(3, first, 3, stride=2, count=1)
        width = first
        for index, (channels, pairs) in enumerate(stages, start=1):
            blocks = []
            for stride in [2] + [1] * (pairs - 1):
                blocks.append(MobileOneBlock(width, width, 3, stride=stride, groups=width))
                blocks.append(MobileOneBlock(width, channels, 1))
                width = channels
            self.add_module(f"stage{index}", nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.children():
            x = stage(x)
        return x
