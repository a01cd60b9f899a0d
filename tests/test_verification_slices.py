"""Slices of layers are the layers, and how much of a large one is run follows from its work."""

from dataclasses import replace
from functools import cache
from math import prod
from typing import Any

import pytest
import torch
from test_large_layers import CASES, Made, made, merged
from torch import Tensor

from convsqueeze.module import SqueezedConv, module_of
from convsqueeze.squeezing import recipe_layer
from convsqueeze.verify import check_layer, effort
from convsqueeze.verify.effort import (
    GROUPS_OF_IMAGES,
    GROUPS_OF_SINGLES,
    MOMENT,
    allowance,
    groups_of_images,
    groups_of_singles,
    images_for,
    merge_work,
)
from convsqueeze.verify.layer import _impulses, _sizes
from convsqueeze.verify.probes import showing_size
from convsqueeze.verify.reference import reference
from convsqueeze.verify.slices import input_of, layer_of, of_all, of_groups, summed_inputs

GROUPED = [name for name in CASES if made(name).merge.geometry.groups > 1]


@cache
def wide(name: str) -> SqueezedConv:
    one = made(name, "float64")
    return module_of(recipe_layer(one.merge), {f"c.{k}": t for k, t in one.stored.items()})


def image(name: str, batch: int = 2) -> Tensor:
    merge = made(name).merge
    size = tuple(n + 2 for n in showing_size(merge.geometry_tree, None))
    generator = torch.Generator().manual_seed(4)
    shape = (batch, merge.geometry.in_channels, *size)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", GROUPED)
def test_some_groups_give_what_they_give_among_all(name: str) -> None:
    one, module, x = made(name, "float64"), wide(name), image(name)
    groups = one.merge.geometry.groups
    chosen = torch.tensor([0, groups - 1] if groups > 2 else [1])
    cut = of_groups(one.merge, one.load, chosen)
    assert cut is not None
    assert len(cut.channels) == cut.geometry.out_channels < one.merge.geometry.out_channels
    part = x.unflatten(1, (groups, -1))[:, chosen].flatten(1, 2)
    expected = reference(one.merge.tree, one.load)(x)[:, list(cut.channels)]
    assert_same(reference(cut.tree, cut.load)(part), expected)
    assert_same(layer_of(*cut.tensors_of(module))(part), expected)


def test_groups_of_a_layer_with_weight_norm_are_not_sliced() -> None:
    one = made("many groups")
    leaf = one.merge.layers[0]
    normed = replace(leaf.parameters["weight"], keys=("a.weight_g", "a.weight_v"))
    layers = (replace(leaf, parameters={"weight": normed}), *one.merge.layers[1:])
    merge = replace(one.merge, tree=replace(one.merge.tree, links=layers))  # type: ignore[type-var]
    assert of_groups(merge, one.load, torch.tensor([0])) is None


@pytest.mark.parametrize("name", CASES)
def test_one_input_channel_gives_what_it_gives_among_zeros(name: str) -> None:
    """Also where the first layer allows no slice."""
    one, module, x = made(name, "float64"), wide(name), image(name)
    groups = one.merge.geometry.groups
    cut = of_all(one.merge, one.load)
    channel = cut.per_group - 1
    alone = torch.zeros_like(x)
    alone[:, channel :: cut.per_group] = x[:, channel :: cut.per_group]
    layer, tensors = cut.tensors_of(module)
    sliced = layer_of(layer, input_of(layer, tensors, channel))
    single = x[:, channel :: cut.per_group]
    assert single.shape[1] == groups
    for part in ("affine", "linear"):
        expected = reference(one.merge.tree, one.load, part)(alone)  # type: ignore[arg-type]
        assert_same(cut.of_input(channel, part)(single), expected)  # type: ignore[arg-type]
    assert_same(sliced(single), module(alone))


