"""Files that are no checkpoint, or a damaged or hostile one: one line each, and no code run."""

import io
import json
import pickle
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convsqueeze.checkpoint import open_checkpoint
from convsqueeze.errors import CheckpointError

pytestmark = pytest.mark.quick

STATE = {"a": torch.arange(300.0), "b": torch.ones(2, 3).t()}


def pickled(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def refused(path: Path, says: str) -> str:
    with pytest.raises(CheckpointError, match=says) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    return message


def archive(**records: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in records.items():
            file.writestr("x/" + name, data)
    return buffer.getvalue()


def repacked(
    data: bytes,
    change: Callable[[str, bytes], bytes] = lambda name, record: record,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    buffer = io.BytesIO()
    source = zipfile.ZipFile(io.BytesIO(data))
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name in source.namelist():
            file.writestr(name, change(name, source.read(name)))
    return buffer.getvalue()


def numpy_archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", 'Run "git lfs pull"'),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG picture"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG picture"),
        (b"GIF89a", "a GIF picture"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\x89HDF\r\n\x1a\n\0", "an HDF5 file"),
        (b"GGUF\x03\0\0\0", "a GGUF file"),
        (b"\x1c\0\0\0TFL3", "a TensorFlow Lite model"),
        (b"\x93NUMPY\x01\0", "a NumPy array"),
        (b"\x1f\x8b\x08\0", "a gzip archive"),
        (b"BZh91AY", "a bzip2 archive"),
        (b"\xfd7zXZ\0", "an xz archive"),
        (b"\x28\xb5\x2f\xfd", "a zstd archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"x" * 257 + b"ustar", "a tar archive"),
        (b"\n <!DOCTYPE html><html>", "a web page"),
        (b"<HTML lang=en>", "a web page"),
        (b"\x08\x08\x12\x07pytorch\x1a\x05", "an ONNX model"),
        (pickle.dumps({"a": 1}), "a plain pickle"),
        (b"hello", "no kind of file that is known here"),
        (numpy_archive(), r"a NumPy \.npz archive"),
        (archive(readme=b"hello"), "a zip archive that torch.save did not write"),
        (archive(**{"data.pkl": b"", "constants.pkl": b""}), r"TorchScript.*torch\.jit\.load"),
        (archive(archive_format=b"pt2"), r"a torch\.export archive.*torch\.export\.load"),
        (pickled(nn.Conv2d(1, 1, 1)), r"torch\.nn\.modules\.conv\.Conv2d.*d\.state_dict\(\)"),
        (
            pickled(nn.Conv2d(1, 1, 1), _use_new_zipfile_serialization=False),
            r"torch\.nn\.modules\.conv\.Conv2d",
        ),
        (pickled({"best": np.float64(1)}), r"objects of numpy\..*scalar, numpy\.dtype, which"),
        (pickled(STATE, pickle_protocol=4), "another protocol"),
        (repacked(pickled(STATE), compression=zipfile.ZIP_DEFLATED), "records are compressed"),
    ],
)
def test_file_of_another_kind(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(data)
    assert " was needed. " in refused(path, says)


@pytest.mark.filterwarnings("ignore")
def test_real_torchscript_and_export_archives(tmp_path: Path) -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.save(torch.jit.script(Net()), tmp_path / "script.pt")
    refused(tmp_path / "script.pt", "a TorchScript archive")
    torch.export.save(torch.export.export(Net(), (torch.ones(1),)), tmp_path / "export.pt2")
    refused(tmp_path / "export.pt2", "a torch.export archive")


def test_place_that_holds_no_file(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(pickled(STATE))
    refused(tmp_path / "modle.pt", r"no such file\. Did you mean model\.pt\?")
    refused(tmp_path / "no" / "model.pt", "no such file. Check the path")
    refused(tmp_path / "model.pt" / "x.pt", "no such file|cannot be read")
    assert "Name a file inside: model.pt." in refused(tmp_path, "a directory")
    (tmp_path / "m.safetensors.index.json").write_text("{}")
    assert "Name a file inside: m.safetensors.index.json." in refused(tmp_path, "a directory")
    refused(Path("/dev/zero"), "no regular file")
    (tmp_path / "dangling.pt").symlink_to("nowhere.pt")
    refused(tmp_path / "dangling.pt", "no such file")


class Attack:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"open({str(self.place)!r}, 'w')",))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_no_code_runs(tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "ran"
    data = pickled({**STATE, "x": Attack(place)}, _use_new_zipfile_serialization=zipped)
    (tmp_path / "model.pt").write_bytes(data)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    refused(tmp_path / "model.pt", "an object of exec, which for safety is not loaded")
    assert not place.exists()
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert place.exists(), "the attack itself must work, or this shows nothing"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_cut_off_anywhere(tmp_path: Path, zipped: bool) -> None:
    data = pickled({"a": torch.ones(4)}, _use_new_zipfile_serialization=zipped)
    path = tmp_path / "model.pt"
    for size in range(0, len(data), 1 if not zipped else 7):
        path.write_bytes(data[:size])
        message = refused(path, ".")
        if size > 100:
            assert "cut off or damaged" in message
    path.write_bytes(data)
    assert list(open_checkpoint(path).tensors) == ["a"]


COUNT = b"M\x2c\x01"
"""How a pickle spells the 300 elements of STATE["a"], followed by what shows where it stands."""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (COUNT + b"t", b"J\xff\xff\xff\x00t"),
        (COUNT + b"t", b"\x8a\x08\0\0\0\0\0\0\0\x10t"),
        (COUNT + b"t", b"J\xff\xff\xff\xfft"),
        (COUNT + b"t", b"M\x2d\x01t"),
        (COUNT + b"\x85", b"J\xff\xff\xff\x00\x85"),
        (COUNT + b"\x85", b"J\xff\xff\xff\xff\x85"),
    ],
)
def test_sizes_that_the_data_does_not_bear_out(tmp_path: Path, old: bytes, new: bytes) -> None:
    def change(name: str, record: bytes) -> bytes:
        assert not name.endswith("data.pkl") or record.count(old) == 1
        return record.replace(old, new) if name.endswith("data.pkl") else record

    path = tmp_path / "model.pt"
    path.write_bytes(repacked(pickled(STATE), change))
    refused(
        path, "does not fit its data|names more values than|cut off|larger than its storage|a shape"
    )
    path.write_bytes(repacked(pickled(STATE)))
    assert torch.equal(open_checkpoint(path).load("a"), STATE["a"])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 byte")]
)
def test_too_little_memory_is_said(
    tmp_path: Path, zipped: bool, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    path = tmp_path / "model.pt"
    path.write_bytes(pickled(STATE, _use_new_zipfile_serialization=zipped))
    monkeypatch.setattr(torch, "load", fail)
    refused(path, "asks for more memory than there is")


def test_tensor_expanded_far_beyond_its_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(pickled({"a": torch.ones(1).expand(1 << 40)}))
    refused(path, "a expands far beyond the file")
    path.write_bytes(pickled({"a": torch.ones(1).expand(1 << 20)}))
    assert open_checkpoint(path).tensors["a"].numel == 1 << 20


def test_bombs_are_refused_without_unpacking_them(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    bomb = archive(**{"data.pkl": b""})
    buffer = io.BytesIO(bomb)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data/0", bytes(200_000_000))
    path.write_bytes(buffer.getvalue())
    tracemalloc.start()
    begin = time.monotonic()
    refused(path, "records are compressed")
    assert time.monotonic() - begin < 5
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_records_that_overlap(tmp_path: Path) -> None:
    """Each record of the directory points at the same bytes: stored, and yet a bomb."""
    whole = archive(**{"data.pkl": b"", "data/0": bytes(1000)})
    at = whole.index(b"PK\x01\x02", whole.index(b"PK\x01\x02") + 1)
    end = whole.index(b"PK\x05\x06")
    entry = whole[at:end]
    copies = [entry.replace(b"x/data/0", b"x/data/%d" % i) for i in range(10)]
    directory = whole[whole.index(b"PK\x01\x02") : at] + b"".join(copies)
    tail = bytearray(whole[end:])
    tail[8:12] = (11).to_bytes(2, "little") * 2
    tail[12:16] = len(directory).to_bytes(4, "little")
    path = tmp_path / "model.pt"
    path.write_bytes(whole[: whole.index(b"PK\x01\x02")] + directory + bytes(tail))
    assert len(zipfile.ZipFile(path).namelist()) == 11
    refused(path, "records overlap")


def test_names_with_control_characters_are_escaped(tmp_path: Path) -> None:
    name = "a\x1b[2J\n" + "x" * 1000
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [4, 8]}
    text = json.dumps({name: entry}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    assert len(refused(path, r"invalid offset for tensor `a\\x1b\[2J\\n")) < 500


@pytest.mark.filterwarnings("ignore")
def test_nested_tensor_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(pickled({"n": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}))
    refused(path, "n is a nested tensor")


ZIPPED, LEGACY = pickled(STATE), pickled(STATE, _use_new_zipfile_serialization=False)


@settings(max_examples=150, deadline=None)
@given(
    legacy=st.booleans(),
    edits=st.lists(
        st.tuples(st.integers(0, 10_000), st.integers(0, 5), st.binary(max_size=5)),
        min_size=1,
        max_size=4,
    ),
)
def test_damage_of_any_kind_is_one_line(
    tmp_path_factory: pytest.TempPathFactory, legacy: bool, edits: list[tuple[int, int, bytes]]
) -> None:
    """Either it opens, or it is refused: nothing else comes out."""

    def damaged(name: str, record: bytes) -> bytes:
        changed = bytearray(record)
        if legacy or name.endswith("data.pkl"):
            for place, drop, new in edits:
                place %= max(1, len(changed))
                changed[place : place + drop] = new
        return bytes(changed)

    path = tmp_path_factory.mktemp("damaged") / "model.pt"
    path.write_bytes(damaged("", LEGACY) if legacy else repacked(ZIPPED, damaged))
    message = ""
    try:
        open_checkpoint(path)
    except CheckpointError as error:
        message = str(error)
    assert message.isprintable()
