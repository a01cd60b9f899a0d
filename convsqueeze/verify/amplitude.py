"""How large the products can be that a layer adds up, from norms alone: no image is run.

For inputs whose channel `i` is at most `x[i]` large, an output of a layer with weights `w` adds up
at most `sum over i and taps of |w[o, i, tap]| x[i]`, wherever it stands, and so on through the
layers. One weight of a merged kernel adds up less: where one layer's tap is chosen, the tap of the
other follows, so that with `S` the sum over taps and `T` the largest of them

    S(outer @ inner) <= S(outer) S(inner)
    T(outer @ inner) <= min(S(outer) T(inner), T(outer) S(inner))

Rounding is a small share of either. Knows the original layers, not the squeezed one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convsqueeze.algebra.tree import Tree, fold
from convsqueeze.manifest import (
    BatchNormLayer,
    ConvLayer,
    ConvTransposeLayer,
    LinearLayer,
    ScaleLayer,
)
from convsqueeze.plan import ResolvedLayer
from convsqueeze.verify.reference import Part, parameters_of


@dataclass(frozen=True, eq=False)
class Amplitude:
    """What reaches each channel at most, (batch, channels): summed over taps, and by one tap."""

    every: Tensor
    single: Tensor


def amplitude(
    tree: Tree[ResolvedLayer], load: Callable[[str], Tensor], part: Part, x: Tensor
) -> Amplitude:
    """Behind the layers, for inputs that are at most `x` (batch, in_channels) in each channel.

    `single` is for the linear part alone.
    """

    def leaf(resolved: ResolvedLayer) -> Callable[[Amplitude], Amplitude]:
        return lambda found: _behind(resolved, load, part, found)

    def chain(links: Sequence[Callable[[Amplitude], Amplitude]]) -> Callable[..., Amplitude]:
        def run(found: Amplitude) -> Amplitude:
            for link in links:
                found = link(found)
            return found

        return run

    def add(branches: Sequence[Callable[[Amplitude], Amplitude]]) -> Callable[..., Amplitude]:
        def run(found: Amplitude) -> Amplitude:
            first, *rest = (branch(found) for branch in branches)
            return Amplitude(
                sum((one.every for one in rest), first.every),
                sum((one.single for one in rest), first.single),
            )

        return run

    return fold(tree, leaf, chain, add)(Amplitude(x, x))


def _behind(
    resolved: ResolvedLayer, load: Callable[[str], Tensor], part: Part, found: Amplitude
) -> Amplitude:
    layer = resolved.layer
    tensors = parameters_of(resolved, load, part)
    bias = tensors["bias"].abs() if "bias" in tensors else 0.0
    match layer:
        case ConvLayer():
            return _through(tensors["weight"], layer.groups, bias, found)
        case ConvTransposeLayer():
            turned = tensors["weight"].unflatten(0, (layer.groups, -1)).transpose(1, 2)
            return _through(turned.flatten(0, 1), layer.groups, bias, found)
        case LinearLayer():
            return _through(tensors["weight"], 1, bias, found)
        case BatchNormLayer():
            scale = (tensors["running_var"] + layer.eps).rsqrt()
            if "weight" in tensors:
                scale = scale * tensors["weight"].abs()
            every = (found.every + tensors["running_mean"].abs()) * scale + bias
            return Amplitude(every, found.single * scale)
        case ScaleLayer():
            scale = abs(layer.factor) * tensors.get("weight", torch.ones(1)).double().abs()
            return Amplitude(found.every * scale + bias, found.single * scale)
        case _:  # pads and pools, whose taps add up to one, and identities
            return found


def _through(weight: Tensor, groups: int, bias: Tensor | float, found: Amplitude) -> Amplitude:
    """`weight` (out_channels, in_channels / groups, *taps)."""
    taps = weight.flatten(2) if weight.ndim > 2 else weight.unsqueeze(2)
    total, largest = (torch.linalg.vector_norm(taps, order, dim=2) for order in (1, torch.inf))
    single = torch.minimum(
        _grouped(total, groups, found.single), _grouped(largest, groups, found.every)
    )
    return Amplitude(_grouped(total, groups, found.every) + bias, single)


def _grouped(matrix: Tensor, groups: int, x: Tensor) -> Tensor:
    """A matrix (out_channels, in_channels / groups) on (batch, in_channels)."""
    if groups == 1:
        return x @ matrix.T
    parts = x.unflatten(1, (groups, -1)).transpose(0, 1)  # (groups, batch, in / groups)
    return (parts @ matrix.unflatten(0, (groups, -1)).mT).transpose(0, 1).flatten(1)
