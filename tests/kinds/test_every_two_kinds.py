"""Every kind of layer beside every other, at every rank, and very many of one: merged, or refused
in words.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import convsqueeze
from convsqueeze.errors import ConvsqueezeError, ManifestError, PlanError, VerificationError
from convsqueeze.kinds import LAYER_KINDS

CHANNELS = 4
Made = tuple[dict[str, Any], dict[str, tuple[int, ...]]]


def kernel(outs: int, ins: int, width: int, **fields: Any) -> Callable[[str, int], Made]:
    return lambda name, rank: (
        {"name": name, **fields},
        {f"{name}.weight": (outs, ins, *(width,) * rank)},
    )


def channels(*roles: str, **fields: Any) -> Callable[[str, int], Made]:
    return lambda name, rank: (
        {"name": name, **fields} if roles else fields,
        {f"{name}.{role}": (CHANNELS,) for role in roles},
    )


NORM = ("weight", "bias", "running_mean", "running_var")
KINDS: dict[str, Callable[[str, int], Made]] = {
    "conv": kernel(CHANNELS, CHANNELS, 3, type="conv", padding=1),
    "conv 1x1": kernel(CHANNELS, CHANNELS, 1),
    "depthwise": kernel(CHANNELS, 1, 3, groups=CHANNELS),
    "conv_transpose": kernel(CHANNELS, CHANNELS, 3, type="conv_transpose"),
    "linear": lambda name, rank: kernel(CHANNELS, CHANNELS, 1, type="linear")(name, 0),
    "batch_norm": channels(*NORM, type="batch_norm", eps=1e-5),
    "scale": channels("weight", type="scale"),
    "shift": channels(type="scale", shift=2.0),
    "avg_pool": channels(type="avg_pool", kernel_size=2),
    "identity": channels(type="identity"),
    "pad": channels(type="pad", padding=1),
    "pad circular": channels(type="pad", padding=1, padding_mode="circular"),
}


def test_every_kind_is_among_them() -> None:
    types = {make("a", 1)[0].get("type", "conv") for make in KINDS.values()}
    assert types == set(LAYER_KINDS)


@pytest.mark.stress
@pytest.mark.parametrize("form", ["chain", "sum"])
@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_merged_or_refused_in_words(first: str, second: str, form: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for one_rank, other_rank, with_input in product(range(4), range(4), (False, True)):
        one, shapes = KINDS[first]("a", one_rank)
        other, more = KINDS[second]("b", other_rank)
        tensors: dict[str, Tensor] = {"z": torch.zeros(1)}
        for name, shape in {**shapes, **more}.items():
            tensors[name] = torch.rand(shape, generator=generator) + 0.5
        entry: dict[str, Any] = {form: [one, other], "into": "m", "border": "corrected"}
        if with_input:
            entry["input"] = [8] * one_rank
        told = tried(tensors, entry)
        assert told == "merged" or told.startswith("manifest pairs[0]")


def tried(tensors: dict[str, Tensor], entry: dict[str, Any]) -> str:
    """What a merge comes to."""
    manifest = {"version": 1, "pairs": [entry]}
    try:
        merged, _ = convsqueeze.merge_state_dict(tensors, manifest, growth="allow")
    except VerificationError:
        raise
    except ConvsqueezeError as refusal:
        return str(refusal)
    return "merged" if set(merged) >= {"m.weight", "z"} else "lost"


def test_a_pool_without_an_axis() -> None:
    pairs = [{"chain": [{"name": "a", "type": "linear"}, {"type": "avg_pool", "kernel_size": 2}]}]
    with pytest.raises(PlanError, match=r"avg_pool: a pool needs an axis, these layers have chan"):
        convsqueeze.merge_state_dict({"a.weight": torch.ones(2, 2)}, {"version": 1, "pairs": pairs})


@pytest.mark.parametrize("beside", [[], [{"type": "scale", "factor": 2.0}], [{"type": "identity"}]])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_a_pad_of_one_number_without_an_axis(mode: str, beside: list[dict[str, Any]]) -> None:
    """What it pads is not known where no layer has a kernel; nothing is left out in silence."""
    state = {"a.weight": torch.ones(2, 2)}
    for padding, refused in ((2, True), (0, False), ([2], False)):
        pad = {"type": "pad", "padding": padding, "padding_mode": mode}
        chain = [pad, *beside, {"name": "a", "type": "linear"}]
        manifest = {"version": 1, "pairs": [{"chain": chain, "border": "corrected"}]}
        if refused:
            with pytest.raises(PlanError, match=r"pad: a pad needs an axis, .*\(\[1, 1\]\)"):
                convsqueeze.merge_state_dict(state, manifest)
        else:
            convsqueeze.merge_state_dict(state, manifest)


def test_chain_of_many_layers() -> None:
    """More than Python has frames for, were they joined by recursion."""
    names = [f"c.{i}" for i in range(256)]
    tensors = {f"{name}.weight": torch.ones(1, 1, 1, 1) for name in names}
    pairs = [{"chain": [{"name": name} for name in names]}]
    merged, _ = convsqueeze.merge_state_dict(tensors, {"version": 1, "pairs": pairs})
    assert torch.equal(merged["c.0.weight"], torch.ones(1, 1, 1, 1))


@pytest.mark.parametrize("form", ["chain", "sum"])
def test_more_layers_than_become_one_are_refused_at_once(form: str) -> None:
    pairs = [{"into": "c", form: [{"name": "c"}, *[{"type": "identity"}] * 20_000]}]
    manifest = {"version": 1, "pairs": pairs}
    with pytest.raises(PlanError, match=r"has 20,00\d layers and sums, at most 256 become one"):
        convsqueeze.merge_state_dict({"c.weight": torch.ones(1, 1, 1, 1)}, manifest)


@pytest.mark.parametrize("depth", [20, 150, 5000])
def test_sums_in_chains_in_sums(depth: int) -> None:
    tensors = {f"c.{i}.weight": torch.ones(1, 1, 1, 1) for i in range(depth + 1)}
    item: dict[str, Any] = {"name": "c.0"}
    for index in range(1, depth + 1):
        item = {"sum" if index % 2 else "chain": [item, {"name": f"c.{index}"}]}
    manifest = {"version": 1, "pairs": [{**item, "into": "m"}]}
    if depth == 20:
        merged, _ = convsqueeze.merge_state_dict(tensors, manifest)
        assert merged["m.weight"].item() == depth / 2 + 1
        return
    with pytest.raises(ManifestError, match="nested too deeply"):
        convsqueeze.merge_state_dict(tensors, manifest)


@pytest.mark.parametrize("count", [2, 9, 60])
def test_chain_of_skips(count: int) -> None:
    """`x + conv(x)`, again and again: twice as many ways through it with each."""
    skip = [{"type": "identity"}]
    links = [{"sum": [{"name": f"c.{i}", "padding": 1}, *skip]} for i in range(count)]
    manifest = {"version": 1, "pairs": [{"into": "m", "border": "corrected", "chain": links}]}
    tensors = {f"c.{i}.weight": torch.ones(1, 1, 3, 3) for i in range(count)}
    if count == 2:
        merged, _ = convsqueeze.merge_state_dict(tensors, manifest, growth="allow")
        assert merged["m.weight"].shape == (1, 1, 5, 5)
        return
    ways = rf"have {2**count:,} ways through them, .* at most \d+"
    with pytest.raises(PlanError, match=rf"{ways}|taps that samples .* at most \d+"):
        convsqueeze.merge_state_dict(tensors, manifest, growth="allow")
