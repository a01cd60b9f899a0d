"""Whether two checkpoints hold the very same, bit for bit: single tensors, and what pickles keep
beside their state dict.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from convsqueeze.checkpoint import memory
from convsqueeze.checkpoint.base import Checkpoint
from convsqueeze.checkpoint.disk import Progress, no_progress
from convsqueeze.checkpoint.saved_object import Place
from convsqueeze.names import shown


def kept_difference(
    name: str, before: Checkpoint, after: Checkpoint, progress: Progress = no_progress
) -> str | None:
    """Where a tensor of both checkpoints differs, as `tensor_difference`; values that lie in order
    in files are compared there, and `progress` is told of the bytes.
    """
    old, new = before.entries[before.prefix + name], after.entries[after.prefix + name]
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
    """What is not the same around the state dicts of two saved objects, a sentence each.

    Nothing is compared where one of the two holds tensors only.
    """
    old, new = before.saved, after.saved
    if old is None or new is None:
        return
    for place in _unlike(old.whole, new.whole, (), old.key_path, set()):
        name = ".".join(map(str, place)) or "the saved object"
        yield f"{after.path}: {shown(name)} is not what the original holds there."


def _unlike(
    before: Any, after: Any, place: Place, state_dict: Place, seen: set[int]
) -> Iterator[Place]:
    """Every place at which two objects of plain values and tensors differ, but for the tensors of
    the state dict, which have their own, stricter comparison.
    """
    if id(before) in seen:
        return
    if isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor):
        if tensor_difference(before, after) is not None:
            yield place
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        old, new = dict(before), dict(after)
        if place == state_dict:
            old = {key: value for key, value in old.items() if not torch.is_tensor(value)}
            new = {key: value for key, value in new.items() if not torch.is_tensor(value)}
    elif {type(before), type(after)} <= {list, tuple} and len(before) == len(after):
        old, new = dict(enumerate(before)), dict(enumerate(after))
    else:
        both_nan = type(before) is type(after) and before != before and after != after
        if type(before) is not type(after) or not (before == after or both_nan):
            yield place
        return
    seen.add(id(before))
    for key in old | new:
        if key in old and key in new:
            yield from _unlike(old[key], new[key], (*place, key), state_dict, seen)
        else:
            yield (*place, key)
