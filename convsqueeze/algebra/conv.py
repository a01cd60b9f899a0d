"""Convolutions with values: operators that compose (`outer @ inner`), add and scale.

The laws, for every input of every size that the layers accept, up to the border (see `border`):

    (outer @ inner)(x) == outer(inner(x))
    (a + b)(x) == a(x) + b(x)
    (s * a)(x) == s * a(x)

Arithmetic is in float64 whatever the operands' dtype; `to` rounds once. Knows tensors and
geometry, no layer kinds, files or names.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import gcd
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from convsqueeze.algebra.apply import apply_operator
from convsqueeze.algebra.geometry import Axis, AxisMerge, Geometry, add, check_chain, merge_axes
from convsqueeze.algebra.groups import cells, joined, regrouped
from convsqueeze.algebra.precision import round_once
from convsqueeze.algebra.products import summed_products, tap_table
from convsqueeze.errors import GeometryError


@dataclass(frozen=True, eq=False)
class Conv:
    """An affine operator: `weight` (out_channels, in_channels / groups, *kernel_size), as in
    torch's `Conv` layers also where an axis upsamples; `bias` (out_channels,) or None.

    Raises GeometryError where the shapes do not fit each other.
    """

    weight: Tensor
    bias: Tensor | None = None
    axes: tuple[Axis, ...] = ()
    groups: int = 1
    geometry: Geometry = field(init=False, repr=False)
    """Channels, axes and groups, without the values."""

    def __post_init__(self) -> None:
        kernel_size = tuple(map(attrgetter("kernel_size"), self.axes))
        if self.weight.ndim < 2 or tuple(self.weight.shape[2:]) != kernel_size:
            raise GeometryError(
                f"a weight of shape {tuple(self.weight.shape)} has no kernel of size {kernel_size}"
            )
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise GeometryError(
                f"a bias of shape {tuple(self.bias.shape)} was given for "
                f"{self.weight.shape[0]} output channels"
            )
        out_channels, per_group = self.weight.shape[:2]
        bias = self.bias is not None
        geometry = Geometry(per_group * self.groups, out_channels, self.axes, self.groups, bias)
        object.__setattr__(self, "geometry", geometry)

    def __call__(self, x: Tensor) -> Tensor:
        """The operator on `x`, (batch, in_channels, *size), in the dtype of `x`.

        Gives (batch, out_channels, *output_size). Without axes the channels come last, as for
        `torch.nn.Linear`. An input that does not fit is an error of torch's own.
        """
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return apply_operator(x, self.weight.to(x.dtype), bias, self.axes, self.groups)

    def __matmul__(self, inner: "Conv") -> "Conv":
        """`self` after `inner`. Raises GeometryError where that is not one convolution."""
        check_chain(self.geometry, inner.geometry)
        merges = [merge_axes(o, i) for o, i in zip(self.axes, inner.axes, strict=True)]
        return Conv(
            weight=_composed_weight(self, inner, merges),
            bias=_composed_bias(self, inner),
            axes=tuple(merge.axis for merge in merges),
            groups=gcd(self.groups, inner.groups),
        )

    def __add__(self, other: "Conv") -> "Conv":
        """The sum of two branches. Raises GeometryError where their geometries do not agree."""
        geometry = add(self.geometry, other.geometry)
        weight = _embedded(self, geometry) + _embedded(other, geometry)
        biases = [conv.bias.double() for conv in (self, other) if conv.bias is not None]
        return Conv(weight, sum(biases) if biases else None, geometry.axes, geometry.groups)  # type: ignore[arg-type]

    def __mul__(self, factor: float) -> "Conv":
        """The operator times a number, `(s * a)(x) == s * a(x)`, in float64."""
        bias = None if self.bias is None else self.bias.double() * factor
        return replace(self, weight=self.weight.double() * factor, bias=bias)

    __rmul__ = __mul__

    def to(self, dtype: torch.dtype) -> "Conv":
        """The same operator with weight and bias rounded once to `dtype`."""
        bias = None if self.bias is None else round_once(self.bias.double(), dtype)
        return replace(self, weight=round_once(self.weight.double(), dtype), bias=bias)

    def on(self, device: torch.device) -> "Conv":
        """The same operator with its values on a device."""
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias)


def _composed_bias(outer: Conv, inner: Conv) -> Tensor | None:
    """`b2 + (sum of w2 over its taps) @ b1`, shape (out_channels,)."""
    if inner.bias is None:
        return None if outer.bias is None else outer.bias.double()
    total = outer.weight.double().flatten(2).sum(2) if outer.axes else outer.weight.double()
    total = total.unflatten(0, (outer.groups, -1))
    carried = inner.bias.double().unflatten(0, (outer.groups, -1, 1))
    bias = (total @ carried).flatten()
    return bias if outer.bias is None else bias + outer.bias.double()


def _composed_weight(outer: Conv, inner: Conv, merges: Sequence[AxisMerge]) -> Tensor:
    """The merged kernel, float64."""
    first, second = cells(outer.weight, outer.groups, inner.weight, inner.groups)
    taps = zip(merges, second.shape[3:], first.shape[3:], strict=True)
    kernel = summed_products(second, first, [tap_table(*axis) for axis in taps])
    return joined(kernel, outer.groups, inner.groups)


def _embedded(conv: Conv, target: Geometry) -> Tensor:
    """The weight of `conv` inside the kernel and the groups of `target`, zeros elsewhere."""
    weight = regrouped(conv.weight.double(), conv.groups, target.groups)
    placed = weight.new_zeros(target.weight_shape)
    window: list[Any] = [...]
    for axis, hull in zip(conv.axes, target.axes, strict=True):
        start = (hull.before - axis.before) // hull.dilation
        step = max(axis.dilation // hull.dilation, 1)
        window.append(slice(start, start + step * (axis.kernel_size - 1) + 1, step))
    placed[tuple(window)] = weight
    return placed
