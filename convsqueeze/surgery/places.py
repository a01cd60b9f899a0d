"""Which modules of a model a merge is about, and what each must do once it is merged.

Which module may be silenced follows from the shape of the merge: in a chain the other layers pass
their input on, in a sum the other branches add nothing.
"""

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from convsqueeze.algebra.tree import Chain, Sum, Tree, leaves
from convsqueeze.manifest import IdentityLayer
from convsqueeze.plan import Merge, ResolvedLayer


def copied(module: nn.Module) -> nn.Module:
    """A deep copy, also of a module that keeps a computed tensor, as the older weight norm does."""
    computed: dict[int, Any] = {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(module, computed)


def submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def encloses(merge: Merge) -> bool:
    """Whether the module `into` holds every merged layer, so that replacing it replaces all."""
    return all(
        key.startswith(f"{merge.into}.") for leaf in merge.layers for key in leaf.keys
    ) and any(leaf.layer.name != merge.into for leaf in merge.layers)


def roles(
    tree: Tree[ResolvedLayer], into: str, keep: bool = True
) -> Iterator[tuple[ResolvedLayer, bool]]:
    """Every layer beside `into`, and whether it must pass its input on (or else add nothing)."""
    if isinstance(tree, Chain):
        kept = [keep] * len(tree.links) if keep else [True] * (len(tree.links) - 1) + [False]
        for link, passes in zip(tree.links, kept, strict=True):
            yield from roles(link, into, passes)
    elif isinstance(tree, Sum):
        chosen = _passing_branch(tree, into) if keep else -1
        for index, branch in enumerate(tree.branches):
            yield from roles(branch, into, index == chosen)
    elif tree.layer.name != into:
        yield tree, keep


def _passing_branch(tree: Sum[ResolvedLayer], into: str) -> int:
    """The branch with `into`; else one that is an identity in the model's code; else the first."""
    for index, branch in enumerate(tree.branches):
        if any(leaf.layer.name == into for leaf in leaves(branch)):
            return index
    for index, branch in enumerate(tree.branches):
        if all(isinstance(leaf.layer, IdentityLayer) for leaf in leaves(branch)):
            return index
    return 0
