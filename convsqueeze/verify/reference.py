"""The original layers, run one after the other with torch's own functional ops in float64.

Written from torch's documentation and apart from the algebra, so that the two can disagree. Knows
the manifest's layers and their stored tensors, nothing of merging.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from convsqueeze.algebra.tree import Tree, fold
from convsqueeze.manifest import (
    AvgPoolLayer,
    BatchNormLayer,
    ConvLayer,
    ConvTransposeLayer,
    IdentityLayer,
    LinearLayer,
    PadLayer,
    ScaleLayer,
)
from convsqueeze.plan import ResolvedLayer

Run = Callable[[Tensor], Tensor]
Part = Literal["affine", "linear"]

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_AVG_POOL: dict[int, Callable[..., Tensor]] = {
    1: F.avg_pool1d,
    2: F.avg_pool2d,
    3: F.avg_pool3d,
}


def reference(
    tree: Tree[ResolvedLayer],
    load: Callable[[str], Tensor],
    part: Part = "affine",
    *,
    magnitude: bool = False,
) -> Run:
    """The layers of `tree` as one function of a float64 input (batch, channels, *size).

    `part`: the whole `affine` function, or its `linear` part (no biases, shifts or means).
    `magnitude`: the same sums over absolute values, which bounds what rounding can do to them. Each
    layer loads its tensors when it runs, so that one at a time is there in float64.
    """

    def chain(links: Sequence[Run]) -> Run:
        def run(x: Tensor) -> Tensor:
            for link in links:
                x = link(x)
            return x

        return run

    def add(branches: Sequence[Run]) -> Run:
        return lambda x: sum((branch(x) for branch in branches[1:]), branches[0](x))

    def leaf(resolved: ResolvedLayer) -> Run:
        return lambda x: _applied(resolved, x, load, part, magnitude)

    return fold(tree, leaf, chain, add)


def _applied(
    resolved: ResolvedLayer, x: Tensor, load: Callable[[str], Tensor], part: Part, magnitude: bool
) -> Tensor:
    layer, rank = resolved.layer, len(resolved.geometry.axes)
    tensors = {role: stored_values(p.keys, load) for role, p in resolved.parameters.items()}
    if part == "linear":
        for role in ("bias", "running_mean"):
            if role in tensors:
                tensors[role] = torch.zeros_like(tensors[role])
    if magnitude:
        tensors = {role: t if role == "running_var" else t.abs() for role, t in tensors.items()}
    weight, bias = tensors.get("weight"), tensors.get("bias")
    match layer:
        case ConvLayer():
            return _conv(layer, rank, x, tensors["weight"], bias)
        case ConvTransposeLayer():
            return _conv_transpose(layer, rank, x, tensors["weight"], bias)
        case LinearLayer():
            return F.linear(x.movedim(1, -1), tensors["weight"], bias).movedim(-1, 1)
        case BatchNormLayer():
            mean = -tensors["running_mean"] if magnitude else tensors["running_mean"]
            return F.batch_norm(
                x, mean, tensors["running_var"], weight, bias, training=False, eps=layer.eps
            )
        case ScaleLayer():
            shift = 0.0 if part == "linear" else layer.shift
            factor, shift = (abs(n) if magnitude else n for n in (layer.factor, shift))
            return _scale(x, factor, weight, bias) + shift
        case AvgPoolLayer():
            padded = _pad(x, layer.padding, rank, "zeros")
            return _AVG_POOL[rank](padded, layer.kernel_size, layer.stride)
        case IdentityLayer():
            return x
        case PadLayer():
            return _pad(x, layer.padding, rank, layer.padding_mode)


def stored_values(keys: Sequence[str], load: Callable[[str], Tensor]) -> Tensor:
    """A parameter in float64; two keys are weight norm's length and direction."""
    values = [load(key).detach().double() for key in keys]
    if len(values) == 1:
        return values[0]
    length, direction = values
    free = [dim for dim in range(length.ndim) if length.shape[dim] > 1]
    if not free:
        return direction * (length / direction.norm())
    # not torch._weight_norm: it ends the process for any dimension but the first and the last
    return direction * (length / torch.norm_except_dim(direction, 2, free[0]))


def _conv(layer: ConvLayer, rank: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    steps: dict[str, Any] = {
        "stride": layer.stride,
        "dilation": layer.dilation,
        "groups": layer.groups,
    }
    if layer.padding_mode == "zeros" and not _is_nested(layer.padding):
        return _CONV[rank](x, weight, bias, padding=layer.padding, **steps)
    padding = layer.padding
    if padding == "same":
        dilation = (layer.dilation,) * rank if isinstance(layer.dilation, int) else layer.dilation
        totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        padding = [(total // 2, total - total // 2) for total in totals]
    padded = _pad(x, 0 if padding == "valid" else padding, rank, layer.padding_mode)
    return _CONV[rank](padded, weight, bias, **steps)


def _conv_transpose(
    layer: ConvTransposeLayer, rank: int, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    nested = _is_nested(layer.padding)
    y = _CONV_TRANSPOSE[rank](
        x,
        weight,
        bias,
        stride=layer.stride,
        padding=0 if nested else layer.padding,
        output_padding=layer.output_padding,
        groups=layer.groups,
        dilation=layer.dilation,
    )
    return _pad(y, [(-low, -high) for low, high in layer.padding], rank, "zeros") if nested else y


def _scale(x: Tensor, factor: float, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = (-1, *(1,) * (x.ndim - 2))
    x = x * factor
    if weight is not None:
        x = x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def _is_nested(padding: Any) -> bool:
    return isinstance(padding, list | tuple) and any(isinstance(p, list | tuple) for p in padding)


def _pad(x: Tensor, padding: Any, rank: int, mode: str) -> Tensor:
    """`F.pad` with the manifest's padding: an int, one number an axis or one pair an axis."""
    per_axis = [padding] * rank if isinstance(padding, int) else list(padding)
    pairs = [(p, p) if isinstance(p, int) else tuple(p) for p in per_axis]
    grown = [max(amount, 0) for pair in reversed(pairs) for amount in pair]
    cropped = [min(amount, 0) for pair in reversed(pairs) for amount in pair]
    if any(grown):
        x = F.pad(x, grown, mode="constant" if mode == "zeros" else mode)
    return F.pad(x, cropped) if any(cropped) else x


def term_count(tree: Tree[ResolvedLayer]) -> int:
    """How many products one output of the original layers and of their merge adds up, at most.

    The error of a float64 sum of n products is at most about n units of rounding of the sum of
    their magnitudes (Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1).
    """
    return fold(
        tree,
        lambda leaf: _terms(leaf),
        lambda links: sum(links),
        lambda branches: sum(branches),
    )


def _terms(leaf: ResolvedLayer) -> int:
    shapes: Mapping[str, tuple[int, ...]] = {r: p.shape for r, p in leaf.parameters.items()}
    own = torch.Size(leaf.geometry.weight_shape[1:]).numel()
    norms = 0
    if "weight" in shapes and leaf.parameters["weight"].is_weight_norm:
        norms = torch.Size(shapes["weight"]).numel() // shapes["weight"][0]
    return own + norms + 8
