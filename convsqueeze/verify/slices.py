"""The same layers with fewer channels: some groups of the merged layer, one input of each group.

Groups of a merged layer never meet, on any layer's way, so that some can be run without the others.
An input channel alone goes through a slice of the first layer and of the squeezed one. Slices are
of stored tensors, before anything is converted; where layers do not allow one they are run whole.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from convsqueeze.algebra.border.corrections import BORDER
from convsqueeze.algebra.geometry import Geometry
from convsqueeze.algebra.tree import Chain, Sum, Tree, leaves, mapped
from convsqueeze.module import SqueezedConv
from convsqueeze.plan import Merge, ResolvedLayer
from convsqueeze.recipe import RecipeLayer
from convsqueeze.verify.reference import Part, Run, reference

Load = Callable[[str], Tensor]


@dataclass(frozen=True, eq=False)
class Cut:
    """Original layers and the geometry of what they make, with the `channels` of its outputs."""

    tree: Tree[ResolvedLayer]
    load: Load
    geometry: Geometry
    channels: Sequence[int]
    groups: Tensor | None = None

    def tensors_of(self, module: SqueezedConv) -> tuple[RecipeLayer, dict[str, Tensor]]:
        """The squeezed layer's part, as `layer_of` takes it."""
        tensors = {name: tensor.detach() for name, tensor in module.named_parameters()}
        return self.cut(module.layer, tensors)

    def cut(
        self, layer: RecipeLayer, tensors: Mapping[str, Tensor]
    ) -> tuple[RecipeLayer, dict[str, Tensor]]:
        """The part of a squeezed layer whose tensors, by name within it, are as they are stored."""
        if self.groups is None:
            return layer, dict(tensors)
        cut = layer.model_copy(update={"groups": len(self.groups)})
        return cut, {name: _rows(t, layer.groups, self.groups) for name, t in tensors.items()}

    @property
    def per_group(self) -> int:
        return self.geometry.in_channels // self.geometry.groups

    @cached_property
    def _head(self) -> ResolvedLayer | None:
        """The layer that takes the input, if its input channels can be sliced."""
        head = self.tree
        while isinstance(head, Chain):
            head = head.links[0]
        if isinstance(head, Sum) or not head.layer.mixes_channels:
            return None
        weight = head.parameters["weight"]
        used = [key for leaf in leaves(self.tree) for key in leaf.keys]
        alone = not weight.is_weight_norm and used.count(weight.keys[0]) == 1
        return head if alone and head.geometry.groups == self.geometry.groups else None

    def of_input(self, channel: int, part: Part) -> Run:
        """The layers for an input (batch, groups, *size) that is this channel of every group, the
        others being zero.
        """
        groups, per_group, head = self.geometry.groups, self.per_group, self._head
        if head is None:
            whole = reference(self.tree, self.load, part)

            def spread(x: Tensor) -> Tensor:
                full = x.new_zeros(x.shape[0], groups * per_group, *x.shape[2:])
                full[:, channel::per_group] = x
                return whole(full)

            return spread
        key, is_transposed = head.parameters["weight"].keys[0], _is_transposed(head)

        def load(name: str) -> Tensor:
            tensor = self.load(name)
            return _one_input(tensor, groups, channel, is_transposed) if name == key else tensor

        return reference(self.tree, load, part)


def of_all(merge: Merge, load: Load) -> Cut:
    """Every channel."""
    return Cut(merge.tree, load, merge.geometry, range(merge.geometry.out_channels))


def of_groups(merge: Merge, load: Load, groups: Tensor) -> Cut | None:
    """Some groups of the merged layer, all of whose layers have them; None where one has not."""
    all_groups = merge.geometry.groups
    if any(p.is_weight_norm for leaf in merge.layers for p in leaf.parameters.values()):
        return None
    channels = torch.arange(merge.geometry.out_channels).unflatten(0, (all_groups, -1))
    return Cut(
        mapped(merge.tree, lambda leaf: _fewer(leaf, all_groups, len(groups))),
        lambda name: _rows(load(name), all_groups, groups),
        _fewer_channels(merge.geometry, all_groups, len(groups)),
        channels[groups].flatten().tolist(),
        groups,
    )


def _fewer(leaf: ResolvedLayer, groups: int, fewer: int) -> ResolvedLayer:
    geometry, layer = _fewer_channels(leaf.geometry, groups, fewer), leaf.layer
    if "groups" in type(layer).model_fields:
        layer = layer.model_copy(update={"groups": geometry.groups})
    return replace(leaf, geometry=geometry, layer=layer)


def _fewer_channels(geometry: Geometry, groups: int, fewer: int) -> Geometry:
    return replace(
        geometry,
        in_channels=geometry.in_channels // groups * fewer,
        out_channels=geometry.out_channels // groups * fewer,
        groups=geometry.groups // groups * fewer,
    )


def _rows(tensor: Tensor, groups: int, chosen: Tensor) -> Tensor:
    """What belongs to the chosen groups; one number for all channels belongs to each."""
    dim = next((dim for dim, size in enumerate(tensor.shape) if size > 1), None)
    if dim is None or tensor.shape[dim] % groups:
        return tensor
    parts, index = tensor.unflatten(dim, (groups, -1)), chosen.to(tensor.device)
    return parts.index_select(dim, index).flatten(dim, dim + 1)


def _is_transposed(leaf: ResolvedLayer) -> bool:
    return leaf.layer.takes_channels_first


def _one_input(weight: Tensor, groups: int, channel: int, is_transposed: bool) -> Tensor:
    """A stored weight's part for one input channel of every group."""
    if is_transposed:
        return weight.unflatten(0, (groups, -1))[:, channel]
    return weight[:, channel : channel + 1]


def input_of(layer: RecipeLayer, tensors: Mapping[str, Tensor], channel: int) -> dict[str, Tensor]:
    """A squeezed layer's stored tensors for one input channel of every group."""
    found = dict(tensors)
    for name in found:
        if name.endswith("weight"):
            is_transposed = layer.kind == "conv_transpose" and name == "weight"
            found[name] = _one_input(found[name], layer.groups, channel, is_transposed)
    return found


def summed_inputs(layer: RecipeLayer, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A squeezed layer's tensors with the absolute values of all inputs of a group added up, for
    one input channel of every group.
    """
    found = {name: tensor.abs() for name, tensor in tensors.items() if name.endswith("bias")}
    for name in tensors.keys() - found.keys():
        weight = tensors[name]
        if layer.kind == "conv_transpose" and name == "weight":
            found[name] = torch.linalg.vector_norm(
                weight.unflatten(0, (layer.groups, -1)), 1, dim=1
            )
        else:
            found[name] = torch.linalg.vector_norm(weight, 1, dim=1, keepdim=True)
    return found


def layer_of(
    layer: RecipeLayer, tensors: Mapping[str, Tensor], *, signs: bool = True
) -> SqueezedConv:
    """A squeezed layer of these tensors, by name within it. Raises GeometryError."""
    inside = f"{BORDER}."
    border = {n.removeprefix(inside): t for n, t in tensors.items() if n.startswith(inside)}
    module = SqueezedConv(layer, tensors["weight"], tensors.get("bias"), border, signs=signs)
    return module.requires_grad_(False)
