"""Hostile inputs, each a folder with a checkpoint and a manifest, built from a few bytes."""

import io
import json
import os
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.fuzz.opcodes import (
    DICT,
    EMPTY,
    FALSE,
    NONE,
    called,
    filled,
    found,
    list_of,
    nested,
    number,
    text,
    tuple_of,
)

PAIRS = """
version: 1
pairs:
  - first: {type: conv, name: body.0}
    second: {type: conv, name: body.1}
"""


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "body.0.weight": torch.randn(8, 4, 1, 1, generator=generator),
        "body.1.weight": torch.randn(2, 8, 3, 3, generator=generator),
    }


@dataclass(frozen=True)
class Attack:
    """`build` fills a folder and returns the checkpoint's path; `says` is what the refusal says."""

    name: str
    build: Callable[[Path], Path]
    says: str


def sound(folder: Path) -> Path:
    """What every attack pretends to be."""
    save_file(tensors(), folder / "model.safetensors")
    return folder / "model.safetensors"


class RunsCommand:
    """What a pickle can ask for: that a command is run when it is loaded."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.place}",)


def command_in_zip(folder: Path) -> Path:
    torch.save({**tensors(), "x": RunsCommand(folder / "ran")}, folder / "model.pt")
    return folder / "model.pt"


def command_in_legacy(folder: Path) -> Path:
    saved = {**tensors(), "x": RunsCommand(folder / "ran")}
    torch.save(saved, folder / "model.pt", _use_new_zipfile_serialization=False)
    return folder / "model.pt"


def zip_bomb(folder: Path) -> Path:
    """One record of 1 GB of zeros, in 1 MB."""
    torch.save(tensors(), folder / "model.pt")
    with (
        zipfile.ZipFile(folder / "model.pt", "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("model/data/9", "w", force_zip64=True) as record,
    ):
        for _ in range(1024):
            record.write(bytes(1 << 20))
    return folder / "model.pt"


def pickle_bomb(folder: Path) -> Path:
    """Six bytes that ask for a gigabyte."""
    asked = b"c__builtin__\nbytearray\n(J\x00\x00\x00\x40tR"
    return _with_pickle(folder, b"\x80\x02}X\x01\x00\x00\x00a" + asked + b"s.")


def tuple_bomb(folder: Path) -> Path:
    """A key whose hash visits 2**60 tuples: each holds the one before it twice."""
    doubled = b"".join(
        b"h%bh%b\x86q%b" % (bytes([n]), bytes([n]), bytes([n + 1])) for n in range(60)
    )
    return _with_pickle(folder, b"\x80\x02}" + b")q\x00" + doubled + b"K\x01s.")


def _with_pickle(folder: Path, data: bytes) -> Path:
    with zipfile.ZipFile(folder / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", data)
        archive.writestr("model/version", "3\n")
    return folder / "model.pt"


def yaml_bomb(folder: Path) -> Path:
    """Nine lines that stand for a thousand million values."""
    names = "abcdefghi"
    lines = [f"{names[0]}: &{names[0]} [x, x, x, x, x, x, x, x, x, x]"]
    for before, name in pairwise(names):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]")
    (folder / "pairs.yaml").write_text("\n".join([*lines, "version: 1", "pairs: *i"]))
    save_file(tensors(), folder / "model.safetensors")
    return folder / "model.safetensors"


def deep_manifest(folder: Path) -> Path:
    (folder / "pairs.yaml").write_text("version: 1\npairs: " + "[" * 100_000)
    save_file(tensors(), folder / "model.safetensors")
    return folder / "model.safetensors"


def shard_outside(folder: Path) -> Path:
    """A shard that is there, two directories up."""
    inner = folder / "a" / "b"
    inner.mkdir(parents=True)
    save_file(tensors(), folder / "x.safetensors")
    index = inner / "model.safetensors.index.json"
    names = dict.fromkeys(tensors(), "../../x.safetensors")
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return index


def linked_shard(folder: Path) -> Path:
    """A shard beside the index that is a link to a file of someone else's."""
    inner = folder / "download"
    inner.mkdir()
    save_file(tensors(), folder / "private.safetensors")
    (inner / "x.safetensors").symlink_to(folder / "private.safetensors")
    index = inner / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors(), "x.safetensors")}))
    return index


def huge_header(folder: Path) -> Path:
    (folder / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b'{"a": ')
    return folder / "model.safetensors"


