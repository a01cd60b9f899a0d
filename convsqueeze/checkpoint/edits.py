"""Merges as a file sees them: some names vanish, others come in their place.

Pure: knows names and tensors, no format. A name that an edit cannot mean is a mistake of the
program that made the edit, and is refused before anything is written.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from convsqueeze.checkpoint.base import Checkpoint
from convsqueeze.checkpoint.on_disk import TensorOnDisk
from convsqueeze.errors import OutputError
from convsqueeze.names import listed

New: TypeAlias = torch.Tensor | TensorOnDisk


@dataclass(frozen=True)
class DeferredText:
    """A text that is known last, as long as its `draft`."""

    draft: str
    final: Callable[[], str]

    @classmethod
    def of(cls, text: "str | DeferredText") -> "DeferredText":
        return text if isinstance(text, DeferredText) else cls(text, lambda: text)


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

    removed: frozenset[str]
    inserted: Mapping[str, Mapping[str, New]]

    def at(self, name: str) -> Iterator[tuple[str, New | None]]:
        """New names with their tensors, then the name itself with None unless it vanishes."""
        yield from self.inserted.get(name, {}).items()
        if name not in self.removed:
            yield name, None

    def over(self, names: Iterable[str]) -> Iterator[tuple[str, New | None]]:
        for name in names:
            yield from self.at(name)


def splice(checkpoint: Checkpoint, edits: Sequence[Edit]) -> Splice:
    """Raises OutputError for an unknown name, a second edit of one, or a name that is taken."""
    inserted: dict[str, Mapping[str, New]] = {}
    removed: set[str] = set()
    for edit in edits:
        unknown = sorted((edit.remove | {edit.at}) - checkpoint.tensors.keys())
        if unknown:
            raise _misfit(checkpoint, f"no tensor {listed(unknown)} to edit")
        if twice := sorted(edit.remove & removed) or ([edit.at] if edit.at in inserted else []):
            raise _misfit(checkpoint, f"{listed(twice)} edited twice")
        removed |= edit.remove
        inserted[edit.at] = edit.insert
    taken = set(checkpoint.tensors) - removed
    for insert in inserted.values():
        if clash := sorted(taken & insert.keys()):
            raise _misfit(checkpoint, f"the new name {listed(clash)} is taken")
        taken |= insert.keys()
    return Splice(frozenset(removed), inserted)


def edited_names(checkpoint: Checkpoint, edits: Sequence[Edit]) -> list[str]:
    """The names, without prefix, that the edited checkpoint holds, in its order."""
    return [name for name, _ in splice(checkpoint, edits).over(checkpoint.tensors)]


def _misfit(checkpoint: Checkpoint, reason: str) -> OutputError:
    return OutputError(
        f"{checkpoint.path}: {reason}. Choose names that the file holds, once each, and new names "
        "that no kept tensor has."
    )
