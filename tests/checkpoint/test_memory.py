"""Shared memory: what is tied, what merely interleaves, and what can be parted."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convsqueeze.checkpoint import Edit, edited_state_dict, from_state_dict
from convsqueeze.checkpoint.memory import own, part
from convsqueeze.sharing import ties

pytestmark = pytest.mark.quick

SIZE = 24


@st.composite
def view(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Shape, strides and offset of a view into SIZE elements; expanded ones included."""
    rank = draw(st.integers(0, 3))
    shape = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    stride = tuple(draw(st.integers(0, 6)) for _ in range(rank))
    last = sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if last >= SIZE:
        return (1,), (1,), draw(st.integers(0, SIZE - 1))
    return shape, stride, draw(st.integers(0, SIZE - 1 - last))


def addresses(tensor: torch.Tensor) -> set[int]:
    """Of every element, one by one: the slow truth."""
    result = {tensor.data_ptr()}
    for n, step in zip(tensor.shape, tensor.stride(), strict=True):
        result = {a + i * step * tensor.element_size() for a in result for i in range(n)}
    return result


def connected(tensors: dict[str, torch.Tensor]) -> set[frozenset[str]]:
    groups: list[tuple[set[str], set[int]]] = []
    for name, tensor in tensors.items():
        names, places = {name}, addresses(tensor)
        for group in [group for group in groups if group[1] & places]:
            groups.remove(group)
            names, places = names | group[0], places | group[1]
        groups.append((names, places))
    return {frozenset(names) for names, _ in groups if len(names) > 1}


views = st.lists(view(), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(views)
def test_ties_are_the_groups_that_share_an_element(
    found: list[tuple[tuple[int, ...], tuple[int, ...], int]],
) -> None:
    base = torch.arange(float(SIZE))
    tensors = {f"t{i}": base.as_strided(*one) for i, one in enumerate(found)}
    got = ties(tensors)
    truth = connected(tensors)
    expanded = any(0 in t.stride() or t.numel() > len(addresses(t)) for t in tensors.values())
    if not expanded:
        assert {frozenset(group) for group in got} == truth
    for group in truth:  # with expanded views the answer may be coarser, never finer
        assert any(group <= set(other) for other in got)
    assert all(list(group) == sorted(group) for group in got)
    assert list(got) == sorted(got)


def test_ties_by_example() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    same = base.clone()
    assert ties({"a": base[:, 0], "b": base[:, 1]}) == ()
    assert ties({"a": base[:, 0], "b": base[:, 1], "c": base[0]}) == (("a", "b", "c"),)
    assert ties({"a": base, "b": same}) == ()
    assert ties({"b": base, "a": same, "d": same[0], "c": base[1]}) == (("b", "c"), ("a", "d"))
    assert ties({"a": base[:2], "b": base[2:]}) == ()
    assert ties({"a": base, "b": base.view(torch.int32)}) == (("a", "b"),)
    assert ties({"a": base[:, 0], "b": base[0].view(torch.int16)[1:]}) == (("a", "b"),)
    assert ties({"a": base[:, 0], "b": base[0, :1].expand(1 << 40)}) == (("a", "b"),)
    assert ties({"a": base[:0], "b": base[:0], "c": torch.eye(2).to_sparse()}) == ()
    assert ties({"a": torch.empty(2, device="meta"), "b": torch.empty(2, device="meta")}) == ()


@settings(max_examples=200, deadline=None)
@given(views, st.data())
def test_parting_keeps_values_strides_and_ties(
    found: list[tuple[tuple[int, ...], tuple[int, ...], int]], data: st.DataObject
) -> None:
    base = torch.arange(float(SIZE))
    tensors = {f"t{i}": base.as_strided(*one) for i, one in enumerate(found)}
    leaving = data.draw(st.sets(st.sampled_from(sorted(tensors))))
    kept = {name: tensor for name, tensor in tensors.items() if name not in leaving}
    parted = part(kept, [tensors[name] for name in leaving], ())
    assert list(parted) == list(kept)
    assert {frozenset(g) for g in ties(parted)} == {frozenset(g) for g in ties(kept)}
    for name, tensor in kept.items():
        assert torch.equal(parted[name], tensor)
        assert parted[name].stride() == tensor.stride()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in parted.values()}
    if not leaving:
        assert all(parted[name] is kept[name] for name in kept)
    elif kept:
        spans = [(min(addresses(t)), max(addresses(t)) + 4) for t in kept.values()]
        covered = {byte for start, stop in spans for byte in range(start, stop)}
        assert sum(storage.nbytes() for storage in storages.values()) == len(covered)


def test_parting_leaves_alone_what_it_cannot_rebuild() -> None:
    base = torch.arange(8.0).to(torch.complex64)
    kept = {"a": base[:2].conj(), "b": base[2:4]}
    assert part(kept, [base[4:]], ())["b"] is kept["b"]
    assert part({"b": base[2:4]}, [base[4:]], [base[:1]])["b"].untyped_storage().nbytes() == 64
    assert part({"b": base[2:4]}, [base[4:]], ())["b"].untyped_storage().nbytes() == 16


