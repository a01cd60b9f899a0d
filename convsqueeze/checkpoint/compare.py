"""Whether two checkpoints hold the very same, bit for bit: single tensors, and what files keep
beside them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from convsqueeze.checkpoint import memory
from convsqueeze.checkpoint.base import RECIPE_KEY, Checkpoint
from convsqueeze.checkpoint.disk import Progress, no_progress
from convsqueeze.checkpoint.saved_object import Place, dotted
from convsqueeze.checkpoint.state_dict import METADATA
from convsqueeze.checkpoint.tensors import HeldTensor
from convsqueeze.names import shown


def kept_difference(
    name: str, before: Checkpoint, after: Checkpoint, progress: Progress = no_progress
) -> str | None:
    """Where a tensor of both checkpoints differs, as `tensor_difference`; values that lie in order
    in files are compared there, and `progress` is told of the bytes.
    """
    old, new = before.entries[before.prefix + name], after.entries[after.prefix + name]
    if isinstance(old, HeldTensor) and isinstance(new, HeldTensor) and old.tensor.is_meta:
        return tensor_difference(old.tensor, new.tensor)
    if old.info != new.info or old.place is None or new.place is None:
        return tensor_difference(before.load(name), after.load(name))
    byte = old.place.first_difference(new.place, progress)
    return None if byte is None else _differs(byte, old.info.shape, old.info.dtype.itemsize)


def tensor_difference(before: torch.Tensor, after: torch.Tensor) -> str | None:
    """Where two tensors differ in dtype, shape, quantization or any bit; None where they do not."""
    if before.dtype != after.dtype or before.shape != after.shape:
        return (
            f"is {after.dtype} {tuple(after.shape)}, the original's is "
            f"{before.dtype} {tuple(before.shape)}"
        )
    if before.is_meta != after.is_meta:
        return "has no values, or the original has none"
    if before.is_meta:
        return None
    if before.layout != after.layout or _quantizer(before) != _quantizer(after):
        return "is laid out or quantized in another way than the original's"
    old, new = memory.dense_parts(before), memory.dense_parts(after)
    for one, other in zip(old, new, strict=True):
        if one.shape != other.shape:
            return f"holds {one.numel()} values, the original's {other.numel()}"
        different = (memory.as_bytes(one) != memory.as_bytes(other)).nonzero()
        if len(different):
            within = "" if len(old) == 1 else " of its parts"
            return _differs(int(different[0]), one.shape, one.element_size()) + within
    return None


def _differs(byte: int, shape: Sequence[int], itemsize: int) -> str:
    place = np.unravel_index(byte // itemsize, tuple(shape))  # torch's own imports sympy
    return f"differs from the original at {[int(i) for i in place]}"


def _quantizer(tensor: torch.Tensor) -> tuple[object, ...]:
    if not tensor.is_quantized:
        return ()
    scheme = tensor.qscheme()
    if scheme in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return scheme, tensor.q_scale(), tensor.q_zero_point()
    scales, zero_points = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return scheme, scales.tolist(), zero_points.tolist(), tensor.q_per_channel_axis()


def differences_around(before: Checkpoint, after: Checkpoint) -> Iterator[str]:
    """What is not the same around the tensors of two files of one kind, a sentence each: metadata,
    and the plain values and tensors that a pickle holds beside its state dict.
    """
    old, new = before.saved, after.saved
    if (old is None) != (new is None):
        return
    places = list(_unlike_metadata(before, after))
    if old is not None and new is not None:
        places += _unlike(old.whole, new.whole, (), old.key_path, set())
    for place in places:
        name = dotted(place) or "the saved object"
        yield f"{after.path}: {shown(name)} is not what the original holds there."


def _unlike_metadata(before: Checkpoint, after: Checkpoint) -> Iterator[Place]:
    """What the original's metadata holds, but for a recipe of its own, and the other's does not."""
    held, found = _metadata(before), _metadata(after)
    for key, value in held.items():
        if key != RECIPE_KEY and (key not in found or found[key] != value):
            yield ("metadata", key)


def _metadata(checkpoint: Checkpoint) -> Mapping[Any, Any]:
    if checkpoint.saved is None:
        return checkpoint.metadata
    metadata = getattr(checkpoint.saved.state_dict, METADATA, None)
    return metadata if isinstance(metadata, dict) else {}


def _unlike(
    before: Any, after: Any, place: Place, state_dict: Place, seen: set[tuple[int, int]]
) -> Iterator[Place]:
    """Every place at which two objects of plain values and tensors differ, but for the tensors of
    the state dict, which have their own, stricter comparison. `seen` are the pairs of containers
    that were compared already: what is shared in one object need not be in the other.
    """
    if (id(before), id(after)) in seen:
        return
    if isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor):
        if tensor_difference(before, after) is not None:
            yield place
        return
    old, new = _parts(before), _parts(after)
    if place == state_dict:  # an OrderedDict where it was squeezed
        old = {key: part for key, part in old.items() if not torch.is_tensor(part)}
        new = {key: part for key, part in new.items() if not torch.is_tensor(part)}
    elif type(before) is not type(after) or _plain(before) != _plain(after):
        yield place
        return
    else:
        seen.add((id(before), id(after)))
    for kind, key in old | new:
        if (kind, key) in old and (kind, key) in new:
            one, other = old[kind, key], new[kind, key]
            yield from _unlike(one, other, (*place, key), state_dict, seen)
        else:
            yield (*place, key)


def _parts(value: Any) -> dict[tuple[type, Any], Any]:
    """What a container holds, by type and value of the key: 1, 1.0 and True are equal."""
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = dict(value).items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    elif isinstance(value, set | frozenset):
        items = ((one, one) for one in value)
    else:
        items = ()
    return {(type(key), key): part for key, part in items}


def _plain(value: Any) -> Any:
    """A value that is no container, comparable: every NaN is like itself, 0.0 not like -0.0."""
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return None
    return repr(value) if isinstance(value, float | complex) else value
