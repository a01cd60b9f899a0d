"""Squeezing again: what is squeezed already, and the same model once more, also in threads."""

import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convsqueeze
from convsqueeze.models import inputs_of, verify_whole
from tests.scan.code import image, largest_share, made
from tests.scan.small_models import (
    EXACT,
    SMALL,
    Small,
    assert_same_bits,
    bits,
    chain,
    layers,
    models,
    run,
    squeezed,
)


@pytest.mark.stress
@models
def test_a_squeezed_model_is_left_as_it_is_and_that_is_said(small: Small) -> None:
    found = squeezed(small)
    again, report = convsqueeze.squeeze(found.model, found.example, **small.settings)
    assert report.merged is None
    assert report.notes[-1].startswith("squeezed already")
    assert report.notes[-1].endswith(", ".join(small.merged))
    assert again is not found.model
    assert_same_bits(bits(again), bits(found.model))
    assert run(again, found.example).equal(run(found.model, found.example))
    assert found.report.notes == ()


def test_more_is_merged_where_another_policy_allows_it() -> None:
    sizes: Sequence[tuple[int, int, int, int]] = ((3, 16, 3, 1), (16, 3, 1, 0), (3, 16, 1, 0))

    def build() -> nn.Module:
        convs = [nn.Conv2d(i, o, k, padding=p) for i, o, k, p in (*sizes, (16, 3, 3, 1))]
        return nn.Sequential(*convs)

    model, x = made(build).double(), image(2, 3, 6, 7).double()
    plain, _ = convsqueeze.squeeze(model, x)
    assert layers(plain) == ("0",)
    both, _ = convsqueeze.squeeze(plain, x, border="corrected")
    assert layers(both) == ("0", "2")
    assert largest_share(model, both, [x]) < EXACT


def test_a_layer_that_was_wrong_at_the_border_before_excuses_nothing() -> None:
    """`border: interior` is told of once; what is merged after that must be equal everywhere."""

    def build() -> nn.Module:
        first = [nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*first, nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1))

    model, x = made(build), image(2, 3, 9, 9)
    wrong, report = convsqueeze.squeeze(model[:3], x, border="interior")
    assert report.whole is not None
    assert any("border: interior" in note for note in report.whole.notes)
    before = nn.Sequential(*wrong, *model[3:]).eval()
    after, report = convsqueeze.squeeze(before, x)
    assert report.whole is not None
    assert report.whole.notes == ()
    after.get_submodule("3").weight.data[0, 0] += 0.5
    assert not verify_whole(before, after, inputs_of(x)).ok


def test_the_same_model_gives_the_same_bits_and_the_same_report() -> None:
    small = SMALL[0]
    again, report = convsqueeze.squeeze(small.original(), small.example(), **small.settings)
    assert_same_bits(bits(again), bits(squeezed(small).model))
    assert report.whole == squeezed(small).report.whole
    assert report.scan == squeezed(small).report.scan


def test_threads_take_turns_and_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What changes the whole process, such as where text is printed, is in one thread at a time."""
    found: dict[str, dict[str, Tensor]] = {}
    inside: list[str] = []
    most: list[int] = []
    printed, threads = sys.stdout, torch.get_num_threads()
    module = import_module("convsqueeze.models.squeeze")
    work = module.scan_model

    def watched(*given: Any, **named: Any) -> Any:
        inside.append(threading.current_thread().name)
        most.append(len(inside))
        try:
            return work(*given, **named)
        finally:
            inside.pop()

    monkeypatch.setattr(module, "scan_model", watched)

    def one(small: Small) -> None:
        model, _ = convsqueeze.squeeze(small.original(), small.example(), **small.settings)
        found[small.name] = bits(model)

    started = [threading.Thread(target=one, args=(small,)) for small in SMALL[:3]]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert most == [1, 1, 1]
    for small in SMALL[:3]:
        assert_same_bits(found[small.name], bits(squeezed(small).model))
    assert sys.stdout is printed
    assert torch.get_num_threads() == threads


def test_random_numbers_drawn_next_are_the_same() -> None:
    model, x = made(chain), image(1, 3, 5, 5)
    before = torch.get_rng_state()
    convsqueeze.squeeze(model, x)
    assert torch.get_rng_state().equal(before)
