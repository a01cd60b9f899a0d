"""Faults in correction tensors and in the recipe's `corrections`, and what verification promises.

An output at the border adds up the plain weight (or bias) and, for every set of axes that it is
at the border of, some entries of a correction tensor. Each of them may be half an ulp off, so that
an output is held to the sum of those halves. An entry that has moved further than twice that sum
is found whatever the honest rounding was: by `numbers_added` ulps of the largest number among
them, two on a face and four in a corner where no entry is added twice.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.fault_tables import filled_at, index_of
from tests.squeezed_files import Parts

Change = Callable[[Tensor], Tensor | None]
Recipe = dict[str, Any]


def border_names(parts: Parts, name: str) -> list[str]:
    """The correction tensors of a layer, in the file's order."""
    return [key for key in parts.tensors if key.startswith(f"{name}.border.")]


# How far an entry has to move.


def numbers_added(layer: Recipe, role: str) -> int:
    """The most numbers of this role that one output adds up for one input sample."""
    corrections = layer["corrections"]
    if corrections is None:
        return 1
    count = 1
    for axis in corrections["axes"]:
        together = {0: 0}
        for index, one in enumerate(axis["classes"]):
            entries: dict[Any, int] = defaultdict(int)
            for *place, _, factor in one["weights" if role == "weight" else "biases"]:
                entries[(index, *place)] += abs(factor)
            together |= entries
        count *= 1 + max(together.values())
    return count


def numbers_beside(parts: Parts, name: str, key: str, place: tuple[int, ...]) -> Tensor:
    """All that may be added to an entry: of its output channel and, for weights, input channel."""
    role = key.rpartition(".")[2]
    depth = 2 if role == "weight" else 1
    plain = parts.tensors[f"{name}.{role}"]
    if role == "weight" and parts.layer(name)["kind"] == "conv_transpose":
        plain = plain.transpose(0, 1)  # without groups
    terms = [parts.tensors[k] for k in border_names(parts, name) if k.endswith(role)]
    return torch.cat([tensor[place[:depth]].flatten() for tensor in (plain, *terms)])


def just_too_far(parts: Parts, name: str, key: str, place: tuple[int, ...]) -> Tensor:
    """The tensor `key` with the entry at `place` moved as far as verification promises to see."""
    tensor = parts.tensors[key]
    largest = numbers_beside(parts, name, key, place).double().abs().max()
    count = numbers_added(parts.layer(name), key.rpartition(".")[2])
    amount = count * torch.finfo(tensor.dtype).eps * 2.0 ** math.floor(math.log2(largest))
    if tensor.dtype == torch.float64:  # whose sums lose some units themselves
        amount = 1e-11 * float(largest)
    moved = tensor.clone()
    moved[place] += math.copysign(amount, float(tensor[place]))
    return moved


# What may have become of a correction tensor. None where it would stay as it is.


def changed_or_none(change: Callable[[Tensor], Tensor]) -> Change:
    def changed(tensor: Tensor) -> Tensor | None:
        result = change(tensor).contiguous()
        same = result.shape == tensor.shape and torch.equal(result, tensor)
        return None if same else result

    return changed


def largest(tensor: Tensor) -> tuple[int, ...]:
    return index_of(int(tensor.double().abs().argmax()), tensor)


