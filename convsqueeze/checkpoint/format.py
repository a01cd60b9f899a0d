"""What a file format is to the rest of the package: told by its content, opened, and written.

A new format is one module that ends in a `Format`, and a line in `formats`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import ZipInfo

from convsqueeze.checkpoint.base import Checkpoint
from convsqueeze.checkpoint.disk import Progress
from convsqueeze.checkpoint.edits import Splice
from convsqueeze.checkpoint.new_files import NewFiles


@dataclass(frozen=True)
class Start:
    """What tells a format: the first bytes of a file, its size and, if it is a zip archive, its
    records by their names without the common folder.
    """

    path: Path
    head: bytes = field(repr=False)
    size: int
    records: Mapping[str, ZipInfo] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Output:
    """What is to be written: a source after its edits, with the recipe inside.

    `suffix` is the known one of `place`. `largest_shard` are the bytes of values that a shard may
    hold, where the output is divided. `progress` is called with the bytes of values written.
    """

    splicing: Splice
    recipe: str
    place: Path
    suffix: str
    largest_shard: int | None
    progress: Progress


@dataclass(frozen=True)
class Format:
    """One kind of checkpoint.

    `recognizes` tells it by its content. `open` reads the headers; a format with `keyed` state
    dicts is given the key that a user asks for. `stage` writes an output named with one of the
    `suffixes` to new files and returns notes for the user. `parts` are the files that stand there
    already and belong to an output at a place, beside the one of that name.
    """

    name: str
    suffixes: tuple[str, ...]
    recognizes: Callable[[Start], bool]
    open: Callable[[Start, str | None], Checkpoint]
    stage: Callable[[Output, NewFiles], tuple[str, ...]]
    keyed: bool = False
    parts: Callable[[Path], list[Path]] = lambda place: []
