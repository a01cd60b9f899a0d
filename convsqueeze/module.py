"""A squeezed layer as a torch module, and how a squeezed file gives its layers.

Knows the recipe and how to run an operator; nothing of manifests or plans.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from convsqueeze.algebra.apply import apply_operator, transposed_layout
from convsqueeze.algebra.corrections import BORDER, Corrections, Subset, digits, term_name
from convsqueeze.algebra.geometry import Axis, Geometry
from convsqueeze.algebra.strips import Kernel, Stored, add_borders, grid_of, kernels, pack
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
    Each side of each axis has its own padding. Where the plain operator is not exact at the border
    and the policy is `corrected`, `border` adds what is missing; its tensors are given by the names
    of `Corrections.shapes`. Raises GeometryError where the tensors do not fit the recipe and, when
    called, for an input size whose border is not corrected.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        layer: RecipeLayer,
        weight: Tensor,
        bias: Tensor | None = None,
        border: Mapping[str, Tensor] | None = None,
        *,
        signs: bool = True,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.axes = layer.axes()
        self.groups = layer.groups
        self.is_transposed = layer.kind == "conv_transpose"
        _check_shapes(layer, weight, bias)
        self.weight = nn.Parameter(weight)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        self.border = None
        if layer.corrections is not None:
            self.border = Border(layer, self.geometry, border or {}, signs=signs)

    @property
    def geometry(self) -> Geometry:
        """Channels and axes of the plain operator."""
        first, second = self.weight.shape[:2]
        channels = (second * self.groups, first)
        if self.is_transposed:
            channels = (first, second * self.groups)
        return Geometry(*channels, self.axes, self.groups, self.bias is not None)

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        if self.is_transposed:
            weight = transposed_layout(weight, self.groups)
        y = apply_operator(x, weight, self.bias, self.axes, self.groups)
        return y if self.border is None else self.border(y, x)

    def border_tensors(self) -> dict[str, Tensor]:
        """The correction tensors, by the names of `Corrections.shapes`."""
        return {} if self.border is None else dict(self.border.named_parameters())

    def converted(
        self,
        weight: Callable[[Tensor], Tensor],
        bias: Callable[[Tensor], Tensor] | None,
        *,
        signs: bool = True,
    ) -> "SqueezedConv":
        """The same layer with other values: every weight and every bias through a function each.

        Without one for the biases they are left out. With `signs` off border terms are added where
        they are subtracted, as a bound needs it. Free of gradients.
        """
        border = {}
        for name, tensor in self.border_tensors().items():
            convert = weight if name.endswith("weight") else bias
            if convert is not None:
                border[name] = convert(tensor.detach())
        kept = None if bias is None or self.bias is None else bias(self.bias.detach())
        module = SqueezedConv(self.layer, weight(self.weight.detach()), kept, border, signs=signs)
        return module.requires_grad_(False)

    def extra_repr(self) -> str:
        layer = self.layer
        return (
            f"{layer.kind}, weight={tuple(self.weight.shape)}, stride={layer.stride}, "
            f"padding={layer.padding}, dilation={layer.dilation}, groups={layer.groups}, "
            f"border={layer.border}"
        )


class Border(nn.Module):
    """What a plain operator lacks at the borders: the terms of `algebra.corrections`.

    Each set of axes has a child named by their numbers, `0` or `01`, with `weight` and `bias`.
    """

    tables: Tensor

    def __init__(
        self,
        layer: RecipeLayer,
        geometry: Geometry,
        tensors: Mapping[str, Tensor],
        *,
        signs: bool = True,
    ) -> None:
        super().__init__()
        corrections = _checked(layer, geometry, tensors)
        self.corrections = corrections
        self.axes: tuple[Axis, ...] = geometry.axes
        self.groups, self.signs = geometry.groups, signs
        self.kernel_size = geometry.kernel_size
        tables, self.strips = pack(corrections)
        self.register_buffer("tables", tables, persistent=False)
        for subset in corrections.subsets:
            term = Term(corrections, subset, geometry, tensors)
            self.add_module(digits(subset), term)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """`y`, the plain operator's output for `x`, made exact in place."""
        rank = len(self.axes)
        sizes = tuple(
            axis.class_size(size)
            for axis, size in zip(self.corrections.axes, x.shape[-rank:], strict=True)
        )
        found = self._kernels(sizes, tuple(x.shape[-rank:]))
        if x.ndim == rank + 1:  # without a batch, as torch's own layers take it
            return add_borders(y.unsqueeze(0), x.unsqueeze(0), found, self.groups).squeeze(0)
        return add_borders(y, x, found, self.groups)

    def _kernels(self, sizes: tuple[int, ...], given: tuple[int, ...]) -> list[Kernel]:
        """The kernels for a class of sizes. Raises GeometryError where there is none."""
        strips = []
        for axis, table, size, own in zip(
            self.corrections.axes, self.strips, sizes, given, strict=True
        ):
            if size not in table:
                raise GeometryError(axis.not_for(int(own)))
            strips.append(table[size])
        stored = {subset: term() for subset, term in self.named_terms()}
        return kernels(stored, strips, self.tables, self.axes, signs=self.signs)

    def named_terms(self) -> Iterator[tuple[Subset, "Term"]]:
        """Each set of axes with its tensors."""
        for child in self.children():
            if isinstance(child, Term):
                yield child.subset, child


