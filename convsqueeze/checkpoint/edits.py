"""Merges as a file sees them: some names vanish, others come in their place.

Pure: knows names and tensors, no format. A name that an edit cannot mean is a mistake of the
program that made the edit, and is refused before anything is written.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from convsqueeze.checkpoint.base import Checkpoint
from convsqueeze.checkpoint.tensors import Entry, HeldTensor, TensorOnDisk
from convsqueeze.errors import OutputError
from convsqueeze.names import listed, shown

New: TypeAlias = torch.Tensor | TensorOnDisk


@dataclass(frozen=True)
class Edit:
    """One merge's effect on the file. Names carry no prefix.

    `insert` goes, in its own order, where `at` stands; `remove` vanishes.
    """

    at: str
    remove: frozenset[str]
    insert: Mapping[str, New]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The new tensors with their values at hand, wherever they wait."""
        return {
            name: new.load() if isinstance(new, TensorOnDisk) else new
            for name, new in self.insert.items()
        }


@dataclass(frozen=True)
class Splice:
    """All edits of one file: what stands in the place of each of its tensors."""

    source: Checkpoint
    removed: frozenset[str]
    inserted: Mapping[str, Mapping[str, New]]

    def at(self, name: str) -> Iterator[tuple[str, New | None]]:
        """New names with their tensors, then the name itself with None unless it vanishes. All
        are full names.
        """
        prefix = self.source.prefix
        short = name.removeprefix(prefix)
        for new, tensor in self.inserted.get(short, {}).items():
            yield prefix + new, tensor
        if short not in self.removed:
            yield name, None

    def entries(self) -> dict[str, Entry]:
        """What the edited checkpoint consists of: full names, in order."""
        return {
            name: old if new is None else _entry(name, new)
            for before, old in self.source.entries.items()
            for name, new in self.at(before)
        }


def _entry(name: str, new: New) -> Entry:
    return new if isinstance(new, TensorOnDisk) else HeldTensor(shown(name), new)


def splice(source: Checkpoint, edits: Sequence[Edit]) -> Splice:
    """Raises OutputError for an unknown name, a second edit of one, or a name that is taken."""
    inserted: dict[str, Mapping[str, New]] = {}
    removed: set[str] = set()
    for edit in edits:
        unknown = sorted((edit.remove | {edit.at}) - source.tensors.keys())
        if unknown:
            raise _misfit(source, f"no tensor {listed(unknown)} to edit")
        if twice := sorted(edit.remove & removed) or ([edit.at] if edit.at in inserted else []):
            raise _misfit(source, f"{listed(twice)} edited twice")
        removed |= edit.remove
        inserted[edit.at] = edit.insert
    taken = set(source.tensors) - removed
    for insert in inserted.values():
        if clash := sorted(taken & insert.keys()):
            raise _misfit(source, f"the new name {listed(clash)} is taken")
        taken |= insert.keys()
    return Splice(source, frozenset(removed), inserted)


def _misfit(source: Checkpoint, reason: str) -> OutputError:
    return OutputError(
        f"{source.path}: {reason}. Choose names that the file holds, once each, and new names "
        "that no kept tensor has."
    )
