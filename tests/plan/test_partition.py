"""The best partition against every partition there is, and what it says of those it does not take.

Brute force lists all 2^(n-1) partitions of a chain and all set partitions of branches, and plans
each part with `make_plan`; nothing is shared with the search but that.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import pytest
import torch

from convsqueeze.algebra.tree import Sum
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.errors import PlanError
from convsqueeze.graph import LayerOp, Region
from convsqueeze.manifest import Entry, entry_of, manifest_from_data, request_of
from convsqueeze.plan import (
    Merge,
    Part,
    Partition,
    Timing,
    best_partition,
    make_plan,
    partition,
    pricing,
)

from .brute_force import Everything, Numbers
from .chains import Drawn, Item, Size, Source, written

pytestmark = pytest.mark.stress

BORDERS = ("exact", "corrected", "interior")
CHAINS, BATCH = 520, 40


def written_as(data: Item) -> Entry:
    return manifest_from_data({"version": 1, "pairs": [data]}).document.pairs[0]


def size_for(everything: Everything, items: Sequence[Item]) -> Size:
    """A size that leaves every layer something to do."""
    edge = 64
    while True:
        size = (edge,) * everything.drawn.rank
        smallest = edge
        for item in items:
            size = everything.behind(item, size)
            smallest = min(smallest, *size)
        if smallest >= 8:
            return (edge,) * everything.drawn.rank
        edge *= 2


def clock(merge: Merge) -> tuple[int, int]:
    """Times that follow from nothing but a part's layers: some merges are faster, some slower."""
    text = " ".join(repr((leaf.label, leaf.geometry)) for leaf in merge.layers)
    number = int.from_bytes(sha256(f"{text} {merge.size}".encode()).digest()[:4], "big")
    before = 1000 * len(merge.layers) + number % 500
    return before, before + (number >> 9) % 1200 - 900 * (number & 1)


def timed(merge: Merge) -> Timing:
    before, after = clock(merge)
    return Timing(before, after, after < before)


def searched(everything: Everything, data: Item, size: Size) -> Partition:
    return best_partition(
        request_of(written_as(written(data))),
        everything.checkpoint.tensors,
        border=everything.border,
        growth=everything.growth,
        minimize=everything.minimize,  # type: ignore[arg-type]
        size=size,
        latency=timed if everything.minimize == "latency" else None,
    )


def numbers(found: Partition) -> Numbers:
    cost = found.after
    return cost.weights, cost.macs, cost.layers, cost.links, cost.nanoseconds


def drawn_chain(seed: int) -> tuple[Everything, Item, Size]:
    rng = random.Random(seed)
    drawn = Source(seed).chain(rng.randint(2, 8))
    everything = asked_of(drawn, rng)
    return everything, {"chain": drawn.items}, size_for(everything, drawn.items)


def asked_of(drawn: Drawn, rng: random.Random) -> Everything:
    minimize = rng.choice(("weights", "weights", "macs", "macs", "latency"))
    return Everything(
        drawn,
        rng.choice(BORDERS),  # type: ignore[arg-type]
        rng.choice(("refuse", "skip", "allow")),  # type: ignore[arg-type]
        minimize,
        clock if minimize == "latency" else None,
    )


@pytest.mark.parametrize("first", range(0, CHAINS, BATCH))
def test_a_chain_is_partitioned_as_well_as_by_brute_force(first: int) -> None:
    """Of 520 random chains of two to eight layers; many are merged in part."""
    in_part = 0
    for seed in range(first, first + BATCH):
        everything, data, size = drawn_chain(seed)
        found = searched(everything, data, size)
        assert numbers(found) == everything.chain(data["chain"], size), seed
        in_part += bool(found.merged) and not found.is_given
        assert found.after.under(found.minimize) <= found.before.under(found.minimize)
        if everything.growth != "allow":
            assert found.after.weights <= found.before.weights
    assert in_part >= BATCH // 8


@pytest.mark.parametrize("first", range(0, 120, 30))
def test_branches_are_grouped_as_well_as_by_brute_force(first: int) -> None:
    groups: Counter[int] = Counter()
    for seed in range(first, first + 30):
        everything, data, size = drawn_sum(seed)
        found = searched(everything, data, size)
        kind = "sum" if "sum" in data else "chain"
        best = everything.branches if kind == "sum" else everything.chain
        assert numbers(found) == best(data[kind], size), seed
        groups.update(branches(one.part.request.region) for one in found.merged)
    assert len(groups) > 1


def branches(region: Region[LayerOp]) -> int:
    tree = region.expression
    return len(tree.branches) if isinstance(tree, Sum) else 1


