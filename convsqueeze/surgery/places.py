"""Which module of a model takes a merged layer, and what the other merged modules must do then.

Which module may be silenced follows from the shape of the merge: in a chain the other layers pass
their input on, in a sum the other branches add nothing.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic

from torch import Tensor, nn

from convsqueeze.algebra.tree import Chain, Leaf, Sum, Tree, leaves
from convsqueeze.manifest import IdentityLayer
from convsqueeze.plan import Merge, ResolvedLayer


@dataclass(frozen=True)
class Silenced(Generic[Leaf]):
    """A module that did a part of a merge: now it passes its input on, or else adds nothing.

    `before` are the parts in front of it that pass what its branch takes.
    """

    name: str
    passes: bool
    tree: Tree[Leaf]
    before: tuple[Tree[Leaf], ...] = ()

    @property
    def branch(self) -> Chain[Leaf]:
        """All that it stands for."""
        return Chain((*self.before, self.tree))


@dataclass(frozen=True)
class Placement(Generic[Leaf]):
    """The module that takes the merged layer, and those that fall silent.

    `into` is "" where it is none of those that did the merge.
    """

    into: str
    silenced: tuple[Silenced[Leaf], ...]


@dataclass(frozen=True)
class Modules(Generic[Leaf]):
    """What is known of a model: `unit` gives the module that does a part of a merge and nothing
    else, `is_identity` says that a leaf is a skip in the model's own code, and `may_take` whether a
    module may take the merged layer.
    """

    unit: Callable[[Tree[Leaf]], str | None]
    is_identity: Callable[[Leaf], bool]
    may_take: Callable[[str], bool] = lambda name: True


def placement(tree: Tree[Leaf], modules: Modules[Leaf]) -> Placement[Leaf] | None:
    """Where a merge goes in a model, its first layers preferred; None where its code would go on
    doing a part of the merge.
    """
    if isinstance(tree, Chain | Sum):
        for index, part in enumerate(_parts(tree)):
            inside = placement(part, modules)
            if inside is None:
                continue
            silent = _others_silenced(tree, index, modules)
            if silent is not None:
                return Placement(inside.into, (*inside.silenced, *silent))
    unit = modules.unit(tree)
    return Placement(unit, ()) if unit and modules.may_take(unit) else None


def silenced(
    tree: Tree[Leaf],
    modules: Modules[Leaf],
    *,
    passes: bool,
    before: tuple[Tree[Leaf], ...] = (),
) -> tuple[Silenced[Leaf], ...] | None:
    """The modules of a part of a merge that passes its input on, or adds nothing; None where its
    code does some of it. `before` passes its input on in front of it.
    """
    found: tuple[Silenced[Leaf], ...] | None = None
    if isinstance(tree, Chain):
        found = _links_silenced(tree, modules, passes, before)
    elif isinstance(tree, Sum) and passes:
        found = _one_passes(tree, modules)
    elif isinstance(tree, Sum):
        found = _together(
            silenced(way, modules, passes=False, before=before) for way in tree.branches
        )
    elif passes and modules.is_identity(tree):
        return ()
    if found is None and (unit := modules.unit(tree)):
        return (Silenced(unit, passes, tree, before),)
    return found


def _links_silenced(
    chain: Chain[Leaf], modules: Modules[Leaf], passes: bool, before: tuple[Tree[Leaf], ...]
) -> tuple[Silenced[Leaf], ...] | None:
    last = len(chain.links) - 1
    return _together(
        silenced(
            link, modules, passes=passes or index < last, before=(*before, *chain.links[:index])
        )
        for index, link in enumerate(chain.links)
    )


def _others_silenced(
    tree: Chain[Leaf] | Sum[Leaf], index: int, modules: Modules[Leaf]
) -> tuple[Silenced[Leaf], ...] | None:
    """All parts but one: the other links pass, the other branches add nothing."""
    passes = isinstance(tree, Chain)
    return _together(
        silenced(part, modules, passes=passes)
        for number, part in enumerate(_parts(tree))
        if number != index
    )


def _one_passes(tree: Sum[Leaf], modules: Modules[Leaf]) -> tuple[Silenced[Leaf], ...] | None:
    """One branch, a skip in the model's code where there is one, passes; the others add nothing."""
    skips = [i for i, way in enumerate(tree.branches) if _is_skip(way, modules)]
    for index in (*skips, *range(len(tree.branches))):
        others = _others_silenced(tree, index, modules)
        one = silenced(tree.branches[index], modules, passes=True)
        if one is not None and others is not None:
            return (*one, *others)
    return None


def _is_skip(tree: Tree[Leaf], modules: Modules[Leaf]) -> bool:
    return all(modules.is_identity(leaf) for leaf in leaves(tree))


def _together(
    found: Iterator[tuple[Silenced[Leaf], ...] | None],
) -> tuple[Silenced[Leaf], ...] | None:
    every: list[Silenced[Leaf]] = []
    for part in found:
        if part is None:
            return None
        every += part
    return tuple(every)


def _parts(tree: Chain[Leaf] | Sum[Leaf]) -> tuple[Tree[Leaf], ...]:
    return tree.links if isinstance(tree, Chain) else tree.branches


def placement_in(model: nn.Module, prefix: str, merge: Merge) -> Placement[ResolvedLayer] | None:
    """Where a merge goes in a model whose tensors have a prefix, by the names of its layers."""
    if encloses(merge):
        return Placement(merge.into, ())

    def unit(tree: Tree[ResolvedLayer]) -> str | None:
        if isinstance(tree, Chain | Sum):
            return _enclosing(model, prefix, tree)
        return tree.layer.name

    def is_skip(leaf: ResolvedLayer) -> bool:
        return isinstance(leaf.layer, IdentityLayer)

    modules = Modules(unit, is_skip, lambda name: name == merge.into)
    found = placement(merge.tree, modules)
    if found is not None or _is_within(merge):
        return found
    silent = silenced(merge.tree, modules, passes=True)
    return None if silent is None else Placement("", silent)


def _is_within(merge: Merge) -> bool:
    """Whether the module that is to take the merge belongs to it."""
    return any(key.startswith(f"{merge.into}.") for leaf in merge.layers for key in leaf.keys)


def _enclosing(model: nn.Module, prefix: str, tree: Tree[ResolvedLayer]) -> str | None:
    """The smallest module that holds all tensors of these layers."""
    names = [key.split(".")[:-1] for leaf in leaves(tree) for key in leaf.keys]
    shared: list[str] = []
    for parts in zip(*names, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    name = ".".join(shared)
    return name if name and submodule(model, prefix + name) is not None else None


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
