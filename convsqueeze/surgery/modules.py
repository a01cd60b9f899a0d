"""The modules of a model: which does what, by running it, and which has a merge's place."""

from collections.abc import Iterator
from contextlib import suppress

from torch import nn

from convsqueeze.algebra.tree import Chain, Sum, Tree, leaves
from convsqueeze.checkpoint import Checkpoint
from convsqueeze.graph import Placement, placement, replaced_modules
from convsqueeze.hooks import has_hooks
from convsqueeze.plan import Merge, ResolvedLayer
from convsqueeze.surgery.trials import NotRunError, Trials


def placement_in(
    model: nn.Module, own: Checkpoint, merge: Merge, trials: Trials
) -> Placement[ResolvedLayer] | None:
    """Where a merge goes in a model, by the names of its layers; `own` are the model's tensors,
    `trials` run its modules.
    """
    if encloses(merge):
        return Placement(merge.into, ())

    def unit(tree: Tree[ResolvedLayer]) -> str | None:
        if isinstance(tree, Chain | Sum) or tree.layer.name is None:
            return _enclosing(model, own, tree, merge, trials)
        return tree.layer.name

    found = placement(merge.tree, unit, lambda name: name == merge.into)
    if found is not None or _is_within(merge):
        return found
    silent = replaced_modules(merge.tree, unit, passes=True)
    if silent is None or any(f"{merge.into}.".startswith(f"{one.name}.") for one in silent):
        return None
    return Placement("", silent)


def _is_within(merge: Merge) -> bool:
    """Whether the module that is to take the merge belongs to it."""
    return any(key.startswith(f"{merge.into}.") for leaf in merge.layers for key in leaf.keys)


def _enclosing(
    model: nn.Module,
    own: Checkpoint,
    tree: Tree[ResolvedLayer],
    merge: Merge,
    trials: Trials,
) -> str | None:
    """The smallest module that does just what these layers do, and whose tensors all go with a
    merge, if one that holds them does.
    """
    for name in _around(tree):
        module = submodule(model, own.prefix + name)
        stays = any(key.startswith(f"{name}.") and key not in merge.consumed for key in own.tensors)
        if module is None or stays or any(map(has_hooks, module.modules())):
            return None
        with suppress(NotRunError):
            if trials.computes(name, tree):
                return name
    return None


def _around(tree: Tree[ResolvedLayer]) -> Iterator[str]:
    """The smallest module that holds these layers, and those around it: what has no tensors, as a
    pad, may stand there.
    """
    names = [name.split(".") for leaf in leaves(tree) for name in _modules_of(leaf)]
    shared: list[str] = []
    for parts in zip(*names, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    for length in range(len(shared), 0, -1):
        yield ".".join(shared[:length])


def _modules_of(leaf: ResolvedLayer) -> Iterator[str]:
    yield from (key.rpartition(".")[0] for key in leaf.keys)
    if leaf.layer.name is not None and not leaf.keys:
        yield leaf.layer.name


def submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def encloses(merge: Merge) -> bool:
    """Whether the module `into` holds every merged layer, so that replacing it replaces all."""
    inside = f"{merge.into}."
    names = [leaf.layer.name for leaf in merge.layers]
    return (
        all(key.startswith(inside) for leaf in merge.layers for key in leaf.keys)
        and all(name is None or f"{name}.".startswith(inside) for name in names)
        and any(name != merge.into for name in names)
    )
