"""What verification says of one layer: the bound it holds it to, what it ran, and where it looked.

The bound is worked out here from single numbers: what storing each may have cost, as often as an
output takes it, and what float64 sums of so many products lose.
"""

import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from convsqueeze import merge_file, verify_files
from convsqueeze.algebra.apply import transposed_layout
from convsqueeze.algebra.border.mismatches import wrong_rows
from convsqueeze.algebra.precision import half_ulp
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.manifest import manifest_from_data
from convsqueeze.module import SqueezedConv, module_of
from convsqueeze.plan import Merge, make_plan
from convsqueeze.squeezing import exact_values, recipe_layer, squeeze_one
from convsqueeze.verify import LayerReport, Settings, Worst, check_layer, outcome, verify_plan
from convsqueeze.verify.comparison import comparison
from convsqueeze.verify.magnitudes import input_scales, magnitudes, roundings
from convsqueeze.verify.probes import (
    bounded_image,
    exhaustive_sizes,
    interior_sizes,
    plain_sizes,
    small_size,
)
from convsqueeze.verify.reference import reference
from tests.border_checkpoint import border_state_dict
from tests.border_checkpoint import manifest_of as border_manifest_of

pytestmark = pytest.mark.quick

Load = Callable[[str], Tensor]
FIXTURES = Path(__file__).parents[1] / "fixtures"
Made = tuple[Merge, SqueezedConv, Load]


def made_of(data: dict[str, Any], tensors: dict[str, Tensor]) -> Made:
    checkpoint = from_state_dict(tensors)
    (merge,) = make_plan(manifest_from_data(data), checkpoint, growth="allow").merges
    stored = squeeze_one(merge, checkpoint.load).tensors()
    return merge, module_of(recipe_layer(merge), stored), checkpoint.load


def chain(
    *entries: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    border: str = "exact",
    size: list[int] | None = None,
    **shapes: tuple[int, ...],
) -> Made:
    """The layers `a`, `b`, ... with these shapes of weights and, under `a_`, of biases."""
    generator = torch.Generator().manual_seed(6)
    tensors = {
        f"{name[0]}.{'bias' if name.endswith('_') else 'weight'}": torch.randn(
            shape, generator=generator, dtype=torch.float64
        ).to(dtype)
        for name, shape in shapes.items()
    }
    named = [{"name": name, **entry} for name, entry in zip("abcd", entries, strict=False)]
    pair: dict[str, Any] = {"into": "merged", "chain": named}
    if size is not None:
        pair["input"] = size
    return made_of({"version": 1, "border": border, "pairs": [pair]}, tensors)


def plain(dtype: torch.dtype = torch.float32) -> Made:
    """3x2, then 1x1 and a bias each: exact at every pixel."""
    return chain(
        {"padding": 1, "stride": [2, 1]}, {}, dtype=dtype,
        a=(3, 2, 3, 2), a_=(3,), b=(4, 3, 1, 1), b_=(4,),
    )  # fmt: skip


def bordered(name: str, dtype: torch.dtype = torch.float32) -> Made:
    return made_of(border_manifest_of(name), dict(border_state_dict(dtype, (name,))))


def twice(size: list[int] | None = None) -> Made:
    """3x3 twice under `interior`: the outermost outputs are wrong."""
    return chain(
        {"padding": 1}, {"padding": 1}, border="interior", size=size,
        a=(3, 2, 3, 3), a_=(3,), b=(2, 3, 3, 3), b_=(2,),
    )  # fmt: skip


# The bound


