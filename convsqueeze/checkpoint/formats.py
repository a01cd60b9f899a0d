"""The formats that are known, and opening a checkpoint: its content decides, not its name."""

from pathlib import Path

from convsqueeze.checkpoint.base import Checkpoint
from convsqueeze.checkpoint.format import Format, Start
from convsqueeze.checkpoint.pickled import PICKLED
from convsqueeze.checkpoint.safetensors_file import SAFETENSORS
from convsqueeze.checkpoint.sharded import SHARDED
from convsqueeze.checkpoint.sniff import examine, unknown
from convsqueeze.errors import CheckpointError

FORMATS: tuple[Format, ...] = (PICKLED, SHARDED, SAFETENSORS)
"""In the order in which they are asked; the last takes a file by its name alone."""


def open_checkpoint(path: Path, *, key: str | None = None) -> Checkpoint:
    """Read the headers of the checkpoint at `path`; `key` names the state dict inside a pickle.

    Raises CheckpointError, in one line, for whatever is wrong with the file.
    """
    start = examine(path)
    form = _format_of(start)
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
    start = examine(path)
    form = _format_of(start)
    asked = None if original.saved is None else original.saved.key
    return form.open(start, (original.wrapper or asked) if form.keyed else None)


def _format_of(start: Start) -> Format:
    for form in FORMATS:
        if form.recognizes(start):
            return form
    raise unknown(start)


def format_of_suffix(suffix: str) -> Format:
    """The format in which an output of that suffix is written."""
    return next(form for form in FORMATS if suffix in form.suffixes)
