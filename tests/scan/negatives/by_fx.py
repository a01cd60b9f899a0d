"""What keeps convolutions apart in models whose code torch.fx can follow, torch.export cannot."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.scan.negatives.calls import HOOKS
from tests.scan.negatives.rows import (
    CD,
    EVERY,
    Row,
    Table,
    activation,
    apart,
    between,
    head,
    in_code,
    numbers,
    other,
    tail,
    whole,
)


@torch.fx.wrap
def by_value(x: Tensor) -> Tensor:
    """What it takes, by a way that depends on the values."""
    return x if float(x.sum()) < float("inf") else -x


class UnexportableTable(Table):
    """Models side by side behind a call that torch.export cannot follow."""

    def forward(self, x: Tensor) -> list[Any]:
        given = by_value(x)
        return [row(given) for row in self.rows]


class Rectified(nn.Conv2d):
    """A subclass of a torch layer that does more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def _conv() -> nn.Module:
    return nn.Conv2d(4, 4, 1)


def _in_training(model: Any) -> None:
    model.e.train()


BETWEEN: Sequence[Row] = (
    between("F.relu", lambda m, y: F.relu(y), activation("relu")),
    between("y.relu()", lambda m, y: y.relu(), activation("relu")),
    between("y.relu_()", lambda m, y: y.relu_(), activation("relu_")),
    between("nn.SiLU", lambda m, y: m.e(y), activation("silu"), e=nn.SiLU),
    between("nn.PReLU", lambda m, y: m.e(y), activation("prelu"), e=nn.PReLU),
    between("SiLU by hand", lambda m, y: y * torch.sigmoid(y), activation("sigmoid")),
    between("x * x", lambda m, y: y * y, other("mul")),
    between("x ** 2", lambda m, y: y**2, activation("pow")),
    between(
        "gate",
        lambda m, y: y * torch.sigmoid(m.e(y)),
        apart("read elsewhere", "mul reads it too"),
        (("b", "e"), "read elsewhere", "mul reads it too"),
        e=_conv,
    ),
    between("x + 2 x", lambda m, y: torch.add(y, y, alpha=2), other("add")),
    between("x + its mean", lambda m, y: y + y.mean(), other("mean")),
    between("x + one of it", lambda m, y: y + y[:1], other("getitem")),
    between("1 - x", lambda m, y: 1 - y, *in_code("scale")),
    between("x / 2 rounded", lambda m, y: torch.div(y, 2, rounding_mode="floor"), other("div")),
    between("x * True", lambda m, y: y * True, other("mul")),
    between("x q", lambda m, y: y * m.q, other("mul"), q=lambda: numbers(4, 1, 1)),
    between("2 x in place", lambda m, y: y.mul_(2), *in_code("scale")),
    between("2 x", lambda m, y: 2 * y, *in_code("scale")),
    between("x / 2", lambda m, y: y / 2, *in_code("scale")),
    between("half and back", lambda m, y: y.half().double(), other("half")),
    between("interpolate", lambda m, y: F.interpolate(y, scale_factor=2), other("interpolate")),
    between("cat", lambda m, y: torch.cat([y[:, 2:], y[:, :2]], 1), other("getitem")),
    between("permute", lambda m, y: y.permute(0, 1, 3, 2), other("permute")),
    between("view", lambda m, y: y.view(2, 4, 9, 9), other("view")),
    between(
        "F.conv2d",
        lambda m, y: F.conv2d(y, m.e.weight),
        other("conv2d"),
        (("conv2d",), "not linear", "conv2d"),
        e=_conv,
    ),
    between("F.pad", lambda m, y: F.pad(y, (1, 1)), other("pad")),
    between("F.avg_pool2d", lambda m, y: F.avg_pool2d(y, 2, 1), other("avg_pool2d")),
    between("F.dropout", lambda m, y: F.dropout(y, 0.5, False), other("dropout")),
    between("nn.GroupNorm", lambda m, y: m.e(y), other("Norm"), e=lambda: nn.GroupNorm(2, 4)),
    between(
        "nn.InstanceNorm2d", lambda m, y: m.e(y), other("Norm"), e=lambda: nn.InstanceNorm2d(4)
    ),
    between("nn.MaxPool2d", lambda m, y: m.e(y), other("MaxPool2d"), e=lambda: nn.MaxPool2d(2)),
    between(
        "nn.Upsample", lambda m, y: m.e(y), other("Upsample"), e=lambda: nn.Upsample(scale_factor=2)
    ),
    between(
        "nn.ConstantPad2d",
        lambda m, y: m.e(y),
        other("ConstantPad2d"),
        e=lambda: nn.ConstantPad2d(1, 2.0),
    ),
    between(
        "ceil_mode",
        lambda m, y: m.e(y),
        other("rounds its size up"),
        e=lambda: nn.AvgPool2d(2, ceil_mode=True),
    ),
    between(
        "divisor_override",
        lambda m, y: m.e(y),
        other("its own divisor"),
        e=lambda: nn.AvgPool2d(2, divisor_override=3),
    ),
    between(
        "count_include_pad",
        lambda m, y: m.e(y),
        other("does not count what it pads"),
        e=lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    ),
    between(
        "a norm of the batch",
        lambda m, y: m.e(y),
        apart("training", "no running statistics"),
        e=lambda: nn.BatchNorm2d(4, track_running_stats=False),
    ),
    between(
        "a norm in training mode",
        lambda m, y: m.e(y),
        apart("training", "is in training mode"),
        prepare=_in_training,
        e=lambda: nn.BatchNorm2d(4),
    ),
    between(
        "dropout in training mode",
        lambda m, y: m.e(y),
        apart("training", "dropout in training mode"),
        prepare=_in_training,
        e=nn.Dropout,
    ),
    between(
        "a subclass",
        lambda m, y: m.e(y),
        other("conv2d"),
        (("conv2d in e",), "not linear", "conv2d"),
        e=lambda: Rectified(4, 4, 1),
    ),
    between(
        "a linear layer along the last axis",
        lambda m, y: m.e(y),
        (("b", "e"), "axes", "different axes"),
        (("e", "c"), "axes", "different axes"),
        e=lambda: nn.Linear(9, 9),
    ),
)


