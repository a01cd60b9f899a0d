"""Entries that differ only in numbers within their names become one entry with placeholders.

The inverse of `expand`, and held against it: an entry made here stands for the ones that were
given and for no others. Knows names only.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from convsqueeze.errors import ManifestError
from convsqueeze.manifest.expand import expand, renamed, templates_of
from convsqueeze.manifest.model import ChainEntry, Entry, PairEntry, SumEntry

EntryT = TypeVar("EntryT", bound=PairEntry | ChainEntry | SumEntry)

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
    alike: dict[str, list[int]] = {}
    for place, entry in enumerate(entries):
        shape = renamed(entry, lambda text: _NUMBER.sub("\0", text))
        alike.setdefault(_key(shape), []).append(place)
    search = _Search(entries, names)
    found = [one for places in alike.values() for one in search.fewest(tuple(places))]
    return tuple(sorted(found, key=lambda one: min(one.members)))


class _Search(Generic[EntryT]):
    """Looks for entries that stand for several; knows the numbers in every one's names."""

    def __init__(self, entries: Sequence[EntryT], names: Sequence[str]) -> None:
        self._entries, self._names = entries, names
        self._numbers = [_numbers(entry) for entry in entries]
        self._known: dict[tuple[int, ...], tuple[Contracted[EntryT], ...]] = {}

    def fewest(self, members: tuple[int, ...]) -> tuple[Contracted[EntryT], ...]:
        """The fewest entries for members that differ only in their numbers: one, or those of the
        groups in which some number is the same.
        """
        if members not in self._known:
            self._known[members] = self._fewest(members)
        return self._known[members]

    def _fewest(self, members: tuple[int, ...]) -> tuple[Contracted[EntryT], ...]:
        columns = self._varying(members)
        if not columns:
            return tuple(Contracted(self._entries[place], (place,)) for place in members)
        if whole := self._whole(members, columns):
            return (whole,)
        ways: list[tuple[Contracted[EntryT], ...]] = []
        for column in columns:
            groups: dict[str, list[int]] = {}
            for place, value in zip(members, column, strict=True):
                groups.setdefault(value, []).append(place)
            parts = [self.fewest(tuple(group)) for group in groups.values()]
            ways.append(tuple(one for found in parts for one in found))
        return min(ways, key=len)

    def _varying(self, members: tuple[int, ...]) -> list[tuple[str, ...]]:
        """What the members have at each place of a number that is not the same in all of them;
        places where they have the same are one.
        """
        columns = zip(*(self._numbers[place] for place in members), strict=True)
        return [column for column in dict.fromkeys(columns) if len(set(column)) > 1]

    def _whole(
        self, members: tuple[int, ...], columns: list[tuple[str, ...]]
    ) -> Contracted[EntryT] | None:
        """The one entry that stands for all members and nothing else, if there is one."""
        if len(columns) > len(PLACEHOLDERS):
            return None
        marks = {column: f"{{{PLACEHOLDERS[n]}}}" for n, column in enumerate(columns)}
        own = zip(*(self._numbers[place] for place in members), strict=True)
        written = iter([marks.get(column, column[0]) for column in own])
        template = renamed(
            self._entries[members[0]], lambda text: _NUMBER.sub(lambda _: next(written), text)
        )
        if not any(all(m in text for m in marks.values()) for text in templates_of(template)):
            return None  # numbers that meet in no name go with one another in every combination
        try:
            expansion = expand(template, self._names)
        except ManifestError:
            return None
        places = {_key(self._entries[place]): place for place in members}
        stands_for = [places.get(_key(entry)) for _, entry in expansion.entries]
        order = tuple(place for place in stands_for if place is not None)
        if expansion.partial or order != tuple(stands_for) or sorted(order) != sorted(members):
            return None
        return Contracted(template, order)


def _key(entry: Entry) -> str:
    """The same for entries that say the same."""
    return json.dumps(entry.model_dump(mode="json", exclude_unset=True), sort_keys=True)


def _numbers(entry: Entry) -> tuple[str, ...]:
    """The numbers in all texts of an entry."""
    found: list[str] = []

    def noted(text: str) -> str:
        found.extend(_NUMBER.findall(text))
        return text

    renamed(entry, noted)
    return tuple(found)