def drawn_sum(seed: int) -> tuple[Everything, Item, Size]:
    """A sum of two to five branches, some of them chains, alone or among the links of a chain."""
    rng = random.Random(seed)
    source = Source(seed)
    channels = rng.choice((2, 4, 8))
    branches = [source_branch(source, channels, rng) for _ in range(rng.randint(2, 5))]
    data: Item = {"sum": branches}
    if rng.random() < 0.5:
        before, after = (pointwise(source, channels, channels) for _ in range(2))
        data = {"chain": [before, data, after][rng.randrange(2) :]}
    return asked_of(source.drawn, rng), data, (24,) * source.drawn.rank


def source_branch(source: Source, channels: int, rng: random.Random) -> Item:
    """A branch that keeps channels and size, now and then one of another stride."""
    kind = rng.choice(("conv", "conv", "chain", "norm", "identity", "strided"))
    if kind == "norm":
        return source.batch_norm(channels, "any")
    if kind == "identity":
        return source.identity(channels, "any")
    k = rng.choice((1, 3))
    conv = pointwise(source, channels, channels, k)
    if kind == "strided" and rng.random() < 0.3:
        return {**conv, "stride": 1, "padding": (k - 1) // 2, "padding_mode": "circular"}
    if kind != "chain":
        return conv
    middle = rng.choice((1, 4, 24))
    first = pointwise(source, channels, middle)
    return {"chain": [first, pointwise(source, middle, channels, k)]}


def pointwise(source: Source, channels: int, out: int, k: int = 1) -> Item:
    rank = source.drawn.rank
    bias = (out,) if source.rng.random() < 0.5 else None
    name = source.stored(weight=(out, channels, *(k,) * rank), bias=bias)
    return {"name": name, "kernel_size": k, "channels": out, "padding": (k - 1) // 2}


# Faults that brute force has to see.


def disagrees(seeds: range, drawn: Callable[[int], tuple[Everything, Item, Size]]) -> bool:
    """Whether brute force finds another cost for any of these."""
    for seed in seeds:
        everything, data, size = drawn(seed)
        best = everything.branches if "sum" in data else everything.chain
        found = searched(everything, data, size)
        if numbers(found) != best(data.get("sum", data.get("chain")), size):
            return True
    return False


def test_a_search_that_forgets_a_run_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    cheapest = partition._Search._cheapest

    def forgetful(self: Any, group: Any, options: Any) -> Any:
        kept = [one for one in options if len(one[1]) != 3]
        return cheapest(self, group, iter(kept))

    monkeypatch.setattr(partition._Search, "_cheapest", forgetful)
    assert disagrees(range(40), drawn_chain)


def test_a_search_that_takes_the_first_that_fits_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def neighbours(self: Any, group: Any, rest: Any, places: Any, best: Any) -> bool:
        return bool(places[-1] - places[0] == 1)

    monkeypatch.setattr(partition._Search, "_may_win", neighbours)
    assert disagrees(range(40), drawn_chain)


def test_a_size_that_is_not_passed_on_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pricing, "_size_behind", lambda tree, size: size)
    assert disagrees(range(40), drawn_chain)


def test_a_search_that_forgets_groups_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    search = partition._Search
    monkeypatch.setattr(search, "_best_subsets", search._best_runs)
    assert disagrees(range(60), drawn_sum)


# What is said, and what is not a merge. A small chain: 2 -> 8 -> 2 -> 8 channels.


def tensors(*layers: tuple[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.zeros(tuple(shape)) for name, shape in layers}


WIDE = tensors(("a", (8, 2, 1, 1)), ("b", (2, 8, 1, 1)), ("c", (8, 2, 1, 1)))
CHAIN = {"chain": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}


def best(data: Item, stored: dict[str, torch.Tensor], **options: Any) -> Partition:
    return best_partition(
        request_of(written_as(data)), from_state_dict(stored).tensors, place="here", **options
    )


def parts(found: Partition) -> list[tuple[str, ...]]:
    return [one.part.labels for one in found.merged]


def reason(found: Partition, *labels: str) -> tuple[str, str]:
    (one,) = (one for one in found.kept_apart if one.part.labels == labels)
    return one.cause, one.reason


def test_the_cheapest_run_is_merged_and_the_rest_stays() -> None:
    stored = tensors(("a", (16, 8, 1, 1)), ("b", (2, 16, 1, 1)), ("c", (16, 2, 1, 1)))
    found = best(CHAIN, stored)
    assert (parts(found), found.apart) == ([("a", "b")], ("c",))
    assert (found.before.weights, found.after.weights) == (192, 48)
    assert (found.before.macs, found.after.macs) == (192 * 64 * 64, 48 * 64 * 64)
    assert reason(found, "a", "b", "c") == (
        "cost",
        "would have 128 weights as one layer, 48 as they are",
    )


def test_a_border_is_refused_in_the_planners_words() -> None:
    stored = tensors(("a", (8, 2, 3, 3)), ("b", (2, 8, 3, 3)))
    data = {"chain": [{"name": "a", "padding": 1}, {"name": "b", "padding": 1}]}
    found = best(data, stored)
    assert (parts(found), found.apart) == ([], ("a", "b"))
    cause, told = reason(found, "a", "b")
    assert cause == "border"
    with pytest.raises(PlanError) as refused:
        make_plan(manifest_from_data({"version": 1, "pairs": [data]}), from_state_dict(stored))
    assert told in refused.value.problems[0]
    for border in ("corrected", "interior"):
        assert best(data, stored, border=border).is_given


def test_growth_is_told_with_its_numbers() -> None:
    stored = tensors(("a", (2, 8, 1, 1)), ("b", (8, 2, 1, 1)))
    data = {"chain": [{"name": "a"}, {"name": "b"}]}
    found = best(data, stored)
    assert parts(found) == []
    assert reason(found, "a", "b") == ("growth", "would grow from 32 to 64 weights (2.0 times)")
    allowed = best(data, stored, growth="allow")
    assert reason(allowed, "a", "b") == (
        "cost",
        "would have 64 weights as one layer, 32 as they are",
    )


def test_what_is_not_one_convolution_says_why() -> None:
    stored = tensors(("a", (8, 2, 3, 3)), ("b", (8, 2, 2, 2)))
    up = {"name": "b", "type": "conv_transpose", "stride": 2}
    found = best({"chain": [{"name": "a", "stride": 2, "padding": 1}, up]}, stored)
    cause, told = reason(found, "a", "b")
    assert cause == "geometry"
    assert "does not commute" in told


def test_a_tensor_that_two_layers_share_is_left_alone() -> None:
    stored = tensors(("a", (2, 2, 1, 1)), ("b", (2, 2, 1, 1)))
    data = {"chain": [{"name": "a"}, {"name": "b"}, {"weight": "a.weight"}]}
    found = best(data, stored)
    assert parts(found) == []
    assert reason(found, "a", "b")[0] == "tensors"
    assert found.before.weights == 8


def test_a_veto_is_heard_before_planning_and_another_run_taken() -> None:
    seen: list[Part] = []

    def allowed(part: Part) -> str | None:
        seen.append(part)
        return "no module holds them" if "b" in part.labels and "a" in part.labels else None

    data = {"chain": [{"name": "a"}, {"name": "b"}, {"name": "c"}], "into": "all"}
    stored = tensors(("a", (8, 8, 1, 1)), ("b", (8, 8, 1, 1)), ("c", (8, 8, 1, 1)))
    found = best(data, stored, allowed=allowed)
    assert parts(found) == [("b", "c")]
    assert reason(found, "a", "b", "c") == ("veto", "no module holds them")
    assert {part.request.into for part in seen if part.whole} == {"all"}
    assert found.entries[0].into is None


def test_a_part_gets_the_name_that_the_caller_has_for_it() -> None:
    found = best(CHAIN, WIDE, name=lambda part: f"block.{part.labels[0]}")
    assert [one.merge.into for one in found.merged] == ["block.a"]
    assert found.entries[0].into == "block.a"
    assert best({**CHAIN, "into": "all"}, WIDE).merged[0].merge.into == "all"


@pytest.mark.parametrize("item", [{"type": "identity"}, {"type": "pad", "padding": 0}])
def test_a_layer_alone_or_beside_identities_is_no_merge(item: Item) -> None:
    found = best({"chain": [{"name": "a"}, {"type": "identity"}, {"type": "identity"}]}, WIDE)
    assert (parts(found), found.kept_apart) == ([], ())
    assert best({"chain": [{"name": "a"}]}, WIDE).merged == ()
    assert parts(best({"chain": [{"name": "a"}, item, {"name": "b"}]}, WIDE)) != []


def test_ties_go_to_the_other_measure_and_then_to_fewer_layers() -> None:
    """A pad before a layer stores nothing and multiplies nothing: merged it is a layer less."""
    stored = tensors(("a", (2, 2, 3, 3)))
    found = best({"chain": [{"type": "pad", "padding": 1}, {"name": "a"}]}, stored)
    assert (found.is_given, found.before.layers, found.after.layers) == (True, 2, 1)
    assert found.before.weights == found.after.weights
    # a stride behind a layer of one tap: as many weights merged, and a quarter of its products
    stored = tensors(("a", (2, 2, 1, 1)), ("b", (2, 2, 1, 1)))
    data = {"chain": [{"name": "a"}, {"name": "b", "stride": 2}], "input": [8, 8]}
    assert best(data, stored, minimize="macs").after.macs == 4 * 16


def test_time_decides_where_it_is_asked_for() -> None:
    def latency(merge: Merge) -> Timing:
        long = len(merge.layers) == 3
        return Timing(1_000_000, 900_000 if long else 500_000, not long)

    found = best(CHAIN, WIDE, minimize="latency", latency=latency)
    assert len(parts(found)[0]) == 2
    assert found.timing == Timing(1_000_000, 500_000, True)
    cause, told = reason(found, "a", "b", "c")
    assert (cause, told) == (
        "time",
        "takes 0.9 ms where the layers apart take 1 ms, which is no faster beyond the noise",
    )
    with pytest.raises(ValueError, match="measures"):
        best(CHAIN, WIDE, minimize="latency")


def test_a_sum_of_many_branches_is_told_to_be_looked_at_less_closely() -> None:
    stored = tensors(*((f"l{i}", (4, 4, 1, 1)) for i in range(10)))
    found = best({"sum": [{"name": f"l{i}"} for i in range(10)]}, stored)
    assert found.is_given
    assert "a sum of 10 branches" in found.notes[0]


def test_a_stale_copy_is_dropped_with_the_first_part() -> None:
    stored = tensors(
        *(("a", (8, 2, 1, 1)), ("b", (2, 8, 1, 1)), ("c", (30, 2, 3, 3)), ("old", (9, 9)))
    )
    found = best({**CHAIN, "drop": ["old"]}, stored, allowed=not_all)
    assert found.entries[0].drop == ("old",)
    assert "old.weight" in found.merged[0].merge.consumed
    assert (found.before.weights, found.after.weights) == (572 + 81, 544)


def not_all(part: Part) -> str | None:
    return "not all" if part.whole else None


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"chain": [{"name": "a"}, {"name": "x"}]}, "x.weight is not in the checkpoint"),
        ({"chain": [{"name": "a"}, {"name": "c"}]}, "8 channels leave the first layer"),
        ({"chain": [{"name": "a"}, {"name": "b"}], "drop": ["x"]}, "neither a layer nor a tensor"),
        ({"chain": [{"name": "a"}, {"name": "b"}], "input": [4]}, "an input of"),
        ({"sum": [{"name": "a"}, {"name": "b"}]}, "have no sum"),
    ],
)
def test_layers_that_are_not_sound_have_no_partition(data: Item, told: str) -> None:
    with pytest.raises(PlanError, match=told):
        best(data, WIDE)


