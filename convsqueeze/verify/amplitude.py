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
from functools import reduce

import torch
from torch import Tensor

from convsqueeze.algebra.tree import Tree, fold
from convsqueeze.kinds.batch_norm import BatchNormLayer
from convsqueeze.kinds.scale import ScaleLayer
from convsqueeze.plan import ResolvedLayer
from convsqueeze.verify.reference import Part, stored_values


@dataclass(frozen=True, eq=False)
class Amplitude:
    """What reaches each channel at most, (batch, channels): summed over taps, and by one tap."""

    every: Tensor
    single: Tensor


_CHUNK = 1 << 17
"""Numbers that are looked at together: they stay in the processor's cache."""
Step = Callable[[Amplitude], Amplitude]
Norms = tuple[Tensor, Tensor]


class Amplitudes:
    """Of the layers of a tree, whose norms are taken once."""

    def __init__(self, tree: Tree[ResolvedLayer], load: Callable[[str], Tensor]) -> None:
        self.tree, self.load = tree, load
        self._kept: dict[tuple[str, ...], Norms] = {}

    def of(self, x: Tensor, part: Part = "linear") -> Amplitude:
        """Behind the layers, for inputs that are at most `x` (batch, in_channels) in each channel.

        `single` is for the linear part alone.
        """

        def leaf(resolved: ResolvedLayer) -> Step:
            return lambda found: self._behind(resolved, part, found)

        return fold(self.tree, leaf, _chain, _add)(Amplitude(x, x))

    def _behind(self, resolved: ResolvedLayer, part: Part, found: Amplitude) -> Amplitude:
        layer = resolved.layer
        if layer.mixes_channels:
            every, single = self._convolved(resolved, found)
        else:
            scale, shift = _diagonal(resolved, self.load)
            every, single = found.every * scale, found.single * scale
            if part == "affine":
                every = every + shift
        if part == "affine" and "bias" in resolved.parameters:
            bias = stored_values(resolved.parameters["bias"].keys, self.load)
            every = every + bias.abs().flatten()
        return Amplitude(every, single)

    def _convolved(self, resolved: ResolvedLayer, found: Amplitude) -> tuple[Tensor, Tensor]:
        keys, groups = resolved.parameters["weight"].keys, resolved.geometry.groups
        if keys not in self._kept:
            weight = stored_values(keys, self.load)
            if resolved.layer.takes_channels_first:
                weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
            self._kept[keys] = _norms(weight)
        total, largest = self._kept[keys]
        single = torch.minimum(
            _grouped(total, groups, found.single), _grouped(largest, groups, found.every)
        )
        return _grouped(total, groups, found.every), single


def _chain(links: Sequence[Step]) -> Step:
    return lambda found: reduce(lambda so_far, link: link(so_far), links, found)


def _add(branches: Sequence[Step]) -> Step:
    def run(found: Amplitude) -> Amplitude:
        first, *rest = (branch(found) for branch in branches)
        return Amplitude(
            sum((one.every for one in rest), first.every),
            sum((one.single for one in rest), first.single),
        )

    return run


def _diagonal(
    resolved: ResolvedLayer, load: Callable[[str], Tensor]
) -> tuple[Tensor | float, Tensor | float]:
    """What a layer that keeps channels apart multiplies by and adds, but for a bias."""
    layer = resolved.layer
    stored = {role: stored_values(p.keys, load) for role, p in resolved.parameters.items()}
    values = {role: tensor.flatten() for role, tensor in stored.items()}
    weight = values["weight"].abs() if "weight" in values else 1.0
    if isinstance(layer, BatchNormLayer):
        scale = (values["running_var"] + layer.eps).rsqrt() * weight
        return scale, values["running_mean"].abs() * scale
    if isinstance(layer, ScaleLayer):
        return abs(layer.factor) * weight, abs(layer.shift)
    return 1.0, 0.0  # pads, identities, and pools, whose taps add up to one


def _norms(weight: Tensor) -> Norms:
    """Sum and largest of the absolute values of (out_channels, in_channels / groups, *taps)."""
    rows = max(1, _CHUNK // weight[0].numel())
    found: list[Norms] = []
    for part in weight.split(rows):
        sizes = part.abs().reshape(*part.shape[:2], -1)
        found.append((sizes.sum(2), sizes.amax(2)))
    total, largest = (torch.cat(norms) for norms in zip(*found, strict=True))
    return total, largest


def _grouped(matrix: Tensor, groups: int, x: Tensor) -> Tensor:
    """A matrix (out_channels, in_channels / groups) on (batch, in_channels)."""
    if groups == 1:
        return x @ matrix.T
    parts = x.unflatten(1, (groups, -1)).transpose(0, 1)  # (groups, batch, in / groups)
    return (parts @ matrix.unflatten(0, (groups, -1)).mT).transpose(0, 1).flatten(1)
