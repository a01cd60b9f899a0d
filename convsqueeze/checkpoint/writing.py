"""Writing an edited checkpoint: the format follows the suffix of the output, not the source."""

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from convsqueeze.checkpoint.base import Checkpoint
from convsqueeze.checkpoint.disk import Progress, no_progress
from convsqueeze.checkpoint.edits import DeferredText, Edit, splice
from convsqueeze.checkpoint.format import Output
from convsqueeze.checkpoint.formats import FORMATS, format_of_suffix
from convsqueeze.checkpoint.new_files import NewFiles
from convsqueeze.checkpoint.sniff import INDEX_SUFFIX
from convsqueeze.errors import OutputError
from convsqueeze.names import listed

KNOWN_SUFFIXES = tuple(suffix for form in FORMATS for suffix in form.suffixes)


def suffix_of(path: Path) -> str:
    """The longest known suffix of a file name, in lower case; "" where there is none."""
    name = path.name.lower()
    known = [s for s in KNOWN_SUFFIXES if name.endswith(s) and name != s]
    return max(known, key=len, default="")


def default_destination(path: Path, *, split: bool = False) -> Path:
    """`model.pt` -> `model.squeezed.pt`, beside the input; an index where it is to be `split`."""
    suffix = path.name[len(path.name) - len(suffix_of(path) or path.suffix) :]
    stem = path.name.removesuffix(suffix)
    return path.with_name(f"{stem}.squeezed{INDEX_SUFFIX if split else suffix}")


def write_checkpoint(
    source: Checkpoint,
    destination: Path,
    edits: Sequence[Edit],
    recipe: str | DeferredText,
    *,
    overwrite: bool = False,
    files: NewFiles | None = None,
    largest_shard: int | None = None,
    progress: Progress = no_progress,
) -> tuple[str, ...]:
    """Write `source` after `edits`, with `recipe` inside; returns notes for the user.

    Whole or not at all: written beside its place, flushed, and renamed once the source has been
    seen to be unchanged, and with it what else was added to `files`. `largest_shard` are the bytes
    of values that a shard may hold. Raises OutputError, or CheckpointError where the source fails.
    """
    check_destination(source, destination, overwrite=overwrite, largest_shard=largest_shard)
    suffix = suffix_of(destination)
    output = Output(
        source=source,
        splicing=splice(source, edits),
        recipe=DeferredText.of(recipe),
        place=destination,
        suffix=suffix,
        largest_shard=largest_shard,
        progress=progress,
    )
    with NewFiles(overwrite=overwrite) if files is None else nullcontext(files) as new:
        notes = format_of_suffix(suffix).stage(output, new)
        new.commit(source.check_unchanged)
    return (*notes, *_leftover(destination, new))


def bytes_to_write(source: Checkpoint, edits: Sequence[Edit]) -> int:
    """Of all tensors of the edited checkpoint, stored densely."""
    splicing = splice(source, edits)
    return sum(
        (source.tensors[name] if new is None else new).nbytes
        for name, new in splicing.over(source.tensors)
    )


def _leftover(destination: Path, files: NewFiles) -> Iterator[str]:
    if old := [place.name for place in _taken(destination) if place not in files.places]:
        yield f"{listed(old)}: left by an earlier output, no longer used"
    if files.removed:
        names = listed([path.name for path in files.removed])
        yield f"{names}: left by a run that was killed, removed"


def check_destination(
    source: Checkpoint,
    destination: Path,
    *,
    overwrite: bool,
    largest_shard: int | None = None,
) -> None:
    """Raises OutputError where `destination` cannot or must not be written; touches nothing."""
    try:
        _check_name(destination)
        _check_split(destination, largest_shard)
        _check_place(source, destination, overwrite)
    except OSError as error:
        raise OutputError(
            f"{destination}: cannot be used ({error.strerror}). Choose another place."
        ) from error


def _check_name(destination: Path) -> None:
    if destination.is_dir():
        raise OutputError(f"{destination}: a directory, the name of a file was needed. Add one.")
    if not suffix_of(destination):
        raise OutputError(
            f"{destination}: has no suffix of a known format, one of {', '.join(KNOWN_SUFFIXES)} "
            "was needed. Name the output with -o."
        )
    directory = destination.parent
    if not directory.is_dir():
        what = "is not a directory" if directory.exists() else "does not exist"
        raise OutputError(f"{destination}: the directory {directory} {what}. Create it first.")


def _check_split(destination: Path, largest_shard: int | None) -> None:
    if largest_shard is not None and suffix_of(destination) != INDEX_SUFFIX:
        name = f"{destination.name.removesuffix(suffix_of(destination))}{INDEX_SUFFIX}"
        raise OutputError(
            f"{destination}: one file, to be split into shards of at most {largest_shard:,} bytes, "
            f"an index was needed. Name the output -o {destination.with_name(name)}."
        )


def _check_place(source: Checkpoint, destination: Path, overwrite: bool) -> None:
    for taken in _taken(destination):
        here = taken.stat() if taken.exists() else taken.lstat()
        if any((here.st_dev, here.st_ino) == (f.device, f.inode) for f in source.files):
            raise OutputError(
                f"{taken}: is the input, which is never replaced. Choose another name."
            )
        if not stat.S_ISREG(here.st_mode) and not taken.is_symlink():
            raise OutputError(f"{taken}: no regular file, which was needed. Choose another name.")
        if not overwrite:
            raise OutputError(
                f"{taken}: exists already. Choose another name, or replace it with --overwrite."
            )
    if not os.access(destination.parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"{destination}: the directory {destination.parent} cannot be written. "
            "Choose another, or change its permissions."
        )


def _taken(destination: Path) -> list[Path]:
    """The files that stand where the output would, a dangling link included."""
    places: list[Path] = []
    with contextlib.suppress(FileNotFoundError):
        destination.lstat()
        places.append(destination)
    return places + format_of_suffix(suffix_of(destination)).parts(destination)
