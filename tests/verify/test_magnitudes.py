"""What float64 can lose of a stored number: the sum of the absolute values of its products."""

from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import convsqueeze
from convsqueeze.algebra import Conv
from convsqueeze.algebra.chains import cheapest_order
from convsqueeze.algebra.precision import half_ulp
from convsqueeze.checkpoint import from_state_dict, open_checkpoint
from convsqueeze.manifest import load_manifest, manifest_from_data
from convsqueeze.plan import Merge, make_plan
from convsqueeze.squeezing import exact_values
from convsqueeze.verify.magnitudes import input_scales, magnitudes, roundings
from convsqueeze.verify.reference import reference
from tests.border_checkpoint import CORRECTED, border_state_dict
from tests.border_checkpoint import manifest_of as border_manifest_of
from tests.verify.test_large_layers import CASES as LARGE
from tests.verify.test_large_layers import drawn, merged
from tests.verify.test_reference import Case, every_case, planned

FIXTURES = Path(__file__).parents[1] / "fixtures"
CPU = torch.device("cpu")


def image(channels: int, size: tuple[int, ...], seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, channels, *size, generator=generator, dtype=torch.float64) * 2 - 1


def operator(merge: Merge, values: dict[str, Tensor]) -> Conv:
    return Conv(values["weight"], values.get("bias"), merge.geometry.axes, merge.geometry.groups)


def corrected(name: str) -> tuple[Merge, dict[str, Tensor]]:
    tensors = dict(border_state_dict(torch.float64, (name,)))
    manifest = manifest_from_data(border_manifest_of(name))
    (merge,) = make_plan(manifest, from_state_dict(tensors), growth="allow").merges
    return merge, tensors


