"""Entries that differ only in numbers become one with placeholders, which stands for them alone."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convsqueeze.manifest import (
    Contracted,
    Entry,
    contract,
    document_data,
    expand,
    manifest_from_data,
)
from convsqueeze.manifest.contract import PLACEHOLDERS

pytestmark = pytest.mark.quick

Data = dict[str, Any]


def entries_of(*data: Data) -> tuple[Entry, ...]:
    return manifest_from_data({"version": 1, "pairs": list(data)}).document.pairs


def chain(*names: str, **given: Any) -> Data:
    """A chain of convolutions; `padding` is the first one's."""
    first = {"padding": given.pop("padding")} if "padding" in given else {}
    return {"chain": [{"name": names[0], **first}, *({"name": n} for n in names[1:])], **given}


def block(name: str, **given: Any) -> Data:
    return chain(f"{name}.a", f"{name}.b", **{"into": name, **given})


def blocks(template: str, *numbers: object, **given: Any) -> list[Data]:
    return [block(template.replace("#", str(n)), **given) for n in numbers]


def layers(node: Any, key: str = "") -> list[str]:
    """The names of the layers in entries as plain data."""
    if isinstance(node, dict):
        return [name for key, value in node.items() for name in layers(value, key)]
    if isinstance(node, list):
        return [name for value in node for name in layers(value, key)]
    return [node] if key in ("name", "weight") else []


def tensors(data: Sequence[Data], *more: str) -> list[str]:
    """What a file has that holds the layers of these entries, and more of them."""
    names = [*layers(list(data)), *more]
    return [f"{name}.{role}" for name in dict.fromkeys(names) for role in ("weight", "bias")]


def contracted(data: Sequence[Data], names: Sequence[str]) -> list[Data]:
    """The entries as plain data, held against their expansion."""
    entries = entries_of(*data)
    found = contract(entries, names)
    assert_exact(found, entries, names)
    pairs = tuple(one.entry for one in found)
    document = manifest_from_data({"version": 1, "pairs": [data[0]]}).document
    return document_data(document.model_copy(update={"pairs": pairs}))["pairs"]


def assert_exact(
    found: Sequence[Contracted[Any]], entries: Sequence[Entry], names: Sequence[str]
) -> None:
    """Every entry stands for its members, in their order, and for nothing else."""
    for one in found:
        expansion = expand(one.entry, names)
        assert [entry for _, entry in expansion.entries] == [entries[n] for n in one.members]
        assert expansion.partial == ()
    assert sorted(n for one in found for n in one.members) == list(range(len(entries)))
    firsts = [min(one.members) for one in found]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (blocks("body.#", 0, 1, 2), blocks("body.#", "{i}")),
        (blocks("body.#", 0, 1, 4, 17), blocks("body.#", "{i}")),
        (blocks("layer#", 1, 2), blocks("layer#", "{i}")),
        (blocks("body.#", "00", "01"), blocks("body.#", "{i}")),
        (blocks("body.#.conv3.3", 1, 2, 3), blocks("body.#.conv3.3", "{i}")),
        (blocks("body.#", 1, 3, padding=3), blocks("body.#", "{i}", padding=3)),
        (
            [block(f"stage{i}.{j}") for i in (1, 2, 3) for j in range(i)],
            [block("stage{i}.{j}")],
        ),
        (
            [block(f"up.{i}.block.{j}.conv{k}") for i in (0, 1) for j in (0, 2) for k in (1, 2)],
            [block("up.{i}.block.{j}.conv{k}")],
        ),
        (
            [chain(f"a.{n}.x", f"b.{n}.x", into=f"merged.{n}", drop=[f"old.{n}"]) for n in (0, 5)],
            [chain("a.{i}.x", "b.{i}.x", into="merged.{i}", drop=["old.{i}"])],
        ),
        (
            [
                {"chain": [{"name": f"{n}.fc"}, {"type": "scale", "weight": f"{n}.gamma"}]}
                for n in (3, 4)
            ],
            [{"chain": [{"name": "{i}.fc"}, {"type": "scale", "weight": "{i}.gamma"}]}],
        ),
        (
            [{"first": {"name": f"{n}.a"}, "second": {"name": f"{n}.b"}} for n in (1, 2)],
            [{"first": {"name": "{i}.a"}, "second": {"name": "{i}.b"}}],
        ),
        (
            [*blocks("body.#.x", 0, 1), *blocks("body.#.y", 0, 1), block("head")],
            [*blocks("body.#.x", "{i}"), *blocks("body.#.y", "{i}"), block("head")],
        ),
    ],
    ids=[
        *("blocks", "gaps", "within a part of a name", "with zeros in front"),
        *("a number that stays", "the same number as padding", "two numbers", "three numbers"),
        *("into and drop", "a weight", "pairs", "each kind of its own"),
    ],
)
def test_entries_that_differ_in_numbers_become_one(data: list[Data], wanted: list[Data]) -> None:
    assert contracted(data, tensors(data)) == wanted


