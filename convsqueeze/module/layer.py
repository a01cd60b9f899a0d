"""A squeezed layer as a torch module.

Knows a recipe's layer and how to run an operator; nothing of files, manifests or plans.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from convsqueeze.algebra.apply import apply_operator, transposed_layout
from convsqueeze.algebra.border.corrections import BORDER
from convsqueeze.algebra.geometry import Geometry
from convsqueeze.errors import GeometryError
from convsqueeze.module.border import Border
from convsqueeze.names import shown
from convsqueeze.recipe import RecipeLayer


class SqueezedConv(nn.Module):
    """One merged layer: (batch, in_channels, *size) to (batch, out_channels, *output_size).

    `weight` and `bias` are stored as in torch's layer of the same kind (`linear`: channels last).
    Each side of each axis has its own padding. Where the plain operator is not exact at the border
    and the policy is `corrected`, `border` adds what is missing; its tensors are given by the names
    of `Corrections.shapes`. Raises GeometryError where the tensors do not fit the recipe and, when
    called, for an input size whose border is not corrected.

    The input has the dtype of the weights, as for torch's own layers. Where the recipe keeps some
    tensors in a wider dtype (`merge --widen`), the layer takes any floating-point input, computes
    in the widest dtype of its tensors and its input, and gives its output in the input's dtype, so
    that it stands among layers that are not wider. An output can overflow that dtype, as one of
    the layers apart could: give a wider input to see it. `stored_as` keeps what is wider; torch's
    own `half()` and the like do not.
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
        self.is_transposed = layer.kind == "conv_transpose"
        tensors = {"weight": weight} | ({} if bias is None else {"bias": bias})
        tensors |= {f"{BORDER}.{name}": tensor for name, tensor in (border or {}).items()}
        _check_kinds(layer, tensors)
        self.weight = nn.Parameter(weight)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        _check_shapes(layer, self.geometry, tensors)
        self.border = None
        if layer.corrections is not None:
            self.border = Border(layer.corrections, self.geometry, border or {}, signs=signs)

    @classmethod
    def of(
        cls, layer: RecipeLayer, tensors: Mapping[str, Tensor], *, signs: bool = True
    ) -> "SqueezedConv":
        """A layer of these tensors, by their names within it: `weight` (out_channels, in_channels /
        groups, *kernel_size), `bias`, `border.0.bias`. Raises GeometryError as the class does.
        """
        inside = f"{BORDER}."
        border = {n.removeprefix(inside): t for n, t in tensors.items() if n.startswith(inside)}
        return cls(layer, tensors["weight"], tensors.get("bias"), border, signs=signs)

    @property
    def geometry(self) -> Geometry:
        """Channels and axes of the plain operator."""
        first, second = self.weight.shape[:2]
        channels = (second * self.layer.groups, first)
        if self.is_transposed:
            channels = (first, second * self.layer.groups)
        return Geometry(*channels, self.axes, self.layer.groups, self.bias is not None)

    @property
    def dtype(self) -> torch.dtype:
        """The widest dtype of its tensors, in which it computes."""
        return reduce(torch.promote_types, (tensor.dtype for tensor in self.parameters()))

    def forward(self, input: Tensor) -> Tensor:
        """(batch, in_channels, *size) to (batch, out_channels, *output_size).

        Channels come last for a linear layer. The argument is named as in torch's own layers, for
        code that gives it by name. Raises GeometryError for a size whose border is not corrected.
        """
        x = input
        if not self.layer.widened:
            return self._applied(x, self.weight, self.bias)
        wide = torch.promote_types(self.dtype, x.dtype)
        bias = None if self.bias is None else self.bias.to(wide)
        with _without_autocast(x):
            return self._applied(x.to(wide), self.weight.to(wide), bias, wide).to(x.dtype)

    def _applied(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """The layer on `x` with these values; border tensors in `dtype`, by default their own."""
        if self.is_transposed:
            weight = transposed_layout(weight, self.layer.groups)
        if self.border is None:
            return apply_operator(x, weight, bias, self.axes, self.layer.groups)
        kernels = self.border.kernels(x, dtype)  # first, as it knows which sizes there are
        y = apply_operator(x, weight, bias, self.axes, self.layer.groups)
        return self.border.added(y, x, kernels)

    def stored_as(self, dtype: torch.dtype) -> "SqueezedConv":
        """Itself, with every tensor in `dtype`; one that the recipe keeps wider, no narrower."""
        for name, tensor in self.named_parameters():
            kept = (self.layer.widened or {}).get(name)
            wide = dtype if kept is None else torch.promote_types(dtype, getattr(torch, kept))
            tensor.data = tensor.data.to(wide)
        return self

    def border_tensors(self) -> dict[str, Tensor]:
        """The correction tensors, by the names of `Corrections.shapes`: weights
        (out_channels, in_channels / groups, *grid), biases (out_channels, *grid).
        """
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

        Weights are (out_channels, in_channels / groups, *kernel_size) or as torch's transposed
        layers have them, biases (out_channels,), border tensors as in `border_tensors`. Raises
        GeometryError where a function gives another shape, or no floating-point numbers.
        """
        values = {}
        for name, tensor in self.named_parameters():
            convert = weight if name.endswith("weight") else bias
            if convert is not None:
                values[name] = convert(tensor.detach())
        return SqueezedConv.of(self.layer, values, signs=signs).requires_grad_(False)

    def extra_repr(self) -> str:
        """The layer's geometry, for `repr`."""
        layer = self.layer
        return (
            f"{layer.kind}, weight={tuple(self.weight.shape)}, stride={layer.stride}, "
            f"padding={layer.padding}, dilation={layer.dilation}, groups={layer.groups}, "
            f"border={layer.border}"
        )


def _without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast would narrow what was widened. Only where it is on: not every device has it."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def _check_kinds(layer: RecipeLayer, tensors: Mapping[str, Tensor]) -> None:
    """Raises GeometryError for tensors that no layer holds, and a weight that has no geometry."""
    name, weight = shown(layer.name), tensors["weight"]
    for role, tensor in tensors.items():
        is_dense = tensor.layout == torch.strided
        if not is_dense or not tensor.is_floating_point():
            found = tensor.dtype if is_dense else tensor.layout
            needed = "a floating-point dtype" if is_dense else "a dense tensor"
            raise GeometryError(f"{name}.{role} is stored as {found}, {needed} was needed")
    if tuple(weight.shape[2:]) != layer.kernel_size or weight.ndim < 2:
        raise GeometryError(
            f"{name}.weight has shape {tuple(weight.shape)}, "
            f"but its recipe says kernel_size {list(layer.kernel_size)}"
        )
    if layer.groups < 1 or weight.shape[0] % layer.groups:
        raise GeometryError(
            f"{name}: {weight.shape[0]} channels do not divide into groups = {layer.groups}"
        )


def _check_shapes(layer: RecipeLayer, geometry: Geometry, tensors: Mapping[str, Tensor]) -> None:
    """Raises GeometryError unless the tensors are those of the recipe's layer."""
    wanted = {"weight": tuple(tensors["weight"].shape), "bias": (geometry.out_channels,)}
    if layer.corrections is not None:
        layer.corrections.check(geometry.kernel_size)
        shapes = layer.corrections.shapes(geometry)
        wanted |= {f"{BORDER}.{key}": shape for key, shape in shapes.items()}
    elif tensors.keys() - wanted.keys():
        raise GeometryError(f"{shown(layer.name)} has no corrections, but tensors for them")
    if not geometry.bias:
        wanted = {key: shape for key, shape in wanted.items() if not key.endswith("bias")}
    for key in sorted(wanted.keys() | tensors.keys()):
        full = shown(f"{layer.name}.{key}")
        if key not in tensors:
            raise GeometryError(f"{full} is missing, shape {wanted[key]} was needed")
        if key not in wanted:
            raise GeometryError(f"{full} is none of the tensors of these corrections")
        found = tuple(tensors[key].shape)
        if found != wanted[key]:
            raise GeometryError(f"{full} has shape {found}, {wanted[key]} was needed")
