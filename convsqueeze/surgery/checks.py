"""Which modules of a model have a merge's place, and what in them stands against it: other layers
than the recipe's, or more than they do.
"""

from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import Tensor, nn

from convsqueeze.algebra.tree import Chain, Sum, Tree, leaves
from convsqueeze.errors import GeometryError
from convsqueeze.graph import Placement, placement, replaced_modules
from convsqueeze.kinds.registry import COMPARED, KINDS
from convsqueeze.plan import Merge, ResolvedLayer
from convsqueeze.surgery.trials import NotRunError, Trials
from convsqueeze.tracing.hooks import has_hooks


def placement_in(merge: Merge, trials: Trials) -> Placement[ResolvedLayer] | None:
    """Where a merge goes in a model whose modules `trials` run, by the names of its layers."""
    if encloses(merge):
        return Placement(merge.into, ())

    def unit(tree: Tree[ResolvedLayer]) -> str | None:
        if isinstance(tree, Chain | Sum) or tree.layer.name is None:
            return _enclosing(tree, merge, trials)
        return tree.layer.name

    found, inside = placement(merge.tree, unit, lambda name: name == merge.into), f"{merge.into}."
    if found is not None or any(key.startswith(inside) for x in merge.layers for key in x.keys):
        return found
    silent = replaced_modules(merge.tree, unit, passes=True)
    if silent is None or any(inside.startswith(f"{one.name}.") for one in silent):
        return None
    return Placement("", silent)


