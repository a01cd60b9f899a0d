"""An example as the sequence of choices that made it, so that it can be repeated, altered and
shortened. Zero is always the plainest choice.
"""

import copy
from collections.abc import Sequence
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")

SIZES = (0, 1, 2, 3, -1, 7, 64, 255, 300, 65_536, 1 << 20, 1 << 28, (1 << 31) - 1, 1 << 31)
"""Numbers at which counting, allocating and signed fields go wrong."""
HUGE = (1 << 32, (1 << 40) + 1, 1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 10**30, -(1 << 63))


class Choices:
    """Takes its choices from `replay`; behind its end from `random`, or zero without one."""

    def __init__(self, replay: Sequence[int] = (), random: Random | None = None) -> None:
        self.taken: list[int] = []
        self._replay = iter(replay)
        self._random = random

    def below(self, count: int) -> int:
        """A number from 0 up to `count - 1`."""
        value = next(self._replay, None)
        if value is None:
            value = 0 if self._random is None else self._random.getrandbits(24)
        self.taken.append(value)
        return value % count

    def pick(self, items: Sequence[T]) -> T:
        """One of the items, a list or a mapping as a copy: examples must not alter each other."""
        item = items[self.below(len(items))]
        return copy.deepcopy(item) if isinstance(item, list | dict) else item

    def chance(self, percent: int) -> bool:
        return self.below(100) >= 100 - percent

    def bytes(self, most: int) -> bytes:
        return bytes(self.below(256) for _ in range(self.below(most + 1)))

    def size(self) -> int:
        """A number from those that programs count with, seldom a harmless one."""
        return self.pick((*SIZES, *HUGE))


def damaged(choices: Choices, data: bytes, words: Sequence[bytes] = ()) -> bytes:
    """`data` after a few edits of its bytes; `words` are pieces that its format understands."""
    result = bytearray(data)
    for _ in range(choices.below(5)):
        at = choices.below(len(result) + 1)
        kind = choices.below(8)
        if kind == 0:
            result[at : at + 1] = bytes([choices.below(256)])
        elif kind == 1:
            result[at : at + 1] = bytes(b ^ (1 << choices.below(8)) for b in result[at : at + 1])
        elif kind == 2:
            del result[at : at + 1 + choices.below(16)]
        elif kind == 3:
            del result[at:]
        elif kind == 4:
            width = choices.pick((1, 2, 4, 8))
            number = choices.size() % (1 << 8 * width)
            result[at : at + width] = number.to_bytes(width, choices.pick(("little", "big")))
        elif kind == 5:
            result[at:at] = choices.bytes(8)
        elif kind == 6 and words:
            word = choices.pick(words)
            result[at : at + choices.pick((0, len(word)))] = word
        else:
            other = choices.below(len(result) + 1)
            result[at:at] = result[other : other + 1 + choices.below(64)]
    return bytes(result)


def altered(choices: Choices, node: Any, hostile: Sequence[Any], percent: int = 8) -> Any:
    """Plain data with some of its values replaced by `hostile` ones, left out, doubled or moved."""
    if choices.chance(percent):
        return choices.pick(hostile)
    if isinstance(node, dict):
        items = [(key, altered(choices, value, hostile, percent)) for key, value in node.items()]
        if items and choices.chance(percent):
            items.pop(choices.below(len(items)))
        if items and choices.chance(percent):
            key, _ = choices.pick(items)
            items.append((choices.pick(("x", "", key + "x", "é")), choices.pick(items)[1]))
        return dict(items)
    if isinstance(node, list):
        values = [altered(choices, value, hostile, percent) for value in node]
        if values and choices.chance(percent):
            values.pop(choices.below(len(values)))
        if values and choices.chance(percent):
            values.append(choices.pick(values))
        return values
    return node
