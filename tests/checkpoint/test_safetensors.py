"""Safetensors files: order, metadata and bytes come back, and the library reads what we write."""

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from convsqueeze.checkpoint import (
    Edit,
    from_state_dict,
    memory,
    open_checkpoint,
    safetensors_file,
    write_checkpoint,
)
from convsqueeze.checkpoint.edits import splice
from convsqueeze.checkpoint.safetensors_file import DTYPES
from convsqueeze.checkpoint.tensors import TensorOnDisk
from convsqueeze.errors import CheckpointError, OutputError

pytestmark = pytest.mark.quick

RECIPE = '{"version": 1, "name": "größe"}'
NAMES = sorted(DTYPES)


def raw_header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


def raw_values(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """dtype, shape and bytes of each tensor in header order, parsed apart from the program."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = raw_header(path)
    header.pop("__metadata__", None)
    return {
        name: (
            e["dtype"],
            e["shape"],
            data[start + e["data_offsets"][0] :][: e["data_offsets"][1] - e["data_offsets"][0]],
        )
        for name, e in header.items()
    }


def built(path: Path, entries: dict[str, tuple[str, list[int], bytes]], **metadata: str) -> Path:
    """A file with the header in the order of `entries` and the data in the reverse order."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    ends, end = {}, 0
    for name in reversed(entries):
        ends[name], end = (end, end + len(entries[name][2])), end + len(entries[name][2])
    for name, (dtype, shape, _) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": ends[name]}
    text = json.dumps(header).encode()
    data = b"".join(entries[name][2] for name in reversed(entries))
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def width(dtype: str) -> int:
    return DTYPES[dtype].itemsize


@st.composite
def entries(draw: st.DrawFn) -> dict[str, tuple[str, list[int], bytes]]:
    names = draw(
        st.lists(
            st.text(string.ascii_letters + "._é", min_size=1, max_size=6),
            unique=True,
            min_size=1,
            max_size=6,
        )
    )
    result = {}
    for name in names:
        dtype = draw(st.sampled_from(NAMES))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        if dtype == "F4":
            shape = [*shape, 2 * draw(st.integers(0, 2))]
        count = 1
        for n in shape:
            count *= n
        size = count // 2 if dtype == "F4" else count * width(dtype)
        limit = 1 if dtype == "BOOL" else 255
        data = bytes(draw(st.lists(st.integers(0, limit), min_size=size, max_size=size)))
        result[name] = (dtype, shape, data)
    return result


@settings(max_examples=60, deadline=None)
@given(entries=entries(), data=st.data())
def test_untouched_tensors_keep_order_and_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    entries: dict[str, tuple[str, list[int], bytes]],
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("st")
    path = built(folder / "in.safetensors", entries, format="pt", note="kept")
    checkpoint = open_checkpoint(path)
    names = list(checkpoint.tensors)
    gone = frozenset(data.draw(st.lists(st.sampled_from(names), unique=True)))
    at = data.draw(st.sampled_from(names))
    new = {"NEW one": torch.arange(6.0).reshape(2, 3), "NEW two": torch.ones((), dtype=torch.bool)}
    edits = [Edit(at, gone, new)]
    write_checkpoint(checkpoint, folder / "out.safetensors", edits, RECIPE)

    out = raw_values(folder / "out.safetensors")
    order: list[str] = []
    for name in entries:
        order += ["NEW one", "NEW two"] if checkpoint.prefix + at == name else []
        order += [] if name.removeprefix(checkpoint.prefix) in gone else [name]
    assert [n.removeprefix(checkpoint.prefix) if "NEW" in n else n for n in out] == order
    assert list(splice(checkpoint, edits).entries()) == list(out)
    assert {n: v for n, v in out.items() if "NEW" not in n} == {
        n: v for n, v in entries.items() if n.removeprefix(checkpoint.prefix) not in gone
    }
    header = raw_header(folder / "out.safetensors")
    assert header.pop("__metadata__") == {"format": "pt", "note": "kept", "convsqueeze": RECIPE}
    assert all(e["data_offsets"][0] % width(e["dtype"]) == 0 for e in header.values())
    length = int.from_bytes((folder / "out.safetensors").read_bytes()[:8], "little")
    assert length % 8 == 0
    with safe_open(folder / "out.safetensors", "pt") as library:
        assert set(library.keys()) == set(out)
        assert library.metadata()["convsqueeze"] == RECIPE
        for name, (_, _, values) in out.items():
            tensor = library.get_tensor(name)
            assert bytes(tensor.reshape(-1).view(torch.uint8).tolist()) == values


@pytest.mark.parametrize("dtype", NAMES)
def test_every_dtype_reads_as_the_library_reads_it(tmp_path: Path, dtype: str) -> None:
    values = torch.arange(48, dtype=torch.uint8).view(DTYPES[dtype]).reshape(2, -1)
    if dtype == "BOOL":
        values = torch.arange(48).reshape(2, -1) % 3 == 0
    parts = {"x": values, "y": values[:0]} | ({} if dtype == "F4" else {"z": values[0, 0].clone()})
    save_file(parts, tmp_path / "in.safetensors")
    checkpoint = open_checkpoint(tmp_path / "in.safetensors")
    with safe_open(tmp_path / "in.safetensors", "pt") as library:
        for name, info in checkpoint.tensors.items():
            tensor, expected = checkpoint.load(name), library.get_tensor(name)
            assert (info.dtype, info.shape) == (expected.dtype, tuple(expected.shape))
            assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape)
            assert info.nbytes == tensor.numel() * tensor.element_size()
            same = tensor.reshape(-1).view(torch.uint8) == expected.reshape(-1).view(torch.uint8)
            assert bool(same.all())


