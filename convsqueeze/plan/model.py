"""What a plan is: the merges that will be done, their geometry and cost. Holds no tensor data."""

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch

from convsqueeze.algebra.border import Leak
from convsqueeze.algebra.border_taps import AxisTaps, axis_taps
from convsqueeze.algebra.corrections import BORDER, Corrections
from convsqueeze.algebra.geometry import Geometry
from convsqueeze.algebra.tree import Chain, Sum, Tree, leaves, mapped
from convsqueeze.manifest import Border, Manifest
from convsqueeze.plan.resolve import ResolvedLayer

Growth = Literal["refuse", "skip", "allow"]


@dataclass(frozen=True)
class Merge:
    """One merge that will be done: layers, result, cost.

    `macs_*` count multiplications for one image of `size`; `leaks` is empty where the plain
    convolution is exact at every pixel. `corrections` are what makes it exact where it is not,
    None where nothing is to be done or the policy is `interior`.
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
    corrections: Corrections | None = None

    @property
    def layers(self) -> tuple[ResolvedLayer, ...]:
        return tuple(leaves(self.tree))

    @property
    def geometry_tree(self) -> Tree[Geometry]:
        return geometry_tree(self.tree)

    @property
    def border_taps(self) -> tuple[AxisTaps, ...]:
        """What the taps of `corrections` are sums of, for each axis."""
        return axis_taps(self.geometry_tree, self.input_size)

    @property
    def border(self) -> Border:
        if self.corrections is not None:
            return "corrected"
        return "interior" if self.leaks else "exact"

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Full name and shape of everything that the merge stores; weights as in `Geometry`."""
        shapes = {f"{self.into}.weight": self.geometry.weight_shape}
        if self.geometry.bias:
            shapes[f"{self.into}.bias"] = (self.geometry.out_channels,)
        if self.corrections is not None:
            terms = self.corrections.shapes(self.geometry)
            shapes |= {f"{self.into}.{BORDER}.{name}": shape for name, shape in terms.items()}
        return shapes

    @property
    def weights_after(self) -> int:
        return sum(prod(shape) for shape in self.tensors.values())

    @property
    def macs_before(self) -> int:
        return _macs(self.tree, self.size)[0]

    @property
    def macs_after(self) -> int:
        return self.geometry.macs(self.size) + self.border_macs

    @property
    def border_macs(self) -> int:
        """Multiplications for the corrections alone."""
        return 0 if self.corrections is None else self.corrections.macs(self.geometry, self.size)


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
    return mapped(tree, lambda leaf: leaf.geometry)


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
