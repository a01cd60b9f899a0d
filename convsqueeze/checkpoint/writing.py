"""Writing an edited checkpoint: the format follows the suffix of the output, not the source."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from convsqueeze.checkpoint.base import Checkpoint
from convsqueeze.checkpoint.disk import Progress, check_place, no_progress, usable
from convsqueeze.checkpoint.edits import Edit, splice
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
    recipe: str,
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
        splicing=splice(source, edits),
        recipe=recipe,
        place=destination,
        suffix=suffix,
        largest_shard=largest_shard,
        progress=progress,
    )
    with NewFiles(overwrite=overwrite) if files is None else nullcontext(files) as new:
        notes = format_of_suffix(suffix).stage(output, new)
        new.commit(source.check_unchanged)
    return (*notes, *_leftover(output, new))


def bytes_to_write(source: Checkpoint, edits: Sequence[Edit]) -> int:
    """Of all tensors of the edited checkpoint, stored densely."""
    return sum(entry.info.nbytes for entry in splice(source, edits).entries().values())


def _leftover(output: Output, files: NewFiles) -> Iterator[str]:
    parts = format_of_suffix(output.suffix).parts(output.place)
    if old := [place.name for place in parts if place not in files.places]:
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
    suffix = suffix_of(destination)
    with usable(destination):
        if destination.is_dir():
            raise OutputError(
                f"{destination}: a directory, the name of a file was needed. Add one."
            )
        if not suffix:
            raise OutputError(
                f"{destination}: has no suffix of a known format, one of "
                f"{', '.join(KNOWN_SUFFIXES)} was needed. Name the output with -o."
            )
        if largest_shard is not None and suffix != INDEX_SUFFIX:
            index = f"{destination.name.removesuffix(suffix)}{INDEX_SUFFIX}"
            raise OutputError(
                f"{destination}: one file, to be split into shards of at most {largest_shard:,} "
                f"bytes, an index was needed. Name the output -o {destination.with_name(index)}."
            )
        inputs = [version.path for version in source.files]
        check_place(destination, overwrite=overwrite, inputs=inputs)
        for part in format_of_suffix(suffix).parts(destination):
            check_place(part, overwrite=overwrite, inputs=inputs)