def _stored(folder: Path, text: str, data: bytes) -> Path:
    header = text.encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def _entry(start: int, stop: int) -> str:
    shape = (stop - start) // 4
    return f'{{"dtype": "F32", "shape": [{shape}], "data_offsets": [{start}, {stop}]}}'


def overlapping_tensors(folder: Path) -> Path:
    return _stored(folder, f'{{"a": {_entry(0, 8)}, "b": {_entry(4, 12)}}}', bytes(12))


def tensor_beyond_the_file(folder: Path) -> Path:
    return _stored(folder, f'{{"a": {_entry(0, 1 << 40)}}}', bytes(16))


def key_twice(folder: Path) -> Path:
    return _stored(folder, f'{{"a": {_entry(0, 8)}, "a": {_entry(0, 8)}}}', bytes(8))


def deep_header(folder: Path) -> Path:
    return _stored(folder, '{"a": ' + "[" * 1_000_000, b"")


def link_to_a_device(folder: Path) -> Path:
    (folder / "model.safetensors").symlink_to("/dev/zero")
    return folder / "model.safetensors"


def overlapping_records(folder: Path) -> Path:
    """A directory in which a thousand records are the same bytes."""
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(100_000)}, buffer)
    whole = buffer.getvalue()
    start, end = whole.index(b"PK\x01\x02"), whole.rindex(b"PK\x06\x06")
    data = next(part for part in whole[start:end].split(b"PK\x01\x02")[1:] if b"/data/0" in part)
    copies = b"".join(b"PK\x01\x02" + data.replace(b"/data/0", b"/%06d" % n) for n in range(1000))
    directory = whole[start:end] + copies
    tail = bytearray(whole[end:])
    count = whole[start:end].count(b"PK\x01\x02") + 1000
    end_record = tail.rindex(b"PK\x05\x06")
    plain = tail[end_record:]
    plain[8:12] = count.to_bytes(2, "little") * 2
    plain[12:20] = len(directory).to_bytes(4, "little") + start.to_bytes(4, "little")
    (folder / "model.pt").write_bytes(whole[:start] + directory + bytes(plain))
    return folder / "model.pt"


TENSOR = (text("storage"), found("torch.FloatStorage"), text("0"), text("cpu"), number(24))
STORAGE = tuple_of(TENSOR) + b"Q"


def view(sizes: Sequence[int], strides: Sequence[int]) -> bytes:
    """A tensor on a storage of 24 numbers."""
    shape = (tuple_of(map(number, sizes)), tuple_of(map(number, strides)))
    hooks = called("collections.OrderedDict")
    return called("torch._utils._rebuild_tensor_v2", STORAGE, number(0), *shape, FALSE, hooks)


def cast(tensor: bytes) -> tuple[bytes, ...]:
    return tensor, found("torch.float64"), text("cpu"), FALSE


BYTES, GIGABYTES, ENDLESS = found("builtins.bytearray"), number(6 << 30), view([1 << 32], [0])
AS_TYPE, CAST = "torch._tensor._rebuild_from_type_v2", "_rebuild_device_tensor_from_cpu_tensor"
CALLS = {
    "bytes as a type": (called(AS_TYPE, BYTES, BYTES, tuple_of([GIGABYTES]), DICT), "what makes"),
    "type of a type": (
        called(AS_TYPE, found(AS_TYPE), BYTES, tuple_of([BYTES, BYTES, EMPTY, DICT]), DICT),
        "what makes none",
    ),
    "cast as a type": (
        called(AS_TYPE, found(f"torch._utils.{CAST}"), BYTES, tuple_of(cast(ENDLESS)), DICT),
        "copies a tensor that expands",
    ),
    "cast of 2**32 values": (called(f"torch._utils.{CAST}", *cast(ENDLESS)), "copies a tensor"),
    "view beyond its storage": (view([1 << 32], [1]), "larger than its storage"),
    "strides beyond its storage": (view([2], [1 << 32]), "larger than its storage"),
    "state beyond its storage": (
        view([1], [1])
        + tuple_of([STORAGE, number(0), tuple_of([GIGABYTES]), tuple_of([number(1)])])
        + b"b",
        "larger than its storage",
    ),
    "set of a tensor": (called("builtins.set", ENDLESS), "collects values that it does not hold"),
    "counts of a tensor": (called("collections.Counter", ENDLESS), "collects values that it does"),
    "complex of a tensor": (called("builtins.complex", ENDLESS), "a number or a device of what"),
    "bytes of a tensor": (called("builtins.bytearray", ENDLESS), "makes a bytearray of a size"),
    "bytes in wide letters": (
        called("builtins.bytearray", text("a"), text("utf-32")),
        "makes a bytearray of a size",
    ),
    "what no state dict needs": (called("torch.float32", GIGABYTES), "calls torch.float32, which"),
    "lists 100,000 deep": (nested(100_000), "nests more than 100 mappings and lists"),
}
"""What stands in a state dict beside its weights, and what is told of it."""


