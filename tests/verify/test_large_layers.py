"""Layers with very many weights: what is planted anywhere in them is found.

Every check is also watched alone: with the others taken away it still finds what it is there for.
"""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from convsqueeze import merge_file
from convsqueeze.algebra import Conv
from convsqueeze.algebra.border.values import border_terms
from convsqueeze.algebra.precision import round_once
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.manifest import manifest_from_data
from convsqueeze.module import module_of
from convsqueeze.pipeline import verify_files
from convsqueeze.plan import Merge, make_plan
from convsqueeze.squeezing import recipe_layer, squeeze_one
from convsqueeze.verify import LayerReport, check_layer, layer
from convsqueeze.verify.numbers import worst_number
from tests.fault_tables import index_of
from tests.planted import DTYPES, NARROW
from tests.squeezed_files import moved_by_ulps

Tensors = dict[str, Tensor]


def pair(first: dict[str, Any], second: dict[str, Any], **entry: Any) -> dict[str, Any]:
    chain = [{"name": "a", **first}, {"name": "b", **second}]
    return {"into": "c", "chain": chain, **entry}


CASES: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "plain": (
        pair({}, {}),
        {"a.weight": (160, 48, 3, 3), "a.bias": (160,), "b.weight": (56, 160, 3, 3)},
    ),
    "steps": (
        pair({"stride": 2, "padding": 1}, {"stride": [1, 2], "dilation": [2, 1]}),
        {"a.weight": (128, 64, 3, 2), "b.weight": (64, 128, 2, 3), "b.bias": (64,)},
    ),
    "corrected": (
        pair({"padding": 1}, {"padding": 1}, border="corrected"),
        {
            "a.weight": (96, 48, 3, 3),
            "a.bias": (96,),
            "b.weight": (40, 96, 3, 3),
            "b.bias": (40,),
        },
    ),
    "interior": (
        pair({"padding": 1}, {"padding": 1}, border="interior"),
        {"a.weight": (128, 48, 3, 3), "a.bias": (128,), "b.weight": (56, 128, 3, 3)},
    ),
    "groups": (
        pair({"groups": 2}, {"groups": 4, "padding": [0, 1]}),
        {"a.weight": (256, 64, 3, 1), "b.weight": (64, 64, 1, 3), "b.bias": (64,)},
    ),
    "many groups": (
        pair({"groups": 400}, {"groups": 400}),
        {"a.weight": (400, 1, 3, 3), "a.bias": (400,), "b.weight": (800, 1, 3, 3)},
    ),
    "up": (
        pair({"type": "conv_transpose", "stride": 2, "padding": 1, "groups": 2}, {"groups": 2}),
        {"a.weight": (96, 96, 4, 4), "b.weight": (64, 96, 1, 1), "b.bias": (64,)},
    ),
    "linear": (
        pair({"type": "linear"}, {"type": "linear"}),
        {"a.weight": (900, 700), "a.bias": (900,), "b.weight": (500, 900)},
    ),
}  # fmt: skip
NORMED = {
    "into": "c",
    "sum": [
        {
            "chain": [
                {"name": "a"},
                {"name": "n", "type": "batch_norm", "eps": 0.001},
                {"name": "b"},
            ]
        },
        {"chain": [{"type": "pad", "padding": -1}, {"name": "d"}]},
    ],
}
CASES["branches"] = (
    NORMED,
    {
        "a.weight": (128, 64, 3, 3), "n.running_mean": (128,), "n.running_var": (128,),
        "n.weight": (128,), "n.bias": (128,), "b.weight": (64, 128, 1, 1),
        "d.weight": (64, 64, 1, 1),
    },
)  # fmt: skip
every_case = pytest.mark.parametrize("name", CASES)


