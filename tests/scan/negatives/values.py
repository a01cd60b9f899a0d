"""Activations and arithmetic between two pairs of convolutions."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.scan.negatives.rows import Row, activation, apart, between, in_code, numbers, other


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
    between("1 - x", lambda m, y: 1 - y, *in_code("scale")),
    between("x // 2", lambda m, y: y // 2, other("floor_divide")),
    between("2 x in place", lambda m, y: y.mul_(2), *in_code("scale")),
    between("x / 2", lambda m, y: y / 2, *in_code("scale")),
    between("-x", lambda m, y: -y, *in_code("scale")),
    between(
        "2 x with out",
        lambda m, y: torch.mul(y, 2, out=torch.empty_like(y)),
        apart("read elsewhere", "asks for its size"),
        in_code("scale")[1],
    ),
    between("x q", lambda m, y: y.mul_(m.q), *in_code("q"), q=lambda: numbers(4, 1, 1)),
    between(
        "x + q in place", lambda m, y: y.add_(m.q), *in_code("scale"), q=lambda: numbers(4, 1, 1)
    ),
    between(
        "x + 2 q",
        lambda m, y: y.add(m.q, alpha=2),
        *in_code("scale"),
        (("scale", "c"), "in code", "scale stands in the code"),
        q=lambda: numbers(4, 1, 1),
    ),
    between(
        "q - x",
        lambda m, y: m.q - y,
        *in_code("scale"),
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
        other("another shape"),
        width=1,
        q=lambda: numbers(4, 1, 1),
    ),
    between(
        "one channel plus four",
        lambda m, y: m.q + y,
        other("another shape"),
        width=1,
        q=lambda: numbers(4, 1, 1),
    ),
    between(
        "more axes",
        lambda m, y: (y * m.q)[0],
        other("another shape"),
        q=lambda: numbers(1, 1, 1, 1, 1),
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