@pytest.mark.parametrize("dtype", NAMES)
def test_every_dtype_goes_from_pickle_and_back(tmp_path: Path, dtype: str) -> None:
    values = torch.arange(48, dtype=torch.uint8).view(DTYPES[dtype]).reshape(2, -1)
    torch.save({"x": values}, tmp_path / "in.pt")
    write_checkpoint(open_checkpoint(tmp_path / "in.pt"), tmp_path / "a.safetensors", [], RECIPE)
    middle = open_checkpoint(tmp_path / "a.safetensors")
    assert middle.metadata == {"format": "pt", "convsqueeze": RECIPE}
    write_checkpoint(middle, tmp_path / "b.pt", [], RECIPE)
    back = torch.load(tmp_path / "b.pt", weights_only=True)
    assert back._metadata == {"convsqueeze": RECIPE}
    assert (back["x"].dtype, back["x"].shape) == (values.dtype, values.shape)
    assert torch.equal(back["x"].view(torch.uint8), values.view(torch.uint8))


def test_untouched_tensors_are_never_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.ones(600_000), "b": torch.ones(2)}, tmp_path / "in.safetensors")

    def forbidden(*_: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(TensorOnDisk, "load", forbidden)
    checkpoint = open_checkpoint(tmp_path / "in.safetensors")
    edit = Edit("b", frozenset("b"), {"c": torch.zeros(3)})
    write_checkpoint(checkpoint, tmp_path / "out.safetensors", [edit], RECIPE)
    after = load_file(tmp_path / "out.safetensors")
    assert torch.equal(after["a"], torch.ones(600_000))
    assert torch.equal(after["c"], torch.zeros(3))


def test_pickle_that_safetensors_cannot_hold_whole(tmp_path: Path) -> None:
    weight = torch.randn(4, 6)
    whole = {
        "epoch": 3,
        "model": {"a": weight, "b": weight, "gone": weight, "t": torch.randn(3, 5).t(), "_x": 1},
        "optimizer": {},
    }
    torch.save(whole, tmp_path / "in.pt")
    checkpoint = open_checkpoint(tmp_path / "in.pt")
    edits = [Edit("gone", frozenset({"gone"}), {})]
    notes = write_checkpoint(checkpoint, tmp_path / "out.safetensors", edits, RECIPE)
    assert notes == (
        "epoch, optimizer, _x: not kept, a .safetensors file holds tensors only",
        "a, b: shared memory, written out as copies",
    )
    after = load_file(tmp_path / "out.safetensors")
    assert list(raw_values(tmp_path / "out.safetensors")) == ["a", "b", "t"]
    assert all(torch.equal(after[name], whole["model"][name]) for name in after)  # type: ignore[index]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: torch.ones(2, dtype=torch.complex128),
            "bad: torch.complex128, which a .safetensors",
        ),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "bad: torch.qint8"),
        (lambda: torch.eye(2).to_sparse(), "bad: torch.sparse_coo"),
    ],
)
def test_tensor_that_safetensors_cannot_hold(
    tmp_path: Path, make: Callable[[], torch.Tensor], says: str
) -> None:
    torch.save({"good": torch.ones(2), "bad": make()}, tmp_path / "in.pt")
    checkpoint = open_checkpoint(tmp_path / "in.pt")
    with pytest.raises(OutputError, match=says):
        write_checkpoint(checkpoint, tmp_path / "out.safetensors", [], RECIPE)
    edit = Edit("bad", frozenset({"bad"}), {})
    write_checkpoint(checkpoint, tmp_path / "out.safetensors", [edit], RECIPE)
    assert list(load_file(tmp_path / "out.safetensors")) == ["good"]