@dataclass(frozen=True)
class Made:
    """A merge, its stored tensors by name within the layer, and the values that were rounded."""

    merge: Merge
    load: Callable[[str], Tensor]
    stored: Mapping[str, Tensor]
    exact: Mapping[str, Tensor]

    def report(
        self,
        changed: Mapping[str, Tensor] | None = None,
        *,
        known: bool = False,
        geometry: Mapping[str, Any] | None = None,
        trials: int = 3,
    ) -> LayerReport:
        """With some stored tensors or the recipe changed; `known`: the exact values handed over."""
        layer = recipe_layer(self.merge).model_copy(update=geometry or {})
        tensors = {f"c.{name}": t for name, t in {**self.stored, **(changed or {})}.items()}
        exact = self.exact if known else None
        module = module_of(layer, tensors)
        return check_layer(self.merge, module, self.load, trials=trials, seed=0, exact=exact)


def drawn(name: str, dtype: torch.dtype) -> Tensors:
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for key, shape in CASES[name][1].items():
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        values = values.abs() + 0.3 if key.endswith("running_var") else values
        tensors[key] = (values / max(1, values[0].numel()) ** 0.5).to(dtype)
    return tensors


def merged(name: str, tensors: Tensors) -> Made:
    manifest = manifest_from_data({"version": 1, "pairs": [CASES[name][0]]})
    checkpoint = from_state_dict(tensors)
    (merge,) = make_plan(manifest, checkpoint, growth="allow").merges
    squeezed = squeeze_one(merge, checkpoint.load)
    stored = {key.removeprefix("c."): t for key, t in squeezed.tensors().items()}
    return Made(merge, checkpoint.load, stored, squeezed.exact)


@cache
def made(name: str, dtype: str = "float32") -> Made:
    return merged(name, drawn(name, DTYPES[dtype]))


def assert_told(report: LayerReport, *words: str) -> None:
    assert not report.ok
    assert all(word in str(report.problem) for word in words), report.problem


def assert_place_told(report: LayerReport, key: str, channel: int) -> None:
    """A bias has no place within its channel."""
    place = f"c.{key}, output channel {channel}"
    if key != "bias":
        return assert_told(report, f"{place}, at [")
    assert str(report.problem).endswith(place), report.problem


@pytest.mark.parametrize("dtype", DTYPES)
@every_case
def test_honest_layer(name: str, dtype: str) -> None:
    one = made(name, dtype)
    for known in (True, False):
        report = one.report(known=known)
        assert report.ok, report.problem
        assert 0.9 < report.worst.share <= 1 or dtype == "float64"
        assert report.inputs > 0
        assert report.sizes
        assert 0 < report.largest.error < 0.1


def spots(tensor: Tensor) -> list[tuple[int, ...]]:
    """The largest number, the first, the last and some others."""
    others = torch.randint(tensor.numel(), (3,), generator=torch.Generator().manual_seed(1))
    flat = (int(tensor.double().abs().argmax()), 0, tensor.numel() - 1, *others.tolist())
    return [index_of(one, tensor) for one in dict.fromkeys(flat)]


def channel_of(one: Made, key: str, place: tuple[int, ...]) -> int:
    """The output channel of a stored number."""
    if key != "weight" or not one.merge.geometry.is_transposed:
        return place[0]
    groups, geometry = one.merge.geometry.groups, one.merge.geometry
    group = place[0] // (geometry.in_channels // groups)
    return group * (geometry.out_channels // groups) + place[1]


@pytest.mark.stress
@pytest.mark.parametrize("dtype", NARROW)
@every_case
def test_any_number_changed_by_two_ulps(name: str, dtype: str) -> None:
    one = made(name, dtype)
    for key, tensor in one.stored.items():
        for turn, place in enumerate(spots(tensor)):
            changed = {key: moved_by_ulps(tensor, place, 2 if turn % 2 else -2)}
            for known in (True, False):
                report = one.report(changed, known=known)
                channel = channel_of(one, key, place)
                assert_told(report, "differs by")
                assert_place_told(report, key, channel)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["plain", "corrected", "up"])
