"""A squeezed layer as a torch module, and how a squeezed file gives its layers.

Knows the recipe and how to run an operator; nothing of manifests or plans.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from convsqueeze.algebra.apply import apply_operator, transposed_layout
from convsqueeze.checkpoint import TensorInfo, open_checkpoint
from convsqueeze.errors import CheckpointError, GeometryError
from convsqueeze.recipe import RecipeLayer, read_recipe


class Source(Protocol):
    """Named tensors, as a checkpoint has them."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def load(self, name: str) -> Tensor: ...


class SqueezedConv(nn.Module):
    """One merged layer: (batch, in_channels, *size) to (batch, out_channels, *output_size).

    `weight` and `bias` are stored as in torch's layer of the same kind (`linear`: channels last).
    Each side of each axis has its own padding. Raises GeometryError where the tensors do not fit
    the recipe.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, layer: RecipeLayer, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.axes = layer.axes()
        _check_shapes(layer, weight, bias)
        self.weight = nn.Parameter(weight)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        if self.layer.kind == "conv_transpose":
            weight = transposed_layout(weight, self.layer.groups)
        return apply_operator(x, weight, self.bias, self.axes, self.layer.groups)

    def extra_repr(self) -> str:
        layer = self.layer
        return (
            f"{layer.kind}, weight={tuple(self.weight.shape)}, stride={layer.stride}, "
            f"padding={layer.padding}, dilation={layer.dilation}, groups={layer.groups}, "
            f"border={layer.border}"
        )


def _check_shapes(layer: RecipeLayer, weight: Tensor, bias: Tensor | None) -> None:
    if tuple(weight.shape[2:]) != layer.kernel_size or weight.ndim < 2:
        raise GeometryError(
            f"{layer.name}.weight has shape {tuple(weight.shape)}, "
            f"but its recipe says kernel_size {list(layer.kernel_size)}"
        )
    channels = weight.shape[0]
    if layer.groups < 1 or channels % layer.groups:
        raise GeometryError(
            f"{layer.name}: {channels} channels do not divide into groups = {layer.groups}"
        )
    out_channels = weight.shape[1] * layer.groups if layer.kind == "conv_transpose" else channels
    if bias is not None and tuple(bias.shape) != (out_channels,):
        raise GeometryError(
            f"{layer.name}.bias has shape {tuple(bias.shape)}, ({out_channels},) was needed"
        )


def module_of(layer: RecipeLayer, tensors: Mapping[str, Tensor]) -> SqueezedConv:
    """The module of a recipe's layer from its tensors by full name.

    Raises CheckpointError where the weight is missing, GeometryError where the shapes do not fit.
    """
    weight = tensors.get(f"{layer.name}.weight")
    if weight is None:
        raise CheckpointError(f"{layer.name}.weight is not in the squeezed file.")
    return SqueezedConv(layer, weight, tensors.get(f"{layer.name}.bias"))


def stored_tensors(layer: RecipeLayer, source: Source) -> dict[str, Tensor]:
    """A layer's tensors by full name, those that there are."""
    names = (f"{layer.name}.weight", f"{layer.name}.bias")
    return {name: source.load(name) for name in names if name in source.tensors}


def load_layers(
    path: str | Path, *, key: str | None = None, dtype: torch.dtype | None = None
) -> dict[str, SqueezedConv]:
    """Each squeezed layer of a file by name, ready to call.

    `key` chooses the state dict in a wrapped file; `dtype` converts the weights (default: as
    stored). Raises CheckpointError where the file cannot be read or holds no recipe.
    """
    checkpoint = open_checkpoint(Path(path), key=key)
    recipe = read_recipe(checkpoint.recipe, str(path))
    modules = {one.name: module_of(one, stored_tensors(one, checkpoint)) for one in recipe.layers}
    return {name: module.to(dtype=dtype) for name, module in modules.items()}
