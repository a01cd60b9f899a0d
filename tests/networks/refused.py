"""The published networks that no plain convolution can replace, a row each, and what corrections at
the border make of them.

Layers on `t` border taps an axis beside the `k` of the merged kernel store `(k + t) ** 2` taps, and
`(1 + b) ** 2` biases where `b` border taps of biases stand beside the one bias.
"""

from collections.abc import Callable, Sequence

from torch import nn

from . import manifests
from .attention import LargeKernelAttention, MultiScaleAttention, SegNext
from .pairs import DepthHead, LatentEnds, NafNet, OverlappingStem
from .rows import Published, Refusal, Row, Size, submodule

SMALLEST: tuple[Size, ...] = ((1, 1), (2, 5))
ATTENDED: tuple[Size, ...] = ((56, 56), (23, 31), (12, 20), *SMALLEST)
STRIPS = MultiScaleAttention.STRIPS


def on_every_side(rows: int) -> Callable[[int], set[int]]:
    """The first and the last `rows` rows of an output that is as large as its input."""
    return lambda size: {r for r in range(size) if r < rows or r >= size - rows}


def _stem_rows(size: int) -> set[int]:
    """The first row, and the last where the second layer of stride 2 reads past an odd middle."""
    middle = (size + 1) // 2
    return {0, (middle - 1) // 2} if middle % 2 else {0}


def _unbiased_attention_rows(size: int) -> set[int]:
    """Of nine rows those that read the two ring samples from which a 5x5 reaches the image."""
    reach = {1, 2, 4, 5, 7, 8}
    return {r for r in range(size) if r in reach or size - 1 - r in reach}


def _two_3x3(*channels: int) -> nn.Module:
    first, middle, last = channels
    return nn.Sequential(
        nn.Conv2d(first, middle, 3, padding=1), nn.Conv2d(middle, last, 3, padding=1)
    )


_ONE_ROW = "1 output row on every side would differ"

_PAIRS: Sequence[Row] = (
    Row(
        "ConvNeXt-Atto-OLS stem",
        OverlappingStem,
        manifests.OVERLAPPING_STEM,
        before=9_352,
        after=5_920,
        corrected=120 * 8**2 + 40 * 3**2,
        sizes=((64, 64), (66, 42), (37, 3), *SMALLEST),
        part=submodule("stem.0", "linear_part"),
        refusal=Refusal(
            (
                "stem.1 pads what it reads",
                "stem.0 (3x3, bias) is not zero outside the image",
            ),
            "1 row at the top, 1 column at the left and for some input sizes "
            "1 row at the bottom, 1 column at the right would differ",
            _stem_rows,
            at=(64, 64),
            pixels=31 / 256,
        ),
        small=(lambda: OverlappingStem(2, 3, 2), manifests.OVERLAPPING_STEM),
    ),
    Row(
        "Depth Anything V2 head",
        lambda: DepthHead(64, 16),
        manifests.DEPTH_HEAD,
        before=64 * 64 + 64 + 64 * 16 * 9,
        after=64 * 16 * 9 + 16,
        corrected=64 * 16 * 9 + 16 * 3**2,
        form="biases",
        sizes=((16, 16), (9, 14), *SMALLEST),
        refusal=Refusal(
            (
                "depth_head.scratch.layer3_rn pads what it reads",
                "depth_head.projects.2 (1x1, bias) is not zero outside the image",
            ),
            _ONE_ROW,
            on_every_side(1),
            at=(16, 16),
            pixels=60 / 256,
        ),
        small=(lambda: DepthHead(3, 2), manifests.DEPTH_HEAD),
        published=Published(
            DepthHead,
            manifests.DEPTH_HEAD,
            before=3_408_896,
            after=2_359_552,
            corrected=2_359_296 + 256 * 3**2,
        ),
    ),
    Row(
        "Stable Diffusion VAE, decoder",
        LatentEnds,
        manifests.VAE_DECODER,
        before=18_964,
        after=18_944,
        corrected=18_432 + 512 * 3**2,
        form="biases",
        sizes=((64, 64), (9, 14), *SMALLEST),
        part=submodule("post_quant_conv", "decode"),
        refusal=Refusal(
            (
                "decoder.conv_in pads what it reads",
                "post_quant_conv (1x1, bias) is not zero outside the image",
            ),
            _ONE_ROW,
            on_every_side(1),
            at=(64, 64),
            pixels=252 / 4096,
        ),
        small=(lambda: LatentEnds(5), manifests.VAE_DECODER),
    ),
    Row(
        "NAFNet conv1, conv2",
        NafNet,
        manifests.NAFNET,
        before=32 * 64 + 64 + 64 * 9 + 64,
        after=64 * 32 * 9 + 64,
        corrected=64 * 32 * 9 + 64 * 3**2,
        form="biases",
        times=6.7,
        sizes=((16, 16), (9, 14), *SMALLEST),
        part=submodule(".conv1", "linear_part"),
        refusal=Refusal(
            (
                "encoders.0.0.conv2 pads what it reads",
                "encoders.0.0.conv1 (1x1, bias) is not zero outside the image",
            ),
            _ONE_ROW,
            on_every_side(1),
            at=(16, 16),
            pixels=60 / 256,
        ),
        small=(lambda: NafNet(2), manifests.NAFNET.replace("64", "4")),
    ),
    Row(
        "two 3x3, 5 -> 3 -> 1 channels",
        lambda: _two_3x3(5, 3, 1),
        manifests.TWICE_3X3,
        before=5 * 3 * 9 + 3 + 3 * 9 + 1,
        after=5 * 25 + 1,
        corrected=5 * 7**2 + 3**2,
        sizes=((6, 6), (9, 14), (3, 4), *SMALLEST),
        refusal=Refusal(
            ("1 pads what it reads", "0 (3x3, bias) is not zero outside the image"),
            _ONE_ROW,
            on_every_side(1),
            at=(6, 6),
            pixels=20 / 36,
        ),
        small=(lambda: _two_3x3(5, 3, 1), manifests.TWICE_3X3),
    ),
    Row(
        "two 3x3, 16 -> 64 -> 16 channels",
        lambda: _two_3x3(16, 64, 16),
        manifests.TWICE_3X3,
        before=16 * 64 * 9 + 64 + 64 * 16 * 9 + 16,
        after=16 * 16 * 25 + 16,
        corrected=16 * 16 * 7**2 + 16 * 3**2,
        sizes=((16, 16), (9, 14), *SMALLEST),
        refusal=Refusal(
            ("1 pads what it reads", "0 (3x3, bias) is not zero outside the image"),
            _ONE_ROW,
            on_every_side(1),
            at=(16, 16),
            pixels=60 / 256,
        ),
    ),
)

_VAN_BIAS = ("conv_spatial pads what it reads", "conv0 (5x5, bias) is not zero outside the image")
_VAN_ROWS = "9 output rows on every side would differ"

_VAN: Sequence[Row] = (
    Row(
        "VAN large kernel attention",
        lambda: LargeKernelAttention(2),
        manifests.large_kernel_attention(2),
        before=2 * (25 + 1 + 49 + 1),
        after=2 * (23**2 + 1),
        corrected=2 * (35**2 + 7**2),
        times=7.0,
        sizes=ATTENDED,
        part=submodule("conv0", "depthwise_part"),
        refusal=Refusal(_VAN_BIAS, _VAN_ROWS, on_every_side(9), (56, 56), 1 - (38 / 56) ** 2),
        published=Published(
            lambda: LargeKernelAttention(32),
            manifests.large_kernel_attention(32),
            before=2_432,
            after=16_960,
            corrected=32 * (35**2 + 7**2),
        ),
    ),
    Row(
        "VAN without its biases",
        lambda: LargeKernelAttention(2, bias=False),
        manifests.large_kernel_attention(2),
        before=2 * (25 + 49),
        after=2 * 23**2,
        corrected=2 * 35**2,
        times=7.1,
        sizes=ATTENDED,
        part=submodule("conv0", "depthwise_part"),
        refusal=Refusal(
            (
                "conv_spatial pads what it reads",
                "conv0 (5x5) sees the image from outside it",
            ),
            "9 (output rows on every side|rows at the top, 9 rows at the bottom)",
            _unbiased_attention_rows,
            at=(56, 56),
            pixels=1 - (44 / 56) ** 2,
        ),
        published=Published(
            lambda: LargeKernelAttention(32, bias=False),
            manifests.large_kernel_attention(32),
            before=2_368,
            after=16_928,
            corrected=32 * 35**2,
        ),
    ),
    Row(
        "VAN, the 1x1 too",
        lambda: LargeKernelAttention(2),
        manifests.large_kernel_attention_whole(2),
        before=2 * (25 + 1 + 49 + 1) + 2 * 2 + 2,
        after=2 * 2 * 23**2 + 2,
        corrected=2 * 2 * 35**2 + 2 * 7**2,
        times=13.4,
        sizes=ATTENDED,
        part=submodule("conv0", "linear_part"),
        refusal=Refusal(
            _VAN_BIAS, _VAN_ROWS, on_every_side(9), (56, 56), 1 - (38 / 56) ** 2, ".chain[1]"
        ),
        published=Published(
            lambda: LargeKernelAttention(32),
            manifests.large_kernel_attention_whole(32),
            before=3_488,
            after=541_728,
            corrected=32 * 32 * 35**2 + 32 * 7**2,
        ),
    ),
)

_SEGNEXT_REFUSAL = Refusal(
    ("conv0_2 pads what it reads", "conv0_1 (1x7, bias) is not zero outside the image"),
    "10 output rows on every side would differ",
    on_every_side(10),
    at=(56, 56),
    pixels=1 - (36 / 56) ** 2,
    blamed=".chain[1].sum[1].chain[1]",
)

_SEGNEXT: Sequence[Row] = (
    Row(
        "SegNeXt attention, depthwise",
        lambda: SegNext(2),
        manifests.multi_scale_attention(2, STRIPS),
        before=2 * (25 + 1 + 2 * (7 + 11 + 21) + 6),
        after=2 * (25**2 + 1),
        corrected=2 * (65**2 + 21**2),
        times=5.7,
        sizes=ATTENDED,
        part=submodule(".conv0", "depthwise_part"),
        refusal=_SEGNEXT_REFUSAL,
        published=Published(
            lambda: SegNext(32),
            manifests.multi_scale_attention(32, STRIPS),
            before=3_520,
            after=20_032,
            corrected=32 * (65**2 + 21**2),
        ),
    ),
    Row(
        "SegNeXt attention, the 1x1 too",
        lambda: SegNext(2),
        manifests.multi_scale_attention_whole(2, STRIPS),
        before=2 * (25 + 1 + 2 * (7 + 11 + 21) + 6) + 2 * 2 + 2,
        after=2 * 2 * 25**2 + 2,
        corrected=2 * 2 * 65**2 + 2 * 21**2,
        times=11.1,
        sizes=ATTENDED,
        part=submodule(".conv0", "linear_part"),
        refusal=_SEGNEXT_REFUSAL,
        published=Published(
            lambda: SegNext(32),
            manifests.multi_scale_attention_whole(32, STRIPS),
            before=4_576,
            after=640_032,
            corrected=32 * 32 * 65**2 + 32 * 21**2,
        ),
    ),
)

REFUSED: Sequence[Row] = (*_PAIRS, *_VAN, *_SEGNEXT)