class Term(nn.Module):
    """The tensors of one set of axes, called without arguments for their grids."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        corrections: Corrections,
        subset: Subset,
        geometry: Geometry,
        tensors: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        self.subset = subset
        self.grids = corrections.grid(subset, geometry.kernel_size), corrections.bias_grid(subset)
        self.absent = tuple(
            dict(places).get(subset, ())
            for places in (corrections.absent, corrections.absent_biases)
        )
        for role in ("weight", "bias"):
            tensor = tensors.get(term_name(subset, role))
            self.register_parameter(role, None if tensor is None else nn.Parameter(tensor))

    def forward(self) -> Stored:
        weight, bias = self.weight, self.bias
        if weight is not None:
            weight = grid_of(weight, self.grids[0], self.absent[0])
        if bias is not None:
            bias = grid_of(bias, self.grids[1], self.absent[1])
        return weight, bias


def _checked(layer: RecipeLayer, geometry: Geometry, tensors: Mapping[str, Tensor]) -> Corrections:
    """The corrections of a recipe's layer. Raises GeometryError unless the tensors are theirs."""
    corrections = layer.corrections
    if corrections is None:
        raise GeometryError(f"{layer.name} has no corrections")
    corrections.check(geometry.kernel_size)
    wanted = {
        name: shape
        for name, shape in corrections.shapes(geometry).items()
        if geometry.bias or not name.endswith("bias")
    }
    for name in sorted(wanted.keys() | tensors.keys()):
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != wanted.get(name):
            raise GeometryError(
                f"{layer.name}.{BORDER}.{name} has shape {found}, {wanted.get(name)} was needed"
            )
    return corrections


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
    inside = f"{layer.name}.{BORDER}."
    border = {
        name.removeprefix(inside): tensor
        for name, tensor in tensors.items()
        if layer.corrections is not None and name.startswith(inside)
    }
    return SqueezedConv(layer, weight, tensors.get(f"{layer.name}.bias"), border)


def stored_tensors(layer: RecipeLayer, source: Source) -> dict[str, Tensor]:
    """A layer's tensors by full name, those that there are."""
    own = (f"{layer.name}.weight", f"{layer.name}.bias")
    inside = f"{layer.name}.{BORDER}."
    return {
        name: source.load(name)
        for name in source.tensors
        if name in own or (layer.corrections is not None and name.startswith(inside))
    }


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
