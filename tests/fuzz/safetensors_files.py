"""Safetensors files: bytes altered at random, and headers that say what is not so."""

import json
from functools import cache
from typing import Any

from .choices import HUGE, SIZES, Choices, altered, damaged
from .isolation import Case
from .samples import framed, parts, stored, tensors

WORDS = (
    *(b'"F32"', b'"I64"', b'"BOOL"', b'"F4"', b'"C64"', b'"F8_E8M0"', b'"shape":', b"[0]", b"[]"),
    *(b'"data_offsets":', b'"__metadata__":', b"{}", b"[[[[", b"1e999", b"-1", b"NaN", b"\\ud800"),
    *(b'"\\u0000"', b"99999999999999999999", b"\xff\xfe", b"null", b"true", b"0.0", b" " * 50),
)
HOSTILE: tuple[Any, ...] = (
    *SIZES,
    *HUGE,
    *(None, True, "", "F32", "F4", "I8", "BOOL", "x" * 300, "\ud800", "\x1b[2J", 1.5, 1e308),
    *([], {}, [0], [0, 1 << 62, 1 << 62], [1 << 40, 0], [0, 0], [-1, 4], [[0]], [1] * 70),
    *({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, {"convsqueeze": "{}"}),
)
DOUBLED = (
    b'{"format": "x"}, "__metadata__": ',
    b'{}, "flat.bias": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "__metadata__": ',
)
SUFFIXES = (".pt", ".safetensors", ".safetensors.index.json")


@cache
def sound() -> bytes:
    return stored(tensors(), {"format": "pt", "note": "x"})


def make(choices: Choices) -> Case:
    """One file; its name does not always say what it is."""
    name = choices.pick(("model.safetensors", "model.bin", "model.pt"))
    content = choices.pick((_structured, _bytes, _deep))(choices)
    return Case({name: content}, {"name": name, "suffix": choices.pick(SUFFIXES)})


def _bytes(choices: Choices) -> bytes:
    return damaged(choices, sound(), WORDS)


def _structured(choices: Choices) -> bytes:
    header, data = parts(sound())
    header = altered(choices, header, HOSTILE, choices.pick((0, 1, 3, 8)))
    if choices.chance(30) and isinstance(header, dict):
        header[choices.pick(("z", "", "module.", "__metadata__", "a\nb"))] = {
            "dtype": choices.pick(("F32", "F4", "BOOL", "C64", "F8_E4M3")),
            "shape": [choices.size() for _ in range(choices.below(5))] + [0],
            "data_offsets": [len(data)] * 2,
        }
    if choices.chance(20) and isinstance(header, dict):
        start, count = choices.pick((len(data), 0, 40)), choices.size()
        offsets = [start, start + 4 * count]
        header["z"] = {"dtype": "F32", "shape": [count], "data_offsets": offsets}
    text = json.dumps(header).encode()
    if choices.chance(10):
        text = text.replace(b'{"format"', choices.pick(DOUBLED) + b'{"format"', 1)
    if choices.chance(15):
        text = damaged(choices, text, WORDS)
    if choices.chance(10):
        data = damaged(choices, data)
    length = choices.size() if choices.chance(5) else None
    return framed(text, data, length)


def _deep(choices: Choices) -> bytes:
    """Nested as deep as parsers, and what follows them, may or may not go."""
    depth = choices.pick((2, 100, 300, 480, 700, 950, 990, 3_000, 100_000))
    opening, closing = choices.pick((("[", "]"), ('{"a":', "}")))
    nested = opening * depth + choices.pick(("", "1", '"\\u00e9"')) + closing * depth
    if opening != "[" and nested.count(":}"):
        nested = nested.replace(":}", ":1}")
    header, data = parts(sound())
    text = json.dumps(header)[:-1] + ', "deep": ' + nested + "}"
    if choices.chance(50):
        text = json.dumps(header)[:-1] + ', "\\u00e9": ' + nested + "}"
    return framed(text.encode(), data)
