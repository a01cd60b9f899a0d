"""A factor and a summand for each channel: LayerScale, normalisations, numbers in the code."""

from collections.abc import Mapping
from math import isfinite
from typing import Any, Literal, Self, TypeGuard

import torch
from pydantic import Field, model_validator
from torch import Size, Tensor

from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import Geometry
from convsqueeze.algebra.tree import Chain, Tree
from convsqueeze.errors import GeometryError
from convsqueeze.kinds import oracle
from convsqueeze.kinds.call import Call, Kind, Numbers, Stored, Value
from convsqueeze.kinds.layer import Layer, OnnxNodes, Shape, Tensors, WithTensors, one_of
from convsqueeze.kinds.operators import diagonal, is_vector
from convsqueeze.kinds.semantics import Identity, Linear, Reason, Semantics, not_linear


class ScaleLayer(WithTensors):
    """`factor * weight * x + bias + shift`: a factor and a summand for each channel, as LayerScale
    and a normalisation have them, or numbers that stand in the code, as LoRA's alpha / r.
    """

    model_config = one_of("name", "weight", "bias", "factor", "shift")

    type: Literal["scale"]
    factor: float = Field(1.0, allow_inf_nan=False)
    shift: float = Field(
        0.0, allow_inf_nan=False, description="Added to every channel, after the factor."
    )

    required = ()

    @model_validator(mode="after")
    def _is_named(self) -> Self:
        named = self.name or self.weight or self.bias
        if named is None and not self.model_fields_set & {"factor", "shift"}:
            raise ValueError("a name, a weight, a bias, a factor or a shift to scale by")
        return self

    def infer_in_channels(self, shapes: Mapping[str, Shape]) -> int | None:
        count = max((Size(shape).numel() for shape in shapes.values()), default=1)
        return count if count > 1 else None

    def operator(self, tensors: Tensors, rank: int, channels: int) -> Conv:
        weight, bias = tensors.get("weight"), tensors.get("bias")
        return scale(weight, bias, channels=channels, rank=rank, **self.settings)

    def onnx(self, nodes: OnnxNodes, x: str, names: Mapping[str, str], geometry: Geometry) -> str:
        column = nodes.integers([-1, *(1,) * len(geometry.axes)])
        if self.factor != 1:
            x = nodes.add("Mul", x, nodes.constant(torch.tensor(self.factor)))
        if "weight" in names:
            x = nodes.add("Mul", x, nodes.add("Reshape", names["weight"], column))
        if "bias" in names:
            x = nodes.add("Add", x, nodes.add("Reshape", names["bias"], column))
        return nodes.add("Add", x, nodes.constant(torch.tensor(self.shift))) if self.shift else x

    def run(self, x: Tensor, tensors: Tensors) -> Tensor:
        x = x if self.factor == 1 else x * self.factor
        if "weight" in tensors:
            x = x * oracle.channel_column(tensors["weight"], x)
        if "bias" in tensors:
            x = x + oracle.channel_column(tensors["bias"], x)
        return x + self.shift if self.shift else x

    def linear_part(self, tensors: Tensors) -> tuple[Self, Tensors]:
        _, left = super().linear_part(tensors)
        return self.model_copy(update={"shift": 0.0}), left

    def magnitudes(self, tensors: Tensors) -> tuple[Self, Tensors]:
        _, sizes = super().magnitudes(tensors)
        numbers = {"factor": abs(self.factor), "shift": abs(self.shift)}
        return self.model_copy(update=numbers), sizes


def scale(
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    channels: int,
    factor: float = 1.0,
    shift: float = 0.0,
    rank: int,
) -> Conv:
    """`factor * weight * x + bias + shift`, as in LayerScale.

    `weight` and `bias` are (channels,) or one number, whatever axes of size one they have beside. A
    shift of zero alone is no bias.

    Raises GeometryError where they hold another count.
    """
    for name, values in (("weight", weight), ("bias", bias)):
        if values is not None and (values.numel() not in (1, channels) or not is_vector(values)):
            raise GeometryError(
                f"{name} of shape {tuple(values.shape)} does not scale {channels} channels"
            )
    ones = torch.ones(channels, dtype=torch.float64)
    factors = ones if weight is None else weight.double().flatten().expand(channels)
    summands = None if bias is None else bias.double().flatten().expand(channels)
    if shift:
        summands = shift * ones if summands is None else summands + shift
    return diagonal(factors * factor, summands, rank=rank)