def terms_of(merge: Merge) -> int:
    """Products of the layers and of everything that is stored, for one output."""
    return roundings(merge) + sum(prod(shape[1:]) for shape in merge.tensors.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("part", ["affine", "linear"])
def test_the_bound_of_a_plain_layer(dtype: torch.dtype, part: Any) -> None:
    merge, module, load = plain(dtype)
    assert terms_of(merge) == (2 * 3 * 2 + 8) + (3 + 8) + 2 * 3 * 2 + 1
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    bias = half_ulp(module.bias) if part == "affine" else None
    rounding = F.conv2d(x.abs(), half_ulp(module.weight), bias, (2, 1), 1)
    magnitude = reference(merge.tree, load, part, magnitude=True)(x.abs())
    expected = rounding + 2 * terms_of(merge) * 2.0**-53 * magnitude + terms_of(merge) * 2.0**-1074
    both = comparison(merge, module, load, part)
    torch.testing.assert_close(both.bound(x), expected.detach(), rtol=1e-14, atol=0)
    assert bool((both.bound(torch.zeros_like(x)) > 0).all())
    assert bool(((both.original(x) - both.squeezed(x)).abs() <= both.bound(x)).all())


def stored_shares(module: SqueezedConv, x: Tensor) -> dict[str, Tensor]:
    """How often each output takes each stored number, by torch: (outputs, numbers)."""
    values = {name: tensor.detach() for name, tensor in module.named_parameters()}
    found = torch.func.jacrev(lambda given: functional_call(module, given, (x,)))(values)
    return {name: share.flatten(-values[name].ndim).abs() for name, share in found.items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["constant", "strided", "mirrored", "three", "line", "up"])
def test_the_bound_of_a_corrected_layer(name: str, dtype: torch.dtype) -> None:
    """Each number as often as it is taken, and what float64 can lose of each as well."""
    assert_bound_of_single_numbers(*bordered(name, dtype))


@pytest.mark.parametrize("taps", [1, 3])
def test_the_bound_of_a_layer_that_subtracts_at_the_border(taps: int) -> None:
    """What is taken off costs as much as what is added."""
    made = chain(
        {}, {"padding": 2}, border="corrected",
        a=(2, 2, taps), a_=(2,), b=(2, 2, 3), b_=(2,),
    )  # fmt: skip
    assert made[0].corrections is not None
    classes = [one for axis in made[0].corrections.axes for one in axis.classes]
    assert any(entry[-1] < 0 for one in classes for entry in (*one.weights, *one.biases))
    assert_bound_of_single_numbers(*made)


def assert_bound_of_single_numbers(merge: Merge, module: SqueezedConv, load: Load) -> None:
    """On images of one sample in all channels, which are alike as the bound takes them to be."""
    noise, floor = 2 * terms_of(merge) * 2.0**-53, terms_of(merge) * 2.0**-1074
    size = plain_sizes(merge.geometry_tree)[0]
    wide = module.converted(Tensor.double, Tensor.double)
    summed = magnitudes(merge, load, torch.device("cpu"))
    if merge.geometry.is_transposed:
        summed["weight"] = transposed_layout(summed["weight"], merge.geometry.groups)
    both = comparison(merge, module, load)
    for place in range(prod(size)):
        x = torch.zeros(1, merge.geometry.in_channels, prod(size), dtype=torch.float64)
        x[0, :, place] = 1.0
        x = x.unflatten(2, size)
        shares, rounding = stored_shares(wide, x), 0.0
        for key, tensor in module.named_parameters():
            cost = half_ulp(tensor.detach()) + noise * summed[key]
            rounding = rounding + shares[key] @ cost.flatten()
        magnitude = reference(merge.tree, load, "affine", magnitude=True)(x)
        expected = rounding + noise * magnitude + floor
        torch.testing.assert_close(both.bound(-x), expected, rtol=1e-12, atol=0)


@pytest.mark.stress
@pytest.mark.parametrize("name", ["bound301", "bound896"])
def test_a_border_that_is_left_of_large_sums(name: str, tmp_path: Path) -> None:
    """The bound follows what was summed: these merges are right, and were once called wrong."""
    source, pairs = FIXTURES / f"{name}.safetensors", FIXTURES / f"{name}.yaml"
    done = merge_file(
        source, pairs, tmp_path / "out.safetensors", border="corrected", growth="allow"
    )
    assert done.verification is not None
    assert done.verification.ok
    for exhaustive in (False, True):
        report = verify_files(
            source, tmp_path / "out.safetensors", settings=Settings(exhaustive=exhaustive)
        )
        assert report.ok, report.failures
        (layer,) = report.layers
        assert layer.policy == "corrected"


TRANSPOSED = {
    "groups": lambda: chain(
        {"type": "conv_transpose", "stride": 2, "padding": [1, 0], "groups": 2}, {"groups": 2},
        a=(4, 3, 3, 2), b=(4, 3, 1, 1), b_=(4,),
    ),
    "each side": lambda: chain(
        {"type": "conv_transpose", "stride": [2, 3], "padding": [[0, 2], [1, 0]]}, {},
        a=(2, 3, 4, 3), b=(2, 3, 1, 1),
    ),
    "output padding": lambda: chain(
        {"type": "conv_transpose", "stride": 3, "output_padding": 2}, {}, a=(2, 3, 2), b=(2, 3, 1)
    ),
    "a stride behind": lambda: chain(
        {"type": "conv_transpose", "stride": [3, 2]}, {"stride": [2, 1]},
        a=(2, 3, 4, 3), b=(2, 3, 2, 1),
    ),
    "dilated": lambda: chain(
        {"type": "conv_transpose", "stride": 2, "padding": 1, "dilation": 3}, {},
        a=(2, 3, 3), b=(2, 3, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSPOSED)
def test_a_transposed_layer_is_run_as_torch_runs_it(name: str) -> None:
    """What is verified is the stored layout through torch's own transposed convolution."""
    merge, module, load = TRANSPOSED[name]()
    assert module.is_transposed
    for part in ("affine", "linear"):
        both = comparison(merge, module, load, part)  # type: ignore[arg-type]
        for size in exhaustive_sizes(merge.geometry_tree, None):
            x = bounded_image(merge.geometry, size, torch.Generator().manual_seed(2), 2)
            actual, expected = both.squeezed(x), both.original(x)
            assert actual.shape == expected.shape
            assert bool(((actual - expected).abs() <= both.bound(x)).all())
            lost = module.bias is not None and part == "linear"
            wide = module.converted(Tensor.double, None if lost else Tensor.double)
            same = wide(x)
            torch.testing.assert_close(actual, same, rtol=1e-12, atol=1e-12)
    assert check_layer(merge, module, load, trials=1, seed=0).ok


# The report


def drawn(made: Made, trials: int, seed: int) -> Tensor:
    """The random images of the small size, as the report draws them: after those of every size."""
    merge, module, load = made
    generator = torch.Generator().manual_seed(seed)
    tried = check_layer(merge, module, load, trials=trials, seed=seed).sizes
    every = interior_sizes(merge.geometry_tree, None)
    for size in every if merge.border == "interior" else tried:
        bounded_image(merge.geometry, size, generator, 1)
    small = max(tried, key=prod) if merge.border == "interior" else tried[0]
    scales = input_scales(merge, load, torch.device("cpu")).reshape(-1, *(1,) * len(small))
    return bounded_image(merge.geometry, small, generator, trials) * scales


def test_the_report_counts_what_was_run() -> None:
    merge, module, load = plain()
    every = plain_sizes(merge.geometry_tree)
    assert small_size(merge.geometry_tree, every[0]) == every[0]
    for trials in (1, 4):
        report = check_layer(merge, module, load, trials=trials, seed=0)
        assert report.ok
        assert report.problem is None
        assert (report.name, report.policy) == ("merged", "exact")
        assert report.sizes == tuple(every)
        assert report.inputs == len(every) + 1 + trials + 1
    more = check_layer(merge, module, load, trials=1, seed=0, exhaustive=True)
    sizes = exhaustive_sizes(merge.geometry_tree, None)
    assert more.inputs == len(every) + 3 + len(sizes) + 2 * sum(map(prod, sizes))


def of_random(merge: Merge, both: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Difference, bound and expected output."""
    expected = both.original(x)
    return (both.squeezed(x) - expected).abs(), both.bound(x), expected


def excused(merge: Merge, size: tuple[int, ...], shape: torch.Size) -> Tensor:
    mask = torch.zeros(tuple(shape[2:]), dtype=torch.bool)
    for axis, n in enumerate(size):
        rows = torch.tensor(sorted(wrong_rows(merge.geometry_tree, axis, n)), dtype=torch.long)
        mask.index_fill_(axis, rows, True)
    return mask


@pytest.mark.parametrize("seed", range(12))
def test_the_interior_policy_measures_the_border_and_holds_the_inside(seed: int) -> None:
    made = merge, module, load = twice()
    report = check_layer(merge, module, load, trials=2, seed=seed)
    assert report.ok
    assert (report.policy, report.worst) == ("interior", report.interior)
    both = comparison(merge, module, load, "affine")
    x = drawn(made, 2, seed)
    largest = max(report.sizes, key=prod)
    assert x.shape[2:] == largest
    difference, _, expected = of_random(merge, both, x)
    mask = excused(merge, largest, difference.shape)
    assert report.border_error == pytest.approx(float((difference * mask).max()))
    zero = both.original(torch.zeros_like(x[:1])).abs()
    ranges = torch.cat([expected.abs(), zero]) * mask
    assert report.border_range == pytest.approx(float(ranges.max()))
    assert report.border_error > 0.1
    assert report.border.share > 1 >= report.interior.share > 0
    assert 0 < report.largest.error < 1e-3


def test_under_another_policy_the_border_counts() -> None:
    merge, module, load = bordered("twice")
    report = check_layer(merge, module, load, trials=2, seed=0)
    assert report.ok
    assert report.policy == "corrected"
    assert report.worst == max(report.interior, report.border, key=lambda one: one.share)
    assert "merged.border." in report.border.place or "twice.border." in report.border.place
    assert report.border_error == report.border_range == 0.0
    assert report.largest.error > 0


def test_worst_places_are_those_of_the_largest_share() -> None:
    """Of stored numbers and of outputs."""
    made = merge, module, load = plain(torch.float16)
    report = check_layer(merge, module, load, trials=3, seed=0)
    difference, bound, _ = of_random(merge, comparison(merge, module, load), drawn(made, 3, 0))
    weight = module.weight.detach()
    halves = ((weight - exact_values(merge, load)["weight"]).abs() / half_ulp(weight)).max()
    assert report.worst.share >= max(float((difference / bound).max()), float(halves)) > 0.3
    assert report.largest.error >= float(difference.max()) > 0
    assert " input of " in report.largest.place
    for worst in (report.interior, report.largest):
        assert worst.share == worst.error / worst.bound
        assert "output channel " in worst.place


def test_outputs_that_agree_do_not_hide_others() -> None:
    """A channel of zeros agrees exactly, and another is the worst."""
    merge, module, load = plain(torch.float16)
    zeros = {name: load(name).clone() for leaf in merge.layers for name in leaf.keys}
    for name in ("b.weight", "b.bias"):
        zeros[name][2] = 0.0
    with torch.no_grad():
        module.weight[2], module.bias[2] = 0.0, 0.0
    report = check_layer(merge, module, zeros.__getitem__, trials=3, seed=0)
    assert report.ok
    for worst in (report.interior, report.largest):
        assert worst.share > 0.1
        assert "output channel 2" not in worst.place


def test_of_equals_the_first_place_is_told() -> None:
    """A zero difference everywhere stands at the first number, the first output."""
    tensors = {"a.weight": torch.ones(2, 2, 1), "b.weight": torch.ones(2, 2, 1)}
    data = {"version": 1, "pairs": [{"into": "c", "chain": [{"name": "a"}, {"name": "b"}]}]}
    merge, module, load = made_of(data, tensors)
    tensors["a.weight"].zero_()
    with torch.no_grad():
        module.weight.zero_()
    report = check_layer(merge, module, load, trials=1, seed=0)
    assert report.ok
    assert report.interior.place == "c.weight, output channel 0, at [0, 0]"
    assert report.largest.place == "random input of 2, output channel 0, at [0]"
    assert (report.interior.error, report.interior.share) == (0.0, 0.0)
    assert report.border == Worst()


# What is wrong


def broken(change: Callable[[SqueezedConv], None], made: Made | None = None) -> LayerReport:
    merge, module, load = made or plain()
    with torch.no_grad():
        change(module)
    return check_layer(merge, module, load, trials=1, seed=0)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_number_that_is_none(value: float) -> None:
    report = broken(lambda module: module.bias[2:3].fill_(value))
    assert report.problem == f"is {value}, merged.bias, output channel 2"
    assert report.inputs == 0


def test_an_output_that_is_no_number() -> None:
    """Though every number is one: they are too large together."""
    merge, module, load = plain(torch.float64)
    zeros = {name: load(name) * 0 for leaf in merge.layers for name in leaf.keys}
    values = exact_values(merge, load)
    with torch.no_grad():
        for name, value in values.items():
            value.fill_(1e308)
            module.get_parameter(name).fill_(1e308)
    report = check_layer(merge, module, zeros.__getitem__, trials=1, seed=0, exact=values)
    assert report.problem is not None
    assert re.match(r"is -?inf, random input of \d+x\d+, output channel \d, at \[", report.problem)


def test_a_weight_that_differs_ends_the_run_and_is_told() -> None:
    report = broken(lambda module: module.weight[1, 1, 2, 0].add_(0.5))
    assert not report.ok
    assert report.problem == (
        f"differs by {report.worst.error:.3e} where at most {report.worst.bound:.3e} is rounding, "
        "merged.weight, output channel 1, at [1, 2, 0]"
    )
    assert report.worst.error == pytest.approx(0.5, rel=1e-3)
    assert report.worst.share > 1
    assert report.inputs == 0


@pytest.mark.parametrize("where", ["weight", "bias"])
def test_a_number_that_no_random_image_betrays(where: str) -> None:
    """Too small beside the others' rounding for an image of noise; on its own it stands out."""
    merge, module, load = chain(
        {}, {}, a=(1, 200, 3), b=(1, 1, 1), b_=(1,), dtype=torch.float16
    )  # fmt: skip
    place = (0, 77, 1) if where == "weight" else (0,)
    with torch.no_grad():
        module.get_parameter(where)[place] *= 1 + 4 * 2.0**-10
    report = check_layer(merge, module, load, trials=1, seed=0)
    assert report.problem is not None
    at = f", at {list(place[1:])}" if where == "weight" else ""
    assert report.problem.endswith(f"merged.{where}, output channel 0{at}")


def test_a_layer_that_does_not_run() -> None:
    merge, _, load = chain({}, {}, a=(4, 2, 3), b=(4, 4, 1))
    other = chain({"groups": 2}, {"groups": 2}, a=(4, 2, 3), b=(4, 2, 1))[1]
    size = plain_sizes(merge.geometry_tree)[0][0]
    other = SqueezedConv(other.layer, exact_values(merge, load)["weight"].float())
    report = check_layer(merge, other, load, trials=1, seed=0)
    assert report.problem is not None
    assert report.problem.startswith(f"the squeezed layer does not run on {size}: ")
    assert "\n" not in report.problem
    assert report.inputs == 0
    assert report.largest == Worst()
    assert (report.border_error, report.border_range) == (0.0, 0.0)


def test_tensors_that_are_not_those_of_the_merge() -> None:
    merge, _, load = chain({}, {}, a=(3, 2, 3), b=(4, 3, 1), b_=(4,))
    for other, told in (
        (
            chain({}, {}, a=(3, 5, 3), b=(4, 3, 1), b_=(4,)),
            "merged.weight has shape (4, 5, 3), (4, 2, 3) was needed",
        ),
        (chain({}, {}, a=(3, 2, 3), b=(4, 3, 1)), "merged.bias is missing, shape (4,) was needed"),
    ):
        report = check_layer(merge, other[1], load, trials=1, seed=0)
        assert (report.problem, report.inputs) == (told, 0)
    without, module, load = chain({}, {}, a=(3, 2, 3), b=(4, 3, 1))
    more = chain({}, {}, a=(3, 2, 3), b=(4, 3, 1), b_=(4,))[1]
    assert check_layer(without, module, load, trials=1, seed=0).ok
    report = check_layer(without, more, load, trials=1, seed=0)
    assert report.problem == "merged.bias is none that it has"


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_a_mode_on_one_axis_and_upsampling_on_another(mode: str) -> None:
    """Which torch's own transposed convolution has not: right merges were called wrong."""
    merge, module, load = chain(
        {"padding": [1, 0], "padding_mode": mode},
        {"type": "conv_transpose", "stride": [1, 2], "padding": [1, 0]},
        border="corrected",
        a=(2, 2, 3, 1),
        b=(2, 2, 3, 3),
    )
    both = comparison(merge, module, load)
    for size in ((2, 1), (3, 2), (6, 5)):
        x = bounded_image(merge.geometry, size, torch.Generator().manual_seed(2), 2)
        assert bool(((both.squeezed(x) - both.original(x)).abs() <= both.bound(x)).all())


@pytest.mark.parametrize(("padding", "told"), [(1, "(4, 4)"), (2, "(4, 6)")])
def test_outputs_of_another_size(padding: int, told: str) -> None:
    merge, _, load = chain({}, {}, a=(3, 2, 1), b=(4, 3, 1))
    other = chain({"padding": padding}, {}, a=(3, 2, 1), b=(4, 3, 1), border="exact")[1]
    report = check_layer(merge, other, load, trials=1, seed=0)
    assert report.problem == (
        f"on an input of 2 the output has shape {told}, the original's has (4, 2)"
    )


def test_nothing_that_could_be_held_to_the_bound_is_no_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merge, module, load = twice()
    assert check_layer(merge, module, load, trials=1, seed=0).ok
    everything = lambda merge, size, output: torch.ones(tuple(output), dtype=torch.bool)  # noqa: E731
    monkeypatch.setattr(outcome, "_border_mask", everything)
    report = check_layer(merge, module, load, trials=1, seed=0)
    assert report.problem == "no output of any input could be held to the bound"


# Sizes


def test_a_fixed_size_that_is_all_border_has_one_more_tried_under_interior() -> None:
    merge, module, load = twice([2, 2])
    every = plain_sizes(merge.geometry_tree)
    report = check_layer(merge, module, load, trials=1, seed=0)
    assert report.sizes == (every[-1], (2, 2))
    exact, module, load = chain({"padding": 1}, {}, a=(3, 2, 3, 3), b=(2, 3, 1, 1), size=[2, 2])
    assert check_layer(exact, module, load, trials=1, seed=0).sizes == ((2, 2),)


def test_every_kind_of_size_of_a_corrected_layer_is_tried() -> None:
    merge, module, load = bordered("strided")
    report = check_layer(merge, module, load, trials=1, seed=0)
    assert merge.corrections is not None
    for index, axis in enumerate(merge.corrections.axes):
        tried = {axis.class_size(size[index]) for size in report.sizes}
        assert tried == {one.size for one in axis.classes}
    assert len(set(report.sizes)) == len(report.sizes)


def test_an_original_layer_is_never_run_beyond_what_it_takes() -> None:
    module = nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="reflect")
    merge, squeezed, load = chain(
        {"padding": [2, 1], "padding_mode": "reflect"}, {}, a=(3, 2, 3, 3), b=(4, 3, 1, 1)
    )
    report = check_layer(merge, squeezed, load, trials=1, seed=0)
    assert report.ok
    for size in report.sizes:
        module(torch.zeros(1, 2, *size))


def test_a_layer_that_cannot_be_run_counts_no_inputs() -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {f"{name}.weight": torch.randn(2, 2, 1, generator=generator) for name in "ab"}
    data = {"version": 1, "pairs": [{"into": "c", "chain": [{"name": "a"}, {"name": "b"}]}]}
    checkpoint = from_state_dict(tensors)
    plan = make_plan(manifest_from_data(data), checkpoint)
    (merge,) = plan.merges
    stored = squeeze_one(merge, checkpoint.load).tensors()
    layers = {"c": recipe_layer(merge)}
    settings = Settings()
    assert (settings.trials, settings.seed) == (3, 0)
    assert (settings.exhaustive, settings.maps) == (False, False)
    for given, problem in ((stored, None), ({k: t.half() for k, t in stored.items()}, "float16")):
        (report,) = verify_plan(plan, checkpoint, from_state_dict(given), layers, settings)
        assert report.ok is (problem is None)
        assert problem is None or problem in str(report.problem)
        assert (report.inputs > 0) is (problem is None)
        assert (len(report.sizes) > 0) is (problem is None)
    assert list(verify_plan(plan, checkpoint, from_state_dict(stored), {}, settings)) == []