@pytest.mark.parametrize(
    ("data", "more"),
    [
        ([block("body.0")], ()),
        (blocks("body.#", 0, 1, 3), ("body.2.a", "body.2.b")),
        (blocks("body.#", 0, 1, 3), ("body.2.b",)),
        ([block("body.0"), block("body.1", padding=1), block("body.2")], ()),
        ([block("body.0"), block("body.1", border="interior"), block("body.2")], ()),
        ([chain(f"body.{n}.out", f"body.{n + 1}.in") for n in range(3)], ()),
        ([chain(f"body.{2 * n}", f"body.{2 * n + 1}") for n in range(400)], ()),
        ([block("a.0", into="merged.5"), block("a.1", into="merged.7")], ()),
        ([block("a.0", drop=["old.1"]), block("a.1", drop=["old.3"])], ()),
        (blocks("layer#", 0, 1), ("layers.a", "layers.b")),
        ([chain("a0_0_0", "b"), chain("a1_1_2", "c")], ()),
        ([block("a.0"), {"sum": block("a.1")["chain"], "into": "a.1"}], ()),
    ],
    ids=[
        *("one alone", "a block that is left out", "a block with half of the layers"),
        *("another padding between", "another border between", "neighbours", "many neighbours"),
        *("into with numbers of its own", "drop with numbers of its own"),
        *("a word in the place of the number", "other names", "a chain and a sum"),
    ],
)
def test_others_stay_as_they_are(data: list[Data], more: Sequence[str]) -> None:
    assert contracted(data, tensors(data, *more)) == data


def test_a_name_with_braces_of_its_own_stays_as_it_is() -> None:
    entries = entries_of(*blocks("{x}.#", 0, 1))
    found = contract(entries, ["{x}.0.a.weight", "{x}.0.b.weight", "{x}.1.a.weight"])
    assert [one.entry for one in found] == list(entries)


def test_what_can_be_one_is_one_beside_what_cannot() -> None:
    data = [*blocks("stage.0.#", 0, 1, 2, 3), *blocks("stage.1.#", 0, 1)]
    stray = tensors(data, "stage.1.3.a", "stage.1.3.b")
    assert contracted(data, stray) == [block("stage.0.{i}"), *data[4:]]
    data = [block(f"body.{i}.conv{j}") for i in range(3) for j in (1, 2)]
    stray = tensors(data, "body.1.conv3.a", "body.1.conv3.b")
    assert contracted(data, stray) == [block("body.{i}.conv1"), block("body.{i}.conv2")]


def test_more_numbers_than_placeholders_are_fewer_entries() -> None:
    every = [(i, j, k, m) for i in (0, 1) for j in (0, 1) for k in (0, 1) for m in (0, 1, 2)]
    data = [block(f"a.{i}.b.{j}.c.{k}.d.{m}") for i, j, k, m in every]
    assert len(PLACEHOLDERS) == 3
    assert contracted(data, tensors(data)) == [
        block("a.0.b.{i}.c.{j}.d.{k}"),
        block("a.1.b.{i}.c.{j}.d.{k}"),
    ]


def test_the_place_is_the_first_ones_and_the_order_that_of_the_file() -> None:
    data = [block("head"), *blocks("body.#", 2, 0), block("tail"), *blocks("body.#", 1)]
    names = tensors([*blocks("body.#", 0, 1, 2), *data])
    found = contract(entries_of(*data), names)
    assert [one.members for one in found] == [(0,), (2, 4, 1), (3,)]


def test_entries_given_twice_stay_two() -> None:
    data = [block("body.0"), block("body.0"), block("body.1")]
    entries = entries_of(*data)
    found = contract(entries, tensors(data))
    assert [one.entry for one in found] == list(entries)


NUMBERS = st.integers(0, 3)
NAMES = st.one_of(
    st.builds("b.{}.{}".format, NUMBERS, st.sampled_from("xy")),
    st.builds("s{}.{}.x".format, NUMBERS, NUMBERS),
    st.builds("c{}_{}".format, NUMBERS, NUMBERS),
    st.builds("{}.{}.{}".format, NUMBERS, NUMBERS, NUMBERS),
)
ENTRIES = st.builds(
    block, NAMES, padding=st.sampled_from([0, 1]), into=st.one_of(NAMES, st.just("whole"))
) | st.builds(block, NAMES)


@settings(max_examples=150, deadline=None)
@given(st.lists(ENTRIES, min_size=1, max_size=24), st.lists(NAMES, max_size=4), st.randoms())
def test_random_entries_expand_to_themselves(
    data: list[Data], stray: list[str], chance: random.Random
) -> None:
    """Whatever else the file holds, and in whatever order."""
    names = tensors(data, *(f"{name}.{layer}" for name in stray for layer in "ab"), *stray)
    chance.shuffle(names)
    entries = entries_of(*data)
    assert_exact(contract(entries, names), entries, names)


@settings(max_examples=80, deadline=None)
@given(st.sets(st.tuples(NUMBERS, NUMBERS), min_size=2), st.randoms())
def test_random_blocks_of_a_network_that_has_no_others_become_one(
    numbers: set[tuple[int, int]], chance: random.Random
) -> None:
    data = [block(f"stage{i}.{j}.x") for i, j in numbers]
    names = tensors(data)
    chance.shuffle(names)
    assert len(contracted(data, names)) == 1
