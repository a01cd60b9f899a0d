"""Super-resolution networks whose blocks are wide linear layers while they train.

SESR: Bhardwaj et al., "Collapsible Linear Blocks for Super-Efficient Super Resolution", MLSys 2022.
SPAN: Wan et al., "Swift Parameter-free Attention Network", CVPRW 2024.
ECBSR: Zhang et al., "Edge-oriented Convolution Block for Real-time Super Resolution", ACM MM 2021.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CollapsibleBlock(nn.Module):
    """SESR: k x k to many channels, 1x1 back to few; with `residual` the input is added."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        expanded: int = 256,
        bias: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.conv_expand = nn.Conv2d(
            in_channels, expanded, kernel_size, padding=kernel_size // 2, bias=False
        )
        self.conv_squeeze = nn.Conv2d(expanded, out_channels, 1, bias=bias)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv_squeeze(self.conv_expand(x))
        return x + y if self.residual else y


class Sesr(nn.Module):
    """A whole SESR: (N, 1, H, W) to (N, 1, 2H, 2W)."""

    def __init__(self, channels: int = 8, expanded: int = 32, blocks: int = 2) -> None:
        super().__init__()
        self.head = CollapsibleBlock(1, channels, 5, expanded=expanded, bias=True)
        self.body = nn.ModuleList(
            CollapsibleBlock(channels, channels, 3, expanded=expanded, bias=True, residual=True)
            for _ in range(blocks)
        )
        self.acts = nn.ModuleList(nn.PReLU(channels) for _ in range(blocks + 1))
        self.tail = CollapsibleBlock(channels, 4, 5, expanded=expanded, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        first = y = self.acts[0](self.head(x))
        for block, act in zip(self.body, self.acts[1:], strict=True):
            y = act(block(y))
        return F.pixel_shuffle(self.tail(y + first) + x, 2)


class Conv3XC(nn.Module):
    """SPAN: three convolutions on a padded input beside a 1x1; `eval_conv` is a stored copy of
    their sum from some earlier step of training, which nothing here reads.
    """

    def __init__(self, channels: int, gain: int = 2) -> None:
        super().__init__()
        wide = gain * channels
        self.sk = nn.Conv2d(channels, channels, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(channels, wide, 1), nn.Conv2d(wide, wide, 3), nn.Conv2d(wide, channels, 1)
        )
        self.eval_conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.pad(x, (1, 1, 1, 1))) + self.sk(x)
        return y


class AttentionBlock(nn.Module):
    """SPAN: three of its convolutions, and an attention that is a function of the last one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.c1_r = Conv3XC(channels)
        self.c2_r = Conv3XC(channels)
        self.c3_r = Conv3XC(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c3_r(F.silu(self.c2_r(F.silu(self.c1_r(x)))))
        return (y + x) * (torch.sigmoid(y) - 0.5)


class Span(nn.Module):
    """The blocks of SPAN in a row: (N, channels, H, W) to the same."""

    def __init__(self, channels: int = 48, blocks: int = 1) -> None:
        super().__init__()
        for index in range(1, blocks + 1):
            self.add_module(f"block_{index}", AttentionBlock(channels))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.children():
            x = block(x)
        return x


EDGES = {
    "sbx": [[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]],
    "sby": [[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]],
    "lpl": [[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]],
}
"""Sobel in x, Sobel in y, Laplacian."""


class _FirstPointwise(nn.Module):
    """ECBSR: a 1x1 convolution whose output is padded by 1 with its own bias."""

    def __init__(self, in_channels: int, middle: int) -> None:
        super().__init__()
        self.k0 = nn.Parameter(torch.empty(middle, in_channels, 1, 1))
        self.b0 = nn.Parameter(torch.empty(middle))

    def padded(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.k0, self.b0)
        height, width = y.shape[2:]
        ring = self.b0.view(-1, 1, 1).repeat(len(y), 1, height + 2, width + 2)
        ring[:, :, 1:-1, 1:-1] = y
        return ring


class ExpandingBranch(_FirstPointwise):
    """ECBSR `conv1x1_3x3`: 1x1 to twice the channels, then 3x3."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, 2 * out_channels)
        self.k1 = nn.Parameter(torch.empty(out_channels, 2 * out_channels, 3, 3))
        self.b1 = nn.Parameter(torch.empty(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.padded(x), self.k1, self.b1)


class EdgeBranch(_FirstPointwise):
    """ECBSR `conv1x1_sbx`, `_sby`, `_lpl`: 1x1, then an edge filter scaled channel by channel."""

    def __init__(self, in_channels: int, out_channels: int, edge: str) -> None:
        super().__init__(in_channels, out_channels)
        self.scale = nn.Parameter(torch.empty(out_channels, 1, 1, 1))
        self.bias = nn.Parameter(torch.empty(out_channels))
        mask = torch.tensor(EDGES[edge]).repeat(out_channels, 1, 1, 1)
        self.mask = nn.Parameter(mask, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.scale * self.mask
        return F.conv2d(self.padded(x), weight, self.bias, groups=len(weight))


class EdgeBlock(nn.Module):
    """ECBSR: five branches (`branches`, the linear part), then an activation."""

    def __init__(self, in_channels: int, out_channels: int, act: nn.Module) -> None:
        super().__init__()
        self.conv3x3 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv1x1_3x3 = ExpandingBranch(in_channels, out_channels)
        self.conv1x1_sbx = EdgeBranch(in_channels, out_channels, "sbx")
        self.conv1x1_sby = EdgeBranch(in_channels, out_channels, "sby")
        self.conv1x1_lpl = EdgeBranch(in_channels, out_channels, "lpl")
        self.act = act

    def branches(self, x: Tensor) -> Tensor:
        edges = self.conv1x1_sbx(x) + self.conv1x1_sby(x) + self.conv1x1_lpl(x)
        y: Tensor = self.conv3x3(x) + self.conv1x1_3x3(x) + edges
        return y

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.branches(x))
        return y


class Ecbsr(nn.Module):
    """ECBSR m4c16 x2: (N, 1, H, W) to (N, 1, 2H, 2W)."""

    def __init__(self, blocks: int = 4, channels: int = 16) -> None:
        super().__init__()
        widths = [1, *[channels] * (blocks + 1)]
        body = [EdgeBlock(i, o, nn.PReLU(o)) for i, o in pairwise(widths)]
        self.backbone = nn.Sequential(*body, EdgeBlock(channels, 4, nn.Identity()))

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.backbone(x) + x, 2)
