"""The original layers, run one after the other with torch's own functional ops in float64.

Written from torch's documentation and apart from the algebra, so that the two can disagree. Knows
the manifest's layers and their stored tensors, nothing of merging.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from convsqueeze.algebra.tree import Tree, fold
from convsqueeze.kinds.layer import Tensors
from convsqueeze.plan import ResolvedLayer

Run = Callable[[Tensor], Tensor]
Part = Literal["affine", "linear"]


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
    layer = resolved.layer
    tensors: Tensors = stored_tensors(resolved, load)
    if part == "linear":
        layer, tensors = layer.linear_part(tensors)
    if magnitude:
        layer, tensors = layer.magnitudes(tensors)
    return layer.run(x, tensors)


def stored_tensors(resolved: ResolvedLayer, load: Callable[[str], Tensor]) -> Mapping[str, Tensor]:
    """A layer's parameters in float64, by role."""
    return {role: stored_values(p.keys, load) for role, p in resolved.parameters.items()}


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