@pytest.mark.parametrize("name", CASES)
def test_summed_inputs_bound_what_is_added_up(name: str) -> None:
    module, x = wide(name), torch.ones_like(image(name, 1))
    cut = of_all(made(name).merge, made(name).load)
    layer, tensors = cut.tensors_of(module)
    sizes = layer_of(layer, {key: tensor.abs() for key, tensor in tensors.items()}, signs=False)
    summed = layer_of(layer, summed_inputs(layer, tensors), signs=False)
    assert_same(summed(x[:, : layer.groups]), sizes(x))


# How much is run


def test_the_work_of_a_merge_is_counted() -> None:
    for name, expected in (
        ("plain", 56 * 160 * 9 * 48 * 9),
        ("linear", 500 * 900 * 700),
        ("many groups", 800 * 9 * 9),
    ):
        assert merge_work(made(name).merge) == expected


def test_a_larger_merge_and_more_trials_are_worth_more() -> None:
    merge = made("plain").merge
    assert allowance(merge, 3) == allowance(merge, 1) == MOMENT + merge_work(merge) // effort.SHARE
    assert allowance(merge, 6) == 2 * allowance(merge, 3)


def test_what_is_needed_is_run_whatever_it_takes() -> None:
    merge = made("corrected").merge
    needed, optional = [(1, 1), (5, 5)], [(1, 1), (20, 20), (9, 9)]
    assert images_for(merge, needed, optional, 3, 0) == {(1, 1): 1, (5, 5): 1}
    everything = images_for(merge, needed, optional, 4, 10**15)
    assert everything == dict.fromkeys([(1, 1), (5, 5), (9, 9), (20, 20)], 4)
    known: dict[Any, int] = {}
    for allowed in range(10**7, 10**9, 10**7):
        found = images_for(merge, needed, optional, 3, allowed)
        assert all(found[size] >= count for size, count in known.items())
        assert max(found.values()) == 1 or len(found) == 4  # sizes before trials
        known = found
    assert len(known) == 4


@pytest.mark.parametrize("kind", ["images", "singles"])
def test_as_many_groups_are_run_as_are_allowed(kind: str) -> None:
    merge = made("many groups").merge

    def count(allowed: int) -> int:
        if kind == "images":
            return groups_of_images(merge, [(5, 5)], allowed)
        return groups_of_singles(merge, [(5, 5)], _impulses(merge), allowed)

    counts = [count(10**power) for power in range(4, 13)]
    assert counts[0] == {"images": GROUPS_OF_IMAGES, "singles": GROUPS_OF_SINGLES}[kind]
    assert counts[-1] == 400
    assert counts == sorted(counts)
    assert any(counts[0] < some < 400 for some in counts)


def test_more_trials_are_more_images_in_a_large_layer() -> None:
    one = made("plain")
    few, many = one.report(trials=3), one.report(trials=30)
    assert few.ok
    assert many.ok
    assert few.inputs < many.inputs
    assert set(few.sizes) <= set(_sizes(one.merge)) | {showing_size(one.merge.geometry_tree, None)}


def test_every_seed_looks_at_other_channels() -> None:
    seen = set()
    for seed in range(3):
        one: Made = made("many groups")
        module = module_of(recipe_layer(one.merge), {f"c.{k}": t for k, t in one.stored.items()})
        seen.add(check_layer(one.merge, module, one.load, trials=3, seed=seed).largest.place)
    assert len(seen) > 1


def test_work_is_counted_for_every_size() -> None:
    merge = merged("plain", {k: torch.ones(s) for k, s in CASES["plain"][1].items()}).merge
    small, large = (effort.original_work(merge, size) for size in ((5, 5), (9, 9)))
    assert large.image > small.image
    assert large.run == small.run
    assert small.of(3) == 3 * small.image + small.run
    squeezed = effort.squeezed_work(merge, (9, 9))
    assert squeezed.image >= prod(merge.geometry.weight_shape) * 25
