"""What a plan is: the merges that will be done, their geometry and cost. Holds no tensor data."""

from dataclasses import dataclass
from typing import Literal

import torch

from convsqueeze.algebra.border import Leak
from convsqueeze.algebra.geometry import Geometry
from convsqueeze.algebra.tree import Chain, Sum, Tree, leaves
from convsqueeze.manifest import Border, Manifest
from convsqueeze.plan.resolve import ResolvedLayer

Growth = Literal["refuse", "skip", "allow"]


@dataclass(frozen=True)
class Merge:
    """One merge that will be done: layers, result, cost.

    `macs_*` count multiplications for one image of `size`; `leaks` is empty where the plain
    convolution is exact at every pixel.
    """

    place: str
    into: str
    tree: Tree[ResolvedLayer]
    geometry: Geometry
    leaks: tuple[Leak, ...]
    input_size: tuple[int, ...] | None
    dtype: torch.dtype
    consumed: tuple[str, ...]
    weights_before: int
    size: tuple[int, ...]

    @property
    def layers(self) -> tuple[ResolvedLayer, ...]:
        return tuple(leaves(self.tree))

    @property
    def geometry_tree(self) -> Tree[Geometry]:
        return geometry_tree(self.tree)

    @property
    def border(self) -> Border:
        return "interior" if self.leaks else "exact"

    @property
    def weights_after(self) -> int:
        return self.geometry.weights

    @property
    def macs_before(self) -> int:
        return _macs(self.tree, self.size)[0]

    @property
    def macs_after(self) -> int:
        return self.geometry.macs(self.size)


@dataclass(frozen=True)
class Plan:
    """What merging a checkpoint by a manifest will do."""

    manifest: Manifest
    merges: tuple[Merge, ...]
    notes: tuple[str, ...] = ()

    @property
    def weights_before(self) -> int:
        return sum(merge.weights_before for merge in self.merges)

    @property
    def weights_after(self) -> int:
        return sum(merge.weights_after for merge in self.merges)


def geometry_tree(tree: Tree[ResolvedLayer]) -> Tree[Geometry]:
    """The same tree with only the geometry of each layer."""
    if isinstance(tree, Chain):
        return Chain(tuple(geometry_tree(link) for link in tree.links))
    if isinstance(tree, Sum):
        return Sum(tuple(geometry_tree(branch) for branch in tree.branches))
    return tree.geometry


def _macs(tree: Tree[ResolvedLayer], size: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Multiplications of the original layers on one image of `size`, and the output size."""
    if isinstance(tree, Chain):
        total = 0
        for link in tree.links:
            macs, size = _macs(link, size)
            total += macs
        return total, size
    if isinstance(tree, Sum):
        parts = [_macs(branch, size) for branch in tree.branches]
        return sum(macs for macs, _ in parts), parts[0][1]
    return tree.geometry.macs(size) if tree.parameters else 0, tree.geometry.output_size(size)
