"""What stands between two pairs of convolutions and keeps them apart, by what it is."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convsqueeze.tracing import ReasonKind
from scan.rows import Left, Row, between


def apart(kind: ReasonKind, words: str) -> Left:
    return (("b", "c"), kind, words)


def activation(words: str) -> Left:
    return apart("activation", words)


def other(words: str) -> Left:
    return apart("not linear", words)


def in_code(label: str) -> tuple[Left, Left]:
    """A layer that no module does, so that it goes with neither pair."""
    words = f"{label} stands in the code"
    return (("a", "b", label), "in code", words), ((label, "c", "d"), "in code", words)


def numbers(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def _without_first_channel(y: Tensor) -> Tensor:
    z = y.clone()
    z[:, 0] = 0.0
    return z


def _pasted(y: Tensor) -> Tensor:
    z = y.new_zeros(2, 4, 11, 11)
    z[:, :, 1:-1, 1:-1] = y
    return z


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, y: Tensor) -> Tensor:
        return y * y


ACTIVATIONS: Sequence[Row] = (
    between("F.relu", lambda m, y: F.relu(y), activation("relu")),
    between("y.relu()", lambda m, y: y.relu(), activation("relu")),
    between("F.relu in place", lambda m, y: F.relu(y, inplace=True), activation("relu")),
    between("y.relu_()", lambda m, y: y.relu_(), activation("relu")),
    between("nn.ReLU", lambda m, y: m.e(y), activation("relu"), e=nn.ReLU),
    between("nn.ReLU in place", lambda m, y: m.e(y), activation("relu"), e=lambda: nn.ReLU(True)),
    between("nn.PReLU", lambda m, y: m.e(y), activation("prelu"), e=lambda: nn.PReLU(4)),
    between("F.prelu", lambda m, y: F.prelu(y, m.p), activation("prelu"), p=lambda: numbers(4)),
    between("nn.SiLU", lambda m, y: m.e(y), activation("silu"), e=nn.SiLU),
    between("SiLU by hand", lambda m, y: y * torch.sigmoid(y), activation("sigmoid")),
    between(
        "SiLU divided",
        lambda m, y: y / (1 + torch.exp(-y)),
        apart("read elsewhere", "div"),
    ),
    between("GELU of tanh", lambda m, y: F.gelu(y, approximate="tanh"), activation("gelu")),
    between(
        "GELU by hand",
        lambda m, y: 0.5 * y * (1 + torch.erf(y / 2**0.5)),
        apart("read elsewhere", "scale"),
    ),
    between("nn.Hardswish", lambda m, y: m.e(y), activation("hardswish"), e=nn.Hardswish),
    between("Mish by hand", lambda m, y: y * F.softplus(y).tanh(), activation("softplus")),
    between("leaky_relu_", lambda m, y: F.leaky_relu_(y, 0.1), activation("leaky_relu")),
    between("rrelu", lambda m, y: F.rrelu(y), activation("rrelu")),
    between("logsigmoid", lambda m, y: F.logsigmoid(y), other("log_sigmoid")),
    between("tanh_", lambda m, y: y.tanh_(), activation("tanh")),
    between("clamp_", lambda m, y: y.clamp_(-1, 1), activation("clamp")),
    between("softmax", lambda m, y: F.softmax(y, 1), activation("softmax")),
    between("glu", lambda m, y: F.glu(y, 1), activation("glu"), width=8),
    between("abs", lambda m, y: y.abs(), activation("abs")),
    between("square", lambda m, y: y**2, activation("pow")),
    between("round", lambda m, y: y.round(), other("round")),
    between("where", lambda m, y: torch.where(y > 0, y, 0.1 * y), other("gt")),
    between("masked by itself", lambda m, y: y * (y > 0), other("gt")),
    between("maximum", lambda m, y: y.maximum(torch.zeros_like(y)), other("maximum")),
    between("max", lambda m, y: torch.max(y, -y), apart("read elsewhere", "max")),
    between("autograd Function", lambda m, y: Square.apply(y), other("multiplied")),
)

ARITHMETIC: Sequence[Row] = (
    between("x * x", lambda m, y: y * y, other("two values are multiplied")),
    between(
        "gate",
        lambda m, y: y * torch.sigmoid(m.e(y)),
        apart("read elsewhere", "mul"),
        (("b", "e"), "read elsewhere", "mul"),
        e=lambda: nn.Conv2d(4, 4, 1),
    ),
    between("x + 2 x", lambda m, y: torch.add(y, y, alpha=2), other("a multiple of a value")),
    between("x + its mean", lambda m, y: y + y.mean(), other("mean")),
    between("x + one of it", lambda m, y: y + y[:1], other("slice")),
    between("1 - x", lambda m, y: 1 - y, other("rsub")),
    between("x // 2", lambda m, y: y // 2, other("floor_divide")),
    between("2 x in place", lambda m, y: y.mul_(2), *in_code("scale")),
    between("x / 2", lambda m, y: y / 2, *in_code("scale")),
    between("-x", lambda m, y: -y, *in_code("scale")),
    between(
        "2 x with out", lambda m, y: torch.mul(y, 2, out=torch.empty_like(y)), *in_code("scale")
    ),
    between("x q", lambda m, y: y.mul_(m.q), *in_code("q"), q=lambda: numbers(4, 1, 1)),
    between(
        "x + q in place", lambda m, y: y.add_(m.q), *in_code("scale"), q=lambda: numbers(4, 1, 1)
    ),
    between(
        "x + 2 q",
        lambda m, y: y.add(m.q, alpha=2),
        other("a multiple of a stored"),
        q=lambda: numbers(4, 1, 1),
    ),
    between(
        "q - x",
        lambda m, y: m.q - y,
        other("subtracted from a constant"),
        q=lambda: numbers(4, 1, 1),
    ),
    between(
        "x / q",
        lambda m, y: y / m.q,
        other("divides"),
        q=lambda: nn.Parameter(torch.ones(4, 1, 1)),
    ),
    between("x exp(q)", lambda m, y: y * m.q.exp(), other("computed"), q=lambda: numbers(4, 1, 1)),
    between("x q in part", lambda m, y: y * m.q[:4], other("computed"), q=lambda: numbers(8, 1, 1)),
    between(
        "x q reversed",
        lambda m, y: y * m.q.flip(0),
        other("computed"),
        q=lambda: numbers(4, 1, 1),
    ),
    between(
        "x by its width",
        lambda m, y: y * m.q,
        *((layers, "axes", "different axes") for layers in (("b", "q"), ("q", "c"))),
        q=lambda: numbers(9),
    ),
    between(
        "x + by its height",
        lambda m, y: y + m.q,
        *((layers, "axes", "different axes") for layers in (("b", "scale"), ("scale", "c"))),
        q=lambda: numbers(9, 1),
    ),
    between(
        "x by height and width",
        lambda m, y: y * m.q,
        other("not one for each channel"),
        q=lambda: numbers(9, 9),
    ),
    between(
        "a position embedding",
        lambda m, y: y + m.q,
        other("not one for each channel"),
        q=lambda: numbers(1, 4, 9, 9),
    ),
    between(
        "x by the sample",
        lambda m, y: y * m.q,
        other("not one for each channel"),
        q=lambda: numbers(2, 1, 1, 1),
    ),
    between(
        "one channel times four",
        lambda m, y: y * m.q,
        other("repeats"),
        width=1,
        q=lambda: numbers(4, 1, 1),
    ),
    between(
        "one channel plus four",
        lambda m, y: m.q + y,
        other("repeats"),
        width=1,
        q=lambda: numbers(4, 1, 1),
    ),
    between(
        "more axes", lambda m, y: (y * m.q)[0], other("repeats"), q=lambda: numbers(1, 1, 1, 1, 1)
    ),
    between(
        "a mask of bools",
        lambda m, y: y * m.mask,
        other("stored as torch.bool"),
        mask=lambda: nn.Buffer(torch.tensor([True, False, True, True])[:, None, None]),
    ),
    between(
        "numbers of the code",
        lambda m, y: y * torch.arange(1.0, 5.0)[:, None, None],
        other("no stored tensor"),
    ),
    between("half and back", lambda m, y: y.half().double(), other("torch.float16")),
    between("float and back", lambda m, y: y.float().double(), other("torch.float32")),
    between("to int and back", lambda m, y: y.int().double(), other("torch.int32")),
    between(
        "fft and back", lambda m, y: torch.fft.ifft2(torch.fft.fft2(y)).real, other("fft_fft2")
    ),
    between(
        "einsum",
        lambda m, y: torch.einsum("nchw,cd->ndhw", y, m.q),
        other("einsum"),
        q=lambda: numbers(4, 4),
    ),
    between("matmul", lambda m, y: y @ m.q, other("matmul"), q=lambda: numbers(9, 9)),
)

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

TABLES: Mapping[str, Sequence[Row]] = {
    "activations": ACTIVATIONS,
    "arithmetic": ARITHMETIC,
    "reshaped": RESHAPED,
    "windows": WINDOWS,
    "sizes": SIZES,
}
