"""Indexes of shards: what they map to what, and the shards beside them."""

import json
from pathlib import Path
from typing import Any

from .choices import HUGE, SIZES, Choices, altered, damaged
from .isolation import Case, Link
from .safetensors_files import SUFFIXES, WORDS
from .samples import stored, tensors

FIRST, SECOND = "m-1.safetensors", "m-2.safetensors"
PLACES = (
    *(FIRST, SECOND, "../../etc/passwd", "/etc/passwd", "../m-1.safetensors", "", ".", ".."),
    *("link.safetensors", "loop.safetensors", "folder.safetensors", "m-1.safetensors/", "x" * 300),
    *(
        "m-1.SAFETENSORS",
        "\x00.safetensors",
        "é.safetensors",
        "\ud800.safetensors",
        "C:m.safetensors",
    ),
    *("m.safetensors.index.json", "./m-1.safetensors", "zero.safetensors"),
)
HOSTILE: tuple[Any, ...] = (
    *PLACES,
    *SIZES,
    *HUGE,
    *(None, True, [], {}, 1.5, 1e308, [FIRST], {"a": FIRST}, "{}", "\x1b[2J"),
)
RAW = (b'"\\ud800"', b"1e999", b"-1e999", b"NaN", b'"\\u00e9"', b"9" * 5000, b"1" + b"0" * 400)
"""Values that json.dumps would not write."""


def make(choices: Choices) -> Case:
    """An index, its two shards, links and whatever else may lie there."""
    state = list(tensors().items())
    half = 4 + choices.pick((0, 1, -4, 8))
    shards = {FIRST: dict(state[:half]), SECOND: dict(state[half:])}
    home = {name: shard for shard, held in shards.items() for name in held}
    files: dict[str, bytes | Link] = {
        shard: stored(held, {"format": "pt"}) for shard, held in shards.items()
    }
    index: dict[str, Any] = {
        "metadata": {"total_size": 4, "total_parameters": 9},
        "weight_map": home,
    }
    index = altered(choices, index, HOSTILE, choices.pick((0, 1, 3, 8)))
    text = json.dumps(index).encode()
    if choices.chance(30):
        text = _with_extra(choices, text)
    if choices.chance(15):
        text = damaged(choices, text, WORDS)
    if choices.chance(10):
        shard = choices.pick((FIRST, SECOND))
        files[shard] = damaged(choices, stored(shards[shard]), WORDS)
    if choices.chance(20):
        files |= {
            "link.safetensors": Path(FIRST),
            "loop.safetensors": Path("loop.safetensors"),
            "zero.safetensors": Path("/dev/zero"),
        }
        del files[choices.pick((FIRST, SECOND))]
        files.setdefault(FIRST, Path(choices.pick((SECOND, "/dev/zero", FIRST, "none"))))
    name = choices.pick(("m.safetensors.index.json", "m.json"))
    files[name] = text
    return Case(files, {"name": name, "suffix": choices.pick(SUFFIXES)})


def _with_extra(choices: Choices, text: bytes) -> bytes:
    """One more key, at the top or in the metadata: doubled, deep, or a value of a strange kind."""
    value = choices.pick(RAW)
    if choices.chance(50):
        depth = choices.pick((2, 100, 300, 480, 700, 950, 990, 100_000))
        value = (
            b"[" * depth + b"]" * depth
            if choices.chance(50)
            else b'{"a":' * depth + b"1" + b"}" * depth
        )
    key = choices.pick((b'"extra"', b'"weight_map"', b'"metadata"', b'"\\u00e9"', b'"a"'))
    inside = choices.pick((b"{", b'"metadata": {', b'"weight_map": {'))
    return text.replace(inside, inside + key + b": " + value + b", ", 1)
