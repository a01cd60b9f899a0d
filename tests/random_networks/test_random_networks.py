"""Random manifests agree with torch, the answers vary, and a fault would be seen."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from math import gcd
from typing import Any

import pytest
import torch

from convsqueeze.algebra.border.corrections import AxisCorrections, Corrections, SizeClass
from convsqueeze.algebra.border.mismatches import Mismatch
from convsqueeze.plan import candidates
from convsqueeze.squeezing import Squeezed, squeeze_one

from . import trial
from .__main__ import summary
from .layers import DTYPES
from .manifests import KINDS, MODES, Case, random_case
from .original import Disagreement, workable_case
from .torch_layers import is_nested
from .trial import examine

pytestmark = pytest.mark.stress

CASES = 300
BLOCK = 75


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small layers gain nothing from a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("first", range(0, CASES, BLOCK))
def test_program_and_torch_agree(first: int) -> None:
    """At every pixel of every size where it says exact; where it refuses, an input shows why."""
    outcomes = [examine(workable_case(first + index)) for index in range(BLOCK)]
    print(summary(outcomes))
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    assert verdicts["exact"] >= BLOCK / 4
    assert verdicts["border"] >= BLOCK / 4
    assert verdicts["not one"] >= 2


def items(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every layer, chain and sum of an entry, the entry itself first."""
    yield entry
    inside = [entry[key] for key in ("first", "second") if key in entry]
    for part in [*inside, *entry.get("chain", ()), *entry.get("sum", ())]:
        yield from items(part)


def coprime_neighbours(case: Case) -> bool:
    links = [*case.entry.get("chain", ()), *(case.entry.get(k, {}) for k in ("first", "second"))]
    groups = [link.get("groups", 1) for link in links]
    return any(1 not in pair and gcd(*pair) == 1 for pair in pairwise(groups))


def features(case: Case) -> Iterator[str]:
    """What of the manifest's language a case uses."""
    yield case.kind
    yield f"rank {case.rank}"
    if coprime_neighbours(case):
        yield "coprime groups"
    if "input" in case.entry:
        yield "one input size"
    for name, tensor in case.tensors.items():
        yield str(tensor.dtype)
        if name.endswith("running_var") and not bool(tensor.all()):
            yield "a variance of zero"
    for item in items(case.entry):
        links = item.get("chain", ())
        yield from ("sum before a layer" for link in links[:-1] if "sum" in link)
        yield from ("sum behind a layer" for link in links[1:] if "sum" in link)
        yield from (f"then {link.get('padding_mode', 'zeros')}" for link in links[1:])
        for key in ("chain", "sum"):
            yield f"{key} of {len(item.get(key, ()))}"
            if any("chain" in part or "sum" in part for part in item.get(key, ())):
                yield f"nested in {key}"
        if "chain" not in item and "sum" not in item and "first" not in item:
            yield from features_of_layer(item, case.tensors)


