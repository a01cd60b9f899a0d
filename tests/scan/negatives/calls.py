"""Hooks, contexts and ranks: how convolutions are called."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from tests.scan.negatives.rows import CD, EVERY, Left, Row, between, head, tail, whole


def _unseen(*seen: Any) -> None:
    """A hook that changes nothing."""


HOOKS: Mapping[str, Callable[[nn.Module], object]] = {
    "a forward hook": lambda m: m.register_forward_hook(_unseen),
    "a forward hook that changes": lambda m: m.register_forward_hook(lambda m, x, y: y * 2),
    "a pre-hook": lambda m: m.register_forward_pre_hook(_unseen),
    "a backward hook": lambda m: m.register_full_backward_hook(_unseen),
    "a backward pre-hook": lambda m: m.register_full_backward_pre_hook(_unseen),
}


def _hooked(place: str, what: str) -> Row:
    def prepare(model: Any) -> None:
        HOOKS[what](model.get_submodule(place))

    name, sees = f"{what} on {place}", f"{place} calls a hook that sees it"
    if place == "b":
        left: list[Left] = [(("a", "b"), "hook", sees), (("b",), "hook", "b calls a hook")]
        return whole(name, lambda m, x: tail(m, head(m, x)), *left, merged=CD, prepare=prepare)
    if place == "e":
        return between(
            name, lambda m, y: m.e(y), (("b", "c"), "hook", sees), prepare=prepare, e=nn.Identity
        )
    return whole(
        name,
        lambda m, x: tail(m, m.s(x)),
        (("s.1", "c"), "hook", sees),
        merged=(CD[0], ("s.0", "s.1")),
        prepare=prepare,
        without="ab",
        s=lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)),
    )


HOOKED: Sequence[Row] = tuple(_hooked(place, what) for place in ("b", "e", "s") for what in HOOKS)


def _within(
    name: str, context: Callable[[], AbstractContextManager[Any]], *left: Left, **given: Any
) -> Row:
    def forward(model: Any, x: Tensor) -> Tensor:
        y = model.a(x)
        with context():
            y = model.b(y)
        return tail(model, y).sin()

    return whole(name, forward, *left, **given)


CALLS: Sequence[Row] = (
    _within("no_grad", torch.no_grad, merged=EVERY),
    _within("enable_grad", torch.enable_grad, merged=EVERY),
    _within(
        "autocast",
        lambda: torch.autocast("cpu", torch.bfloat16),
        (("a", "b"), "read elsewhere", "under autocast"),
        (("b",), "read elsewhere", "under autocast"),
        merged=CD,
    ),
    whole(
        "an activation in a Sequential",
        lambda m, x: m.s(x),
        (("s.0", "s.2"), "activation", "relu"),
        merged=(("s.2", "s.3"),),
        without="abcd",
        s=lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 3, 1)
        ),
    ),
    whole(
        "an activation on its output, called inside",
        lambda m, x: tail(m, m.s(x)),
        (("s.1", "c"), "activation", "relu"),
        merged=(CD[0], ("s.0", "s.1")),
        without="ab",
        s=lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.ReLU()),
    ),
    whole(
        "another rank behind a view",
        lambda m, x: m.e(m.a(x).flatten(2)),
        (("a", "e"), "not linear", "view"),
        merged=(),
        without="bcd",
        e=lambda: nn.Conv1d(8, 3, 1),
    ),
    whole(
        "another rank behind a new axis",
        lambda m, x: m.e(m.a(x)[:, :, None]),
        (("a", "e"), "not linear", "unsqueeze"),
        merged=(),
        without="bcd",
        e=lambda: nn.Conv3d(8, 3, 1),
    ),
    whole(
        "a linear layer along the last axis",
        lambda m, x: m.e(m.a(x)),
        (("a", "e"), "axes", "different axes"),
        merged=(),
        without="bcd",
        e=lambda: nn.Linear(9, 9),
    ),
    whole(
        "a norm behind a linear layer",
        lambda m, x: m.n(m.e(x)),
        (("e", "n"), "axes", "different axes"),
        merged=(),
        without="abcd",
        e=lambda: nn.Linear(9, 9),
        n=lambda: nn.BatchNorm2d(3),
    ),
    whole(
        "upsampled behind a bias",
        lambda m, x: m.e(m.a(x)),
        (("a", "e"), "not one convolution", "output phase"),
        merged=(),
        without="bcd",
        e=lambda: nn.ConvTranspose2d(8, 3, 3, stride=2),
    ),
    whole(
        "a stride, then upsampled",
        lambda m, x: m.e(m.f(x)),
        (("f", "e"), "not one convolution", "an upsampling by 3 after a stride of 2"),
        merged=(),
        without="abcd",
        f=lambda: nn.Conv2d(3, 8, 1, stride=2, bias=False),
        e=lambda: nn.ConvTranspose2d(8, 3, 1, stride=3),
    ),
)
