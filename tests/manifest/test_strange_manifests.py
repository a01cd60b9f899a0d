"""Pairs listed twice, entries that share a layer, chains in the wrong order, many channels."""

from pathlib import Path
from typing import Any

import pytest
import torch

import convsqueeze
from convsqueeze.errors import PlanError
from convsqueeze.plan import memory
from tests.command_line import run_here
from tests.pipeline.test_bad_input import assert_merge_refused, state_of, written_pickle
from tests.strange_manifests import NO_ORDER, ORDERS, SHAPES, SHARED, TWICE, WRONG_ORDER, Case

pytestmark = pytest.mark.stress

REFUSED = {**TWICE, **SHARED, **ORDERS, **NO_ORDER}


def written(folder: Path, text: str) -> tuple[Path, Path]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{name}.weight": torch.randn(*shape, 1, 1, generator=generator)
        for name, shape in SHAPES.items()
    }
    tensors |= {"a.bias": torch.randn(8), "g": torch.randn(8)}
    tensors |= {"n.running_mean": torch.randn(8), "n.running_var": torch.rand(8) + 0.1}
    (folder / "pairs.yaml").write_text(text)
    return written_pickle(folder / "model.pt", tensors), folder / "pairs.yaml"


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    case: Case = REFUSED[name]
    model, pairs = written(tmp_path, case.text)
    growing = ("--growth", "allow")
    problems = [[w.replace("pairs.yaml", str(pairs)) for w in words] for words in case.problems]
    assert_merge_refused(model, pairs, tmp_path, *map(tuple, problems), options=growing)
    if name in NO_ORDER:
        outcome = run_here("merge", model, "--pairs", pairs, *growing)
        assert WRONG_ORDER not in outcome.stderr


@pytest.mark.parametrize(
    "entries",
    [
        ("{first: {name: a}, second: {name: b}}", "{first: {name: c}, second: {name: d}}"),
        ("{first: {name: a}, second: {name: b}, drop: [b]}",),
        ("{first: {name: a}, second: {name: b}, into: z}", "{chain: [{name: e}], into: a}"),
        ('{first: {name: "x.{i}.u"}, second: {name: "x.{i}.v"}}', "{chain: [{name: c}]}"),
        ("{chain: [{name: a}, {name: n, type: batch_norm, eps: 0.1}, {name: up}]}",),
        ("{first: {name: b}, second: {name: a}}",),
    ],
)
def test_each_layer_once_and_in_an_order_that_fits(tmp_path: Path, entries: Any) -> None:
    """The last is an order that fits both ways round: shapes cannot tell which was meant."""
    model, pairs = written(tmp_path, Case(entries, ()).text)
    outcome = run_here("merge", model, "--pairs", pairs, "--growth", "allow")
    assert outcome.status == 0, outcome


# Huge channel counts.


PAIR = {"version": 1, "pairs": [{"first": {"name": "a"}, "second": {"name": "b"}}]}


