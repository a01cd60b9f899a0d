"""The original layers, run one after the other with torch's own functional ops in float64.

Written from torch's documentation and apart from the algebra, so that the two can disagree. Knows
the manifest's layers and their stored tensors, nothing of merging.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from math import prod
from typing import Literal, TypeVar

import torch
from torch import Tensor

from convsqueeze.algebra.tree import Tree, fold, leaves
from convsqueeze.plan import ResolvedLayer

Load = Callable[[str], Tensor]
"""Gives a stored tensor by its name."""
Run = Callable[[Tensor], Tensor]
Part = Literal["affine", "linear"]
Leaf = TypeVar("Leaf")


def reference(
    tree: Tree[ResolvedLayer], load: Load, part: Part = "affine", *, magnitude: bool = False
) -> Run:
    """The layers of `tree` as one function of a float64 input (batch, channels, *size).

    `part`: the whole `affine` function, or its `linear` part (no biases, shifts or means).
    `magnitude`: the same sums over absolute values, which bounds what rounding can do to them.
    """
    known: dict[int, Callable[[Tensor], Tensor]] = {}

    def run(resolved: ResolvedLayer, x: Tensor) -> Tensor:
        if id(resolved) not in known:
            layer, tensors = resolved.layer, stored_tensors(resolved, load)
            if part == "linear":
                layer, tensors = layer.linear_part(tensors)
            if magnitude:
                layer, tensors = layer.magnitudes(tensors)
            known[id(resolved)] = partial(layer.run, tensors=tensors)
        return known[id(resolved)](x)

    return run_of_tree(tree, run)


def run_of_tree(
    tree: Tree[Leaf], run: Callable[[Leaf, Tensor], Tensor], *, backwards: bool = False
) -> Run:
    """One function of what `run` gives for each leaf: chains in order, or `backwards`, sums added
    up.
    """

    def chain(links: Sequence[Run]) -> Run:
        return lambda x: reduce(lambda y, link: link(y), links[::-1] if backwards else links, x)

    def add(branches: Sequence[Run]) -> Run:
        return lambda x: reduce(torch.add, [branch(x) for branch in branches])

    return fold(tree, lambda leaf: lambda x: run(leaf, x), chain, add)


def stored_tensors(resolved: ResolvedLayer, load: Load) -> Mapping[str, Tensor]:
    """A layer's parameters in float64, by role."""
    return {role: stored_values(p.keys, load) for role, p in resolved.parameters.items()}


def stored_values(keys: Sequence[str], load: Load) -> Tensor:
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


def term_count(tree: Tree[ResolvedLayer]) -> int:
    """How many products one output of the original layers and of their merge adds up, at most."""
    return sum(map(_terms, leaves(tree)))


def _terms(leaf: ResolvedLayer) -> int:
    weight = leaf.parameters.get("weight")
    norms = prod(weight.shape[1:]) if weight is not None and weight.is_weight_norm else 0
    return prod(leaf.geometry.weight_shape[1:]) + norms + 8