def test_a_number_that_is_none(name: str, value: float) -> None:
    one = made(name)
    for key, tensor in one.stored.items():
        place = spots(tensor)[-1]
        changed = tensor.clone()
        changed[place] = value
        channel = channel_of(one, key, place)
        assert_place_told(one.report({key: changed}), key, channel)


def two_exchanged(tensor: Tensor, dim: int) -> Tensor:
    order = list(range(tensor.shape[dim]))
    order[1], order[-2] = order[-2], order[1]
    return tensor.index_select(dim, torch.tensor(order))


@every_case
def test_channels_exchanged_and_taps_shifted(name: str) -> None:
    one = made(name, "float16")
    for key, tensor in one.stored.items():
        for dim, count in enumerate(tensor.shape):
            if count > 3:
                assert_told(one.report({key: two_exchanged(tensor, dim)}), "output channel")
            if count > 1:
                assert_told(one.report({key: tensor.roll(1, dim)}), "output channel")


GEOMETRIES = {
    "plain": [
        ("padding", ((1, 1), (0, 0))), ("padding", ((0, 0), (0, 1))), ("stride", (1, 2)),
        ("dilation", (2, 1)),
    ],
    "steps": [
        ("stride", (2, 2)), ("padding", ((1, 1), (2, 0))),
        ("padding", ((0, 2), (1, 1))), ("padding_mode", "circular"),
    ],
    "interior": [("padding", ((2, 2), (1, 3))), ("stride", (2, 1)), ("padding", ((2, 2), (2, 3)))],
    "groups": [("padding", ((0, 0), (1, 2))), ("groups", 1), ("groups", 4)],
    "many groups": [("padding", ((0, 0), (1, 0))), ("groups", 200), ("stride", (2, 1))],
    "up": [("stride", (2, 1)), ("padding", ((1, 1), (0, 1)))],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [(name, key, value) for name, found in GEOMETRIES.items() for key, value in found],
)
def test_wrong_geometry_in_the_recipe(name: str, key: str, value: Any) -> None:
    one = made(name)
    assert getattr(recipe_layer(one.merge), key) != value
    assert not one.report(geometry={key: value}).ok


# Faults in the algebra, the same when merging and when verifying.


def one_weight(weight: Tensor) -> Tensor:
    weight[(-1, 2, *(-1,) * (weight.ndim - 2))] *= 1 + 1e-5
    return weight


def two_weights_alike(weight: Tensor) -> Tensor:
    """Off by the same: on images of ones with signs, every other output would hide it."""
    amount = 1e-5 * float(weight.abs().max())
    weight[3, 0] += amount
    weight[3, 1] -= amount
    return weight


def inputs_exchanged(weight: Tensor) -> Tensor:
    return two_exchanged(weight, 1)


def mirrored(weight: Tensor) -> Tensor:
    return weight.flip(-1)


def half_precision(weight: Tensor) -> Tensor:
    return weight.float().double()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "wrong", [one_weight, two_weights_alike, inputs_exchanged, mirrored, half_precision]
)
@pytest.mark.parametrize("name", ["plain", "steps", "corrected", "interior", "groups", "linear"])
def test_wrong_composition_shows_on_random_images(
    monkeypatch: pytest.MonkeyPatch, name: str, wrong: Callable[[Tensor], Tensor], known: bool
) -> None:
    """Also where each stored number is what that composition gives, rounded."""
    plant(monkeypatch, wrong)
    one = merged(name, drawn(name, torch.float32))
    assert_told(one.report(known=known), "differs by", " input of ")


def plant(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Tensor], Tensor]) -> None:
    """Into every composed kernel but those that bounds are made of, of one input channel."""
    compose = Conv.__matmul__

    def faulty(outer: Conv, inner: Conv) -> Conv:
        whole = compose(outer, inner)
        if whole.weight.shape[1] < 3:
            return whole
        return replace(whole, weight=wrong(whole.weight.clone()))

    monkeypatch.setattr(Conv, "__matmul__", faulty)