def test_empty_view_does_not_keep_a_storage() -> None:
    base = torch.arange(8.0)
    parted = part({"a": base[:0], "b": nn.Parameter(base[2:2])}, [base], ())
    assert [t.untyped_storage().nbytes() for t in parted.values()] == [0, 0]
    assert [t.shape for t in parted.values()] == [(0,), (0,)]
    assert isinstance(parted["b"], nn.Parameter)
    assert part({"a": base[:0]}, [base], [base])["a"].untyped_storage().nbytes() == 32


def test_parted_parameters_stay_parameters_and_the_same() -> None:
    base = torch.arange(8.0)
    shared = nn.Parameter(base[:2], requires_grad=False)
    parted = part({"a": shared, "b": shared, "c": base[1:3]}, [base[4:]], ())
    assert parted["a"] is parted["b"]
    assert isinstance(parted["a"], nn.Parameter)
    assert not parted["a"].requires_grad
    assert parted["a"].untyped_storage().nbytes() == 12
    assert ties(parted) == (("a", "b", "c"),)


def test_own_holds_nothing_else() -> None:
    base = torch.arange(12.0).reshape(3, 4).requires_grad_()
    for tensor in (base[1], base.t(), base[1].detach(), base):
        mine = own(tensor)
        assert torch.equal(mine, tensor)
        assert mine.is_contiguous()
        assert not mine.requires_grad
        assert mine.untyped_storage().nbytes() == mine.numel() * 4
    assert own(mine).data_ptr() == mine.data_ptr()


def test_state_dict_in_memory() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    state_dict = OrderedDict(("module." + name, v) for name, v in model.state_dict().items())
    state_dict._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    source = from_state_dict(state_dict)
    assert (source.format, source.prefix, source.wrapper, source.recipe) == (
        "memory",
        "module.",
        "",
        None,
    )
    assert str(source.path) == "<state dict>"
    assert list(source.tensors) == list(model.state_dict())
    assert source.load("0.bias").data_ptr() == model[0].bias.data_ptr()
    edit = Edit("0.weight", frozenset({"0.weight", "0.bias"}), {"0.weight": torch.ones(1)})
    result = edited_state_dict(source, [edit], "recipe")
    assert type(result) is OrderedDict
    assert list(result) == ["module.0.weight", *(n for n in state_dict if ".0." not in n)]
    assert all(result[name] is state_dict[name] for name in result if ".0." not in name)
    assert result._metadata == {"": {"version": 1}, "convsqueeze": "recipe"}  # type: ignore[attr-defined]
    assert state_dict._metadata == {"": {"version": 1}}  # type: ignore[attr-defined]
    assert len(state_dict) == len(model.state_dict())
    assert from_state_dict(result).recipe == "recipe"


def test_state_dict_keeps_its_class_attributes_and_odd_keys() -> None:
    class Mine(OrderedDict[Any, Any]):
        pass

    state_dict = Mine({"module.a": torch.ones(1), 3: torch.ones(2), "module.b": torch.ones(3)})
    state_dict.note = "kept"  # type: ignore[attr-defined]
    source = from_state_dict(state_dict)
    assert list(source.tensors) == ["a", "b"]
    result = edited_state_dict(source, [Edit("a", frozenset("a"), {})], "recipe")
    assert type(result) is Mine
    assert result.note == "kept"
    assert list(result) == [3, "module.b"]
    assert list(state_dict) == ["module.a", 3, "module.b"]
    assert not hasattr(state_dict, "_metadata")


@pytest.mark.filterwarnings("ignore")
def test_hash_of_unusual_tensors_sees_their_values() -> None:
    def hashed(sign: float) -> list[str]:
        values = torch.tensor([[1.0, 0.0], [0.0, sign]])
        quantized = torch.quantize_per_tensor(values, 0.1, 0, torch.qint8)
        kinds = (quantized, values.to_sparse(), values.to_sparse_csr(), values.to("meta"))
        return [from_state_dict({"a": tensor}).sha256() for tensor in kinds]

    differ = [one != other for one, other in zip(hashed(1.0), hashed(-1.0), strict=True)]
    assert differ == [True, True, True, False]
    assert hashed(1.0) == hashed(1.0)


def test_hash_of_a_state_dict_sees_names_order_dtypes_shapes_and_values() -> None:
    a, b = torch.arange(6.0), torch.ones(2)
    variants = [
        {"a": a, "b": b},
        {"b": b, "a": a},
        {"module.a": a, "module.b": b},
        {"a": a.reshape(2, 3), "b": b},
        {"a": a.view(torch.int32), "b": b},
        {"a": a, "b": torch.tensor([1.0, -1.0])},
        {"a": a, "b": torch.tensor([0.0, 1.0])},
        {"a": a, "b": torch.tensor([-0.0, 1.0])},
    ]
    hashes = [from_state_dict(variant).sha256() for variant in variants]
    assert len(set(hashes)) == len(variants)
    assert from_state_dict({"a": a.clone(), "b": b.expand(2)}).sha256() == hashes[0]
