"""State dicts in memory: describing one as a checkpoint, and editing one.

Knows mappings of names to tensors, no files. What else a state dict holds (`_extra_state`,
`_metadata`) passes through.
"""

import copy
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from convsqueeze.checkpoint import memory
from convsqueeze.checkpoint.base import RECIPE_KEY, Checkpoint, TensorInfo
from convsqueeze.checkpoint.disk import Advance, FileRange, FileVersion
from convsqueeze.checkpoint.edits import Edit, New, Splice, Spooled, splice
from convsqueeze.errors import CheckpointError, OutputError
from convsqueeze.names import common_prefix, shown
from convsqueeze.sharing import ties

METADATA = "_metadata"
"""The attribute that `Module.state_dict()` leaves on its OrderedDict."""


@dataclass(frozen=True, eq=False)
class HeldTensors:
    """Contents of a checkpoint whose tensors are there already, in memory or mapped from a file."""

    place: str
    state_dict: Mapping[Any, Any] = field(repr=False)
    files: tuple[FileVersion, ...] = ()

    def load(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self.state_dict[name].detach()
        if tensor.device.type == "meta":
            raise CheckpointError(
                f"{self.place}: {shown(name)} lies on the meta device, its values were needed. "
                "Save the state dict of a model that has its weights."
            )
        return tensor.cpu()

    def file_range(self, name: str) -> FileRange | None:
        return None

    def sha256(self, advance: Advance) -> str:
        digest = hashlib.sha256()
        for name, tensor in named_tensors(self.state_dict).items():
            described = [name, str(tensor.dtype), list(tensor.shape)]
            digest.update(json.dumps(described).encode() + b"\n")
            for values in memory.held(tensor):
                digest.update(memory.raw_bytes(values))
        return digest.hexdigest()

    def ties(self) -> tuple[tuple[str, ...], ...]:
        return ties(named_tensors(self.state_dict))


def from_state_dict(state_dict: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint of what `Module.state_dict()` gave. Nothing is copied until it is loaded."""
    path = Path("<state dict>")
    if not named_tensors(state_dict):
        raise CheckpointError(
            f"{path}: holds no tensor, a state dict (tensors by name) was needed."
        )
    return described(path, "memory", "", HeldTensors(str(path), state_dict))


def described(path: Path, form: str, wrapper: str, contents: HeldTensors) -> Checkpoint:
    """The checkpoint whose state dict is at hand."""
    tensors = named_tensors(contents.state_dict)
    prefix = common_prefix(tensors)
    return Checkpoint(
        path=path,
        format=form,
        wrapper=wrapper,
        prefix=prefix,
        tensors={name[len(prefix) :]: _info(path, name, t) for name, t in tensors.items()},
        metadata={},
        recipe=_recipe(contents.state_dict),
        contents=contents,
    )


def named_tensors(state_dict: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    return {
        name: value
        for name, value in state_dict.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }


def edited_state_dict(
    source: Checkpoint, edits: Sequence[Edit], recipe: str
) -> OrderedDict[str, Any]:
    """The state dict after `edits`: kept entries are the very same objects where they are held.

    The recipe goes into `_metadata`, which `load_state_dict` passes over.
    """
    splicing = splice(source, edits)
    if isinstance(source.contents, HeldTensors):
        return edited(source.contents.state_dict, source.prefix, splicing, recipe)
    loaded = OrderedDict((source.prefix + name, source.load(name)) for name in source.tensors)
    return edited(loaded, source.prefix, splicing, recipe)


def own(new: New) -> torch.Tensor:
    """A new tensor in memory of its own."""
    return new.load() if isinstance(new, Spooled) else memory.own(new)


def edited(
    state_dict: Mapping[Any, Any],
    prefix: str,
    splicing: Splice,
    recipe: str,
    held: Callable[[New], torch.Tensor] = own,
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
