"""Sizes of values that a model's code asks for, between two pairs of convolutions and elsewhere."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.scan.negatives.rows import EVERY, Left, Row, apart, head, tail, whole


class Height(nn.Module):
    """Asks for a size, and computes nothing."""

    def forward(self, y: Tensor) -> Any:
        return y.shape[2]


class OfImages(nn.Conv2d):
    """Looks at the size of what it is given, and is a convolution all the same."""

    def forward(self, y: Tensor) -> Tensor:
        _, channels, height, width = y.shape
        assert channels == self.in_channels
        return super().forward(y if height and width else y[:0])


def resized(size: Callable[[Any, Tensor], Any]) -> Callable[[Any, Tensor], Tensor]:
    """Gives the output the size of the value between `b` and `c`."""

    def forward(model: Any, x: Tensor) -> Tensor:
        y = head(model, x)
        asked = size(model, y)
        return F.interpolate(tail(model, y), size=asked).sin()

    return forward


def asks(name: str, size: Callable[[Any, Tensor], Any], **parts: Callable[[], Any]) -> Row:
    return whole(name, resized(size), apart("read elsewhere", "asks for its size"), **parts)


def merged(name: str, forward: Callable[[Any, Tensor], Any], **parts: Callable[[], Any]) -> Row:
    """Sizes that the code gets all the same when all convolutions are one."""
    return whole(name, forward, merged=EVERY, **parts)


def behind(size: Callable[[Tensor], Any]) -> Callable[[Any, Tensor], Tensor]:
    def forward(model: Any, x: Tensor) -> Tensor:
        z = tail(model, head(model, x))
        return F.interpolate(z, size=size(z)).sin()

    return forward


def behind_dropout(model: Any, x: Tensor) -> Tensor:
    y = model.e(head(model, x))
    size = y.shape[2:]
    return F.interpolate(tail(model, y), size=size).sin()


def before(model: Any, x: Tensor) -> Tensor:
    size = x.shape[2:]
    return F.interpolate(tail(model, head(model, x)), size=size).sin()


def of_one_size(model: Any, x: Tensor) -> Tensor:
    y = model.e(x)
    height = y.shape[2]
    return model.f(y)[:, :, 1:height].sin()


def one_channel(channels: int) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(channels, 3, 1)


def plus(of_that_size: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Adds what has the size of the value between `b` and `c`."""

    def forward(model: Any, x: Tensor) -> Tensor:
        y = head(model, x)
        return (tail(model, y) + of_that_size(y)[:, :3, :7, :7]).sin()

    return forward


SCALE: Left = ("c", "d", "scale"), "in code", "scale stands in the code"

ASKED: Sequence[Row] = (
    asks("shape", lambda m, y: y.shape[2:]),
    asks("size()", lambda m, y: y.size()[2:]),
    asks("size(2) and size(-1)", lambda m, y: (y.size(2), y.size(-1))),
    asks("len", lambda m, y: 4 * len(y)),
    asks("numel", lambda m, y: y.numel() // 72),
    asks("stride", lambda m, y: y.stride(2)),
    asks("the size in a module", lambda m, y: m.e(y), e=Height),
    whole(
        "the size behind dropout",
        behind_dropout,
        apart("read elsewhere", "asks for its size"),
        e=nn.Dropout,
    ),
    merged("size of the input", before),
    merged("size of the output", behind(lambda z: [2 * size for size in z.shape[2:]])),
    merged(
        "the size in a module that is merged",
        lambda m, x: tail(m, head(m, x)).sin(),
        c=lambda: OfImages(4, 8, 3),
    ),
    whole(
        "the size where all have the same",
        of_one_size,
        merged=(("e", "f"),),
        without="abcd",
        e=one_channel(3),
        f=one_channel(3),
    ),
    *(
        whole(
            f"a tensor of that size: {name}",
            plus(of_that_size),
            apart("read elsewhere", "asks for its size"),
            *more,
        )
        for name, of_that_size, more in (
            ("ones_like", torch.ones_like, [SCALE]),
            ("zeros_like", torch.zeros_like, []),
            ("full_like", lambda y: torch.full_like(y, 0.5), [SCALE]),
            ("new_full", lambda y: y.new_full(y.shape, 0.5), [SCALE]),
            ("expand_as", lambda y: torch.ones(()).expand_as(y), [SCALE]),
        )
    ),
)