def features_of_layer(item: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Iterator[str]:
    yield item.get("type", "conv")
    yield item.get("padding_mode", "zeros")
    padding = item.get("padding", 0)
    yield str(padding) if isinstance(padding, str) else f"padding {type(padding).__name__}"
    if is_nested(padding):
        yield "padding by side"
        if min(amount for pair in padding for amount in pair) < 0:
            yield "cropping"
    for key in ("stride", "dilation"):
        values = item.get(key, 1)
        for value in values if isinstance(values, list) else [values]:
            yield f"{key} {value}"
    weight = tensors.get(f"{item.get('name')}.weight")
    yield "bias" if f"{item.get('name')}.bias" in tensors else "no bias"
    if item.get("type", "conv") == "conv" and weight is not None:
        yield from (f"kernel size {size}" for size in weight.shape[2:])
        if len(set(weight.shape[2:])) > 1:
            yield "not square"
        if item.get("groups", 1) == weight.shape[0] > 1:
            yield "depthwise"
        if is_nested(padding):
            reach = zip(padding, weight.shape[2:], strict=True)
            yield from ("wider than the kernel" for sides, k in reach if max(sides) > k)
    if "output_padding" in item:
        yield "output_padding"
    if "shift" in item:
        yield "a shift by channel" if "name" in item else "nothing but numbers"


def test_the_cases_speak_all_of_the_language() -> None:
    seen = Counter(
        feature for index in range(CASES) for feature in set(features(workable_case(index)))
    )
    kinds = ["conv", "conv_transpose", "linear", "batch_norm", "scale", "avg_pool", "identity"]
    wanted = [*KINDS, *kinds, "pad", *MODES, "zeros", *map(str, DTYPES)]
    wanted += [f"rank {n}" for n in range(4)] + [f"kernel size {n}" for n in (1, 2, 3, 4)]
    wanted += [f"{key} {n}" for key in ("stride", "dilation") for n in (1, 2, 3)]
    wanted += [f"chain of {n}" for n in (2, 3, 4)] + ["sum of 2", "sum of 3", "sum of 4"]
    wanted += ["nested in chain", "nested in sum", "coprime groups", "depthwise", "not square"]
    wanted += ["bias", "no bias", "padding int", "padding list", "padding by side"]
    wanted += ["same", "valid", "cropping", "output_padding"]
    wanted += ["a variance of zero", "one input size", "wider than the kernel"]
    wanted += ["a shift by channel", "nothing but numbers"]
    wanted += ["sum before a layer", "sum behind a layer", *(f"then {mode}" for mode in MODES)]
    assert [feature for feature in wanted if not seen[feature]] == []


def test_a_seed_gives_the_same_case_every_time() -> None:
    one, two = random_case(11), random_case(11)
    assert one.entry == two.entry
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
    assert random_case(12).entry != one.entry


# Planted faults


def pair(bias: bool, padding: int) -> Case:
    """Three taps padded in full, then three taps: exact but for a bias that meets padding."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a.weight": torch.randn(2, 2, 3, generator=generator),
        "b.weight": torch.randn(2, 2, 3, generator=generator),
    }
    if bias:
        tensors["a.bias"] = torch.ones(2)
    entry = {"first": {"name": "a", "padding": 2}, "second": {"name": "b", "padding": padding}}
    return Case(0, "pair", entry, tensors, rank=1, channels=2)


def test_without_a_fault() -> None:
    assert examine(pair(bias=False, padding=1)).verdict == "exact"
    assert examine(pair(bias=True, padding=0)).verdict == "exact"
    assert examine(pair(bias=True, padding=1)).verdict == "border"


def test_a_weight_off_by_four_ulps(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*args: Any) -> Squeezed:
        squeezed = squeeze_one(*args)
        weight = squeezed.stored["weight"].clone()
        weight.view(torch.int32).view(-1)[3] += 4
        return replace(squeezed, stored={**squeezed.stored, "weight": weight})

    monkeypatch.setattr(trial, "squeeze_one", faulty)
    with pytest.raises(Disagreement, match="called exact, differs"):
        examine(pair(bias=False, padding=1))


def test_a_dropped_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*args: Any) -> Squeezed:
        squeezed = squeeze_one(*args)
        kept = {name: t for name, t in squeezed.stored.items() if name != "bias"}
        return replace(squeezed, stored=kept)

    monkeypatch.setattr(trial, "squeeze_one", faulty)
    with pytest.raises(Disagreement, match="called exact, differs"):
        examine(pair(bias=True, padding=0))


def test_a_leak_that_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "mismatches", lambda *_: ())
    with pytest.raises(Disagreement, match="called exact, differs"):
        examine(pair(bias=True, padding=1))


TOLD = Mismatch(0, "low", 1, "window", (1,), (), (1, 2, 3))
EMPTY = Corrections((AxisCorrections(1, 1, 0, 0, (SizeClass(1),)),))


def test_a_leak_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "mismatches", lambda *_: (TOLD,))
    monkeypatch.setattr(candidates, "corrections", lambda *_: EMPTY)
    with pytest.raises(Disagreement, match="no input was found wrong"):
        examine(pair(bias=False, padding=1))


def test_a_wrong_row_that_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "wrong_rows", lambda *_: frozenset({0}))
    with pytest.raises(Disagreement, match="only the rows"):
        examine(pair(bias=True, padding=1))