def _second_name(model: Any) -> None:
    model.other = model.b


def _tied_weight(model: Any) -> None:
    model.e.weight = model.a.weight


def _hooked(model: Any, place: str, what: str) -> None:
    HOOKS[what](model.get_submodule(place))


def _read_for_nothing(model: Any, x: Tensor) -> Tensor:
    y = head(model, x)
    y.mean()
    return tail(model, y)


AROUND: Sequence[Row] = (
    whole("nothing", lambda m, x: tail(m, head(m, x)).sin(), merged=EVERY),
    whole(
        "another convolution",
        lambda m, x: (lambda y: (tail(m, y), m.e(y).sin()))(head(m, x)),
        apart("read elsewhere", "e reads it too"),
        (("b", "e"), "read elsewhere", "reads it too"),
        e=_conv,
    ),
    whole(
        "the output",
        lambda m, x: (lambda y: {"out": tail(m, y), "inner": [y]})(head(m, x)),
        apart("read elsewhere", "the model's output"),
    ),
    whole("a mean, for nothing", _read_for_nothing, other("mean")),
    whole(
        "its size",
        lambda m, x: (lambda y: tail(m, y) * y.shape[1])(head(m, x)),
        apart("read elsewhere", "getattr reads it too"),
    ),
    whole(
        "a convolution called twice",
        lambda m, x: tail(m, m.b(m.e(m.e(m.a(x))))),
        (("a", "e"), "used twice", "e is called 2 times"),
        (("e",), "used twice", "e is called 2 times"),
        merged=CD,
        e=lambda: nn.Conv2d(8, 8, 1),
    ),
    whole(
        "a weight of a module that is used",
        lambda m, x: (tail(m, head(m, x)), m.e(x).relu()),
        *((layers, "tied", "a.weight and e.weight share") for layers in (("a",), ("e",))),
        merged=CD,
        prepare=_tied_weight,
        e=lambda: nn.Conv2d(3, 8, 1),
    ),
    whole(
        "a module under two names",
        lambda m, x: tail(m, head(m, x)),
        *((layers, "tied", "share memory") for layers in (("a", "b"), ("b",))),
        merged=CD,
        prepare=_second_name,
    ),
    whole(
        "a parametrized module",
        lambda m, x: tail(m, head(m, x)),
        (("a", "c"), "not linear", "ParametrizedConv2d"),
        merged=CD,
        prepare=lambda m: parametrizations.spectral_norm(m.b),
    ),
    *(
        whole(
            f"{what} on b",
            lambda m, x: tail(m, head(m, x)),
            *((layers, "hook", "b calls a hook") for layers in (("a", "b"), ("b",))),
            merged=CD,
            prepare=partial(_hooked, place="b", what=what),
        )
        for what in HOOKS
    ),
    *(
        whole(
            f"{what} around a and b",
            lambda m, x: tail(m, m.s(x)),
            (("s.1", "c"), "hook", "s calls a hook"),
            merged=(*CD, ("s.0", "s.1")),
            prepare=partial(_hooked, place="s", what=what),
            without="ab",
            s=lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)),
        )
        for what in HOOKS
    ),
)

ROWS: Sequence[Row] = (*BETWEEN, *AROUND)
