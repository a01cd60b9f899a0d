"""State dicts at hand: describing one as a checkpoint, and editing one.

What else a state dict holds (`_extra_state`, `_metadata`) passes through.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from convsqueeze.checkpoint import memory
from convsqueeze.checkpoint.base import RECIPE_KEY, Checkpoint, TensorInfo
from convsqueeze.checkpoint.disk import FileRange, FileVersion, RangeOfMemory, no_file
from convsqueeze.checkpoint.edits import Edit, New, Splice, splice
from convsqueeze.checkpoint.on_disk import TensorOnDisk, read_strided
from convsqueeze.checkpoint.saved_object import SavedObject
from convsqueeze.errors import CheckpointError, OutputError
from convsqueeze.names import shown
from convsqueeze.sharing import span as memory_span

METADATA = "_metadata"
"""The attribute that `Module.state_dict()` leaves on its OrderedDict."""


@dataclass(frozen=True, eq=False)
class HeldTensors:
    """Reads tensors that are in memory or, as `range_of_memory` says, on a map of a file."""

    path: Path
    saved: SavedObject = field(repr=False)
    range_of_memory: RangeOfMemory = no_file

    def load(self, name: str) -> torch.Tensor:
        tensor = self.saved.tensors[name].detach()
        if tensor.device.type == "meta":
            raise CheckpointError(
                f"{self.path}: {shown(name)} lies on the meta device, its values were needed. "
                "Save the state dict of a model that has its weights."
            )
        place = self._place(tensor)
        return tensor.cpu() if place is None else read_strided(tensor, place)

    def file_range(self, name: str) -> FileRange | None:
        tensor = self.saved.tensors[name]
        return self._place(tensor) if tensor.is_contiguous() else None

    def _place(self, tensor: torch.Tensor) -> FileRange | None:
        """Where in a file it lies, from its first element to its last."""
        span = memory_span(tensor)
        if span is None or not memory.is_plain(tensor):
            return None
        return self.range_of_memory(span.start, span.stop)


def from_state_dict(state_dict: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint of what `Module.state_dict()` gave. Nothing is copied until it is loaded.

    Raises CheckpointError where no tensor is in it.
    """
    path, saved = Path("<state dict>"), SavedObject(state_dict)
    if not saved.tensors:
        raise CheckpointError(
            f"{path}: holds no tensor, a state dict (tensors by name) was needed."
        )
    return open_saved(path, "memory", saved)


def open_saved(
    path: Path,
    form: str,
    saved: SavedObject,
    files: tuple[FileVersion, ...] = (),
    range_of_memory: RangeOfMemory = no_file,
) -> Checkpoint:
    """The checkpoint of a state dict at hand. Raises CheckpointError for a nested tensor."""
    return Checkpoint(
        path=path,
        format=form,
        described={name: _info(path, name, tensor) for name, tensor in saved.tensors.items()},
        contents=HeldTensors(path, saved, range_of_memory),
        recipe=_recipe(saved.state_dict),
        files=files,
        saved=saved,
    )


def edited_state_dict(
    source: Checkpoint, edits: Sequence[Edit], recipe: str
) -> OrderedDict[str, Any]:
    """The state dict after `edits`: kept entries are the very same objects where they are held.

    The recipe goes into `_metadata`, which `load_state_dict` passes over. Raises OutputError for
    edits that do not fit.
    """
    splicing = splice(source, edits)
    if source.saved is not None:
        return edited(source.saved.state_dict, source.prefix, splicing, recipe)
    loaded = OrderedDict((source.prefix + name, source.load(name)) for name in source.tensors)
    return edited(loaded, source.prefix, splicing, recipe)


def in_memory(new: New) -> torch.Tensor:
    """A new tensor in memory of its own."""
    return new.load() if isinstance(new, TensorOnDisk) else memory.own(new)


def edited(
    state_dict: Mapping[Any, Any],
    prefix: str,
    splicing: Splice,
    recipe: str,
    held: Callable[[New], torch.Tensor] = in_memory,
) -> OrderedDict[Any, Any]:
    """An OrderedDict (only that carries `_metadata` through a pickle), or its own subclass.

    `held` gives the tensor that stands for a new one.
    """
    result: OrderedDict[Any, Any] = OrderedDict()
    if isinstance(state_dict, OrderedDict):
        result = copy.copy(state_dict)
        result.clear()
    for key, value in state_dict.items():
        if not (isinstance(key, str) and isinstance(value, torch.Tensor)):
            _put(result, key, value)
            continue
        for name, new in splicing.at(key.removeprefix(prefix)):
            _put(result, prefix + name, value if new is None else held(new))
    metadata = copy.copy(getattr(state_dict, METADATA, None))
    if not isinstance(metadata, dict):
        metadata = OrderedDict()
    metadata[RECIPE_KEY] = recipe
    setattr(result, METADATA, metadata)
    return result


def _put(result: OrderedDict[Any, Any], key: object, value: object) -> None:
    if key in result:
        raise OutputError(f"{key}: a new name that an entry of the state dict has already.")
    result[key] = value


def _info(path: Path, name: str, tensor: torch.Tensor) -> TensorInfo:
    if tensor.is_nested:
        raise CheckpointError(
            f"{path}: {shown(name)} is a nested tensor, tensors with one shape were needed. "
            "Save it apart from the weights."
        )
    return TensorInfo(tuple(tensor.shape), tensor.dtype, tensor.layout)


def _recipe(state_dict: Mapping[Any, Any]) -> str | None:
    metadata = getattr(state_dict, METADATA, None)
    found = metadata.get(RECIPE_KEY) if isinstance(metadata, Mapping) else None
    return found if isinstance(found, str) else None
