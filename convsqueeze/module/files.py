"""How a squeezed file gives its layers as modules."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from convsqueeze.algebra.border.corrections import BORDER
from convsqueeze.checkpoint import Checkpoint, open_checkpoint
from convsqueeze.errors import CheckpointError, GeometryError
from convsqueeze.module.layer import SqueezedConv
from convsqueeze.names import shown
from convsqueeze.paths import anchored
from convsqueeze.recipe import RecipeLayer, read_recipe


def module_of(layer: RecipeLayer, tensors: Mapping[str, Tensor]) -> SqueezedConv:
    """The module of a recipe's layer from its tensors by full name.

    Raises CheckpointError where the weight is missing, GeometryError where the shapes do not fit.
    """
    stem = f"{layer.name}."
    inside = {name.removeprefix(stem): tensors[name] for name in _names(layer, tensors)}
    if "weight" not in inside:
        raise CheckpointError(f"{shown(layer.name)}.weight is not in the squeezed file.")
    return SqueezedConv.of(layer, inside)


def stored_tensors(layer: RecipeLayer, source: Checkpoint) -> dict[str, Tensor]:
    """A layer's tensors by full name, those that there are."""
    return {name: source.load(name) for name in _names(layer, source.tensors)}


def _names(layer: RecipeLayer, names: Iterable[str]) -> list[str]:
    """Names of tensors that are this layer's."""
    plain = (f"{layer.name}.weight", f"{layer.name}.bias")
    inside = f"{layer.name}.{BORDER}."
    has_border = layer.corrections is not None
    return [name for name in names if name in plain or (has_border and name.startswith(inside))]


def modules_of(
    layers: Iterable[RecipeLayer], source: Checkpoint, where: str
) -> dict[str, SqueezedConv]:
    """Modules of a squeezed file's layers by name; `where` names the file in messages.

    Raises CheckpointError where its recipe and tensors do not fit each other.
    """
    try:
        return {layer.name: module_of(layer, stored_tensors(layer, source)) for layer in layers}
    except GeometryError as error:
        raise CheckpointError(
            f"{where}: its recipe does not fit its tensors ({error}). Merge again."
        ) from error


def load_layers(
    path: str | Path, *, key: str | None = None, dtype: torch.dtype | None = None
) -> dict[str, SqueezedConv]:
    """Each squeezed layer of a file by name, ready to call.

    `key` chooses the state dict in a wrapped file; `dtype` converts the weights (default: as
    stored), but for what `merge --widen` stored wider, which is made no narrower than that.

    Raises CheckpointError where the file cannot be read or holds no recipe that fits it.
    """
    path = anchored(path)
    checkpoint = open_checkpoint(path, key=key)
    recipe = read_recipe(checkpoint.recipe, f"{path}")
    modules = modules_of(recipe.layers, checkpoint, f"{path}")
    checkpoint.check_unchanged()
    return modules if dtype is None else {n: one.stored_as(dtype) for n, one in modules.items()}