def test_wrong_border_terms_show_on_random_images(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in made("corrected").exact:
        if not key.startswith("border."):
            continue

        def faulty(*arguments: Any, key: str = key) -> Any:
            terms = border_terms(*arguments)
            changed = terms[key.removeprefix("border.")]
            changed[1] *= 1 + 1e-6
            return terms

        with monkeypatch.context() as patch:
            patch.setattr("convsqueeze.squeezing.border_terms", faulty)
            one = merged("corrected", drawn("corrected", torch.float32))
            assert_told(one.report(), "differs by", " input of ", "output channel 1,")


def test_a_bias_that_is_not_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    compose = Conv.__matmul__

    def faulty(outer: Conv, inner: Conv) -> Conv:
        whole = compose(outer, inner)
        return replace(whole, bias=None if whole.bias is None else whole.bias * (1 + 1e-6))

    monkeypatch.setattr(Conv, "__matmul__", faulty)
    for name in ("plain", "linear", "many groups"):
        one = merged(name, drawn(name, torch.float32))
        assert_told(one.report(), " input of ")


def test_what_random_images_of_equal_channels_would_drown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weights of one input channel are a billionth of the others', and wrong by a millionth."""

    def wrong(weight: Tensor) -> Tensor:
        weight[1, 7] *= 1 + 1e-6
        return weight

    tensors = drawn("plain", torch.float32)
    tensors["a.weight"][:, 7] *= 1e-9
    assert merged("plain", tensors).report().ok
    plant(monkeypatch, wrong)
    one = merged("plain", tensors)
    assert_told(one.report(known=True), "random input of", "output channel 1,")
    ones = torch.ones(48, dtype=torch.float64)
    monkeypatch.setattr(layer, "input_scales", lambda *_: ones)
    assert one.report(known=True).ok


# Rounding


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_number_rounded_twice(dtype: torch.dtype) -> None:
    """Just above the middle of two neighbours, which float32 takes for the middle."""
    one = made("plain", str(dtype).removeprefix("torch."))
    exact = dict(one.exact)
    exact["weight"] = exact["weight"].clone()
    exact["weight"][7, 5, 2, 1] = 1 + torch.finfo(dtype).eps / 2 + 2.0**-40
    right, twice = round_once(exact["weight"], dtype), exact["weight"].float().to(dtype)
    assert int((right != twice).sum()) >= 1
    for stored, is_right in ((twice, False), (right, True)):
        place, worst = worst_number(stored, exact["weight"])
        assert (worst.share <= 1) is is_right
        assert is_right or bool((right != twice)[place])


def test_float16_through_float32_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convsqueeze.storage.round_once", lambda t, dtype: t.float().to(dtype))
    one = merged("plain", drawn("plain", torch.float16))
    for known in (True, False):
        assert_told(one.report(known=known), "differs by", "c.weight")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["plain", "corrected", "groups", "up"])
def test_another_order_of_adding_up_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: str
) -> None:
    """A merge on another machine may add up the same products otherwise."""
    one = made(name, dtype)
    compose = Conv.__matmul__

    def reversed_(outer: Conv, inner: Conv) -> Conv:
        whole = compose(outer, inner)
        noise = torch.rand(whole.weight.shape, generator=torch.Generator().manual_seed(2)) - 0.5
        return replace(whole, weight=whole.weight * (1 + 8 * 2.0**-53 * noise.double()))

    monkeypatch.setattr(Conv, "__matmul__", reversed_)
    other = merged(name, drawn(name, DTYPES[dtype]))
    monkeypatch.undo()
    assert not torch.equal(other.exact["weight"], one.exact["weight"])
    report = replace(one, stored=other.stored).report()
    assert report.ok, report.problem


# Each check alone