@pytest.mark.parametrize("kernel", [1, 3])
def test_many_channels_between(tmp_path: Path, kernel: int) -> None:
    count = 200_000 // kernel**2
    tensors = {
        "a.weight": torch.randn(count, 2, kernel, kernel),
        "a.bias": torch.randn(count),
        "b.weight": torch.randn(2, count, 1, 1),
    }
    merged, report = convsqueeze.merge_state_dict(tensors, PAIR)
    assert merged["a.weight"].shape == (2, 2, kernel, kernel)
    assert report.weights_after == 4 * kernel**2 + 2
    exact = tensors["b.weight"].double().flatten(1) @ tensors["a.weight"].double().flatten(1)
    assert torch.allclose(merged["a.weight"].double().flatten(1), exact, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(
    ("groups", "after"), [((3000, 3000), 3000 * 9), ((3000, 1500), 3000 * 2 * 9)]
)
def test_nearly_as_many_groups_as_channels(groups: tuple[int, int], after: int) -> None:
    """Never denser than the greatest common divisor of the groups."""
    tensors = {
        "a.weight": torch.randn(3000, 3000 // groups[0], 3, 3),
        "b.weight": torch.randn(3000, 3000 // groups[1], 1, 1),
    }
    first, second = ({"name": name, "groups": n} for name, n in zip("ab", groups, strict=True))
    manifest = {"version": 1, "pairs": [{"first": first, "second": second}]}
    merged, _ = convsqueeze.merge_state_dict(tensors, manifest, growth="allow")
    assert merged["a.weight"].numel() == after


def test_groups_beside_the_channels_do_not_divide_them(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.yaml"
    pairs.write_text(
        "version: 1\npairs:\n  - {first: {name: a, groups: 2999}, second: {name: b}}\n"
    )
    tensors = {"a.weight": torch.zeros(3000, 1, 3, 3), "b.weight": torch.zeros(2, 3000, 1, 1)}
    model = written_pickle(tmp_path / "model.pt", tensors)
    told = ("pairs[0].first", "a: 3000 output channels do not divide into groups = 2999")
    assert_merge_refused(model, pairs, tmp_path, told)


def huge(folder: Path, entry: str = "{first: {name: a}, second: {name: b}}") -> tuple[Path, Path]:
    """60,000 channels, one, 60,000 channels, one: small files whose merges are not."""
    tensors = {
        "a.weight": torch.ones(1, 60_000, 3, 3),
        "b.weight": torch.ones(60_000, 1, 3, 3),
        "c.weight": torch.ones(1, 60_000, 1, 1),
    }
    (folder / "pairs.yaml").write_text(f"version: 1\npairs:\n  - {entry}\n")
    return written_pickle(folder / "model.pt", tensors), folder / "pairs.yaml"


@pytest.mark.skipif(memory.bytes_here() is None, reason="this system does not tell its memory")
@pytest.mark.parametrize(
    ("entry", "options"),
    [
        ("{first: {name: a}, second: {name: b}}", ("--growth", "allow")),
        ("{first: {name: a}, second: {name: b}}", ("--growth", "allow", "--widen")),
        ("{chain: [{name: a}, {name: b}, {name: c}]}", ("--growth", "allow")),
    ],
    ids=["result", "result, widened", "on the way"],
)
def test_merge_that_no_machine_has_the_memory_for(
    tmp_path: Path, entry: str, options: tuple[str, ...]
) -> None:
    model, pairs = huge(tmp_path, entry)
    told = ("pairs.yaml:3 pairs[0]: merging a takes about", "TB of memory, this machine has")
    assert_merge_refused(model, pairs, tmp_path, told, options=options)


def test_merge_that_no_machine_has_the_memory_for_is_refused_for_its_growth(tmp_path: Path) -> None:
    model, pairs = huge(tmp_path)
    told = ("a would grow from 1,080,000 to 90,000,000,000 weights (83333.3 times)", "--growth")
    assert_merge_refused(model, pairs, tmp_path, told)
    outcome = run_here("merge", model, "--pairs", pairs, "--growth", "skip", "--json")
    assert outcome.status == 0, outcome
    assert outcome.data["layers"] == []


def test_memory_is_held_against_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "version: 1\npairs:\n  - {first: {name: a}, second: {name: b}}\n"
    model, pairs = written(tmp_path, text)
    tensors = torch.load(model, weights_only=True)
    needed = 8 * memory.COPIES * max(8 * 4, 4 * 8, 4 * 4) + 8 * memory.COPIES * 8  # and a's bias
    before = state_of(tmp_path)
    monkeypatch.setattr(memory, "bytes_here", lambda: needed - 1)
    with pytest.raises(PlanError, match="takes about"):
        convsqueeze.merge_state_dict(tensors, PAIR)
    assert run_here("merge", model, "--pairs", pairs).status == 2
    assert state_of(tmp_path) == before
    for enough in (needed, None):
        monkeypatch.setattr(memory, "bytes_here", lambda enough=enough: enough)
        convsqueeze.merge_state_dict(tensors, PAIR)


def test_memory_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_CONTAINER_LIMITS", (str(limit),))
    without = memory.bytes_here()
    limit.write_text("max\n")
    assert memory.bytes_here() == without
    limit.write_text("1048576\n")
    assert memory.bytes_here() == 1 << 20
