"""Opening a checkpoint, whatever its format: the file's content decides, not its name."""

from pathlib import Path

from convsqueeze.checkpoint.base import Checkpoint
from convsqueeze.checkpoint.pickled import open_pickled
from convsqueeze.checkpoint.safetensors_file import open_safetensors
from convsqueeze.checkpoint.sharded import open_sharded
from convsqueeze.checkpoint.sniff import sniff
from convsqueeze.errors import CheckpointError


def open_checkpoint(path: Path, *, key: str | None = None) -> Checkpoint:
    """Read the headers of the checkpoint at `path`; `key` names the state dict inside a pickle.

    Raises CheckpointError, in one line, for whatever is wrong with the file.
    """
    kind = sniff(path)
    if kind in ("zip pickle", "legacy pickle"):
        return open_pickled(path, zipped=kind == "zip pickle", key=key)
    if key is not None:
        raise CheckpointError(
            f"{path}: a safetensors file holds its tensors at the top, --key {key} names a state "
            "dict inside a pickle. Leave --key away."
        )
    return open_sharded(path) if kind == "index" else open_safetensors(path)
