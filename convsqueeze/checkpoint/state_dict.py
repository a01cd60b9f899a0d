"""State dicts at hand: describing one as a checkpoint, and editing one.

What else a state dict holds (`_extra_state`, `_metadata`) passes through.
"""

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from convsqueeze.checkpoint import memory
from convsqueeze.checkpoint.base import RECIPE_KEY, Checkpoint
from convsqueeze.checkpoint.disk import FileVersion
from convsqueeze.checkpoint.edits import Edit, Splice, splice
from convsqueeze.checkpoint.saved_object import SavedObject
from convsqueeze.checkpoint.tensors import HeldTensor, TensorOnDisk
from convsqueeze.errors import CheckpointError, OutputError
from convsqueeze.names import shown

METADATA = "_metadata"
"""The attribute that `Module.state_dict()` leaves on its OrderedDict."""
IN_MEMORY = "<state dict>"
"""What a recipe calls its source that was no file."""


def from_state_dict(state_dict: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint of what `Module.state_dict()` gave. Nothing is copied until it is loaded.

    Raises CheckpointError where no tensor is in it.
    """
    path, saved = Path(IN_MEMORY), SavedObject(state_dict)
    if not saved.tensors:
        raise CheckpointError(
            f"{path}: holds no tensor, a state dict (tensors by name) was needed."
        )
    return open_saved(path, "memory", saved)


def open_saved(
    path: Path, form: str, saved: SavedObject, files: tuple[FileVersion, ...] = ()
) -> Checkpoint:
    """The checkpoint of a state dict at hand. Raises CheckpointError for a nested tensor."""
    entries = {}
    for name, tensor in saved.tensors.items():
        where = f"{path}: {shown(name)}"
        if tensor.is_nested:
            raise CheckpointError(
                f"{where} is a nested tensor, tensors with one shape were needed. "
                "Save it apart from the weights."
            )
        entries[name] = HeldTensor(where, tensor, saved.range_of_memory)
    metadata = getattr(saved.state_dict, METADATA, None)
    recipe = metadata.get(RECIPE_KEY) if isinstance(metadata, Mapping) else None
    recipe = recipe if isinstance(recipe, str) else None
    return Checkpoint(path, form, entries, recipe=recipe, files=files, saved=saved)


def edited_state_dict(
    source: Checkpoint, edits: Sequence[Edit], recipe: str
) -> OrderedDict[str, Any]:
    """The state dict after `edits`: kept entries are the very same objects where they are held.

    The recipe goes into `_metadata`, which `load_state_dict` passes over. Raises OutputError for
    edits that do not fit.
    """
    result = edited(splice(source, edits), recipe)
    for name, value in result.items():
        if isinstance(value, TensorOnDisk):
            result[name] = value.load()
    return result


def edited(splicing: Splice, recipe: str) -> OrderedDict[Any, Any]:
    """An OrderedDict (only that carries `_metadata` through a pickle), or its own subclass.

    A new tensor has memory of its own, or stays on disk.
    """
    saved = splicing.source.saved
    state_dict = splicing.source.entries if saved is None else saved.state_dict
    result: OrderedDict[Any, Any] = OrderedDict()
    if isinstance(state_dict, OrderedDict):
        result = copy.copy(state_dict)
        result.clear()
    for key, value in state_dict.items():
        is_tensor = isinstance(key, str) and isinstance(value, Tensor | TensorOnDisk)
        for name, new in splicing.at(key) if is_tensor else [(key, None)]:
            if name in result:
                raise OutputError(
                    f"{name}: a new name that an entry of the state dict has already."
                )
            compacted = memory.compact(new) if isinstance(new, Tensor) else new
            result[name] = value if compacted is None else compacted
    metadata = copy.copy(getattr(state_dict, METADATA, None))
    if not isinstance(metadata, dict):
        metadata = OrderedDict()
    metadata[RECIPE_KEY] = recipe
    setattr(result, METADATA, metadata)
    return result
