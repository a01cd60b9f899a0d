"""Networks that no plain convolution can replace are exact at every pixel with `border: corrected`.

The network's own modules, run in float64, are the oracle, and the layers come from a squeezed file.
The plain merge goes through the same comparison, so that it is seen to fail. `python -m
tests.networks` does the same with the published channels.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from convsqueeze.errors import PlanError

from .corrected import FLOAT64_LOSS, corrected_lines, errors_of, from_file, relative_errors
from .pipeline import image, in_double, merged, planned
from .refused import REFUSED
from .rows import Row, differences_of, merged_of, network_of, spoiled_pixels
from .values import filled

SLOW_TO_VERIFY = ("VAN", "SegNeXt")
"""Kernels of 23x23 and more on images of 100x100: `python -m tests.networks` verifies them."""
QUICK = [row for row in REFUSED if not row.network.startswith(SLOW_TO_VERIFY)]
SLOW_TO_PLAN = "SegNeXt"
"""Two seconds for every number of channels: the table shows what is stored with the published."""


def rows(which: list[Row] | tuple[Row, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", which, ids=lambda row: row.network)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.stress
@rows(REFUSED)
def test_weights_that_are_stored_and_in_which_form(row: Row) -> None:
    plan = planned(network_of(row), row.manifest, border="corrected", growth="allow")
    assert (plan.weights_before, plan.weights_after) == (row.before, row.corrected)
    (merge,) = plan.merges
    assert merge.border == "corrected"
    assert merge.corrections is not None
    assert merge.corrections.only_biases == (row.form == "biases")


@rows([row for row in REFUSED if row.published and not row.network.startswith(SLOW_TO_PLAN)])
def test_weights_with_the_published_channels(row: Row) -> None:
    with torch.device("meta"):
        network = row.full.build()
    for border, weights in (("interior", row.full.after), ("corrected", row.full.corrected)):
        plan = planned(network, row.full.manifest, border=border, growth="allow")
        assert (plan.weights_before, plan.weights_after) == (row.full.before, weights)


@rows(REFUSED)
def test_without_leave_to_grow_only_what_shrinks_is_corrected(row: Row) -> None:
    assert row.corrected is not None
    if row.corrected <= row.before:
        assert planned(network_of(row), row.manifest, border="corrected").merges
        return
    with pytest.raises(PlanError, match="--growth allow") as refused:
        planned(network_of(row), row.manifest, border="corrected")
    assert f"from {row.before:,} to {row.corrected:,} weights" in str(refused.value)


@rows(REFUSED)
def test_every_pixel_is_that_of_the_network(row: Row) -> None:
    for size, errors in errors_of(row, "corrected").items():
        assert float(errors.max()) <= FLOAT64_LOSS, size


@rows(REFUSED)
def test_the_plain_merge_fails_the_same_comparison_where_it_is_told_to(row: Row) -> None:
    assert row.refusal is not None
    for size, errors in errors_of(row, "interior").items():
        expected = spoiled_pixels(row.refusal, size, tuple(errors.shape))
        assert torch.equal(errors > FLOAT64_LOSS, expected), size
    assert float(errors_of(row, "interior")[row.refusal.at].max()) > 0.1


@rows(REFUSED)
def test_stored_in_float32_it_is_the_network_within_their_rounding(row: Row) -> None:
    for size, (one,) in differences_of(row, "corrected").items():
        assert not one.wrong.any(), size


@rows(QUICK)
def test_the_squeezed_file_is_verified(row: Row) -> None:
    report = from_file(row, "corrected", verify=True).report
    assert report is not None
    assert report.failures == ()
    assert [one.policy for one in report.layers] == ["corrected"]


@rows([row for row in REFUSED if row.small])
def test_with_few_channels_it_is_proven_exhaustively(row: Row) -> None:
    assert row.small is not None
    build, manifest = row.small
    whole = merged(filled(build(), seed=1), manifest, border="corrected", growth="allow")
    (report,) = whole.verified(exhaustive=True)
    assert (report.problem, report.policy) == (None, "corrected")


@rows(REFUSED)
def test_one_wrong_number_in_any_correction_is_seen(row: Row) -> None:
    network = in_double(network_of(row))
    ((into, layer),) = from_file(row, "corrected").layers.items()
    linear = row.part(network, into)
    wanted = merged_of(row, "corrected").plan.merges[0].corrections
    assert wanted is not None
    assert set(layer.border_tensors()) == set(wanted.shapes(layer.geometry))
    for name in layer.border_tensors():
        fault = copy.deepcopy(layer)
        values = fault.border_tensors()[name].detach().view(-1)
        values[int(values.abs().argmax())] *= 1 + 2.0**-20
        assert any(
            float(relative_errors(linear, fault, image(layer.geometry.in_channels, size)).max())
            > FLOAT64_LOSS
            for size in row.sizes
        ), name


def test_the_table_holds_every_row_with_its_figures() -> None:
    table = corrected_lines([replace(row, published=None) for row in QUICK])
    for row, line in zip(QUICK, table[2:], strict=True):
        assert f"| {row.network} | {row.before:,} | {row.after:,} | {row.corrected:,} |" in line
        assert line.endswith("| yes |")
