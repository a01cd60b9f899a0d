"""Layers of so many groups that some are run: those that are chosen are the layer's own.

The numbers are looked at in all of them; see `test_large_layers` for layers of as many.
"""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from convsqueeze.checkpoint import from_state_dict
from convsqueeze.manifest import manifest_from_data
from convsqueeze.module import SqueezedConv, module_of
from convsqueeze.plan import Merge, make_plan
from convsqueeze.squeezing import exact_values, recipe_layer, squeeze_one
from convsqueeze.verify import check_layer, groups
from convsqueeze.verify.comparison import run_of, stored_layout
from convsqueeze.verify.groups import Groups, some_groups
from convsqueeze.verify.probes import plain_sizes
from convsqueeze.verify.reference import reference
from tests.verify.test_large_layers import CASES, Made, made, merged

GROUPED = [name for name in CASES if made(name).merge.geometry.groups > 1]


@cache
def wide(name: str) -> SqueezedConv:
    one = made(name, "float64")
    return module_of(recipe_layer(one.merge), {f"c.{k}": t for k, t in one.stored.items()})


def image(merge: Merge, size: tuple[int, ...], batch: int = 2) -> Tensor:
    shape = (batch, merge.geometry.in_channels, *size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", GROUPED)
def test_some_groups_give_what_they_give_among_all(name: str) -> None:
    one, module = made(name, "float64"), wide(name)
    count = one.merge.geometry.groups
    chosen = torch.tensor([0, count - 1] if count > 2 else [1])
    some = Groups(one.merge, chosen)
    assert len(some.channels) == some.part.geometry.out_channels < one.merge.geometry.out_channels
    x = image(one.merge, (9, 8))
    part = x.unflatten(1, (count, -1))[:, chosen].flatten(1, 2)
    expected = reference(one.merge.tree, one.load)(x)[:, list(some.channels)]
    for run in (reference(some.part.tree, some.load(one.load)), run_of(some.module(module))):
        torch.testing.assert_close(run(part), expected, rtol=1e-11, atol=1e-11)
    values = stored_layout(one.merge, exact_values(one.merge, one.load))
    own = stored_layout(some.part, exact_values(some.part, some.load(one.load)))
    for key, value in some.values(values).items():
        torch.testing.assert_close(value, own[key], rtol=1e-12, atol=1e-12)


def test_few_groups_or_light_ones_are_all_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least so many, and the more the lighter they are."""
    merge = made("many groups").merge
    sizes = plain_sizes(merge.geometry_tree)
    assert some_groups(made("groups").merge, sizes, generator()) is None
    counts = []
    for most in (1, 10**6, 10**7, 2 * 10**7, 10**9):
        monkeypatch.setattr(groups, "MOST_WORK", most)
        found = some_groups(merge, sizes, generator())
        counts.append(400 if found is None else len(found.chosen))
    assert counts[0] == counts[1] == groups.LEAST
    assert counts[-1] == 400
    assert counts == sorted(counts)
    assert any(groups.LEAST < count < 400 for count in counts)
    monkeypatch.setattr(groups, "MOST_WORK", 10**7)
    larger = some_groups(merge, [(40, 40)], generator())
    assert larger is not None
    assert len(larger.chosen) < counts[2]


def test_every_seed_runs_other_groups_and_exhaustive_runs_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(groups, "MOST_WORK", 1)
    one: Made = made("many groups")
    module = module_of(recipe_layer(one.merge), {f"c.{k}": t for k, t in one.stored.items()})
    places = {
        check_layer(one.merge, module, one.load, trials=3, seed=seed).largest.place
        for seed in range(3)
    }
    assert len(places) > 1
    seen: list[Any] = []
    monkeypatch.setattr(
        "convsqueeze.verify.layer.some_groups", lambda *given: seen.append(given) or None
    )
    small = merged("many groups", {k: torch.ones(s) for k, s in CASES["many groups"][1].items()})
    module = module_of(recipe_layer(small.merge), {f"c.{k}": t for k, t in small.stored.items()})
    assert check_layer(small.merge, module, small.load, trials=1, seed=0).ok
    assert len(seen) == 1
    check_layer(small.merge, module, small.load, trials=1, seed=0, exhaustive=True)
    assert len(seen) == 1


def test_a_fault_is_told_with_the_channel_of_the_whole_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of values that are wrong in every group, as numbers do not see it."""
    monkeypatch.setattr(groups, "MOST_WORK", 1)
    one = made("many groups")
    chosen = some_groups(one.merge, plain_sizes(one.merge.geometry_tree), generator())
    assert chosen is not None
    worst = int(chosen.channels[7])
    values = {key: value.clone() for key, value in one.exact.items()}
    values["weight"][worst, 0, 2, 2] += 0.5
    stored = {f"c.{key}": value.float() for key, value in values.items()}
    module = module_of(recipe_layer(one.merge), stored)
    report = check_layer(one.merge, module, one.load, trials=1, seed=0, exact=values)
    assert f"random input of 6x6, output channel {worst}, at [" in (report.problem or "")


# Vectors of one number a channel, in any of the shapes in which code stores them.

SHAPES = ((), (1, 1), "leading", "flat")


def shaped(values: Tensor, how: Any) -> Tensor:
    if how == "flat":
        return values
    return values.reshape(1, -1, 1, 1) if how == "leading" else values.reshape(-1, *how)


def network(channels: int, out: int, how: Any, depthwise: bool) -> tuple[Any, dict[str, Tensor]]:
    """A convolution, a norm and two scales, of channels that meet or not."""
    torch.manual_seed(0)
    per_group = 1 if depthwise else channels
    vectors = {
        "scale.weight": torch.randn(out), "scale.bias": torch.randn(out),
        "shift.bias": torch.randn(out),
        "norm.weight": torch.randn(out), "norm.bias": torch.randn(out),
        "norm.running_mean": torch.randn(out), "norm.running_var": torch.rand(out) + 0.5,
    }  # fmt: skip
    tensors = {
        "conv.weight": torch.randn(out, per_group, 1, 1) / per_group**0.5,
        **{name: shaped(values, how) for name, values in vectors.items()},
    }
    chain = [
        {"name": "conv", "groups": channels if depthwise else 1},
        {"name": "norm", "type": "batch_norm", "eps": 1e-5},
        {"name": "scale", "type": "scale"},
        {"name": "shift", "type": "scale"},
    ]
    return {"version": 1, "pairs": [{"into": "c", "chain": chain}]}, tensors


@pytest.mark.parametrize("how", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("channels", "out", "depthwise"),
    [(3, 2, False), (448, 112, False), (4, 8, True), (900, 900, True)],
)
def test_parameters_may_have_axes_of_size_one(
    channels: int, out: int, depthwise: bool, how: Any
) -> None:
    """As LayerScale's (channels, 1, 1); small and large, with few groups and with many."""
    data, tensors = network(channels, out, how, depthwise)
    checkpoint = from_state_dict(tensors)
    (merge,) = make_plan(manifest_from_data(data), checkpoint, growth="allow").merges
    squeezed = squeeze_one(merge, checkpoint.load)
    flat = {name: t.double().flatten() for name, t in tensors.items() if "conv" not in name}
    factor = flat["norm.weight"] * (flat["norm.running_var"] + 1e-5).rsqrt()
    shift = (flat["norm.bias"] - flat["norm.running_mean"] * factor) * flat["scale.weight"]
    weight = tensors["conv.weight"].double() * (factor * flat["scale.weight"]).reshape(-1, 1, 1, 1)
    bias = shift + flat["scale.bias"] + flat["shift.bias"]
    torch.testing.assert_close(squeezed.exact["weight"], weight, rtol=1e-13, atol=0)
    torch.testing.assert_close(squeezed.exact["bias"], bias, rtol=1e-12, atol=1e-13)
    module = module_of(recipe_layer(merge), squeezed.tensors())
    for exact in (squeezed.exact, None):
        report = check_layer(merge, module, checkpoint.load, trials=3, seed=0, exact=exact)
        assert report.ok, report.problem
    with torch.no_grad():
        module.weight[1, 0] *= 1 + 1e-5
    report = check_layer(merge, module, checkpoint.load, trials=1, seed=0)
    assert "c.weight, output channel 1, at [0, 0, 0]" in (report.problem or "")
