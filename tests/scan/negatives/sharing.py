"""Values and tensors that something else reads too, and layers that are called twice."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.scan.negatives.rows import CD, EVERY, Left, Row, head, tail, whole


def _read(words: str) -> Left:
    return (("b", "c"), "read elsewhere", words)


def _readers(name: str, read: Callable[[Any, Tensor], Any], *left: Left, **given: Any) -> Row:
    """A model whose value between both pairs is read by `read` too."""

    def forward(model: Any, x: Tensor) -> Any:
        y = head(model, x)
        return {"out": tail(model, y).sin(), "other": read(model, y)}

    return whole(name, forward, *left, **given)


def _read_for_nothing(model: Any, x: Tensor) -> Tensor:
    y = head(model, x)
    model.e(y).exp()
    return tail(model, y)


def _summed_for_nothing(model: Any, x: Tensor) -> Tensor:
    y = head(model, x)
    y.sum()
    return tail(model, y)


def _cropped_skip(model: Any, x: Tensor) -> Tensor:
    y = head(model, x)
    return tail(model, y) + y[:, :3, 1:-1, 1:-1]


READERS: Sequence[Row] = (
    _readers(
        "another convolution",
        lambda m, y: m.e(y),
        _read("e reads it too"),
        (("b", "e"), "read elsewhere", "e reads it too"),
        e=lambda: nn.Conv2d(4, 8, 1),
    ),
    _readers("the output", lambda m, y: y, _read("the model's output")),
    _readers("a nested output", lambda m, y: [{"deep": (y,)}], _read("the model's output")),
    _readers("a clone of it", lambda m, y: y.clone(), _read("the model's output")),
    _readers("detached", lambda m, y: y.detach(), _read("the model's output")),
    _readers("its mean", lambda m, y: y.mean(), _read("mean")),
    _readers("an activation", lambda m, y: y.relu(), _read("relu")),
    _readers("a view", lambda m, y: y.flatten(1), _read("view")),
    _readers("where it is largest", lambda m, y: y.argmax(1), _read("argmax")),
    whole(
        "a skip",
        _cropped_skip,
        _read("slice"),
    ),
    whole("a module, for nothing", _read_for_nothing, _read("for nothing"), e=nn.Identity),
    whole("its sum, for nothing", _summed_for_nothing, _read("reads it too, for nothing")),
    _readers("its device", lambda m, y: torch.zeros(2, device=y.device), merged=EVERY),
    _readers("zeros of its dtype", lambda m, y: y.new_zeros(2), merged=EVERY),
    _readers("how many axes it has", lambda m, y: torch.ones(y.dim()), merged=EVERY),
)


class PerLevel(nn.Module):
    """A head that levels share, each with a norm of its own, as EfficientDet has it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = (x, x[..., ::2, ::2])
        return [norm(self.conv(y)) for norm, y in zip(self.norms, levels, strict=True)]


def _tie(model: Any, name: str) -> None:
    """One tensor for `a` and `e`."""
    setattr(model.e, name, getattr(model.a, name))


def _second_name(model: Any) -> None:
    model.other = model.b


def _tied(names: str) -> str:
    return f"{names} share memory"


def _first() -> nn.Module:
    return nn.Conv2d(3, 8, 1)


SHARED: Sequence[Row] = (
    whole(
        "a convolution called twice",
        lambda m, x: tail(m, m.b(m.e(m.e(m.a(x))))),
        (("a", "e"), "used twice", "e is called 2 times"),
        (("e",), "used twice", "e is called 2 times"),
        merged=CD,
        e=lambda: nn.Conv2d(8, 8, 1),
    ),
    whole(
        "both ends called twice",
        lambda m, x: (lambda y: (tail(m, y), tail(m, y.relu())))(head(m, x)),
        *((layers, "used twice", "called 2 times") for layers in (("b", "c"), ("c",), ("d",))),
        merged=(("a", "b"),),
    ),
    whole(
        "a head with a norm for each level",
        lambda m, x: m.e(x),
        (("e.conv",), "used twice", "e.conv is called 2 times"),
        merged=(),
        without="abcd",
        e=PerLevel,
    ),
    whole(
        "a weight of a module that is used",
        lambda m, x: (tail(m, head(m, x)), m.e(x).relu()),
        (("e.weight",), "tied", _tied("a.weight and e.weight")),
        (("e",), "tied", _tied("e.weight")),
        merged=CD,
        prepare=partial(_tie, name="weight"),
        e=_first,
    ),
    whole(
        "a bias of a module that is used",
        lambda m, x: (tail(m, head(m, x)), m.e(x).relu()),
        (("a.weight",), "tied", "bias share memory"),
        (("e",), "tied", "bias share memory"),
        merged=CD,
        prepare=partial(_tie, name="bias"),
        e=_first,
    ),
    whole(
        "a weight of a module that is not used",
        lambda m, x: tail(m, head(m, x)),
        (("e.weight",), "tied", "weight share memory"),
        merged=CD,
        prepare=partial(_tie, name="weight"),
        e=_first,
    ),
    whole(
        "a module under two names",
        lambda m, x: tail(m, head(m, x)),
        (("a", "other"), "tied", "weight share memory"),
        (("other",), "tied", "weight share memory"),
        merged=CD,
        prepare=_second_name,
    ),
    whole(
        "a module called by two names",
        lambda m, x: (tail(m, m.other(m.a(x))), m.b(m.a(x).relu())),
        (("a",), "used twice", "a is called 2 times"),
        (("other",), "tied", "weight share memory"),
        merged=CD,
        prepare=_second_name,
    ),
)
