"""A pickle read without building anything: what it would allocate, call and nest.

torch's weights-only unpickler runs no foreign code, but a few bytes can make it allocate gigabytes
(`bytearray(n)`, `FloatStorage(n)`), hash a tuple that doubles with every level, or leave memory
uninitialised. The same instructions are followed here on descriptions of values; what no state
dict needs is refused before torch sees it.
"""

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from convsqueeze.checkpoint.pickle_calls import (
    Global,
    Item,
    Made,
    Tuple,
    UnsafePickle,
    check_call,
    view_numel,
)

DEEPEST = 64
"""Levels of tuples in tuples."""
MOST_IN_TUPLE = 100_000
"""Values in a tuple, all that its inner tuples repeat included."""


class PickleScan:
    """The stack of an unpickler and, once it has followed a pickle, what that makes (`top`), the
    storages that it names (their elements by key), every class and function that it names, and
    those that it calls and nothing is known of.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.top: Item = None
        self.stack: list[Item] = []
        self.marks: list[list[Item]] = []
        self.memo: dict[int, Item] = {}
        self.storages: dict[str, int] = {}
        self.names: dict[str, None] = {}
        self.unknown: dict[str, None] = {}

    def push(self, item: Item) -> None:
        self.stack.append(item)

    def push_global(self, name: str) -> None:
        self.names[name] = None
        module, _, last = name.partition(" ")
        if (module, last) in NAME_MAPPING:  # names of Python 2, as torch reads them
            module, last = NAME_MAPPING[module, last]
        self.push(Global(f"{IMPORT_MAPPING.get(module, module)}.{last}"))

    def remember(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def recall(self, key: int) -> None:
        self.push(self.memo[key])

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Item]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def pop(self, count: int) -> list[Item]:
        if count > len(self.stack):
            raise IndexError("a value that is not there")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def add_tuple(self, items: Sequence[Item]) -> None:
        depth, size = 1, len(items)
        for item in items:
            if isinstance(item, Tuple):
                depth, size = max(depth, 1 + item.depth), size + item.size
        if depth > DEEPEST:
            raise UnsafePickle("nests tuples too deeply")
        if size > MOST_IN_TUPLE:
            raise UnsafePickle("repeats tuples in tuples without end")
        self.stack.append(Tuple(tuple(items), depth, size))

    def append(self, items: Sequence[Item]) -> None:
        """To the list that is on top."""
        if isinstance(container := self.stack[-1], Made):
            container.strings += [item for item in items if isinstance(item, str)]

    def set_items(self, items: Sequence[Item]) -> None:
        """Keys and values in turn, in the mapping that is on top."""
        if isinstance(container := self.stack[-1], Made):
            pairs = zip(items[::2], items[1::2], strict=False)
            container.entries |= {key: value for key, value in pairs if isinstance(key, str)}

    def build(self) -> None:
        (state,) = self.pop(1)
        if isinstance(made := self.stack[-1], Made):
            made.state = state
            if made.maker.startswith("torch.") and isinstance(state, Tuple):  # set_(*state)
                made.numel = view_numel(state.items)

    def call(self) -> None:
        called, given = self.pop(2)
        if not isinstance(called, Global) or not isinstance(given, Tuple):
            raise ValueError("a call of what is no function")
        numel = check_call(called.name, given.items, self.size)
        if numel is None:
            self.unknown[called.name] = None
        self.stack.append(Made(called.name, numel=numel or 0))

    def name_storage(self) -> None:
        (given,) = self.pop(1)
        if isinstance(given, Tuple) and given.items[:1] == ("module",):
            self.stack.append(given.items[1])  # a class with its source, as legacy files name it
            return
        if not isinstance(given, Tuple) or len(given.items) < 5:
            raise ValueError("a storage that is not described")
        key, numel = given.items[2], given.items[4]
        if not isinstance(key, str) or type(numel) is not int or numel < 0:
            raise ValueError("a storage that is not described")
        self.storages[key] = max(numel, self.storages.get(key, 0))
        if sum(self.storages.values()) > self.size:
            raise UnsafePickle("names more values than the file has bytes")
        self.stack.append(Made("a storage", numel=numel))


ARGUMENTS = (
    *("NONE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINSTRING"),
)
"""Instructions that push what follows them."""

STEPS: dict[str, Callable[[PickleScan, Any], object]] = {
    **dict.fromkeys(ARGUMENTS, PickleScan.push),
    "PROTO": lambda machine, _: None,
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push(Made("list")),
    "EMPTY_DICT": lambda machine, _: machine.push(Made("dict")),
    "EMPTY_SET": lambda machine, _: machine.push(Made("set")),
    "GLOBAL": PickleScan.push_global,
    **dict.fromkeys(("BINGET", "LONG_BINGET"), PickleScan.recall),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), PickleScan.remember),
    "MARK": lambda machine, _: machine.mark(),
    "EMPTY_TUPLE": lambda machine, _: machine.add_tuple(()),
    "TUPLE": lambda machine, _: machine.add_tuple(machine.since_mark()),
    "TUPLE1": lambda machine, _: machine.add_tuple(machine.pop(1)),
    "TUPLE2": lambda machine, _: machine.add_tuple(machine.pop(2)),
    "TUPLE3": lambda machine, _: machine.add_tuple(machine.pop(3)),
    "APPEND": lambda machine, _: machine.append(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "BUILD": lambda machine, _: machine.build(),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "BINPERSID": lambda machine, _: machine.name_storage(),
}
"""What each instruction does, given what follows it."""


def scan(file: BinaryIO, size: int) -> PickleScan:
    """Follow one pickle of a file of `size` bytes up to its end.

    Raises UnsafePickle, or ValueError, IndexError, KeyError or TypeError for one that is damaged.
    """
    followed = PickleScan(size)
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "STOP":
            followed.top = followed.stack.pop()
            return followed
        if opcode.name not in STEPS:
            raise ValueError(f"Unsupported operand {opcode.name}")  # as torch words it
        STEPS[opcode.name](followed, argument)
    raise ValueError("a pickle without an end")


def scan_legacy(file: BinaryIO, size: int) -> PickleScan:
    """Follow the five pickles before the data of a legacy file. The fourth is what was saved, which
    is returned, the fifth lists the keys of the storages that follow. Raises as `scan` does.
    """
    *_, saved, keys = [scan(file, size) for _ in range(5)]
    if not isinstance(keys.top, Made) or set(keys.top.strings) != set(saved.storages):
        raise UnsafePickle(
            "names storages that it holds no data for, or holds data that it does not name"
        )
    return saved
