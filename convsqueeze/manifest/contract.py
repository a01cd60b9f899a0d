"""Entries that differ only in numbers within their names become one entry with placeholders.

The inverse of `expand`, and held against it: an entry made here stands for the ones that were
given and for no others. Knows names only.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Generic

from convsqueeze.errors import ManifestError
from convsqueeze.manifest.expand import (
    Data,
    EntryT,
    entry_from,
    filled,
    matches,
    renamed,
    templates_of,
    texts,
)
from convsqueeze.manifest.model import data_of

PLACEHOLDERS = "ijk"
"""What the numbers are called, from left to right; entries that differ in more are not one."""

_NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Contracted(Generic[EntryT]):
    """An entry, and the places of those that it stands for, in the order of its expansion."""

    entry: EntryT
    members: tuple[int, ...]


def contract(entries: Sequence[EntryT], names: Sequence[str]) -> tuple[Contracted[EntryT], ...]:
    """As few entries as stand for `entries` where a file has tensors of these `names`, each in the
    place of its first member.

    Entries become one if `expand` gives them back, with nothing beside them and no name that
    matches in part; the others stay as they are.
    """
    search = _Search(entries, names)
    alike: dict[str, list[int]] = {}
    for place, data in enumerate(search.data):
        shape = renamed(data, lambda text: _NUMBER.sub("\0", text))
        alike.setdefault(_key(shape), []).append(place)
    found = [one for places in alike.values() for one in search.fewest(tuple(places))]
    return tuple(sorted(found, key=lambda one: min(one.members)))


class _Search(Generic[EntryT]):
    """Looks for entries that stand for several; knows the numbers in every one's names."""

    def __init__(self, entries: Sequence[EntryT], names: Sequence[str]) -> None:
        self._entries, self._names = entries, names
        self.data = [data_of(entry) for entry in entries]
        self._numbers = [
            [number for _, text in texts(data) for number in _NUMBER.findall(text)]
            for data in self.data
        ]
        self.fewest = cache(self._fewest)

    def _fewest(self, members: tuple[int, ...]) -> tuple[Contracted[EntryT], ...]:
        """The fewest entries for members that differ only in their numbers: one, or those of the
        groups in which some number is the same.
        """
        every_column = list(zip(*(self._numbers[place] for place in members), strict=True))
        # places of numbers that the members have alike are one
        columns = [column for column in dict.fromkeys(every_column) if len(set(column)) > 1]
        if not columns:
            return tuple(Contracted(self._entries[place], (place,)) for place in members)
        if len(columns) <= len(PLACEHOLDERS) and (
            whole := self._whole(members, every_column, columns)
        ):
            return (whole,)
        ways: list[tuple[Contracted[EntryT], ...]] = []
        for column in columns:
            groups: dict[str, list[int]] = {}
            for place, value in zip(members, column, strict=True):
                groups.setdefault(value, []).append(place)
            parts = [self.fewest(tuple(group)) for group in groups.values()]
            ways.append(tuple(one for found in parts for one in found))
        return min(ways, key=len)

    def _whole(
        self,
        members: tuple[int, ...],
        every_column: Sequence[tuple[str, ...]],
        columns: Sequence[tuple[str, ...]],
    ) -> Contracted[EntryT] | None:
        """The one entry that stands for all members and nothing else, if there is one."""
        marks = {column: f"{{{PLACEHOLDERS[n]}}}" for n, column in enumerate(columns)}
        written = iter([marks.get(column, column[0]) for column in every_column])
        first = self.data[members[0]]
        template = renamed(first, lambda text: _NUMBER.sub(lambda _: next(written), text))
        templates = templates_of(template)
        if not any(all(m in text for m in marks.values()) for text in templates):
            return None  # numbers that meet in no name go with one another in every combination
        try:
            bindings, partial = matches(templates, self._names)
        except ManifestError:
            return None
        places = {_key(self.data[place]): place for place in members}
        order = [places.get(_key(filled(template, binding))) for binding in bindings]
        found = tuple(place for place in order if place is not None)
        if partial or len(found) < len(order) or sorted(found) != sorted(members):
            return None
        return Contracted(entry_from(type(self._entries[members[0]]), template), found)


def _key(data: Data) -> str:
    """The same for entries that say the same."""
    return json.dumps(data, sort_keys=True)