def _beside(value: bytes, legacy: bool) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        items = {text("body.0.weight"): view([4, 6], [6, 1]), text("x"): value}
        data = b"\x80\x02" + filled(DICT, items) + b"."
        if not legacy:
            _with_pickle(folder, data)
            with zipfile.ZipFile(folder / "model.pt", "a") as archive:
                archive.writestr("model/data/0", bytes(96))
            return folder / "model.pt"
        buffer = io.BytesIO()
        torch.save({}, buffer, _use_new_zipfile_serialization=False)
        start = buffer.getvalue()
        for _ in range(2):  # the last two of five pickles
            start = start[: start[:-1].rindex(b".") + 1]
        keys = b"\x80\x02" + list_of([text("0")]) + b"."
        data = data.replace(number(24) + b"t", number(24) + NONE + b"t")
        (folder / "model.pt").write_bytes(start + data + keys + struct.pack("<Q", 24) + bytes(96))
        return folder / "model.pt"

    return build


def _renamed(*records: tuple[str, bytes], first: bool = False) -> Callable[[Path], Path]:
    """A sound archive with more records than it has."""

    def build(folder: Path) -> Path:
        path = folder / "model.pt"
        torch.save(tensors(), path)
        with zipfile.ZipFile(path) as archive:
            sound = [(name, archive.read(name)) for name in archive.namelist()]
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
            warnings.simplefilter("ignore")
            for name, data in [*records, *sound] if first else [*sound, *records]:
                archive.writestr(name, data)
        return path

    return build


def behind_another(folder: Path) -> Path:
    """An archive behind another one, which torch does not look past."""
    path, other = _renamed()(folder), io.BytesIO()
    torch.save({}, other)
    path.write_bytes(other.getvalue() + path.read_bytes())
    return path


OTHER = b"\x80\x02}."
ARCHIVES = {
    "record twice": _renamed(("model/data.pkl", OTHER)),
    "record twice, first": _renamed(("model/data.pkl", OTHER), first=True),
    "record in another case": _renamed(("model/DATA.pkl", OTHER)),
    "record in two folders": _renamed(("other/data.pkl", OTHER)),
    "record in two folders, first": _renamed(("other/data.pkl", OTHER), first=True),
    "another folder first": _renamed(("other/x", OTHER), first=True),
    "archive behind another": behind_another,
}

ATTACKS = [
    *(Attack(name, _beside(it, False), says) for name, (it, says) in CALLS.items()),
    *(Attack(f"legacy, {name}", _beside(it, True), says) for name, (it, says) in CALLS.items()),
    *(Attack(name, one, "records of one name|reads otherwise") for name, one in ARCHIVES.items()),
    Attack("pickle that runs a command", command_in_zip, "for safety is not loaded"),
    Attack("legacy pickle that runs a command", command_in_legacy, "for safety is not loaded"),
    Attack("zip bomb", zip_bomb, "records are compressed"),
    Attack("zip records that overlap", overlapping_records, "records overlap"),
    Attack("pickle of a gigabyte", pickle_bomb, "makes a bytearray of a size"),
    Attack("pickle that hashes 2**60 tuples", tuple_bomb, "repeats tuples|nests tuples"),
    Attack("YAML bomb", yaml_bomb, "stands for more than"),
    Attack("manifest nested 100,000 deep", deep_manifest, "nested too deeply"),
    Attack("shard ../../x.safetensors", shard_outside, "no .safetensors file beside it"),
    Attack("shard that is a link to elsewhere", linked_shard, "a link to another directory"),
    Attack("header of 2**60 bytes", huge_header, "header too large"),
    Attack("header nested a million deep", deep_header, "recursion limit"),
    Attack("tensors that overlap", overlapping_tensors, "invalid offset for tensor `b`"),
    Attack("tensor beyond the file", tensor_beyond_the_file, "file not fully covered"),
    Attack("tensor listed twice", key_twice, "the key a stands twice"),
    Attack("link to /dev/zero", link_to_a_device, "no regular file"),
]
