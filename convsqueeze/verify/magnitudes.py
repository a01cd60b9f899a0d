"""How large the products are that each stored number adds up: the merge of absolute values.

Only bounds are made of them (see `comparison`); the values that are verified come from elsewhere.
"""

from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from convsqueeze.algebra.border.corrections import BORDER
from convsqueeze.algebra.border.taps import AxisTaps
from convsqueeze.algebra.border.values import border_terms
from convsqueeze.algebra.chains import Order, cheapest_order
from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import Geometry, compose
from convsqueeze.algebra.sizes import merged
from convsqueeze.algebra.tree import Chain, Sum, Tree, mapped
from convsqueeze.plan import Merge, ResolvedLayer
from convsqueeze.squeezing import composed
from convsqueeze.verify.reference import Load, run_of_tree, stored_tensors, term_count

_LARGEST_SCALE = 2.0**100
"""Beyond which nothing is left of the other channels."""


def magnitudes(
    merge: Merge, load: Load, device: torch.device, inputs: Tensor | None = None
) -> dict[str, Tensor]:
    """For each number that a merge stores the sum of the absolute values of its products, by name
    within the layer as `squeezing.exact_values` gives them, float64.

    With `inputs` (in_channels,) each is multiplied by its input channel's and those of a group are
    added up: weights are (out_channels, 1, *taps).
    """
    convs = mapped(merge.tree, lambda leaf: _absolute(leaf, load).on(device))
    if inputs is not None:
        convs = _summed(convs, inputs, merge.geometry.groups)
    whole = composed(convs)
    found = {"weight": whole.weight}
    if whole.bias is not None:
        found["bias"] = whole.bias
    if merge.corrections is not None:
        terms = border_terms(
            convs, merge.corrections, [_absolute_taps(x) for x in merge.border_taps]
        )
        found |= {f"{BORDER}.{name}": value for name, value in terms.items()}
    return found


def roundings(merge: Merge) -> int:
    """How many roundings one product meets at most, on the way through the layers or into a merged
    number, whichever are more: those of every sum that it is a part of.
    """
    return term_count(merge.tree) + _composing(merge.geometry_tree)[0]


def _composing(tree: Tree[Geometry]) -> tuple[int, Geometry]:
    """What composing in the order that is taken adds up beyond what the layers do themselves."""
    if isinstance(tree, Sum):
        return sum(_composing(branch)[0] for branch in tree.branches), merged(tree)
    if not isinstance(tree, Chain):
        return 0, tree
    inside, links = zip(*map(_composing, tree.links), strict=True)

    def more(order: Order) -> tuple[int, Geometry]:
        if isinstance(order, int):
            return inside[order], links[order]
        (before, inner), (behind, outer) = more(order[0]), more(order[1])
        extra = 0 if isinstance(order[1], int) else prod(outer.weight_shape[1:])
        return before + behind + extra, compose(outer, inner)

    return more(cheapest_order(links))


def input_scales(merge: Merge, load: Load, device: torch.device) -> Tensor:
    """How large each input channel has to be for it not to be lost beside the others, and one where
    it would not be: (in_channels,), float64, on the CPU.

    A channel's part of an output is what goes through it, in absolute values, of all that the
    output adds up; where these parts make less than those of a mean channel together, it is as
    much larger.
    """
    sums = mapped(merge.tree, lambda leaf: _tap_sums(_absolute(leaf, load).on(device)))
    ones = torch.ones(merge.geometry.in_channels, dtype=torch.float64, device=device)
    reached = run_of_tree(sums, _passed)(ones)
    shares = torch.where(reached > 0, 1 / reached, 0.0)
    parts = run_of_tree(sums, lambda matrices, x: _passed(matrices.mT, x), backwards=True)(
        shares
    ).cpu()
    mean = parts.mean()  # infinite where layers undo what others make too small for float64
    known = (parts > 0) & mean.isfinite()
    return torch.where(known, (mean / parts).clamp(1.0, _LARGEST_SCALE), 1.0)


def _passed(matrices: Tensor, x: Tensor) -> Tensor:
    """What one number for each channel becomes, group by group."""
    return (matrices @ x.reshape(len(matrices), -1, 1)).flatten()


def _tap_sums(conv: Conv) -> Tensor:
    """(groups, out_channels / groups, in_channels / groups)."""
    taps = conv.weight.reshape(*conv.weight.shape[:2], -1)
    return taps.sum(2).unflatten(0, (conv.groups, -1))


def _absolute(leaf: ResolvedLayer, load: Load) -> Conv:
    """A layer of absolute values: none of what its operator holds is below zero."""
    layer, tensors = leaf.layer.magnitudes(stored_tensors(leaf, load))
    return layer.operator(tensors, len(leaf.geometry.axes), leaf.geometry.in_channels)


def _summed(convs: Tree[Conv], inputs: Tensor, groups: int) -> Tree[Conv]:
    """The tree for one input channel a group, with the first weights of the others added to it."""
    if isinstance(convs, Chain):
        first, *rest = convs.links
        return Chain((_summed(first, inputs, groups), *rest))
    if isinstance(convs, Sum):
        return Sum(tuple(_summed(branch, inputs, groups) for branch in convs.branches))
    shape = (convs.groups, 1, -1, *(1,) * len(convs.axes))
    weight = convs.weight.unflatten(0, (convs.groups, -1)) * inputs.reshape(shape)
    return replace(convs, weight=weight.sum(2, keepdim=True).flatten(0, 1), groups=groups)


def _absolute_taps(axis: AxisTaps) -> AxisTaps:
    sums = ("kernel", "border", "bias", "border_bias")
    return replace(axis, **{name: getattr(axis, name).abs() for name in sums})
