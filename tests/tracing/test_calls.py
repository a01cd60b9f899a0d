"""Modules called in other ways than by their name, once, with a tensor."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convsqueeze
from tests.scan.code import Code, image, largest_share, made, merged_layers, reasons, scanned

X = image(2, 3, 8, 8)
Prepare = Callable[[Any], None]


def _as_it_is(model: Any) -> None:
    """Nothing to prepare."""


def _with_a_partial_forward(model: Any) -> None:
    model.one.forward = functools.partial(nn.Conv2d.forward, model.one)


def _with_another_forward(model: Any) -> None:
    layer = model.one
    layer.forward = lambda x: nn.Conv2d.forward(layer, x).relu()


def _with_a_second_name(model: Any) -> None:
    model.again = model.block


def _in_turn(self: Any, x: Tensor) -> Any:
    return self.two(self.one(x))


def _by_its_forward(self: Any, x: Tensor) -> Any:
    return self.two(self.one.forward(x))


def _of_a_list(self: Any, x: Tensor) -> Any:
    return self.block[1](self.block[0](x))


def _before_attention(self: Any, x: Tensor) -> Any:
    y = self.two(self.one(x)).flatten(2).mT
    return self.attention(y, y, y)[0]


@pytest.mark.stress
@pytest.mark.parametrize(
    ("prepare", "forward", "merges", "kinds"),
    [
        (_as_it_is, _by_its_forward, [], {"in code"}),
        (_as_it_is, _of_a_list, [("block.0", "block.1")], set()),
        (_as_it_is, _before_attention, [("one", "two")], {"not linear"}),
        (_with_a_partial_forward, _in_turn, [("one", "two")], set()),
        (_with_another_forward, _in_turn, [], set()),
        (_with_a_second_name, _of_a_list, [], {"tied"}),
    ],
)
def test_calls(
    prepare: Prepare,
    forward: Callable[..., Any],
    merges: list[tuple[str, ...]],
    kinds: set[str],
) -> None:
    def build() -> nn.Module:
        return Code(
            forward,
            one=nn.Conv2d(3, 8, 1),
            two=nn.Conv2d(8, 3, 1),
            block=nn.ModuleList([nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)]),
            attention=nn.MultiheadAttention(3, 1, batch_first=True),
        )

    model = made(build)
    prepare(model)
    found = scanned(model, X)
    assert merged_layers(found) == merges
    assert {kind for _, kind, _ in reasons(found)} == kinds
    squeezed, _ = convsqueeze.squeeze(model, X)
    assert largest_share(model, squeezed, [X]) < 1e-5


def test_inputs_within_a_dict() -> None:
    def forward(self: Any, given: dict[str, Tensor]) -> dict[str, Any]:
        return {"image": self.two(self.one(given["image"])), "scale": torch.ones(()), "none": None}

    model = made(lambda: Code(forward, one=nn.Conv2d(3, 8, 1), two=nn.Conv2d(8, 3, 1)))
    assert merged_layers(scanned(model, {"image": X})) == [("one", "two")]
    squeezed, _ = convsqueeze.squeeze(model, [{"image": X}])
    assert torch.allclose(squeezed({"image": X})["image"], model({"image": X})["image"], atol=1e-5)
