"""The same merge with some of its groups, where there are so many that to run all takes long.

Groups of a merged layer never meet, on any layer's way, so that some can be run without the others;
torch convolves groups in float64 one after the other. The numbers are looked at in all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from convsqueeze.algebra.geometry import Geometry
from convsqueeze.algebra.tree import counted
from convsqueeze.graph import Region
from convsqueeze.module import SqueezedConv
from convsqueeze.plan import Merge, ResolvedLayer
from convsqueeze.verify.probes import Size
from convsqueeze.verify.reference import Load

LEAST = 16
"""So many groups are always run."""
MOST_WORK = 40_000_000
"""Multiplications for which more of them are: some 40 ms."""
_CALL = 13_000
"""What one convolution takes for a group, in multiplications, beside those that it does."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Some groups of a merge, by number."""

    merge: Merge
    chosen: Tensor

    @property
    def channels(self) -> Sequence[int]:
        """The output channels that belong to them."""
        every = torch.arange(self.merge.geometry.out_channels)
        found: list[int] = self._own(every).tolist()
        return found

    @property
    def part(self) -> Merge:
        """The merge of these groups alone; its tensors are those of `load`."""
        layers = {leaf.name: self._fewer(leaf) for leaf in self.merge.layers}
        region = cast("Region[ResolvedLayer]", self.merge.request.region.with_layers(layers))
        geometry = self._fewer_channels(self.merge.geometry)
        request = replace(self.merge.request, region=region)
        return replace(self.merge, request=request, geometry=geometry)

    def load(self, load: Load) -> Load:
        return lambda name: self._own(load(name))

    def values(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of tensors laid out as they are stored, what belongs to these groups."""
        return {name: self._own(tensor) for name, tensor in values.items()}

    def module(self, module: SqueezedConv) -> SqueezedConv:
        layer = module.layer.model_copy(update={"groups": len(self.chosen)})
        stored = {name: tensor.detach() for name, tensor in module.named_parameters()}
        return SqueezedConv.of(layer, self.values(stored)).requires_grad_(False)

    def _own(self, tensor: Tensor) -> Tensor:
        """What belongs to the groups; one number for all channels belongs to each."""
        groups = self.merge.geometry.groups
        dim = next((dim for dim, n in enumerate(tensor.shape) if n > 1), None)
        if dim is None or tensor.shape[dim] % groups:
            return tensor
        kept = tensor.unflatten(dim, (groups, -1)).index_select(dim, self.chosen.to(tensor.device))
        return kept.flatten(dim, dim + 1)

    def _fewer(self, leaf: ResolvedLayer) -> ResolvedLayer:
        geometry, layer = self._fewer_channels(leaf.geometry), leaf.layer
        if hasattr(layer, "groups"):
            layer = layer.model_copy(update={"groups": geometry.groups})
        return replace(leaf, geometry=geometry, layer=layer)

    def _fewer_channels(self, geometry: Geometry) -> Geometry:
        """Every layer has a multiple of the merged layer's groups."""
        groups, fewer = self.merge.geometry.groups, len(self.chosen)
        return replace(
            geometry,
            in_channels=geometry.in_channels // groups * fewer,
            out_channels=geometry.out_channels // groups * fewer,
            groups=geometry.groups // groups * fewer,
        )


def some_groups(merge: Merge, sizes: Sequence[Size], generator: torch.Generator) -> Groups | None:
    """Groups to run on images of these sizes: at random, or None for all of them."""
    groups = merge.geometry.groups
    count = _count(merge, sizes)
    if count >= groups or any(
        p.is_weight_norm for x in merge.layers for p in x.parameters.values()
    ):
        return None
    return Groups(merge, torch.randperm(groups, generator=generator)[:count].sort().values)


def share_run(merge: Merge, sizes: Sequence[Size]) -> float:
    """The share of the groups that are run."""
    return min(1.0, _count(merge, sizes) / merge.geometry.groups)


def _count(merge: Merge, sizes: Sequence[Size]) -> int:
    return max(LEAST, MOST_WORK * merge.geometry.groups // _work(merge, sizes))


def _work(merge: Merge, sizes: Sequence[Size]) -> int:
    """Multiplications of the layers and of the merged one, once each for values and for bounds."""
    tree, found = merge.geometry_tree, merge.corrections
    strips = sum(2 ** len(subset) for subset in found.subsets) if found else 0  # ends of each axis
    calls = _CALL * merge.geometry.groups * (len(merge.layers) + 1 + strips)
    total = calls
    for size in sizes:
        macs, _ = counted(tree, size, lambda leaf, n: (leaf.macs(n), leaf.output_size(n)))
        added = found.macs(merge.geometry, size) if found else 0
        total += macs + merge.geometry.macs(size) + added + calls
    return 2 * total
