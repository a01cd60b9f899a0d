"""A factor and a summand for each channel: LayerScale, normalisations, numbers in the code."""

from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Size, Tensor

from convsqueeze.algebra.conv import Conv
from convsqueeze.errors import GeometryError
from convsqueeze.kinds import oracle
from convsqueeze.kinds.layer import Shape, Tensors, WithTensors, one_of
from convsqueeze.kinds.operators import diagonal, is_vector


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
        numbers = {"factor": self.factor, "shift": self.shift}
        return scale(weight, bias, channels=channels, rank=rank, **numbers)

    def run(self, x: Tensor, tensors: Tensors) -> Tensor:
        x = x * self.factor
        if "weight" in tensors:
            x = x * oracle.channel_column(tensors["weight"], x)
        if "bias" in tensors:
            x = x + oracle.channel_column(tensors["bias"], x)
        return x + self.shift

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
    """`factor * weight * x + bias + shift`, as in LayerScale; `weight` and `bias` one number or
    `channels`, whatever axes of size one they have beside. A shift of zero alone is no bias.

    Raises GeometryError where they hold another count.
    """
    spread = []
    for name, values in (("weight", weight), ("bias", bias)):
        if values is not None and (values.numel() not in (1, channels) or not is_vector(values)):
            raise GeometryError(
                f"{name} of shape {tuple(values.shape)} does not scale {channels} channels"
            )
        spread.append(None if values is None else values.double().flatten().expand(channels))
    weights = torch.ones(channels, dtype=torch.float64) if spread[0] is None else spread[0]
    summands = spread[1]
    if shift and summands is not None:
        summands = summands + shift
    elif shift:
        summands = torch.full((channels,), shift, dtype=torch.float64)
    return diagonal(weights * factor, summands, rank=rank)
