"""What torch.save writes, zip archives and legacy files, put together from hostile parts."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from . import opcodes
from .choices import Choices, damaged
from .isolation import Case
from .opcodes import DICT, built, filled, number, odd, ordered, tensor, text
from .safetensors_files import SUFFIXES
from .samples import pickled, squeezed, tensors

WORDS = (
    *(b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"data.pkl"),
    *(b"R", b"b", b"Q", b"t", b"(", b"}", b"]", b"u", b"e", b"a", b"s", b".", b"0", b"N", b"\x81"),
    *(b"cbuiltins\nbytearray\n", b"ctorch\nTensor\n", b"h\x00", b"r\xff\xff\xff\xff", b"\x8f"),
    *(b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"ccollections\nOrderedDict\n"),
)
NAMES = ("model.pt", "model.bin", "model.safetensors", "model.ckpt", "model")
ODD_NAMES = ("", "module.", "body.0", "x\x1b", "x\ud800", "body.0.weight.", "a.b", "state_dict")


def saved(choices: Choices, *, legacy: bool) -> bytes:
    """The pickle of a state dict, with what strangers may have put into it or around it."""
    percent = choices.pick((0, 1, 4, 15))
    strange = choices.pick((0, 10, 40))
    items: dict[bytes, bytes] = {}
    first = b""
    for index, (name, value) in enumerate(tensors().items()):
        if index == 9:
            continue
        one = tensor(choices, str(index), value.shape, percent, legacy=legacy)
        first = first or one
        if choices.chance(percent):
            name = choices.pick(ODD_NAMES)
        items[text(name)] = odd(choices, one) if choices.chance(percent) else one
    if choices.chance(strange):
        items[text(choices.pick(("z", *ODD_NAMES)))] = odd(choices, first)
    if choices.chance(strange // 2):
        items[odd(choices, first)] = first
    state = ordered(items)
    if choices.chance(strange):
        state = built(state, _attributes(choices, first))
    if choices.chance(strange):
        outer = {text(choices.pick(("state_dict", "model", "x"))): state}
        outer[text(choices.pick(("epoch", "params", "optimizer")))] = odd(choices, first)
        if choices.chance(20):
            outer[odd(choices, first)] = opcodes.NONE
        state = filled(choices.pick((DICT, opcodes.called("collections.OrderedDict"))), outer)
    return b"\x80\x02" + state + b"."


def _attributes(choices: Choices, value: bytes) -> bytes:
    if choices.chance(50):
        return opcodes.attributes(choices, value)
    recipe = choices.pick((text("{}"), text("x\ud800"), number(3), text('{"version":1}'), value))
    return filled(
        DICT, {text("_metadata"): choices.pick((ordered, _dict))({text("convsqueeze"): recipe})}
    )


def _dict(items: dict[bytes, bytes]) -> bytes:
    return filled(DICT, items)


# Zip archives.


@dataclass
class Record:
    """A file in an archive, and what its two headers say of it."""

    name: bytes
    data: bytes
    method: int = 0
    size: int | None = None
    packed: int | None = None
    offset: int | None = None
    flags: int = 0
    extra: bytes = b""
    listed: bool = True


def archive(records: Sequence[Record], comment: bytes = b"", shift: int = 0) -> bytes:
    """A zip archive that says of its records what they say of themselves."""
    body, directory, count = b"", b"", 0
    for record in records:
        size = len(record.data) if record.size is None else record.size
        packed = len(record.data) if record.packed is None else record.packed
        offset = len(body) if record.offset is None else record.offset
        both = struct.pack(
            *("<HHHHHIIIHH", 20, record.flags & 0xFFFF, record.method, 0, 0x21),
            *(zlib.crc32(record.data), packed & 0xFFFFFFFF, size & 0xFFFFFFFF),
            *(len(record.name), len(record.extra)),
        )
        tail = struct.pack("<HHHII", 0, 0, 0, 0, offset & 0xFFFFFFFF)
        body += b"PK\x03\x04" + both + record.name + record.extra + record.data
        if record.listed:
            directory += b"PK\x01\x02\x14\x00" + both + tail + record.name + record.extra
            count += 1
    end = struct.pack(
        "<HHHHIIH", 0, 0, count & 0xFFFF, count & 0xFFFF, len(directory),
        (len(body) + shift) & 0xFFFFFFFF, len(comment),
    )  # fmt: skip
    return body + directory + b"PK\x05\x06" + end + comment


def records(choices: Choices, pickle: bytes) -> list[Record]:
    """The records of a checkpoint whose pickle is given."""
    result = [Record(b"m/data.pkl", pickle), Record(b"m/byteorder", b"little")]
    for index, value in enumerate(tensors().values()):
        data = bytes(value.reshape(-1).view(torch.uint8).tolist())
        result.append(Record(b"m/data/%d" % index, data))
    return [*result, Record(b"m/version", b"3\n")]


RECORD_NAMES = (
    *(b"m/data.pkl", b"m/data/0", b"data.pkl", b"m/../data.pkl", b"/data.pkl", b"m/byteorder"),
    *(b"m\\data.pkl", b"\xff\xfe/data.pkl", b"n/data/0", b"m/data/0/", b"", b"m/" + b"x" * 5000),
    *(
        b"m/constants.pkl",
        b"m/.data/serialization_id",
        b"m/.format_version",
        b"m/.storage_alignment",
    ),
)
EXTRAS = (
    *(
        b"\x01\x00\x08\x00" + b"\xff" * 8,
        b"\x01\x00\x00\x00",
        b"\x01\x00\xff\xff",
        b"\x01",
        b"FB\x00\x00",
    ),
    b"\x01\x00\x18\x00" + struct.pack("<QQQ", 1 << 62, 1 << 62, 1 << 40),
)


def hostile(choices: Choices, found: list[Record]) -> list[Record]:
    """The records with headers that lie, doubled, left out or moved."""
    for _ in range(choices.below(4)):
        record = choices.pick(found)
        kind = choices.below(11)
        if kind == 0:
            record.name = choices.pick(RECORD_NAMES)
        elif kind == 1:
            record.size = record.packed = choices.size()
        elif kind == 2:
            record.size = choices.size()
        elif kind == 3:
            record.offset = choices.size()
        elif kind == 4:
            record.method = choices.pick((8, 12, 14, 99))
            record.data = zlib.compress(record.data) if record.method == 8 else record.data
        elif kind == 5:
            record.flags = choices.pick((1, 8, 0x800, 0x2000))
        elif kind == 6:
            record.extra = choices.pick(EXTRAS)
            record.size = record.packed = 0xFFFFFFFF
        elif kind == 7:
            found = [one for one in found if one is not record] or found
        elif kind == 8:
            found = [*found, Record(record.name, choices.pick((b"", b"big", record.data)))]
        elif kind == 9:
            record.data = choices.pick((b"", b"big", b"\xff", record.data + bytes(70_000)))
        else:
            record.listed = False
    return found


@cache
def _sound(legacy: bool) -> bytes:
    state = {"state_dict": tensors(), "epoch": 3, "best": [1.5, None, (True, "x")]}
    return pickled(state, _use_new_zipfile_serialization=not legacy)


def make_zip(choices: Choices) -> Case:
    """An archive from hostile parts, or a sound one with altered bytes."""
    kind = choices.below(4)
    if kind == 3:
        data = damaged(choices, choices.pick((_sound(False), squeezed(".pt")[1])), WORDS)
    else:
        pickle = saved(choices, legacy=False)
        if choices.chance(20):
            pickle = damaged(choices, pickle, WORDS)
        found = records(choices, pickle)
        if choices.chance(40):
            found = hostile(choices, found)
        comment = choices.bytes(8) if choices.chance(5) else b""
        shift = choices.size() if choices.chance(3) else 0
        data = archive(found, comment, shift)
        if choices.chance(10):
            data = damaged(choices, data, WORDS)
    return _case(choices, data)


def make_legacy(choices: Choices) -> Case:
    """A legacy file from hostile parts, or a sound one with altered bytes."""
    if choices.below(4) == 3:
        return _case(choices, damaged(choices, _sound(True), WORDS))
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    version = b"\x80\x02M" + struct.pack("<H", 1001 if not choices.chance(3) else 1002) + b"."
    system = b"\x80\x02" + filled(DICT, {text("little_endian"): opcodes.TRUE}) + b"."
    keys = [str(index) for index in range(12) if index != 9]
    if choices.chance(15):
        keys[choices.below(len(keys))] = choices.pick(("0", "x", ""))
    if choices.chance(10):
        keys = keys[: choices.below(len(keys))]
    listed = b"\x80\x02" + opcodes.list_of(map(text, keys)) + b"."
    data = b""
    for index, value in enumerate(tensors().values()):
        if index != 9:
            count = value.numel() if not choices.chance(2) else choices.size()
            data += struct.pack("<Q", count % (1 << 64))
            data += bytes(value.reshape(-1).view(torch.uint8).tolist())
    content = magic + version + system + saved(choices, legacy=True) + listed + data
    if choices.chance(15):
        content = damaged(choices, content, WORDS)
    return _case(choices, content)


def _case(choices: Choices, data: bytes) -> Case:
    name = choices.pick(NAMES) if choices.chance(10) else NAMES[0]
    return Case({name: data}, {"name": name, "suffix": choices.pick(SUFFIXES)})
