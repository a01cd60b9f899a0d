"""The values of border terms: sums over combinations of taps, in float64.

For a chain of layers and, on each axis, some sums of combinations (rows of `taps.AxisTaps`),

    term[t0, t1, ...] = sum over c0, c1, ... of V0[t0, c0] V1[t1, c1] ... wL[...] @ ... @ w1[...]

where the combinations `c0, c1, ...` choose one tap of each layer on each axis. The last layer is
taken apart tap by tap; what is left of each sum is one over the layers before it, of which only
those that differ are computed. With the sums of a merged kernel this would be the merged kernel.
Values are computed on the layers' device; which sums there are is found on the CPU.
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from math import gcd

import torch
from torch import Tensor

from convsqueeze.algebra.border.corrections import Absent, Corrections, Subset, term_name
from convsqueeze.algebra.border.taps import AxisTaps
from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import Axis
from convsqueeze.algebra.groups import cells, joined, regrouped
from convsqueeze.algebra.products import summed_products
from convsqueeze.algebra.sizes import merged
from convsqueeze.algebra.tree import Step, Tree, mapped, paths

Sums = Sequence[Tensor]
"""For each axis the sums that are wanted: factors, float64 (sums, combinations)."""


def border_terms(
    tree: Tree[Conv], found: Corrections, taps: Sequence[AxisTaps]
) -> dict[str, Tensor]:
    """Every tensor that the corrections store, by the names of `Corrections.shapes`, float64."""
    geometry = merged(mapped(tree, lambda conv: conv.geometry))
    shapes = found.shapes(geometry)
    terms = {}
    for subset in found.subsets:
        for role, values in (("weight", border_weight), ("bias", border_bias)):
            name = term_name(subset, role)
            if name in shapes:
                terms[name] = values(tree, found, taps, subset)
    return terms


def border_weight(
    tree: Tree[Conv], found: Corrections, taps: Sequence[AxisTaps], subset: Subset
) -> Tensor:
    """The stored weights of the borders of a set of axes, float64.

    (out_channels, in_channels / groups, *found.grid); where that has places that are zero for any
    weights they are left out, and the last dimension counts the others.
    """
    sums = [axis.border if x in subset else axis.kernel for x, axis in enumerate(taps)]
    ways = paths(tree)
    groups = reduce(gcd, (conv.groups for way in ways for conv, _ in way))
    term: Tensor | None = None
    for way, part in zip(ways, _parts(sums, [axis.widths for axis in taps]), strict=True):
        one = regrouped(*_of_chain([conv for conv, _ in way], part), groups)
        term = one if term is None else term + one
    return _without(term, found.absent, subset, len(taps))


def border_bias(
    tree: Tree[Conv], found: Corrections, taps: Sequence[AxisTaps], subset: Subset
) -> Tensor:
    """The stored biases of the borders of a set of axes, float64 (out_channels, *bias_grid), with
    places left out as in `border_weight`.
    """
    sums = [axis.border_bias if x in subset else axis.bias for x, axis in enumerate(taps)]
    parts = _parts(sums, [axis.bias_widths for axis in taps])
    term: Tensor | None = None
    for (bias, behind), part in zip(_biased(paths(tree)), parts, strict=True):
        one = _carried(bias, behind, part)
        term = one if term is None else term + one
    return _without(term, found.absent_biases, subset, len(taps))


def _parts(sums: Sums, widths: Sequence[Sequence[int]]) -> Iterator[list[Tensor]]:
    """The columns of each part, on every axis."""
    split = [axis.split(tuple(width), 1) for axis, width in zip(sums, widths, strict=True)]
    return (list(part) for part in zip(*split, strict=True))


def _biased(ways: Sequence[Sequence[Step[Conv]]]) -> Iterator[tuple[Tensor, list[Conv]]]:
    """Each bias that counts, and the layers behind it, in the order of `trace.reads`."""
    for way in ways:
        for place, (conv, counts) in enumerate(way):
            if counts and conv.bias is not None:
                yield conv.bias.double(), [behind for behind, _ in way[place + 1 :]]


def _carried(bias: Tensor, behind: Sequence[Conv], sums: Sums) -> Tensor:
    """A bias through the layers behind it: (out_channels, *sums)."""
    if not behind:
        constant = bias
        for factors in sums:
            constant = constant.unsqueeze(-1) * factors.to(bias.device).flatten()
        return constant
    source = Conv(bias.reshape(-1, 1, *(1,) * len(sums)), None, (Axis(),) * len(sums))
    weight, groups = _of_chain([source, *behind], sums)
    return regrouped(weight, groups, 1).squeeze(1)


def _without(term: Tensor | None, absent: Absent, subset: Subset, rank: int) -> Tensor:
    """The term without the places where it is zero for any weights."""
    if term is None:
        raise ValueError("a border term needs at least one chain")
    places = dict(absent).get(subset)
    if not places:
        return term
    flat = term.flatten(term.ndim - rank)
    kept = sorted(set(range(flat.shape[-1])) - set(places))
    return flat[..., kept]


def _of_chain(chain: Sequence[Conv], sums: Sums) -> tuple[Tensor, int]:
    """The term of one chain: (out_channels, in_channels / groups, *sums), and its groups."""
    *before, last = chain
    if not before:
        weight = last.weight.double()
        for factors in sums:
            # the axis goes to the end
            weight = torch.tensordot(weight, factors.to(weight.device), dims=([2], [1]))
        return weight, last.groups
    rests, tables = zip(
        *(
            _behind(factors, taps)
            for factors, taps in zip(sums, last.weight.shape[2:], strict=True)
        ),
        strict=True,
    )
    inner, inner_groups = _of_chain(before, rests)
    first, second = cells(last.weight, last.groups, inner, inner_groups)
    term = summed_products(second, first, tables)
    return joined(term, last.groups, inner_groups), gcd(last.groups, inner_groups)


def _behind(sums: Tensor, taps: int) -> tuple[Tensor, Tensor]:
    """Sums of one axis with the last layer's tap taken out: sums over the layers before it, those
    that differ, and for each tap and whole sum which of them it has, -1 for none: (taps, sums).
    """
    by_tap = sums.unflatten(1, (taps, -1))
    table = torch.full(by_tap.shape[:2], -1)
    there = by_tap.any(2)
    distinct, inverse = torch.unique(by_tap[there], dim=0, return_inverse=True)
    table[there] = inverse
    return distinct, table.T
