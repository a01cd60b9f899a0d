"""The published networks as whole models, with few channels: each with a forward, and its regions.

`manifest` are the linear regions as they are written by hand; merges in it are the regions as a
whole, whether they pay or not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from tests.networks import manifests
from tests.networks.attention import LargeKernelAttention, SegNext
from tests.networks.branches import DiverseBranchBlock, MobileOne, RepVgg
from tests.networks.low_rank import LowRankConv
from tests.networks.pairs import (
    DepthHead,
    LatentEnds,
    NafNet,
    OverlappingStem,
    Restormer,
    SeparableConv,
    VideoStem,
)
from tests.networks.super_resolution import CollapsibleBlock, Ecbsr, Sesr, Span

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """A network, its regions by hand, and shapes of its inputs: the example's and others."""

    name: str
    build: Callable[[], nn.Module]
    manifest: str
    shapes: Sequence[tuple[Shape, ...]]


class Latents(LatentEnds):
    """Both ends of the autoencoder, called one after the other."""

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.encode(x), self.decode(z)


class Stem(OverlappingStem):
    """The stem, norm included."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.stem(x)
        return y


class RestormerLevel(Restormer):
    """The encoder's first level."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.encoder_level1(x)
        return y


class NafLevel(NafNet):
    """The first encoder."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.encoders[0](x)
        return y


class SegNextLevel(SegNext):
    """The first stage."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block1(x)
        return y


def _images(channels: int, *sizes: Shape) -> Sequence[tuple[Shape, ...]]:
    return tuple(((2, channels, *size),) for size in sizes)


_SIZES = ((8, 10), (9, 7), (1, 5))

BLOCKS: Sequence[Block] = (
    Block(
        "SESR collapsible block",
        lambda: nn.Sequential(CollapsibleBlock(3, 4, 5, expanded=8)),
        manifests.SESR_BLOCK,
        _images(3, *_SIZES),
    ),
    Block(
        "SESR residual block",
        lambda: nn.Sequential(CollapsibleBlock(3, 3, 3, expanded=8, bias=True, residual=True)),
        manifests.SESR_RESIDUAL_BLOCK,
        _images(3, *_SIZES),
    ),
    Block("SESR", lambda: Sesr(4, 9), manifests.SESR, _images(1, *_SIZES)),
    Block("SPAN", lambda: Span(3), manifests.SPAN, _images(3, *_SIZES)),
    Block("ECBSR", lambda: Ecbsr(1, 3), manifests.ecbsr(1, 3), _images(1, *_SIZES)),
    Block(
        "Diverse Branch Block",
        lambda: nn.Sequential(DiverseBranchBlock(4, eps=1e-3)),
        manifests.DIVERSE_BRANCH_BLOCK,
        _images(4, *_SIZES),
    ),
    Block(
        "Diverse Branch Block, depthwise",
        lambda: nn.Sequential(DiverseBranchBlock(4, groups=4, stride=2)),
        manifests.DEPTHWISE_DIVERSE_BRANCH_BLOCK.replace("groups: 16", "groups: 4"),
        _images(4, *_SIZES),
    ),
    Block("RepVGG", lambda: RepVgg(4), manifests.REP_VGG, _images(3, *_SIZES)),
    Block(
        "MobileOne",
        lambda: MobileOne(((4, 2),), first=3),
        manifests.mobile_one(((4, 2),), first=3),
        _images(3, *_SIZES),
    ),
    Block(
        "Stable Diffusion VAE",
        lambda: Latents(5),
        manifests.VAE_ENCODER
        + "  - first: {name: post_quant_conv}\n"
        + "    second: {name: decoder.conv_in, padding: 1}\n",
        tuple(((2, 5, *size), (2, 4, *size)) for size in _SIZES),
    ),
    Block(
        "Restormer",
        lambda: RestormerLevel(3),
        manifests.RESTORMER.replace("144", "9"),
        _images(3, *_SIZES),
    ),
    Block("NAFNet", lambda: NafLevel(2), manifests.NAFNET.replace("64", "4"), _images(2, *_SIZES)),
    Block(
        "X3D stem",
        lambda: VideoStem(2),
        manifests.X3D_STEM.replace("24", "2"),
        _images(3, (4, 6, 7), (3, 5, 5), (1, 2, 3)),
    ),
    Block(
        "Xception separable",
        lambda: SeparableConv(3, dilation=2),
        manifests.XCEPTION.replace("64", "3"),
        _images(3, *_SIZES),
    ),
    Block(
        "DeepLab separable with norm",
        lambda: SeparableConv(3, dilation=4, eps=1e-3),
        manifests.DEEPLAB.replace("64", "3"),
        _images(3, *_SIZES),
    ),
    Block("LoCon", lambda: LowRankConv(4), manifests.LOCON, _images(4, *_SIZES)),
    Block(
        "LoCon, Tucker",
        lambda: LowRankConv(4, tucker=True),
        manifests.LOCON_TUCKER,
        _images(4, *_SIZES),
    ),
    Block(
        "ConvNeXt-OLS stem",
        lambda: Stem(3, 16, 4),
        manifests.OVERLAPPING_STEM,
        _images(3, (11, 12), (9, 7), (1, 5)),
    ),
    Block(
        "Depth Anything V2 head", lambda: DepthHead(6, 2), manifests.DEPTH_HEAD, _images(6, *_SIZES)
    ),
    Block(
        "two 3x3",
        lambda: nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)),
        manifests.TWICE_3X3,
        _images(4, *_SIZES),
    ),
    Block(
        "VAN large kernel attention",
        lambda: LargeKernelAttention(2),
        manifests.large_kernel_attention_whole(2),
        _images(2, (20, 23), (9, 7), (1, 5)),
    ),
    Block(
        "SegNeXt attention",
        lambda: SegNextLevel(2),
        manifests.multi_scale_attention_whole(2, (7, 11, 21)),
        _images(2, (12, 23), (9, 7), (1, 5)),
    ),
)