def test_the_size_tells_the_axes_where_no_layer_does() -> None:
    stored = {"a.weight": torch.zeros(8, 2), "b.weight": torch.zeros(2, 8)}
    linear = {"chain": [{"name": n, "type": "linear"} for n in "ab"]}
    assert best(linear, stored).size == ()
    found = best(linear, stored, size=(4, 5))
    assert (found.before.macs, found.entries[0].input) == (32 * 20, (4, 5))
    assert found.merged[0].merge.geometry.kernel_size == (1, 1)


def flat(entry: Entry) -> Entry:
    return entry_of(request_of(entry))


def test_nested_chains_and_sums_are_laid_flat() -> None:
    inner = {"chain": [{"name": "a"}, {"chain": [{"name": "b"}]}]}
    nested = flat(written_as({"chain": [inner, {"sum": [{"name": "c"}]}]}))
    assert nested.model_dump(exclude_unset=True) == {
        "chain": ({"name": "a"}, {"name": "b"}, {"name": "c"})
    }
    pair = flat(written_as({"first": {"name": "a"}, "second": {"name": "b"}, "into": "x"}))
    assert pair.model_dump(exclude_unset=True) == {
        "chain": ({"name": "a"}, {"name": "b"}),
        "into": "x",
    }


def test_a_hundred_entries_take_a_few_seconds() -> None:
    chain, stored = [], {}
    for i in range(4):
        stored |= tensors((f"c{i}", (16, 16, 3, 3)))
        roles = ("weight", "bias", "running_mean", "running_var")
        stored |= {f"n{i}.{role}": torch.ones(16) for role in roles}
        chain += [
            {"name": f"c{i}", "padding": 1},
            {"name": f"n{i}", "type": "batch_norm", "eps": 0},
        ]
    infos = from_state_dict(stored).tensors
    entry = request_of(written_as({"chain": chain}))
    begin = time.process_time()
    for _ in range(100):
        assert len(best_partition(entry, infos).merged) == 4
    assert time.process_time() - begin < 20
