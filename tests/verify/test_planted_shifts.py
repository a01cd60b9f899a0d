"""Faults in what becomes of a scale's `shift`: merging, verifying and the random networks see each.

Two convolutions with `-0.6 x + 0.4` between them; the second pads, so that the number, as a bias
does, meets the border.
"""

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from convsqueeze import merge_state_dict, squeezing
from convsqueeze.algebra import Conv
from convsqueeze.algebra.tree import mapped
from convsqueeze.kinds import scale as kind
from convsqueeze.manifest import manifest_from_data
from convsqueeze.plan import candidates
from tests.command_line import run_here
from tests.planted import Squeezing, assert_told, saved
from tests.random_networks.manifests import Case
from tests.random_networks.original import Disagreement
from tests.random_networks.trial import examine

FIRST, SECOND = {"name": "a"}, {"name": "b", "padding": 1}
SCALE = {"type": "scale", "factor": -0.6, "shift": 0.4}
scale, border_terms = kind.scale, squeezing.border_terms


def tensors() -> "OrderedDict[str, Tensor]":
    generator = torch.Generator().manual_seed(0)
    return OrderedDict(
        {
            "a.weight": torch.randn(8, 3, 1, generator=generator),
            "b.weight": torch.randn(3, 8, 3, generator=generator),
        }
    )


def manifest(between: dict[str, Any] = SCALE, border: str = "corrected") -> dict[str, Any]:
    return {"version": 1, "border": border, "pairs": [{"chain": [FIRST, between, SECOND]}]}


@pytest.fixture
def made(tmp_path: Path) -> Squeezing:
    """The checkpoint, the manifest, and where the merge goes to."""
    original, pairs = saved(tensors(), tmp_path / "model.pt"), tmp_path / "pairs.yaml"
    pairs.write_text(json.dumps(manifest()))
    return Squeezing(original, tmp_path / "model.squeezed.pt", pairs)


def merge(made: Squeezing, *options: str) -> Any:
    return run_here("merge", made.original, "--pairs", made.pairs, *options)


def negated(*given: Any, shift: float, **rest: Any) -> Conv:
    return scale(*given, shift=-shift, **rest)


def before_the_factor(*given: Any, factor: float, shift: float, **rest: Any) -> Conv:
    return scale(*given, factor=factor, shift=factor * shift, **rest)


def of_the_first_channel(*given: Any, **rest: Any) -> Conv:
    whole = scale(*given, **rest)
    return replace(whole, bias=whole.bias * (torch.arange(len(whole.bias)) == 0))


def nothing(*given: Any, shift: float, **rest: Any) -> Conv:
    found = scale(*given, shift=shift, **rest)
    return replace(found, bias=torch.zeros_like(found.bias))


WRONG: dict[str, Callable[..., Conv]] = {
    "sign": negated,
    "before the factor": before_the_factor,
    "one channel": of_the_first_channel,
    "none": nothing,
}


def test_without_a_fault(made: Squeezing) -> None:
    outcome = merge(made)
    assert outcome.status == 0, outcome
    assert run_here("verify", made.original, made.squeezed, "--exhaustive").status == 0


@pytest.mark.parametrize("wrong", WRONG)
def test_merge_with_a_wrong_shift_writes_nothing(
    made: Squeezing, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setattr(kind, "scale", WRONG[wrong])
    assert_told(merge(made), "a: ", "output channel")
    assert not made.squeezed.exists()


def test_merge_that_forgets_a_shift_at_the_border(
    made: Squeezing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def zeroed(one: Conv) -> Conv:
        return one if one.bias is None else replace(one, bias=torch.zeros_like(one.bias))

    def wrong(convs: Any, *rest: Any) -> Any:
        return border_terms(mapped(convs, zeroed), *rest)

    monkeypatch.setattr(squeezing, "border_terms", wrong)
    assert_told(merge(made), "a: ", "output channel")
    assert not made.squeezed.exists()


def test_merge_that_takes_a_shift_for_zero_outside_the_image(
    made: Squeezing, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = merge(made, "--border", "exact")
    assert refused.status == 2
    assert "scale (1, bias) is not zero outside the image" in refused.errors[0]
    monkeypatch.setattr(candidates, "mismatches", lambda *_: ())
    monkeypatch.setattr(candidates, "corrections", lambda *_: None)
    assert_told(merge(made, "--border", "exact"), "a: ", "output channel")
    assert not made.squeezed.exists()


@pytest.mark.parametrize(
    "other",
    [{"shift": -0.4}, {"shift": 0.0}, {"shift": 0.4000001}, {"factor": 0.4, "shift": -0.6}],
    ids=str,
)
def test_another_shift_in_the_recipes_manifest(
    made: Squeezing, tmp_path: Path, other: dict[str, float]
) -> None:
    assert merge(made).status == 0
    parts = made.parts()
    assert parts.recipe is not None
    assert parts.recipe["manifest"]["pairs"][0]["chain"][1] == SCALE
    parts.recipe["manifest"]["pairs"][0]["chain"][1] |= other
    told = "a.bias is none that it has" if other == {"shift": 0.0} else "output channel"
    assert_told(made.verified(parts, tmp_path), "a: ", told)


def test_a_manifest_without_a_shift_reads_and_stores_what_it_did() -> None:
    """A shift of zero is none: no bias, and the same weights."""
    given = {"type": "scale", "factor": -0.6}
    plain, report = merge_state_dict(
        tensors(), manifest_from_data(manifest(given, border="exact")), growth="allow"
    )
    zero, _ = merge_state_dict(
        tensors(), manifest_from_data(manifest(given | {"shift": 0}, border="exact"))
    )
    assert plain.keys() == zero.keys() == {"a.weight"}
    assert torch.equal(plain["a.weight"], zero["a.weight"])
    assert (report.weights_before, report.weights_after) == (8 * 3 + 3 * 8 * 3, 3 * 3 * 3)


# The random networks see them too.


def case(padding: int) -> Case:
    entry = {"chain": [FIRST, SCALE, {**SECOND, "padding": padding}]}
    return Case(0, "chain", entry, dict(tensors()), rank=1, channels=3)


def test_a_random_network_with_a_shift() -> None:
    assert examine(case(padding=0)).verdict == "exact"
    assert examine(case(padding=1)).verdict == "border"


@pytest.mark.parametrize("wrong", WRONG)
def test_a_random_network_with_a_wrong_shift(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setattr(kind, "scale", WRONG[wrong])
    with pytest.raises(Disagreement, match="called exact, differs"):
        examine(case(padding=0))


def test_a_random_network_whose_shift_is_taken_for_zero_outside_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(candidates, "mismatches", lambda *_: ())
    with pytest.raises(Disagreement, match="called exact, differs"):
        examine(case(padding=1))
