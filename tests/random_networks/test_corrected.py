"""Every form of correction is tried, and a fault in any part of one would be seen."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from convsqueeze.algebra.border.corrections import AxisCorrections, Corrections, SizeClass
from convsqueeze.algebra.border.taps import corrections
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.errors import PlanError
from convsqueeze.manifest import manifest_from_data
from convsqueeze.plan import Merge, candidates, make_plan
from convsqueeze.plan.candidates import NOMINAL_SIZE
from convsqueeze.recipe import Recipe, read_recipe
from convsqueeze.squeezing import Squeezed, squeeze_one

from . import corrected as trial
from .corrected import (
    FORMS,
    check_border_taps,
    corrected,
    depends_on_size,
    form_of,
    leaves_out_zeros,
)
from .manifests import Case
from .original import Disagreement, workable_case
from .trial import examine

pytestmark = pytest.mark.stress

CASES = 160
Change = Callable[[AxisCorrections], AxisCorrections]


def planned(case: Case) -> Merge | None:
    """The merge with corrections, None where the layers are not one convolution."""
    checkpoint = from_state_dict(case.tensors)
    manifest = manifest_from_data(case.manifest)
    try:
        return make_plan(manifest, checkpoint, border="corrected", growth="allow").merges[0]
    except PlanError:
        return None


def test_no_form_is_rare() -> None:
    """Of the cases that merge, each form is a tenth at least."""
    merges = [merge for n in range(CASES) if (merge := planned(workable_case(n))) is not None]
    forms = Counter(map(form_of, merges))
    assert all(forms[form] >= len(merges) / 10 for form in FORMS), forms
    strips = [merge for merge in merges if form_of(merge) == "strips"]
    assert sum(map(leaves_out_zeros, strips)) >= len(strips) / 20
    assert len(strips) / 5 <= sum(map(depends_on_size, strips)) < len(strips)
    ranks = Counter(len(merge.geometry.axes) for merge in strips)
    assert all(ranks[rank] >= len(strips) / 20 for rank in (1, 2, 3)), ranks


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def windows() -> Case:
    """Two layers of which the first sees the image from outside it and has a bias."""
    tensors = {
        "a.weight": drawn(2, 2, 3, 3, seed=1),
        "a.bias": drawn(2, seed=2),
        "b.weight": drawn(2, 2, 3, 3, seed=3),
    }
    first = {"name": "a", "padding": 1, "stride": [2, 1]}
    entry = {"first": first, "second": {"name": "b", "padding": 1}}
    return Case(0, "pair", entry, tensors, rank=2, channels=2)


def branches() -> Case:
    """A layer, then a tall kernel and a wide one side by side: their hull has bare corners."""
    tensors = {
        "a.weight": drawn(2, 2, 3, 3, seed=1),
        "tall.weight": drawn(2, 2, 3, 1, seed=2),
        "wide.weight": drawn(2, 2, 1, 3, seed=3),
    }
    tall, wide = {"name": "tall", "padding": [1, 0]}, {"name": "wide", "padding": [0, 1]}
    entry = {"chain": [{"name": "a", "padding": 1}, {"sum": [tall, wide]}]}
    return Case(0, "sum in chain", entry, tensors, rank=2, channels=2)


def strided() -> Case:
    """One row at the end is wrong, for every fourth size."""
    first = {"name": "a", "padding": 1, "stride": 2}
    entry = {"first": first, "second": {"name": "b", "padding": 1, "stride": 2}}
    tensors = {"a.weight": drawn(2, 2, 3, seed=1), "b.weight": drawn(2, 2, 3, seed=2)}
    return Case(0, "pair", entry, tensors, rank=1, channels=2)


def test_without_a_fault() -> None:
    for case, is_windows in ((windows(), True), (branches(), False)):
        found = examine(case).corrected
        assert found is not None
        assert form_of(found.merge) == "strips"
        assert leaves_out_zeros(found.merge) is not is_windows
        assert depends_on_size(found.merge) is is_windows


# Planted faults: what is stored


def stored(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """What is squeezed gets border tensors that a function has changed."""

    def faulty(*args: Any) -> Squeezed:
        squeezed = squeeze_one(*args)
        inside, kept = "border.", dict(squeezed.stored)
        names = [name for name in kept if name.startswith(inside)]
        border = {name.removeprefix(inside): kept.pop(name).clone() for name in names}
        change(border)
        kept |= {inside + name: tensor for name, tensor in border.items()}
        return replace(squeezed, stored=kept)

    monkeypatch.setattr(trial, "squeeze_one", faulty)


TERMS = [f"{axes}.{role}" for axes in ("0", "1", "01") for role in ("weight", "bias")]


@pytest.mark.parametrize("name", TERMS)
def test_a_correction_that_is_scaled(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    stored(monkeypatch, lambda border: border[name].mul_(1 + 1e-9))
    with pytest.raises(Disagreement, match="corrected, differs"):
        examine(windows())


@pytest.mark.parametrize("name", TERMS)
def test_a_border_tap_that_is_zero(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    stored(monkeypatch, lambda border: border[name].view(2, -1)[:, -1].zero_())
    with pytest.raises(Disagreement, match="corrected, differs"):
        examine(windows())


@pytest.mark.parametrize("name", TERMS)
def test_a_tensor_that_is_missing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    stored(monkeypatch, lambda border: border.pop(name))
    with pytest.raises(Disagreement, match="was told"):
        examine(windows())


def test_a_tensor_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    stored(monkeypatch, lambda border: border.update({"2.weight": torch.zeros(1)}))
    with pytest.raises(Disagreement, match="was told"):
        examine(windows())


# Planted faults: where it is added


def planted(monkeypatch: pytest.MonkeyPatch, change: Change, at: int = 0) -> None:
    """The planner believes an axis that a function has changed."""

    def faulty(*args: Any) -> Corrections | None:
        found = corrections(*args)
        if found is None:
            return None
        axes = [change(axis) if index == at else axis for index, axis in enumerate(found.axes)]
        changed = replace(found, axes=tuple(axes))
        assert changed != found, "no fault was planted"
        return changed

    monkeypatch.setattr(candidates, "corrections", faulty)


def each_class(change: Callable[[SizeClass], SizeClass]) -> Change:
    return lambda axis: replace(axis, classes=tuple(map(change, axis.classes)))


def without_tap(one: SizeClass) -> SizeClass:
    return replace(one, weights=tuple(entry for entry in one.weights if entry[2] != 0))


def other_sign(one: SizeClass) -> SizeClass:
    return replace(one, weights=tuple((*entry[:3], -entry[3]) for entry in one.weights))


def other_bias_sign(one: SizeClass) -> SizeClass:
    return replace(one, biases=tuple((*entry[:2], -entry[2]) for entry in one.biases))


def shifted_rows(one: SizeClass) -> SizeClass:
    return replace(one, weights=tuple((row + 1, *rest) for row, *rest in one.weights))


def shifted_columns(one: SizeClass) -> SizeClass:
    return replace(one, weights=tuple((row, col - 1, *rest) for row, col, *rest in one.weights))


def shifted_bias_rows(one: SizeClass) -> SizeClass:
    return replace(one, biases=tuple((row - 1, *rest) for row, *rest in one.biases))


def without_bias(one: SizeClass) -> SizeClass:
    return replace(one, biases=())


FAULTS = [
    *(without_tap, other_sign, other_bias_sign, shifted_rows),
    *(shifted_columns, shifted_bias_rows, without_bias),
]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_entries_that_are_wrong(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[[SizeClass], SizeClass], axis: int
) -> None:
    planted(monkeypatch, each_class(fault), axis)
    with pytest.raises(Disagreement, match="corrected, differs"):
        examine(windows())


def test_classes_of_sizes_that_are_mixed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def mixed(axis: AxisCorrections) -> AxisCorrections:
        *others, last, end = axis.classes
        swapped = replace(last, size=end.size), replace(end, size=last.size)
        return replace(axis, classes=(*others, *reversed(swapped)))

    planted(monkeypatch, mixed)
    with pytest.raises(Disagreement, match="corrected, differs"):
        examine(windows())


def test_a_class_of_sizes_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, lambda axis: replace(axis, classes=(axis.of(NOMINAL_SIZE),)))
    with pytest.raises(Disagreement, match=r"does not run on .* not for"):
        examine(windows())


def test_absent_places_that_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*args: Any) -> Corrections | None:
        found = corrections(*args)
        if found is None:
            return None
        (subset, (first, *others)), *rest = found.absent
        place = next(n for n in range(100) if n not in (first, *others))
        swapped = (subset, tuple(sorted((place, *others))))
        return replace(found, absent=(swapped, *rest))

    monkeypatch.setattr(candidates, "corrections", faulty)
    with pytest.raises(Disagreement, match="corrected, differs"):
        examine(branches())


def test_a_merge_for_one_size_that_takes_others(monkeypatch: pytest.MonkeyPatch) -> None:
    case = strided()
    promised = replace(case, entry=case.entry | {"input": [34]})
    assert examine(promised).sizes == 1
    monkeypatch.setattr(candidates, "corrections", lambda tree, _: corrections(tree))
    with pytest.raises(Disagreement, match=r"takes .* too"):
        examine(promised)


def test_a_recipe_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(text: str, where: str) -> Recipe:
        return read_recipe(text.replace('"period":2', '"period":4'), where)

    monkeypatch.setattr(trial, "read_recipe", faulty)
    with pytest.raises(Disagreement, match="through JSON"):
        examine(windows())


# Planted faults: what is stored in vain


def test_corrections_of_what_is_not_wrong() -> None:
    """A kernel of zeros reads nothing, from outside the image or from inside."""
    case = windows()
    zeros = {name: torch.zeros_like(tensor) for name, tensor in case.tensors.items()}
    ones = {"b.weight": torch.ones(2, 2, 3, 3).double()}
    with pytest.raises(Disagreement, match="no input was found wrong"):
        examine(replace(case, tensors=zeros | ones))


def test_rows_that_are_corrected_in_vain() -> None:
    """The tap that sees the image from outside it, where the size is even, is zero."""
    case = strided()
    assert examine(case).verdict == "border"
    case.tensors["a.weight"][:, :, 0] = 0
    with pytest.raises(Disagreement, match="in vain"):
        examine(case)


def check_rows(monkeypatch: pytest.MonkeyPatch, rows: list[list[float]]) -> None:
    """The check of a merge whose border taps on the first axis are these sums."""
    made = corrected(windows())
    first, *others = made.merge.border_taps
    taps = (replace(first, border=torch.tensor(rows, dtype=torch.float64)), *others)
    monkeypatch.setattr(Merge, "border_taps", taps)
    check_border_taps(made)


@pytest.mark.parametrize("rows", [[[1, 0], [2, 0]], [[1, 0], [0, 1], [1, -1]], [[0, 0]]])
def test_border_taps_that_others_make(
    monkeypatch: pytest.MonkeyPatch, rows: list[list[float]]
) -> None:
    with pytest.raises(Disagreement, match=r"border tap . of axis 0 is made of those before"):
        check_rows(monkeypatch, rows)


@pytest.mark.parametrize("rows", [[[1, 0], [1, 1]], [[2, 0], [1, 0]]])
def test_border_taps_that_others_do_not_make_of_whole_factors(
    monkeypatch: pytest.MonkeyPatch, rows: list[list[float]]
) -> None:
    check_rows(monkeypatch, rows)
