"""Checkpoint files as named tensors: opening one, and writing it again with some tensors replaced.

Knows formats, nothing of convolutions. One module a format: `pickled` (.pt, .pth, .ckpt, .bin),
`safetensors_file`, `sharded` (an index and its shards), and `state_dict` for tensors in memory.
"""

from convsqueeze.checkpoint.base import RECIPE_KEY, Checkpoint, TensorInfo
from convsqueeze.checkpoint.compare import differences_beside, kept_difference, tensor_difference
from convsqueeze.checkpoint.edits import Edit, Late, New, Spooled, edited_names
from convsqueeze.checkpoint.opening import open_checkpoint
from convsqueeze.checkpoint.spool import Spool
from convsqueeze.checkpoint.state_dict import edited_state_dict, from_state_dict
from convsqueeze.checkpoint.writing import (
    KNOWN_SUFFIXES,
    PICKLED_SUFFIXES,
    bytes_to_write,
    check_destination,
    default_destination,
    suffix_of,
    write_checkpoint,
)

__all__ = [
    "KNOWN_SUFFIXES",
    "PICKLED_SUFFIXES",
    "RECIPE_KEY",
    "Checkpoint",
    "Edit",
    "Late",
    "New",
    "Spool",
    "Spooled",
    "TensorInfo",
    "bytes_to_write",
    "check_destination",
    "default_destination",
    "differences_beside",
    "edited_names",
    "edited_state_dict",
    "from_state_dict",
    "kept_difference",
    "open_checkpoint",
    "suffix_of",
    "tensor_difference",
    "write_checkpoint",
]