def scaled_at_largest(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: filled_at(largest(tensor), factor * float(tensor[largest(tensor)]))(
        tensor
    )


def two_swapped(tensor: Tensor) -> Tensor:
    flat = tensor.flatten().clone()
    one, other = int(flat.double().argmax()), int(flat.double().argmin())
    flat[[one, other]] = flat[[other, one]]
    return flat.reshape(tensor.shape)


def first_wide_dim(tensor: Tensor) -> int:
    return next((dim for dim, count in enumerate(tensor.shape) if count > 1), 0)


def last_wide_dim(tensor: Tensor) -> int:
    return next((dim for dim in reversed(range(tensor.ndim)) if tensor.shape[dim] > 1), 0)


VALUE_FAULTS: dict[str, Change] = {
    "zeroed": changed_or_none(scaled_at_largest(0.0)),
    "sign flipped": changed_or_none(scaled_at_largest(-1.0)),
    "two swapped": changed_or_none(two_swapped),
    **{
        f"rolled along {dim}": changed_or_none(
            lambda t, dim=dim: t.roll(1, dim) if dim < t.ndim else t
        )
        for dim in range(5)
    },
    "mirrored": changed_or_none(lambda t: t.flip(last_wide_dim(t))),
    "all zero": changed_or_none(torch.zeros_like),
    "all turned": changed_or_none(lambda t: -t),
    "not a number": changed_or_none(lambda t: filled_at(largest(t), math.nan)(t)),
    "infinity": changed_or_none(lambda t: filled_at(largest(t), math.inf)(t)),
}
"""Told by running the layer."""

FORM_FAULTS: dict[str, Change] = {
    "cropped": changed_or_none(lambda t: t.narrow(-1, 0, t.shape[-1] - 1)),
    "flat": changed_or_none(lambda t: t.flatten()),
    "twice as long": changed_or_none(lambda t: torch.cat([t, t], -1)),
    "another dtype": changed_or_none(
        lambda t: t.float() if t.dtype == torch.float64 else t.double()
    ),
    "integers": changed_or_none(Tensor.int),
}
"""Told before anything is run, by the tensor's name."""

EXTRA = ("0.scale", "7.weight", "00.weight", "weight", "10.bias")
"""Names under `<into>.border.` that no layer has."""


# What the recipe may say wrongly of the corrections: for each fault every variant of an entry.

Path = tuple[str | int, ...]


def edited(layer: Recipe, path: Path, change: Callable[[Any], Any]) -> Recipe:
    """A copy with `change` made to what stands at `path`."""
    result = copy.deepcopy(layer)
    *way, last = path
    found: Any = result
    for key in way:
        found = found[key]
    found[last] = change(found[last])
    return result


def axes(layer: Recipe) -> list[Path]:
    """The axes on which something is corrected."""
    every = enumerate(layer["corrections"]["axes"])
    return [("corrections", "axes", n) for n, axis in every if axis["taps"] or axis["bias_taps"]]


def at(layer: Recipe, path: Path) -> Any:
    found: Any = layer
    for key in path:
        found = found[key]
    return found


def entries(layer: Recipe, roles: Sequence[str] = ("weights", "biases")) -> list[Path]:
    """On each axis the first entry for weights and the one for biases, of the last class."""
    paths = [(*axis, "classes", -1, role) for axis in axes(layer) for role in roles]
    return [(*path, 0) for path in paths if at(layer, path)]


def number_changed(place: int, change: Callable[[int], int], *roles: str) -> "RecipeFault":
    return lambda layer: [
        edited(layer, (*path, place), change)
        for path in entries(layer, roles or ("weights", "biases"))
    ]


def another_tap(layer: Recipe) -> list[Recipe]:
    found = []
    for path in entries(layer):
        count = at(layer, path[:3])["taps" if path[-2] == "weights" else "bias_taps"]
        if count > 1:
            found.append(edited(layer, (*path, -2), lambda tap, count=count: (tap + 1) % count))
    return found


def axis_changed(key: str, change: Callable[[Any], Any]) -> "RecipeFault":
    return lambda layer: [edited(layer, (*axis, key), change) for axis in axes(layer)]


def classes_exchanged(layer: Recipe) -> list[Recipe]:
    """The entries of the first two classes, where they differ."""

    def exchanged(classes: Any) -> Any:
        one, other, *rest = classes
        return [{**one, "size": other["size"]}, {**other, "size": one["size"]}, *rest]

    several = [axis for axis in axes(layer) if len(at(layer, axis)["classes"]) > 1]
    return [edited(layer, (*axis, "classes"), exchanged) for axis in several]


def absent_changed(layer: Recipe) -> list[Recipe]:
    path = ("corrections", "absent")
    places = at(layer, path)
    found = [edited(layer, path, lambda kept: [*kept, [[0], [0]]] if not kept else kept[1:])]
    if places:
        found.append(edited(layer, (*path, 0, 1), lambda flat: flat[1:]))
        found.append(edited(layer, (*path, 0, 1), lambda flat: [*flat[:-1], flat[-1] - 1]))
    return found


RecipeFault = Callable[[Recipe], list[Recipe]]
RECIPE_FAULTS: dict[str, tuple[str, RecipeFault]] = {
    "row shifted": ("corrections", number_changed(0, lambda row: row + 1)),
    "row at the other end": ("corrections", number_changed(0, lambda row: -1 - row)),
    "column shifted": ("corrections", number_changed(1, lambda column: column + 1, "weights")),
    "sign of a factor": ("corrections", number_changed(-1, lambda factor: -factor)),
    "another tap": ("corrections", another_tap),
    "a tap there is not": ("corrections", number_changed(-2, lambda tap: tap + 100)),
    "entry lost": (
        "corrections",
        lambda layer: [edited(layer, path[:-1], lambda all_: all_[1:]) for path in entries(layer)],
    ),
    "entry twice": (
        "corrections",
        lambda layer: [
            edited(layer, path[:-1], lambda all_: [all_[0], *all_]) for path in entries(layer)
        ],
    ),
    "classes exchanged": ("corrections", classes_exchanged),
    "class twice": ("corrections", axis_changed("classes", lambda all_: [*all_, all_[0]])),
    "earlier settled": ("corrections", axis_changed("settled", lambda size: size - 1)),
    "no period": ("corrections", axis_changed("period", lambda period: 0)),
    "one more tap": ("corrections", axis_changed("taps", lambda taps: taps + 1)),
    "one more bias tap": ("corrections", axis_changed("bias_taps", lambda taps: taps + 1)),
    "axis lost": (
        "corrections",
        lambda layer: [edited(layer, ("corrections", "axes"), lambda all_: all_[1:])],
    ),
    "other absent places": ("corrections", absent_changed),
    "no corrections": ("corrections", lambda layer: [{**layer, "corrections": None}]),
    "called exact": ("border", lambda layer: [{**layer, "border": "exact"}]),
    "called interior": ("border", lambda layer: [{**layer, "border": "interior"}]),
    "fewer weights": ("weights_after", lambda layer: [{**layer, "weights_after": 1}]),
}
"""With the key that the recipe is told to be wrong in."""

CLASS_FAULTS: dict[str, RecipeFault] = {
    "last class lost": axis_changed("classes", lambda all_: all_[:-1]),
    "another period": axis_changed("period", lambda period: period + 1),
    "later settled": axis_changed("settled", lambda size: size + 1000),
}
"""After which some sizes have no class."""
