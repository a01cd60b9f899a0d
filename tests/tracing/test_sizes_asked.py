"""What a model's code asks of the sizes of its values: whose, by whom and where."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convsqueeze.graph import SizeRead
from convsqueeze.tracing.sizes import Asked
from tests.scan.code import Code, image


def asked(model: nn.Module) -> list[tuple[str, str]]:
    with torch.no_grad(), Asked(model) as sizes:
        model(image(2, 3, 5, 6))
    assert all(one.place.startswith(("test_sizes_asked.py:", "code.py:")) for one in sizes.found)
    return [(one.made, one.by) for one in sizes.found]


def layers(forward: Callable[..., Any], **more: nn.Module) -> nn.Module:
    return Code(forward, one=nn.Conv2d(3, 4, 1), two=nn.Conv2d(4, 3, 1), **more)


def _asks(self: Any, x: Tensor) -> Tensor:
    y = self.one(x)
    assert y.shape[1] == 4
    z: Tensor = self.two(y)
    return z


def _asks_twice(self: Any, x: Tensor) -> Tensor:
    y = self.one(x)
    assert (y.shape[1], len(y)) == (4, 2)
    z: Tensor = self.two(y)
    return z[..., : z.size(-1)]


def _catches(self: Any, x: Tensor) -> Tensor:
    y = self.one(x)
    with suppress(RuntimeError):
        y = self.misfit(y)
    assert y.dim() == 4
    z: Tensor = self.two(y)
    return z[: y.numel()]


def _of_its_input(self: Any, x: Tensor) -> Tensor:
    z: Tensor = self.two(self.one(x[: x.shape[0]]))
    return z


@pytest.mark.parametrize(
    ("forward", "made"),
    [
        (_asks, ["one"]),
        (_asks_twice, ["one", "one", "two"]),
        (_catches, ["one"]),
        (_of_its_input, []),
    ],
)
def test_whose_size_is_asked_for_and_by_whom(forward: Callable[..., Any], made: list[str]) -> None:
    bad = nn.Sequential(nn.Identity(), nn.Conv2d(7, 1, 1))  # raises two calls deep
    model = layers(forward, misfit=bad)
    assert sorted({*asked(model)}) == sorted({(name, "") for name in made})
    inside = nn.Sequential(nn.Identity(), layers(forward, misfit=bad), nn.ReLU())
    found = sorted({*asked(inside)} - {("0", "1")})
    assert found == sorted({(f"1.{name}", "1") for name in made})


def test_the_line_is_that_of_the_model_and_not_of_a_library() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.one(x)
        return self.two(y)[..., : _width(y)]

    with torch.no_grad(), Asked(layers(forward)) as sizes:
        pass
    assert sizes.found == {}
    model = layers(forward)
    with torch.no_grad(), Asked(model) as sizes:
        model(image(2, 3, 5, 6))
    (one,) = sizes.found
    line = _width.__code__.co_firstlineno + 1
    assert one == SizeRead("one", "", f"test_sizes_asked.py:{line}")


def _width(y: Tensor) -> int:
    return y.size(-1)