@every_case
def test_of_one_layer_they_are_its_own(case: Case) -> None:
    merge, tensors = planned(case)
    x = image(case.channels, case.size).abs()
    found = operator(merge, magnitudes(merge, tensors.__getitem__, CPU))
    run = reference(merge.tree, tensors.__getitem__, magnitude=True)
    actual = found(x) if case.size else found(x.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(actual, run(x), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [name for name in LARGE if name not in ("corrected", "interior")])
def test_of_several_layers_they_are_what_an_output_adds_up(name: str) -> None:
    """Where the plain merge is exact: on the way through the layers it is the same products."""
    tensors = drawn(name, torch.float32)
    merge = merged(name, tensors).merge
    x = image(merge.geometry.in_channels, (7, 6)[: len(merge.geometry.axes)]).abs()
    found = operator(merge, magnitudes(merge, tensors.__getitem__, CPU))
    run = reference(merge.tree, tensors.__getitem__, magnitude=True)
    torch.testing.assert_close(found(x), run(x), rtol=1e-12, atol=0)


def assert_inputs_add_up(merge: Merge, tensors: dict[str, Tensor]) -> None:
    geometry = merge.geometry
    per_group = geometry.in_channels // geometry.groups
    inputs = torch.rand(geometry.in_channels, dtype=torch.float64) + 0.1
    every = magnitudes(merge, tensors.__getitem__, CPU)
    summed = magnitudes(merge, tensors.__getitem__, CPU, inputs)
    assert every.keys() == summed.keys()
    of_outputs = inputs.unflatten(0, (geometry.groups, per_group)).repeat_interleave(
        geometry.out_channels // geometry.groups, 0
    )
    for name, values in every.items():
        if name.endswith("weight"):
            shape = (*of_outputs.shape, *(1,) * (values.ndim - 2))
            values = (values * of_outputs.reshape(shape)).sum(1, keepdim=True)
        torch.testing.assert_close(summed[name], values, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", CORRECTED)
def test_inputs_of_a_group_are_added_up_at_a_border_too(name: str) -> None:
    assert_inputs_add_up(*corrected(name))


@pytest.mark.parametrize("name", ["plain", "groups", "many groups", "up", "branches", "linear"])
def test_inputs_of_a_group_are_added_up(name: str) -> None:
    tensors = drawn(name, torch.float32)
    assert_inputs_add_up(merged(name, tensors).merge, tensors)


@pytest.mark.parametrize("name", CORRECTED)
def test_a_number_moves_no_more_than_its_products_do(name: str) -> None:
    """Every weight and bias moved by a share of itself: each product by that for each factor."""
    merge, tensors = corrected(name)
    share, generator = 1e-7, torch.Generator().manual_seed(5)
    moved = {
        key: t * (1 + share * (torch.randint(2, t.shape, generator=generator) * 2.0 - 1).double())
        for key, t in tensors.items()
    }
    before, after = (exact_values(merge, one.__getitem__) for one in (tensors, moved))
    found = magnitudes(merge, tensors.__getitem__, CPU)
    assert found.keys() == before.keys()
    for key, sizes in found.items():
        assert sizes.shape == before[key].shape
        assert bool((before[key].abs() <= sizes * (1 + 1e-12)).all())
        most = 1.01 * len(merge.layers) * share
        assert bool(((after[key] - before[key]).abs() <= most * sizes).all())


def test_a_norm_subtracts_no_less_than_its_mean() -> None:
    """Also where its bias takes it off again."""
    tensors: dict[str, Any] = {
        "a.weight": torch.ones(2, 2, 1, dtype=torch.float64),
        "n.running_mean": torch.tensor([3e6, 2.0], dtype=torch.float64),
        "n.running_var": torch.ones(2, dtype=torch.float64),
        "n.bias": torch.tensor([3e6, -1.0], dtype=torch.float64),
        "n.weight": torch.tensor([1.0, -1.0], dtype=torch.float64),
    }
    chain = [{"name": "a"}, {"name": "n", "type": "batch_norm", "eps": 0.0}]
    manifest = manifest_from_data({"version": 1, "pairs": [{"chain": chain}]})
    (merge,) = make_plan(manifest, from_state_dict(tensors)).merges
    assert exact_values(merge, tensors.__getitem__)["bias"].tolist() == [0.0, 1.0]
    found = magnitudes(merge, tensors.__getitem__, CPU)
    assert found["bias"].tolist() == [6e6, 3.0]


def test_what_is_left_of_large_sums_is_as_uncertain_as_they_are() -> None:
    checkpoint = open_checkpoint(FIXTURES / "bound301.safetensors")
    manifest = load_manifest(FIXTURES / "bound301.yaml")
    (merge,) = make_plan(manifest, checkpoint, border="corrected", growth="allow").merges
    values = exact_values(merge, checkpoint.load)
    found = magnitudes(merge, checkpoint.load, CPU)
    ratios = [float((found[key] / value.abs()).max()) for key, value in values.items()]
    assert max(ratios) > 1e3


def test_a_product_meets_the_roundings_of_every_sum_that_it_is_a_part_of() -> None:
    """Of a chain whose last two layers are composed first, those of what they make as well."""
    shapes = {"a": (8, 90, 3, 3), "b": (8, 8, 1, 1), "c": (1, 8, 3, 3)}
    tensors = {f"{n}.weight": torch.ones(s, dtype=torch.float64) for n, s in shapes.items()}

    def of(*names: str) -> int:
        manifest = {"version": 1, "pairs": [{"chain": [{"name": name} for name in names]}]}
        checkpoint = from_state_dict(tensors)
        return roundings(*make_plan(manifest_from_data(manifest), checkpoint).merges)

    own = {"a": 90 * 9 + 8, "b": 8 + 8, "c": 8 * 9 + 8}
    assert of("a", "b") == own["a"] + own["b"]
    assert cheapest(tensors) == (0, (1, 2))
    assert of("a", "b", "c") == sum(own.values()) + 8 * 9


def cheapest(tensors: dict[str, Tensor]) -> Any:
    convs = [convsqueeze.layers.convolution(tensor) for tensor in tensors.values()]
    return cheapest_order(tuple(conv.geometry for conv in convs))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
def test_what_is_stored_is_off_by_the_bound_at_most_however_products_cancel(
    dtype: torch.dtype,
) -> None:
    """Channels cancel each other but for 1e-16 of their products: of that nothing is left in the
    sums, which are off by some units of the products. It is verified all the same.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    first, second = random(12, 3), random(4, 12)
    first, second = torch.cat([first, first]), torch.cat([second, -second], 1)
    rest = 1e-2 if dtype == torch.float16 else 1e-8
    first = torch.cat([first, rest * random(2, 3)])
    second = torch.cat([second, rest * random(4, 2)], 1)
    order = torch.randperm(26, generator=generator)
    tensors = {"a.weight": first[order], "b.weight": second[:, order].contiguous()}
    pair = {
        name: {"name": key, "type": "linear"}
        for name, key in zip(("first", "second"), "ab", strict=True)
    }
    manifest = {"version": 1, "pairs": [pair]}
    merged, report = convsqueeze.merge_state_dict(tensors, manifest, growth="allow")
    assert report.verification is not None
    assert report.verification.ok
    inner, outer = (
        [[Fraction(x) for x in row] for row in t.double().tolist()] for t in tensors.values()
    )
    stored = merged["a.weight"]
    half_units, cancelled = half_ulp(stored), 0
    for row, column in product(range(4), range(3)):
        products = [left * right[column] for left, right in zip(outer[row], inner, strict=True)]
        off = abs(Fraction(stored[row, column].item()) - sum(products))
        half = Fraction(half_units[row, column].item())
        assert off <= half + 3 * Fraction(2) ** -53 * sum(map(abs, products))
        cancelled += off > half
    assert cancelled > 6 or dtype == torch.float16


# How large input channels have to be


@pytest.mark.parametrize("name", ["plain", "groups", "many groups", "up", "branches", "linear"])
def test_channels_are_as_large_as_their_parts_of_outputs_are_small(name: str) -> None:
    tensors = drawn(name, torch.float32)
    merge = merged(name, tensors).merge
    geometry = merge.geometry
    scales = input_scales(merge, tensors.__getitem__, CPU)
    sums = magnitudes(merge, tensors.__getitem__, CPU)["weight"]
    sums = sums.reshape(*sums.shape[:2], -1).sum(2)
    parts = (sums / sums.sum(1, keepdim=True)).unflatten(0, (geometry.groups, -1)).sum(1).flatten()
    expected = (parts.mean() / parts).clamp(min=1.0)
    torch.testing.assert_close(scales, expected, rtol=1e-9, atol=0)
    assert float(scales.max()) < 3


def pointwise(
    first: list[list[float]], second: list[list[float]]
) -> tuple[Merge, dict[str, Tensor]]:
    tensors = {
        "a.weight": torch.tensor(first, dtype=torch.float64)[..., None],
        "b.weight": torch.tensor(second, dtype=torch.float64)[..., None],
    }
    chain = {"version": 1, "pairs": [{"chain": [{"name": "a"}, {"name": "b"}]}]}
    (merge,) = make_plan(manifest_from_data(chain), from_state_dict(tensors), growth="allow").merges
    return merge, tensors


def test_a_channel_that_is_hardly_there_is_enlarged_and_one_that_cancels_is_not() -> None:
    """What cancels is known no better than the products are, however large it is made."""
    merge, tensors = pointwise([[1.0, 2.0**-40, 1.0], [1.0, 2.0**-40, -1.0]], [[1.0, 1.0]])
    assert float(exact_values(merge, tensors.__getitem__)["weight"][0, 2]) == 0.0
    scales = input_scales(merge, tensors.__getitem__, CPU)
    assert scales[[0, 2]].tolist() == [1.0, 1.0]
    assert 2.0**39 < float(scales[1]) < 2.0**41


def test_channels_that_nothing_reads_and_outputs_that_read_nothing() -> None:
    merge, tensors = pointwise([[1.0, 0.0], [2.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]])
    assert input_scales(merge, tensors.__getitem__, CPU).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("small", "large"), [(1e-320, 1e300), (1e-160, 1e-160), (1e-308, 1e-2)])
def test_numbers_at_the_end_of_float64_enlarge_nothing(small: float, large: float) -> None:
    merge, tensors = pointwise([[small, small], [small, small]], [[large, large]])
    assert input_scales(merge, tensors.__getitem__, CPU).tolist() == [1.0, 1.0]
