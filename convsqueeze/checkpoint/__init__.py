"""Checkpoint files as named tensors: opening one, and writing it again with some tensors replaced.

Knows formats, nothing of convolutions. One module a format, listed in `formats`: `pickled` (.pt,
.pth, .ckpt, .bin), `safetensors_file`, `sharded` (an index and its shards). `state_dict` is for
tensors in memory.
"""

from convsqueeze.checkpoint.base import RECIPE_KEY, Checkpoint
from convsqueeze.checkpoint.compare import differences_around, kept_difference
from convsqueeze.checkpoint.edits import Edit, New
from convsqueeze.checkpoint.formats import (
    KNOWN_SUFFIXES,
    bytes_to_write,
    check_destination,
    default_destination,
    open_checkpoint,
    open_like,
    suffix_of,
    write_checkpoint,
)
from convsqueeze.checkpoint.state_dict import edited_state_dict, from_state_dict
from convsqueeze.checkpoint.tensors import ScratchFile, TensorInfo, TensorOnDisk

__all__ = [
    "KNOWN_SUFFIXES",
    "RECIPE_KEY",
    "Checkpoint",
    "Edit",
    "New",
    "ScratchFile",
    "TensorInfo",
    "TensorOnDisk",
    "bytes_to_write",
    "check_destination",
    "default_destination",
    "differences_around",
    "edited_state_dict",
    "from_state_dict",
    "kept_difference",
    "open_checkpoint",
    "open_like",
    "suffix_of",
    "write_checkpoint",
]
