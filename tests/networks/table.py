"""The published networks that are exact as one plain convolution, a row each, and what plain merges
make of all of them.

The figures count every stored number that a merge takes away or puts in its place: kernels,
biases, norms (running statistics included), fixed masks; no counters of batches.
"""

from collections.abc import Sequence

from torch import nn

from . import manifests
from .branches import DiverseBranchBlock, MobileOne, RepVgg
from .low_rank import LowRankConv
from .pairs import LatentEnds, Restormer, SeparableConv, VideoStem
from .refused import REFUSED
from .rows import Row, outcome_of, submodule
from .super_resolution import CollapsibleBlock, Ecbsr, Span

USUAL = ((16, 16), (9, 14), (1, 5))
"""Square, odd by even, and smaller than a kernel."""


EXACT: Sequence[Row] = (
    Row(
        "SESR collapsible block",
        lambda: nn.Sequential(CollapsibleBlock(16, 16, 5)),
        manifests.SESR_BLOCK,
        before=106_496,
        after=6_400,
        sizes=USUAL,
        small=(
            lambda: nn.Sequential(CollapsibleBlock(3, 4, 5, expanded=8)),
            manifests.SESR_BLOCK,
        ),
    ),
    Row(
        "SESR residual block",
        lambda: nn.Sequential(CollapsibleBlock(16, 16, 3, bias=True, residual=True)),
        manifests.SESR_RESIDUAL_BLOCK,
        before=16 * 256 * 9 + 256 * 16 + 16,
        after=16 * 16 * 9 + 16,
        sizes=USUAL,
        small=(
            lambda: nn.Sequential(CollapsibleBlock(3, 3, 3, expanded=8, bias=True, residual=True)),
            manifests.SESR_RESIDUAL_BLOCK,
        ),
    ),
    Row(
        "SPAN Conv3XC (three)",
        Span,
        manifests.SPAN,
        before=3 * 115_536,
        after=3 * 20_784,
        sizes=USUAL,
        part=submodule(".eval_conv"),
        small=(lambda: Span(3), manifests.SPAN),
    ),
    Row(
        "ECBSR m4c16 x2 (six)",
        Ecbsr,
        manifests.ecbsr(4, 16),
        before=42_144,
        after=10_020,
        sizes=USUAL,
        part=submodule(".conv3x3", "branches"),
        small=(lambda: Ecbsr(0, 2), manifests.ecbsr(0, 2)),
    ),
    Row(
        "Diverse Branch Block",
        lambda: nn.Sequential(DiverseBranchBlock(16, eps=1e-3)),
        manifests.DIVERSE_BRANCH_BLOCK,
        before=21 * 16 * 16 + 24 * 16,
        after=9 * 16 * 16 + 16,
        sizes=USUAL,
        small=(
            lambda: nn.Sequential(DiverseBranchBlock(2, eps=1e-3)),
            manifests.DIVERSE_BRANCH_BLOCK,
        ),
    ),
    Row(
        "Diverse Branch Block, depthwise",
        lambda: nn.Sequential(DiverseBranchBlock(16, groups=16, stride=2)),
        manifests.DEPTHWISE_DIVERSE_BRANCH_BLOCK,
        before=49 * 16,
        after=10 * 16,
        sizes=USUAL,
        small=(
            lambda: nn.Sequential(DiverseBranchBlock(4, groups=4, stride=2)),
            manifests.DEPTHWISE_DIVERSE_BRANCH_BLOCK.replace("groups: 16", "groups: 4"),
        ),
    ),
    Row(
        "RepVGG (four)",
        RepVgg,
        manifests.REP_VGG,
        before=(432 + 48 + 2 * 64) + (2_304 + 256 + 2 * 64) + 2 * (2_304 + 256 + 3 * 64),
        after=(432 + 16) + 3 * (2_304 + 16),
        sizes=USUAL,
        part=submodule(".rbr_reparam", "branches"),
        small=(lambda: RepVgg(4), manifests.REP_VGG),
    ),
    Row(
        "MobileOne-S0 (43)",
        MobileOne,
        manifests.mobile_one(MobileOne.STAGES, 48),
        before=4_268_272 + 2 * 44_096,
        after=1_053_504,
        sizes=((8, 8), (5, 7), (1, 2)),
        part=submodule(".reparam_conv", "branches"),
        small=(
            lambda: MobileOne(((4, 2),), first=3),
            manifests.mobile_one(((4, 2),), first=3),
        ),
        verify=9,
    ),
    Row(
        "Stable Diffusion VAE, encoder",
        LatentEnds,
        manifests.VAE_ENCODER,
        before=36_944,
        after=36_872,
        sizes=USUAL,
        part=submodule("encoder.conv_out", "encode"),
        small=(lambda: LatentEnds(5), manifests.VAE_ENCODER),
    ),
    Row(
        "Restormer qkv",
        Restormer,
        manifests.RESTORMER,
        before=48 * 144 + 144 * 9,
        after=144 * 48 * 9,
        times=7.6,
        sizes=USUAL,
        part=submodule(".qkv", "queries_keys_values"),
        small=(lambda: Restormer(3), manifests.RESTORMER.replace("144", "9")),
    ),
    Row(
        "X3D stem",
        VideoStem,
        manifests.X3D_STEM,
        before=24 * 3 * 9 + 24 * 5,
        after=24 * 3 * 45,
        times=4.2,
        sizes=((6, 8, 8), (5, 7, 9), (1, 2, 3)),
        small=(lambda: VideoStem(2), manifests.X3D_STEM.replace("24", "2")),
    ),
    Row(
        "Xception separable",
        lambda: SeparableConv(64, dilation=2),
        manifests.XCEPTION,
        before=64 * 9 + 64 * 64,
        after=64 * 64 * 9,
        times=7.9,
        sizes=USUAL,
        small=(lambda: SeparableConv(3, dilation=2), manifests.XCEPTION.replace("64", "3")),
    ),
    Row(
        "DeepLab separable with norm",
        lambda: SeparableConv(64, dilation=4, eps=1e-3),
        manifests.DEEPLAB,
        before=64 * 9 + 4 * 64 + 64 * 64,
        after=64 * 64 * 9 + 64,
        times=7.5,
        sizes=USUAL,
        small=(
            lambda: SeparableConv(3, dilation=4, eps=1e-3),
            manifests.DEEPLAB.replace("64", "3"),
        ),
    ),
    Row(
        "LoCon",
        LowRankConv,
        manifests.LOCON,
        before=24 * 24 * 9 + 24 + 4 * 24 * 9 + 24 * 4 + 1,
        after=24 * 24 * 9 + 24,
        sizes=USUAL,
        small=(lambda: LowRankConv(4), manifests.LOCON),
    ),
    Row(
        "LoCon, Tucker",
        lambda: LowRankConv(tucker=True),
        manifests.LOCON_TUCKER,
        before=24 * 24 * 9 + 24 + 4 * 24 + 4 * 4 * 9 + 24 * 4 + 1,
        after=24 * 24 * 9 + 24,
        sizes=USUAL,
        small=(lambda: LowRankConv(4, tucker=True), manifests.LOCON_TUCKER),
    ),
)


def lines() -> list[str]:
    """The table in Markdown, from real merges."""
    head = "| network | plain merge exact | weights before -> after | largest error / bound |"
    table = [head, "| --- | --- | --- | --- |"]
    for row in (*EXACT, *REFUSED):
        outcome = outcome_of(row)
        verdict = "yes"
        if row.refusal is not None:
            size = "x".join(map(str, row.refusal.at))
            verdict = (
                f"no: {outcome.pixels:.0%} of pixels at {size}, off by {outcome.ring:.0%} there"
            )
        growth = f" (grows {row.times} times)" if row.times else ""
        table.append(
            f"| {row.network} | {verdict} | {row.before:,} -> {row.after:,}{growth} "
            f"| {outcome.error:.1e} / {outcome.bound:.1e} |"
        )
    return table