@pytest.mark.parametrize("name", ["__metadata__", "half \ud800 pair"])
def test_name_that_safetensors_cannot_hold(tmp_path: Path, name: str) -> None:
    torch.save({name: torch.ones(2)}, tmp_path / "in.pt")
    with pytest.raises(OutputError, match=r"Write a \.pt file"):
        write_checkpoint(open_checkpoint(tmp_path / "in.pt"), tmp_path / "o.safetensors", [], "")


def test_conjugate_views_are_resolved(tmp_path: Path) -> None:
    values = torch.tensor([1 + 2j, 3 - 4j])
    torch.save({"x": values.conj()}, tmp_path / "in.pt")
    write_checkpoint(open_checkpoint(tmp_path / "in.pt"), tmp_path / "o.safetensors", [], RECIPE)
    assert torch.equal(load_file(tmp_path / "o.safetensors")["x"], values.conj().resolve_conj())


def test_tie_of_which_one_name_is_left_is_no_tie(tmp_path: Path) -> None:
    weight = torch.ones(2)
    torch.save({"a": weight, "b": weight}, tmp_path / "in.pt")
    (tmp_path / "o-00001-of-00001.safetensors").write_bytes(b"of another output")
    source, edits = open_checkpoint(tmp_path / "in.pt"), [Edit("a", frozenset("a"), {})]
    assert write_checkpoint(source, tmp_path / "o.safetensors", edits, RECIPE) == ()


def test_metadata_lost_on_the_way_to_a_pickle_is_told(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "in.safetensors", {"format": "pt", "author": "me"})
    checkpoint = open_checkpoint(tmp_path / "in.safetensors")
    assert checkpoint.metadata == {"format": "pt", "author": "me"}
    notes = write_checkpoint(checkpoint, tmp_path / "out.pt", [], RECIPE)
    assert notes == ("metadata author: not kept, a .pt file has no place for it",)


def test_recipe_is_replaced_by_the_next_run(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "0.safetensors")
    for run in (0, 1):
        checkpoint = open_checkpoint(tmp_path / f"{run}.safetensors")
        assert checkpoint.recipe == (None if run == 0 else "recipe 0")
        write_checkpoint(checkpoint, tmp_path / f"{run + 1}.safetensors", [], f"recipe {run}")
    assert open_checkpoint(tmp_path / "2.safetensors").recipe == "recipe 1"


def test_prefix_and_key(tmp_path: Path) -> None:
    save_file({"module.a": torch.ones(2), "module.b": torch.zeros(2)}, tmp_path / "m.safetensors")
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert (checkpoint.prefix, list(checkpoint.tensors)) == ("module.", ["a", "b"])
    assert torch.equal(checkpoint.load("a"), torch.ones(2))
    write_checkpoint(
        checkpoint,
        tmp_path / "o.safetensors",
        [Edit("a", frozenset("a"), {"n": torch.ones(1)})],
        "",
    )
    assert list(raw_values(tmp_path / "o.safetensors")) == ["module.n", "module.b"]
    with pytest.raises(CheckpointError, match="Leave --key away"):
        open_checkpoint(tmp_path / "m.safetensors", key="model")


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"a": entry(offsets=(0, 4))}, "invalid shape, data type, or offset"),
        ({"a": entry(offsets=(8, 16))}, "invalid offset for tensor `a`"),
        ({"a": entry(offsets=(4, 12))}, "invalid offset for tensor `a`"),
        ({"a": entry(), "b": entry(offsets=(0, 8))}, "invalid offset for tensor `[ab]`"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, "invalid offset for tensor `b`"),
        ({"a": entry(shape=(4,), offsets=(0, 16))}, "file not fully covered"),
        ({}, "file not fully covered"),
        ({"a": entry(dtype="F33")}, "F33"),
        ({"a": entry(dtype=["F32"])}, "invalid type: sequence, expected string"),
        ({"a": entry("F6_E2M3", (4, 4), (0, 12))}, "file not fully covered"),
        ({"a": entry("F6_E2M3", (4,), (0, 3)), "b": entry("U8", (5,), (3, 8))}, "a has .* F6_E2M3"),
        ({"a": entry(shape=(-2,))}, "integer `-2`"),
        ({"a": entry(shape=(2.0,))}, "floating point `2.0`"),
        ({"a": entry(shape=(True,))}, "boolean"),
        ({"a": entry(shape=2)}, "integer `2`, expected a sequence"),
        ({"a": entry(shape=(1 << 62, 1 << 62))}, "overflow computing buffer size"),
        ({"a": entry(), "b": entry(shape=(1 << 62, 0, 1 << 62), offsets=(8, 8))}, "b has a shape"),
        ({"a": entry(offsets=(0, 8, 16))}, "invalid length 3"),
        ({"a": entry(offsets=(8, 0))}, "invalid offset for tensor `a`"),
        ({"a": entry("F4", (3,), (0, 8))}, "byte boundary"),
        ({"a": entry("F4", (), (0, 8))}, "byte boundary"),
        ({"a": entry("F4", (16, 1), (0, 8))}, "a has half a byte left over"),
        ({"a": {"dtype": "F32"}}, "missing field `shape`"),
        ({"a": 3}, "invalid type: integer `3`"),
        ({"a": entry(), "__metadata__": {"x": 1}}, "integer `1`, expected a string"),
        ({"a": entry(), "__metadata__": ["x"]}, "expected a map"),
        (b"{" + b'"a":' * 3 + b"1}", "invalid JSON"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},' * 2, "invalid JSON"),
        (f'{{"a":{json.dumps(entry())},"a":{json.dumps(entry())}}}'.encode(), "key a .* twice"),
        (
            f'{{"a":{json.dumps(entry())},"__metadata__":{{"x":"1","x":"2"}}}}'.encode(),
            "the key x stands twice",
        ),
        (b'{"a":{"dtype":"F32","dtype":"F32"}}', "duplicate field `dtype`"),
        (b'["a"]', "invalid JSON"),
        (b'{"a":NaN}', "invalid JSON"),
        (b'{"\xff":1}', "invalid UTF-8"),
        (b'{"__metadata__":{"x":"\\ud800"}}', "invalid JSON"),
        (b'{"a":' + b"[" * 100_000, "recursion limit"),
        (b'{"a":' + b"9" * 5000 + b"}", "number out of range"),
    ],
)
def test_damaged_header(tmp_path: Path, header: Any, says: str) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(CheckpointError, match=says) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