def without(monkeypatch: pytest.MonkeyPatch, *checks: str) -> None:
    for check in checks:
        if check == "numbers":
            monkeypatch.setattr(layer, "_numbers_checked", lambda report, *_: report)
        else:
            monkeypatch.setattr(layer, "_probes", stored_alone)


def stored_alone(*given: Any, probes: Callable[..., Any] = layer._probes) -> Any:
    return (probe for probe in probes(*given) if probe.measured)


def test_numbers_alone_find_a_stored_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    one = made("plain")
    moved = {"weight": moved_by_ulps(one.stored["weight"], (9, 9, 1, 1), 4)}
    assert_told(one.report(moved), "c.weight, output channel 9, at [9, 1, 1]")
    without(monkeypatch, "numbers")
    assert one.report(moved).ok


@every_case
def test_the_stored_layer_alone_shows_a_fault_of_every_weight(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its small images, without the numbers and without those for the values."""
    one = made(name)
    without(monkeypatch, "numbers", "values")
    assert one.report().ok
    for key, tensor in one.stored.items():
        assert_told(one.report({key: tensor * (1 + 1e-4)}), "differs by", " input of ")


def test_the_values_are_needed_for_the_algebra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers do not see what is wrong in both, and rounding hides it from the stored layer."""
    plant(monkeypatch, one_weight)
    one = merged("plain", drawn("plain", torch.float32))
    without(monkeypatch, "values")
    assert one.report(known=True).ok
    monkeypatch.undo()
    assert_told(one.report(known=True), "random input of")


# In the pipeline


def manifest_of_two(folder: Any) -> tuple[Any, dict[str, Any]]:
    """A file of two large layers, and its manifest."""
    entry, _ = CASES["plain"]
    tensors = drawn("plain", torch.float32)
    pairs = []
    for number in "12":
        chain = [{**one, "name": f"{one['name']}{number}"} for one in entry["chain"]]
        pairs.append({"into": f"c{number}", "chain": chain})
    whole = {
        f"{key[0]}{n}{key[1:]}": tensor.clone() for n in "12" for key, tensor in tensors.items()
    }
    torch.save(whole, folder / "model.pt")
    return folder / "model.pt", {"version": 1, "pairs": pairs}


def test_a_merge_hands_its_values_over_and_drops_them(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is computed anew, and the values of one merge are gone before the next begins."""
    path, manifest = manifest_of_two(tmp_path)
    seen: list[Any] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        assert all(one() is None for one in seen)
        made = squeeze_one(*arguments, **options)
        seen.append(weakref.ref(made.exact["weight"]))
        return made

    def never(*_: Any) -> Any:
        raise AssertionError("values are computed anew")

    monkeypatch.setattr("convsqueeze.pipeline.merging.squeeze_one", watched)
    monkeypatch.setattr(layer, "exact_values", never)
    result = merge_file(path, manifest_from_data(manifest), growth="allow")
    assert len(seen) == 2
    assert result.verification is not None
    assert result.verification.ok
    assert [one.name for one in result.verification.layers] == ["c1", "c2"]
    assert result.output is not None
    with pytest.raises(AssertionError, match="anew"):
        verify_files(path, result.output)
    monkeypatch.undo()
    assert verify_files(path, result.output).ok


def test_layers_that_cannot_be_merged_anew_are_told(tmp_path: Any) -> None:
    path, manifest = manifest_of_two(tmp_path)
    output = merge_file(path, manifest_from_data(manifest), growth="allow").output
    assert output is not None
    tensors = torch.load(path)
    tensors["a2.weight"][3, 2, 1, 0] = torch.nan
    torch.save(tensors, tmp_path / "other.pt")
    failures = verify_files(tmp_path / "other.pt", output).failures
    assert any(
        one.startswith("c2: cannot be merged anew: a2.weight: holds nan") for one in failures
    ), failures
    assert not any(one.startswith("c1: ") for one in failures)