def _enclosing(tree: Tree[ResolvedLayer], merge: Merge, trials: Trials) -> str | None:
    """The smallest module that does just what these layers do, and whose tensors all go with a
    merge, if one that holds them does; around that what has no tensors, as a pad, may stand.
    """
    owners = (
        [key.rpartition(".")[0] for key in leaf.keys] or [leaf.layer.name or ""]
        for leaf in leaves(tree)
        if leaf.keys or leaf.layer.name is not None
    )
    names = [name.split(".") for group in owners for name in group]
    shared: list[str] = []
    for parts in zip(*names, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    for length in range(len(shared), 0, -1):
        name = ".".join(shared[:length])
        module, inside = trials.modules.get(name), f"{name}."
        stays = any(
            k.startswith(inside) and k not in merge.consumed for k in trials.model_state.tensors
        )
        if module is None or stays or any(map(has_hooks, module.modules())):
            return None
        with suppress(NotRunError):
            if trials.computes(name, tree):
                return name
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


def module_problems(
    merge: Merge, place: Placement[ResolvedLayer] | None, trials: Trials
) -> Iterator[str]:
    """What stands against one merge at its place in the model whose modules `trials` run."""
    lost = "has a hook in the model that would be lost. Remove it first."
    named = [(leaf.layer.name, leaf) for leaf in merge.layers if leaf.layer.name is not None]
    for name, leaf in named:
        module = trials.modules.get(name)
        yield from _layer_problems(module, leaf)
        if module is not None and has_hooks(module):
            yield f"{leaf.label}: {lost}"
    yield from _order_problems(merge, trials)
    target = trials.modules.get(merge.into)
    if target is None:
        yield (
            f"{merge.into}: the model has no module of this name to put the squeezed layer in. "
            "Merge into the name of a module that the model calls."
        )
    elif encloses(merge):
        for name, module in target.named_modules(prefix=merge.into):
            if has_hooks(module) and name not in dict(named):
                yield f"{merge.into}: {name} {lost}"
        yield from _beside_problems(target, merge, trials)
    elif place is None:
        unnamed = (leaf.label for leaf in merge.layers if leaf.layer.name is None)
        yield (
            f"{merge.into}: the model's own code does the {next(unnamed, 'rest')} of this merge "
            "and would do it again. Leave it out of the manifest, so that the code goes on doing "
            "it, or merge into a module that does all of this merge and nothing else."
        )
    else:
        whole = [part.name for part in place.replaced if isinstance(part.tree, Chain | Sum)]
        if isinstance(place.tree, Chain | Sum):
            whole.append(place.into)
        for name, leaf in named:
            if not any(f"{name}.".startswith(f"{one}.") for one in whole):
                yield from _forward_problems(name, leaf, trials)


def _layer_problems(module: nn.Module | None, leaf: ResolvedLayer) -> Iterator[str]:
    """Where a module of the model computes something else than the manifest says of it."""
    name, settings = leaf.label, leaf.layer.settings
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        eps = settings.get("eps")
        if eps is None:
            yield f"{name}: is a {type(module).__name__} in the model, not a {leaf.layer.type}."
        elif module.eps != eps:
            yield f"{name}: has eps {module.eps} in the model, {eps} in the recipe."
    elif isinstance(module, nn.modules.conv._ConvNd):
        kind = next((kind for kind in KINDS if isinstance(module, tuple(kind.modules))), None)
        if kind is None:  # it is run
            return
        held = {key: value for key, value in vars(module).items() if not isinstance(value, Tensor)}
        given = {key: held[key] for key in kind.layer.model_fields if key in held}
        weight = torch.empty(module.weight.shape, device="meta")
        try:
            layer = kind.layer.model_validate({"type": kind.name, "name": name, **given})
            axes = layer.operator({"weight": weight}, 0, 0).axes
        except (GeometryError, TypeError, ValueError) as error:
            yield f"{name}: {error}"
            return
        if axes != leaf.geometry.axes or module.groups != leaf.geometry.groups:
            expected = ", ".join(f"{key} {value}" for key, value in settings.items())
            yield (
                f"{name}: is {module} in the model, the recipe merged a {leaf.layer.type} "
                f"with {expected}."
            )


def _order_problems(merge: Merge, trials: Trials) -> Iterator[str]:
    """Children of one Sequential must be merged in its order, with nothing else between them."""
    names = [leaf.layer.name for leaf in merge.layers if leaf.layer.name]
    parents = {name.rpartition(".")[0] for name in names}
    whole = isinstance(merge.tree, Chain) and len(names) == len(merge.layers)
    parent = trials.modules.get(parents.pop()) if len(parents) == 1 else None
    if not whole or not isinstance(parent, nn.Sequential):
        return
    order = [name for name, _ in parent.named_children()]
    tails = [name.rpartition(".")[2] for name in names]
    places = [order.index(tail) for tail in tails if tail in order]
    if places != sorted(places):
        yield f"{merge.into}: the model runs {', '.join(names)} in another order than the recipe."
        return
    for place in range(places[0], places[-1]) if places else ():
        between = parent[place]
        if place not in places and not isinstance(between, nn.Identity | nn.Dropout):
            yield (
                f"{merge.into}: {type(between).__name__} stands between the merged layers in the "
                "model. Layers with something between them cannot be merged."
            )


def _beside_problems(target: nn.Module, merge: Merge, trials: Trials) -> Iterator[str]:
    """A module that holds all the merged layers must do nothing beside them."""
    try:
        if trials.computes(merge.into, merge.tree):
            return
    except NotRunError as error:
        yield _not_run(merge.into, error)
        return
    layers = [leaf.layer.name for leaf in merge.layers if leaf.layer.name]
    parts = tuple(f"{name}." for name in layers)  # of a merged layer, as a parametrization is
    others = ", ".join(
        f"{name} ({type(child).__name__})"
        for name, child in target.named_modules(prefix=merge.into)
        if name not in (merge.into, *layers)
        and not any(True for _ in child.children())
        and not name.startswith(parts)
        and not any(key.startswith(f"{name}.") for key in merge.consumed)
    )
    holds = f" It holds {others} too." if others else ""
    yield (
        f"{merge.into}: computes something else than the merged layers.{holds} An activation, a "
        "norm or a factor that stands between them makes the merge itself wrong; only where it "
        "stands before or after all of them, merge into one of the merged layers instead."
    )


def _forward_problems(name: str, leaf: ResolvedLayer, trials: Trials) -> Iterator[str]:
    """A subclass of a torch layer, or a layer with a forward of its own, may do more than that
    layer: it is run to see.
    """
    module = trials.modules.get(name)
    if module is None or (type(module) in COMPARED and "forward" not in vars(module)):
        return
    try:
        is_alike = trials.computes(name, leaf)
    except NotRunError as error:
        if "forward" not in vars(module):  # one set on the module may hold the given model's own
            yield _not_run(leaf.label, error)
            return
        is_alike = False
    if not is_alike:
        yield (
            f"{leaf.label}: is a {type(module).__name__} in the model, whose forward is not that "
            f"of the {leaf.layer.type} in the recipe. Describe what it does, or leave it out."
        )


def _not_run(name: str, error: NotRunError) -> str:
    return (
        f"{name}: its own code raises {error}, so it is not seen whether it computes the merged "
        "layers and nothing else. Give an example input that the model takes (example=)."
    )
