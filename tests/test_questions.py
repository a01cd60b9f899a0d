"""The two questions that started this project, asked of the program.

Two 3x3 convolutions with padding 1: what does a plain merge cost at the border? And 1 -> 100 -> 2
channels with full padding: how small does the pair become?
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convsqueeze.checkpoint import from_state_dict
from convsqueeze.errors import PlanError
from convsqueeze.manifest import Manifest, manifest_from_data
from convsqueeze.module import SqueezedConv, module_of
from convsqueeze.plan import Plan, make_plan
from convsqueeze.squeeze import recipe_layer, recipe_of, squeeze
from convsqueeze.verify import Settings, verify_plan

State = dict[str, Tensor]


def pair(first: dict[str, Any], second: dict[str, Any]) -> Manifest:
    return manifest_from_data({"version": 1, "pairs": [{"first": first, "second": second}]})


def drawn(*layers: nn.Module) -> State:
    """The layers' state dict in float64, the same every time."""
    generator = torch.Generator().manual_seed(5)
    state = nn.Sequential(*layers).double().state_dict()
    return {name: torch.randn(t.shape, generator=generator).double() for name, t in state.items()}


def squeezed_layer(plan: Plan, state: State) -> SqueezedConv:
    squeezed = next(squeeze(plan, from_state_dict(state).load))
    module = module_of(recipe_layer(plan.merges[0]), squeezed.tensors())
    return module.requires_grad_(False)


# Two 3x3 convolutions, 5 -> 3 -> 1 channels, padding 1 each, on 6x6 pixels

TWICE = pair({"name": "0", "padding": 1}, {"name": "1", "padding": 1})


@pytest.fixture
def twice() -> State:
    return drawn(nn.Conv2d(5, 3, 3, padding=1), nn.Conv2d(3, 1, 3, padding=1))


def apart(state: State, x: Tensor) -> Tensor:
    y = F.conv2d(x, state["0.weight"], state["0.bias"], padding=1)
    return F.conv2d(y, state["1.weight"], state["1.bias"], padding=1)


def test_exact_is_refused_with_the_reason(twice: State) -> None:
    with pytest.raises(PlanError) as refusal:
        make_plan(TWICE, from_state_dict(twice))
    (told,) = refusal.value.problems
    assert "pairs[0].second" in told
    assert "1 pads what it reads, but 0 (3x3, bias) is not zero outside the image" in told
    assert "no plain convolution is exact" in told
    assert "1 output row on every side would differ" in told
    assert "border: interior" in told


def test_the_window_alone_is_reason_enough(twice: State) -> None:
    del twice["0.bias"]
    with pytest.raises(PlanError, match=r"but 0 \(3x3\) sees the image from outside it"):
        make_plan(TWICE, from_state_dict(twice))


def test_the_plain_merge_is_wrong_on_the_ring_and_only_there(twice: State) -> None:
    """20 of 36 outputs, 56 %: the pixel around the edge, by far more than rounding."""
    plan = make_plan(TWICE, from_state_dict(twice), border="interior")
    (merge,) = plan.merges
    assert {(leak.axis, leak.side, leak.rows) for leak in merge.leaks} == {
        (axis, side, 1) for axis in (0, 1) for side in ("low", "high")
    }
    x = torch.randn(4, 5, 6, 6, generator=torch.Generator().manual_seed(1)).double()
    expected, actual = apart(twice, x), squeezed_layer(plan, twice)(x)
    error = (actual - expected).abs().amax((0, 1))
    ring = torch.ones(6, 6, dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    assert int(ring.sum()) == 20
    assert round(100 * ring.double().mean().item()) == 56
    assert torch.equal(error > 1e-3 * expected.abs().max(), ring)
    assert error[~ring].max() <= 1e-13 * expected.abs().max()


def test_verification_measures_the_error_on_the_ring(twice: State) -> None:
    checkpoint = from_state_dict(twice)
    plan = make_plan(TWICE, checkpoint, border="interior")
    recipe = recipe_of(plan, checkpoint, border="interior")
    merged = from_state_dict(next(squeeze(plan, checkpoint.load)).tensors())
    layers = {layer.name: layer for layer in recipe.layers}
    (report,) = verify_plan(plan, checkpoint, merged, layers, Settings())
    assert report.ok
    assert report.policy == "interior"
    assert report.interior.share <= 1.0
    assert report.border_error > 0.05 * report.border_range > 0


def test_a_smaller_image_is_all_ring(twice: State) -> None:
    """On 1x1 and 2x2 pixels no output of the plain merge is right."""
    plan = make_plan(TWICE, from_state_dict(twice), border="interior")
    module = squeezed_layer(plan, twice)
    for size in (1, 2):
        x = torch.randn(2, 5, size, size, generator=torch.Generator().manual_seed(2)).double()
        assert bool(((module(x) - apart(twice, x)).abs() > 1e-3).any(0).all())


# 1 -> 100 -> 2 channels, 3x3 and then 5x5, full padding, no bias

FULL = pair({"name": "0", "padding": 2}, {"name": "1", "padding": 4})


@pytest.fixture
def full() -> State:
    return drawn(nn.Conv2d(1, 100, 3, bias=False), nn.Conv2d(100, 2, 5, bias=False))


def test_full_padding_is_exact_and_sixty_times_smaller(full: State) -> None:
    plan = make_plan(FULL, from_state_dict(full))
    (merge,) = plan.merges
    assert (merge.border, merge.leaks) == ("exact", ())
    assert (plan.weights_before, plan.weights_after) == (5900, 98)
    assert merge.geometry.weight_shape == (2, 1, 7, 7)
    assert not merge.geometry.bias
    assert [(axis.before, axis.after) for axis in merge.geometry.axes] == [(6, 6), (6, 6)]


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 6), (9, 17)])
def test_full_padding_agrees_at_every_pixel(full: State, size: tuple[int, int]) -> None:
    module = squeezed_layer(make_plan(FULL, from_state_dict(full)), full)
    x = torch.randn(3, 1, *size, generator=torch.Generator().manual_seed(3)).double()
    y = F.conv2d(x, full["0.weight"], padding=2)
    expected = F.conv2d(y, full["1.weight"], padding=4)
    assert module(x).shape == expected.shape
    assert (module(x) - expected).abs().max() <= 1e-13 * expected.abs().max()


def test_full_padding_leaves_no_room_for_a_bias(full: State) -> None:
    full["0.bias"] = torch.ones(100, dtype=torch.float64)
    with pytest.raises(PlanError, match="is not zero outside the image"):
        make_plan(FULL, from_state_dict(full))
