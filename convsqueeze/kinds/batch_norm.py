"""Batch norms in eval mode: `torch.nn.BatchNorm1d`, 2d and 3d."""

from collections.abc import Callable, Mapping
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Size, Tensor, nn

from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import Geometry
from convsqueeze.errors import GeometryError, TensorDataError
from convsqueeze.kinds import oracle
from convsqueeze.kinds.call import Call, Kind, Stored
from convsqueeze.kinds.fields import Name
from convsqueeze.kinds.layer import Layer, OnnxNodes, Shape, Tensors
from convsqueeze.kinds.operators import diagonal, is_vector
from convsqueeze.kinds.semantics import Linear, Reason, Semantics, not_linear


class BatchNormLayer(Layer):
    """`torch.nn.BatchNorm` in eval mode. `eps` has no default: no checkpoint holds it."""

    type: Literal["batch_norm"]
    name: Name
    eps: float = Field(ge=0, allow_inf_nan=False)

    roles = ("running_mean", "running_var", "weight", "bias")
    required = ("running_mean", "running_var")
    counters = ("num_batches_tracked",)
    constants = ("bias", "running_mean")

    def infer_in_channels(self, shapes: Mapping[str, Shape]) -> int:
        return Size(shapes["running_mean"]).numel()

    def check_values(self, tensors: Tensors, keys: Mapping[str, str]) -> None:
        """Raises TensorDataError where the norm divides by no positive number."""
        values = tensors["running_var"]
        bad = (values.double() + self.eps <= 0).nonzero()
        if len(bad):
            channel = tuple(bad[0].tolist())
            raise TensorDataError(
                f"{keys['running_var']}: holds {values[channel].item()} at {list(channel)}, which "
                f"with eps {self.eps} is not above zero ({len(bad)} such channels), but the norm "
                "divides by its root. Repair the checkpoint, check eps, or leave this layer out."
            )

    def value_notes(self, keys: Mapping[str, str], load: Callable[[str], Tensor]) -> list[str]:
        """Which variances are below zero and carried by eps, as torch computes them."""
        key = keys["running_var"]
        values = load(key)
        negative = (values < 0).nonzero()
        if not len(negative):
            return []
        channel = tuple(negative[0].tolist())
        return [
            f"{key} holds {values[channel].item()} at {list(channel)}, a negative "
            f"variance ({len(negative)} such channels): eps {self.eps} carries it, as in torch"
        ]

    def operator(self, tensors: Tensors, rank: int, channels: int) -> Conv:
        return batch_norm(*map(tensors.get, self.roles), eps=self.eps, rank=rank)  # type: ignore[arg-type]

    def onnx(self, nodes: OnnxNodes, x: str, names: Mapping[str, str], geometry: Geometry) -> str:
        affine = {"weight": torch.ones, "bias": torch.zeros}
        inputs = [
            names.get(role) or nodes.constant(affine[role](geometry.in_channels))
            for role in ("weight", "bias", "running_mean", "running_var")
        ]
        return nodes.add("BatchNormalization", x, *inputs, epsilon=self.eps)

    def run(self, x: Tensor, tensors: Tensors) -> Tensor:
        mean, variance, weight, bias = (
            oracle.channel_vector(tensors.get(role)) for role in self.roles
        )
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=self.eps)

    def magnitudes(self, tensors: Tensors) -> tuple[Self, Tensors]:
        sizes = {role: tensor.abs() for role, tensor in tensors.items()}
        subtracted, divisor = -sizes["running_mean"], tensors["running_var"]
        return self, {**sizes, "running_mean": subtracted, "running_var": divisor}


def batch_norm(
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float,
    rank: int,
) -> Conv:
    """`torch.nn.BatchNorm` in eval mode: `(x - mean) / sqrt(var + eps) * weight + bias`.

    All tensors (channels,), or with axes of size one beside. Computed in float64. Zero variances
    are carried by eps, and negative ones too as far as the sum is above zero, as in torch. Raises
    GeometryError where a tensor holds another count.
    """
    channels = running_mean.numel()
    factor = (_each(running_var, channels, "running_var") + eps).rsqrt()
    if weight is not None:
        factor = factor * _each(weight, channels, "weight")
    shift = -_each(running_mean, channels, "running_mean") * factor
    if bias is not None:
        shift = shift + _each(bias, channels, "bias")
    return diagonal(factor, shift, rank=rank)


def _each(values: Tensor, channels: int, name: str) -> Tensor:
    """One number a channel in float64, (channels,)."""
    if values.numel() != channels or not is_vector(values):
        raise GeometryError(
            f"{name} of shape {tuple(values.shape)} is not one number for each of {channels} "
            "channels"
        )
    return values.double().flatten()


def _call(call: Call) -> Semantics:
    """A norm named after one layer, by its running statistics."""
    parts = {role: call[role] for role in ("weight", "bias", "running_mean", "running_var")}
    mean = parts["running_mean"]
    if call["training"] or mean is None or parts["running_var"] is None:
        what = "keeps no running statistics" if mean is None else "is in training mode"
        return Reason("training", f"a norm that {what}, so it is not linear")
    given = {role: part for role, part in parts.items() if part is not None}
    if not all(isinstance(part, Stored) and part.is_raw for part in given.values()):
        return not_linear("a norm whose tensors are computed")
    name = mean.key.rpartition(".")[0]
    absent = [r for r in ("weight", "bias") if r not in given and f"{name}.{r}" in call.names]
    if absent or any(part.key != f"{name}.{role}" for role, part in given.items()):
        return not_linear("a norm whose tensors are not named after one layer")
    keys = tuple(key for part in given.values() for key in part.keys)
    layer = BatchNormLayer(type="batch_norm", name=name, eps=call["eps"])
    return Linear(layer, call.rank, keys)


_STEM = "_native_batch_norm_legit"
KIND = Kind(
    BatchNormLayer,
    aten=dict.fromkeys(("batch_norm", _STEM, f"{_STEM}_no_training", f"{_STEM}_functional"), _call),
    modules=dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), "batch_norm"),
)