def test_undamaged_header_opens(tmp_path: Path) -> None:
    """The same construction as above, so that the refusals there are for their reasons."""
    path = tmp_path / "m.safetensors"
    text = json.dumps({"a": entry()}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    assert torch.equal(open_checkpoint(path).load("a"), torch.zeros(2))


@pytest.mark.parametrize("length", [1 << 60, 1 << 63, (1 << 64) - 1, 200_000_000, 17])
def test_header_longer_than_the_file(tmp_path: Path, length: int) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{" + b" " * 15)
    with pytest.raises(
        CheckpointError, match=r"file of 24 bytes: (header too large|invalid header)"
    ):
        open_checkpoint(path)


def test_header_longer_than_the_library_reads(tmp_path: Path) -> None:
    source = from_state_dict({"a" * 100_000_000: torch.ones(2)})
    with pytest.raises(OutputError, match=r"header too large.* Write a \.pt file instead"):
        write_checkpoint(source, tmp_path / "m.safetensors", [], RECIPE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["m.safetensors", "m.safetensors.index.json"])
def test_what_the_library_does_not_read_is_not_put_in_its_place(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file that is written, each shard too, is opened by the library first."""
    source = from_state_dict({"a": torch.ones(2), "b": torch.ones(3)})
    split = 8 if place.endswith("json") else None
    written: list[str] = []

    def spy(path: Path, *given: object, **options: object) -> object:
        written.append(path.suffix)
        return safe_open(path, *given, **options)

    monkeypatch.setattr(safetensors_file, "safe_open", spy)
    write_checkpoint(source, tmp_path / place, [], RECIPE, largest_shard=split)
    assert written == [".tmp"] * (2 if split else 1)
    for path in tmp_path.iterdir():
        path.unlink()
    monkeypatch.setattr(memory, "raw_bytes", lambda tensor: memoryview(b"1234"))
    with pytest.raises(OutputError, match="file not fully covered"):
        write_checkpoint(source, tmp_path / place, [], RECIPE, largest_shard=split)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, 3])
def test_content_decides_not_the_name(tmp_path: Path, count: int) -> None:
    save_file({"a": torch.ones(count)}, tmp_path / "model.bin")
    assert open_checkpoint(tmp_path / "model.bin").format == "safetensors"
    data = (tmp_path / "model.bin").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    (tmp_path / "cut.bin").write_bytes(data[: end - 1])
    with pytest.raises(CheckpointError, match="no kind of file that is known here, or cut off"):
        open_checkpoint(tmp_path / "cut.bin")


def test_cut_off_anywhere(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4), "b": torch.ones(3)}, tmp_path / "m.safetensors")
    whole = (tmp_path / "m.safetensors").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "cut.safetensors").write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path / "cut.safetensors")
