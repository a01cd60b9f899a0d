"""Reshaping, resizing, windows, pads and norms between two pairs of convolutions."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.scan.negatives.rows import Row, activation, apart, between, in_code, other


def _without_first_channel(y: Tensor) -> Tensor:
    z = y.clone()
    z[:, 0] = 0.0
    return z


def _pasted(y: Tensor) -> Tensor:
    z = y.new_zeros(2, 4, 11, 11)
    z[:, :, 1:-1, 1:-1] = y
    return z


RESHAPED: Sequence[Row] = (
    between(
        "nn.Upsample",
        lambda m, y: m.e(y),
        other("upsample_nearest2d"),
        e=lambda: nn.Upsample(scale_factor=2),
    ),
    between(
        "interpolate",
        lambda m, y: F.interpolate(y, (12, 12), mode="bilinear"),
        other("upsample_bilinear2d"),
    ),
    between(
        "interpolate by 1",
        lambda m, y: F.interpolate(y, scale_factor=1),
        other("upsample_nearest2d"),
    ),
    between("pixel_shuffle", lambda m, y: F.pixel_shuffle(y, 2), other("pixel_shuffle"), taken=1),
    between(
        "pixel_unshuffle",
        lambda m, y: F.pixel_unshuffle(F.pad(y, (0, 1, 0, 1)), 2),
        other("pixel_unshuffle"),
        (("a", "b", "pad"), "in code", "pad stands"),
        width=1,
    ),
    between(
        "cat",
        lambda m, y: torch.cat([y, -y], 1),
        apart("read elsewhere", "cat"),
        taken=8,
    ),
    between("cat of one", lambda m, y: torch.cat([y], 1), other("cat")),
    between("cat of slices", lambda m, y: torch.cat([y[:, 2:], y[:, :2]], 1), other("slice")),
    between("chunk", lambda m, y: torch.cat(y.chunk(2, 1)[::-1], 1), other("split")),
    between("split", lambda m, y: y.split([1, 3], 1)[1], other("split"), taken=3),
    between("unbind", lambda m, y: torch.stack(y.unbind(1), 1), other("unbind")),
    between("permute", lambda m, y: y.permute(0, 1, 3, 2), other("permute")),
    between(
        "there and back", lambda m, y: y.permute(0, 2, 3, 1).permute(0, 3, 1, 2), other("permute")
    ),
    between("transpose", lambda m, y: y.transpose(2, 3), other("transpose")),
    between("roll", lambda m, y: y.roll(1, -1), other("roll")),
    between("flip", lambda m, y: y.flip(-1), other("flip")),
    between(
        "channel_shuffle",
        lambda m, y: m.e(y),
        other("channel_shuffle"),
        e=lambda: nn.ChannelShuffle(2),
    ),
    between("index of channels", lambda m, y: y[:, [3, 2, 1, 0]], other("index")),
    between("slice", lambda m, y: y[:, :, 1:], other("slice")),
    between("every second", lambda m, y: y[..., ::2, ::2], other("slice")),
    between("select", lambda m, y: y[:, :, :1].expand(-1, -1, 9, -1), other("slice")),
    between("repeat", lambda m, y: y.repeat(1, 1, 2, 2), other("repeat")),
    between("view and back", lambda m, y: y.flatten(2).view(y.shape), other("view")),
    between(
        "nn.Flatten and back",
        lambda m, y: m.g(m.e(y)),
        other("view"),
        e=lambda: nn.Flatten(2),
        g=lambda: nn.Unflatten(2, (9, 9)),
    ),
    between("unfold", lambda m, y: F.unfold(y, 1).view(y.shape), other("im2col")),
    between("assigned to", lambda m, y: _without_first_channel(y), other("select")),
    between("pasted", lambda m, y: _pasted(y), other("copy")),
    between(
        "a part changed in place",
        lambda m, y: (y[:, :1].relu_(), y)[1],
        other("slice"),
    ),
    between("a view changed in place", lambda m, y: (y.view(-1).relu_(), y)[1], other("view")),
    between(
        "grid_sample",
        lambda m, y: F.grid_sample(
            y,
            F.affine_grid(
                torch.eye(2, 3).double().expand(2, 2, 3), list(y.shape), align_corners=False
            ),
            align_corners=False,
        ),
        other("grid_sampler"),
    ),
)

WINDOWS: Sequence[Row] = (
    between("max_pool2d", lambda m, y: F.max_pool2d(y, 2), other("max_pool2d")),
    between(
        "max and unpool",
        lambda m, y: F.max_unpool2d(*F.max_pool2d(y, 3, return_indices=True), 3),
        other("max_pool2d"),
    ),
    between(
        "nn.AvgPool2d, ceil_mode",
        lambda m, y: m.e(y),
        other("rounds its size up"),
        e=lambda: nn.AvgPool2d(2, ceil_mode=True),
    ),
    between(
        "count_include_pad",
        lambda m, y: F.avg_pool2d(y, 3, 1, 1, count_include_pad=False),
        other("does not count what it pads"),
    ),
    between(
        "divisor_override",
        lambda m, y: F.avg_pool2d(y, 2, divisor_override=3),
        other("divisor of its own"),
    ),
    between("avg_pool2d", lambda m, y: F.avg_pool2d(y, 3, 1), *in_code("avg_pool")),
    between(
        "avg_pool3d", lambda m, y: F.avg_pool3d(y, (1, 3, 3), 1), apart("axes", "different axes")
    ),
    between(
        "adaptive_avg_pool2d",
        lambda m, y: F.adaptive_avg_pool2d(y, 4),
        other("adaptive_avg_pool2d"),
    ),
    between(
        "adaptive_max_pool2d",
        lambda m, y: F.adaptive_max_pool2d(y, 3),
        other("adaptive_max_pool2d"),
    ),
    between("lp_pool2d", lambda m, y: F.lp_pool2d(y, 2, 2), activation("pow")),
    between("crop", lambda m, y: F.pad(y, (-1, -1, -1, -1)), *in_code("pad")),
    between("pad", lambda m, y: F.pad(y, (1, 1, 1, 1)), *in_code("pad")),
    between("pad, one side", lambda m, y: F.pad(y, (1, 0)), *in_code("pad")),
    between("pad, reflect", lambda m, y: F.pad(y, (1, 1, 1, 1), mode="reflect"), *in_code("pad")),
    between(
        "pad, replicate", lambda m, y: F.pad(y, (1, 1, 1, 1), mode="replicate"), *in_code("pad")
    ),
    between("pad, circular", lambda m, y: F.pad(y, (1, 1, 1, 1), mode="circular"), *in_code("pad")),
    between("pad with 1", lambda m, y: F.pad(y, (1, 1, 1, 1), value=1.0), other("pads with 1.0")),
    between(
        "nn.ConstantPad2d",
        lambda m, y: m.e(y),
        other("pads with 2.0"),
        e=lambda: nn.ConstantPad2d(1, 2.0),
    ),
    between(
        "pad channels", lambda m, y: F.pad(y, (0, 0, 0, 0, 1, -1)), apart("axes", "different axes")
    ),
    between("nn.GroupNorm", lambda m, y: m.e(y), other("group_norm"), e=lambda: nn.GroupNorm(2, 4)),
    between(
        "nn.LayerNorm", lambda m, y: m.e(y), other("layer_norm"), e=lambda: nn.LayerNorm([4, 9, 9])
    ),
    between(
        "nn.InstanceNorm2d",
        lambda m, y: m.e(y),
        other("instance_norm"),
        e=lambda: nn.InstanceNorm2d(4),
    ),
    between(
        "InstanceNorm with statistics",
        lambda m, y: m.e(y),
        other("instance_norm"),
        e=lambda: nn.InstanceNorm2d(4, track_running_stats=True),
    ),
    between(
        "local response norm",
        lambda m, y: m.e(y),
        other("two values are multiplied"),
        e=lambda: nn.LocalResponseNorm(2),
    ),
    between("normalize", lambda m, y: F.normalize(y), other("linalg_vector_norm")),
    between(
        "a norm of the batch",
        lambda m, y: m.e(y),
        apart("training", "no running statistics"),
        e=lambda: nn.BatchNorm2d(4, track_running_stats=False),
    ),
    between(
        "a norm in training mode",
        lambda m, y: m.e(y),
        apart("training", "norm that is in training mode"),
        prepare=lambda m: m.e.train(),
        e=lambda: nn.BatchNorm2d(4),
    ),
    between(
        "dropout in training mode",
        lambda m, y: m.e(y),
        apart("training", "dropout"),
        prepare=lambda m: m.e.train(),
        e=nn.Dropout,
    ),
)

SIZES: Sequence[Row] = (
    between("x * the size", lambda m, y: y * y.shape[2], other("computed")),
    between("x / the size", lambda m, y: y / y.numel(), other("divides by a value")),
    between(
        "pad by the size", lambda m, y: F.pad(y, (0, y.shape[2] % 4)), other("depends on the size")
    ),
    between(
        "stride by the size",
        lambda m, y: F.conv2d(y, m.e.weight, padding=y.shape[2] // 4),
        other("depends on the size"),
        (("conv2d",), "not linear", "depends on the size"),
        e=lambda: nn.Conv2d(4, 4, 1),
    ),
)
"""Apart from the rest, of which some fixes the size of the input."""