def scaling_by(*, factor: float = 1.0, shift: float = 0.0) -> Linear | Identity | Reason:
    """`factor * x + shift`, with numbers that stand in the code."""
    if not isfinite(factor) or not isfinite(shift):
        return not_linear("it computes with a number that is not finite")
    settings = {"factor": factor} if factor != 1 else {}
    settings |= {"shift": shift} if shift else {}
    return Linear(ScaleLayer(type="scale", **settings), None) if settings else Identity()


def _multiplied(call: Call) -> Semantics:
    """A product with a number, or with one stored number for each channel, on either side."""
    constant, _ = _constant(call)
    number = _number(constant)
    if number is not None:
        return _computed(call, constant, factor=number)
    rank = _channel_rank(call, constant)
    if isinstance(rank, Reason):
        return rank
    factor = {"factor": constant.factor} if constant.factor != 1 else {}
    return Linear(ScaleLayer(type="scale", weight=constant.key, **factor), rank, constant.keys)


def _divided(call: Call) -> Semantics:
    """A quotient by a number."""
    number = _number(call["other"])
    if isinstance(call["other"], Stored):
        return not_linear("it divides by a stored tensor")
    if not number or call["rounding_mode"] is not None:
        return not_linear("it divides by a value")
    return _computed(call, call["other"], factor=1 / number)


def _negated(call: Call) -> Semantics:
    """`-x`."""
    return scaling_by(factor=-1.0)


def _combined(call: Call) -> Semantics:
    """`add`, `sub` and `rsub`: a value and a constant, on either side, one of them by `alpha`."""
    alpha = call.arguments.get("alpha", 1)
    if not is_number(alpha):
        return not_linear("it adds a multiple that depends on the input")
    constant, is_second = _constant(call)
    first, second = (-alpha, 1.0) if call.operator == "rsub" else (1.0, -alpha)
    second = alpha if call.operator == "add" else second
    factor, share = (first, second) if is_second else (second, first)
    number = _number(constant)
    if number is not None:
        return _computed(call, constant, factor=factor, shift=share * number)
    rank = _channel_rank(call, constant)
    if isinstance(rank, Reason):
        return rank
    share *= constant.factor
    if not share or not isfinite(factor / share):
        return not_linear("it adds no share of a stored tensor")
    inner = {"factor": factor / share} if factor != share else {}
    tree: Tree[Layer] = ScaleLayer(type="scale", bias=constant.key, **inner)
    if share != 1:
        tree = Chain((tree, ScaleLayer(type="scale", factor=share)))
    return Linear(tree, rank, constant.keys)


def _constant(call: Call) -> tuple[Any, bool]:
    """What a value is combined with, and whether that stands second."""
    is_second = isinstance(call["self"], Value)
    return call["other" if is_second else "self"], is_second


def _number(constant: Any) -> float | None:
    """The one number that a constant is, if it is one."""
    if isinstance(constant, Numbers):
        return constant.number
    return float(constant) if is_number(constant) else None


def _computed(call: Call, constant: Any, **numbers: float) -> Semantics:
    """By numbers, of which a tensor may change the value's shape."""
    changed = call.changed() if isinstance(constant, Numbers) else None
    return changed or scaling_by(**numbers)


def is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _channel_rank(call: Call, other: Any) -> int | Reason | None:
    """The axes behind the channels that a stored tensor has one number each for."""
    if isinstance(other, Numbers):
        return not_linear("it is combined with numbers that no stored tensor holds")
    if not isinstance(other, Stored) or other.spread or len(other.keys) > 1:
        return not_linear("it is combined with a tensor that is computed")
    if changed := call.changed():
        return changed
    long = [axis - len(other.shape) for axis, size in enumerate(other.shape) if size > 1]
    if not long:
        return None
    if len(long) > 1 or len(call.value.shape or ()) + long[0] == 0:
        return not_linear("it is combined with a tensor that is not one for each channel")
    return -long[0] - 1


KIND = Kind(
    ScaleLayer,
    aten={
        "mul": _multiplied,
        "div": _divided,
        "neg": _negated,
        **dict.fromkeys(("add", "sub", "rsub"), _combined),
    },
)
