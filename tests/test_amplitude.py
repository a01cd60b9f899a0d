"""Bounds from norms alone hold for every image, and for every weight of a merged kernel."""

import pytest
import torch
from test_large_layers import CASES as LARGE
from test_large_layers import drawn as drawn_tensors
from test_large_layers import merged
from test_reference import Case, every_case, of_two, planned
from torch import Tensor

from convsqueeze.plan import Merge
from convsqueeze.squeezing import exact_values
from convsqueeze.verify.amplitude import Amplitudes
from convsqueeze.verify.reference import reference


def signs(channels: int, size: tuple[int, ...], seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, channels, *size, generator=generator, dtype=torch.float64) * 2 - 1


@every_case
@pytest.mark.parametrize("part", ["affine", "linear"])
def test_no_output_adds_up_more(case: Case, part: str) -> None:
    merge, tensors = planned(case)
    x = signs(case.channels, case.size).abs()
    most = x.flatten(2).amax(2) if case.size else x
    found = Amplitudes(merge.tree, tensors.__getitem__).of(most, part).every  # type: ignore[arg-type]
    run = reference(merge.tree, tensors.__getitem__, part, magnitude=True)  # type: ignore[arg-type]
    sums = run(x)
    assert bool((sums <= found.reshape(*found.shape, *(1,) * len(case.size)) * (1 + 1e-12)).all())
    nearly = sums.flatten(2).amax(2) if case.size else sums
    assert bool((found <= 40 * nearly).all())


def test_branches_and_links() -> None:
    """Of one tap each: what `add` and `chain` make of the sums is what they make of numbers."""
    for kind in ("chain", "sum"):
        merge, tensors, first, second = of_two(kind)
        a, b = (m.weight.abs().sum(2) for m in (first, second))  # type: ignore[union-attr,operator]
        x = torch.eye(4, dtype=torch.float64)
        found = Amplitudes(merge.tree, tensors.__getitem__).of(x)
        whole = x @ a.T @ b.T if kind == "chain" else x @ a.T + x @ b.T
        torch.testing.assert_close(found.every, whole)


def magnitudes(merge: Merge, tensors: dict[str, Tensor]) -> Tensor:
    """What each weight of the merged kernel adds up: the merge of absolute values."""
    sizes = {
        key: t if key.endswith(("running_var", "bias", "running_mean")) else t.double().abs()
        for key, t in tensors.items()
    }
    return exact_values(merge, sizes.__getitem__)["weight"]


@pytest.mark.parametrize("name", LARGE)
def test_no_weight_adds_up_more(name: str) -> None:
    tensors = drawn_tensors(name, torch.float32)
    merge = merged(name, tensors).merge
    groups, per_group = merge.geometry.groups, merge.geometry.in_channels // merge.geometry.groups
    x = torch.eye(per_group, dtype=torch.float64).repeat(1, groups)
    found = Amplitudes(merge.tree, tensors.__getitem__).of(x)
    actual = magnitudes(merge, tensors)
    if merge.geometry.axes:
        actual = actual.flatten(2).amax(2)
    assert bool((found.single * (1 + 1e-12) >= actual.T).all())
    assert bool((found.single <= found.every * (1 + 1e-12)).all())
    assert bool((found.single <= 30 * actual.T).all())
