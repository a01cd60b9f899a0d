"""The formats that are known, and opening and writing checkpoints in them: a file's content decides
what it is, an output's suffix what it becomes.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from convsqueeze.checkpoint.base import Checkpoint
from convsqueeze.checkpoint.disk import Progress, no_progress
from convsqueeze.checkpoint.edits import Edit, splice
from convsqueeze.checkpoint.format import Format, Output, Start
from convsqueeze.checkpoint.new_files import NewFiles
from convsqueeze.checkpoint.pickled import PICKLED
from convsqueeze.checkpoint.safetensors_file import SAFETENSORS
from convsqueeze.checkpoint.sharded import SHARDED
from convsqueeze.checkpoint.sniff import INDEX_SUFFIX, examine, unknown
from convsqueeze.errors import CheckpointError, OutputError
from convsqueeze.names import listed
from convsqueeze.paths import check_outputs, usable

FORMATS: tuple[Format, ...] = (PICKLED, SHARDED, SAFETENSORS)
"""In the order in which they are asked; the last takes a file by its name alone."""
KNOWN_SUFFIXES = tuple(suffix for form in FORMATS for suffix in form.suffixes)


def open_checkpoint(path: Path, *, key: str | None = None) -> Checkpoint:
    """Read the headers of the checkpoint at `path`; `key` names the state dict inside a pickle.

    Raises CheckpointError, in one line, for whatever is wrong with the file.
    """
    form, start = _recognized(path)
    if key is not None and not form.keyed:
        raise CheckpointError(
            f"{path}: a safetensors file holds its tensors at the top, --key {key} names a state "
            "dict inside a pickle. Leave --key away."
        )
    return form.open(start, key)


def open_like(original: Checkpoint, path: Path) -> Checkpoint:
    """The checkpoint at `path`, at the original's key if its format has keys. Raises as
    `open_checkpoint` does.
    """
    form, start = _recognized(path)
    asked = None if original.saved is None else original.saved.key
    return form.open(start, (original.wrapper or asked) if form.keyed else None)


def _recognized(path: Path) -> tuple[Format, Start]:
    start = examine(path)
    for form in FORMATS:
        if form.recognizes(start):
            return form, start
    raise unknown(start)


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
    form = check_destination(source, destination, overwrite, largest_shard)
    suffix = suffix_of(destination)
    splicing = splice(source, edits)
    alone = NewFiles(overwrite=overwrite, inputs=source.paths)
    with alone if files is None else nullcontext(files) as new:
        output = Output(splicing, recipe, destination, suffix, largest_shard, progress)
        notes = form.stage(output, new)
        new.commit(source.check_unchanged)
    if old := [place.name for place in form.parts(destination) if place not in new.places]:
        notes += (f"{listed(old)}: left by an earlier output, no longer used",)
    if new.removed:
        names = listed([path.name for path in new.removed])
        notes += (f"{names}: left by a run that was killed, removed",)
    return notes


def bytes_to_write(source: Checkpoint, edits: Sequence[Edit]) -> int:
    """Of all tensors of the edited checkpoint, stored densely."""
    return sum(entry.info.nbytes for entry in splice(source, edits).entries().values())


def check_destination(
    source: Checkpoint,
    destination: Path,
    overwrite: bool,
    largest_shard: int | None = None,
    inputs: Sequence[Path] = (),
) -> Format:
    """The format of an output of a run that reads `source` and the `inputs`. Raises OutputError
    where it cannot or must not be written; touches nothing.
    """
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
        form = next(form for form in FORMATS if suffix in form.suffixes)
        outputs = (destination, *form.parts(destination))
    check_outputs(outputs, overwrite=overwrite, inputs=(*source.paths, *inputs))
    return form
