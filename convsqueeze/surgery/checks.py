"""What in a model stands against a merge: other layers than the recipe's, or more than they do."""

from collections.abc import Iterator

import torch
from torch import nn

from convsqueeze.algebra.geometry import Axis
from convsqueeze.algebra.tree import Chain, Sum
from convsqueeze.checkpoint import Checkpoint
from convsqueeze.errors import GeometryError
from convsqueeze.graph import Placement
from convsqueeze.hooks import has_hooks
from convsqueeze.kinds import layers
from convsqueeze.kinds.registry import COMPARED
from convsqueeze.plan import Merge, ResolvedLayer
from convsqueeze.surgery.modules import encloses, submodule
from convsqueeze.surgery.trials import NotRunError, Trials


def module_problems(
    model: nn.Module,
    own: Checkpoint,
    merge: Merge,
    place: Placement[ResolvedLayer] | None,
    trials: Trials,
) -> Iterator[str]:
    """What in the model stands against one merge at its place; `own` are the model's tensors,
    `trials` run its modules.
    """
    named = [
        (leaf, submodule(model, own.prefix + leaf.layer.name))
        for leaf in merge.layers
        if leaf.layer.name is not None
    ]
    for leaf, module in named:
        yield from _layer_problems(module, leaf)
        yield from _hook_problems(module, leaf)
    yield from _order_problems(model, own.prefix, merge)
    target = submodule(model, own.prefix + merge.into)
    if target is None:
        yield (
            f"{merge.into}: the model has no module of this name to put the squeezed layer in. "
            "Merge into the name of a module that the model calls."
        )
    elif encloses(merge):
        yield from _hooks_lost(target, merge)
        yield from _lost(target, merge, trials)
    else:
        yield from _parts_problems(model, own, merge, place, trials)


def _lost(target: nn.Module, merge: Merge, trials: Trials) -> Iterator[str]:
    """A module that holds all the merged layers must do nothing beside them."""
    try:
        if trials.computes(merge.into, merge.tree):
            return
    except NotRunError as error:
        yield _not_run(merge.into, error)
        return
    others = ", ".join(_other_children(target, merge))
    holds = f" It holds {others} too." if others else ""
    yield (
        f"{merge.into}: computes something else than the merged layers.{holds} An activation, a "
        "norm or a factor that stands between them makes the merge itself wrong; only where it "
        "stands before or after all of them, merge into one of the merged layers instead."
    )


def _own_forward(
    module: nn.Module | None, name: str, leaf: ResolvedLayer, trials: Trials
) -> Iterator[str]:
    """A subclass of a torch layer, or a layer with a forward of its own, may do more than that
    layer: it is run to see.
    """
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


def _other_children(target: nn.Module, merge: Merge) -> Iterator[str]:
    consumed = {leaf.layer.name for leaf in merge.layers}
    for name, child in target.named_modules(prefix=merge.into):
        is_leaf = not any(True for _ in child.children())
        if is_leaf and name != merge.into and name not in consumed and not _is_inside(name, merge):
            yield f"{name} ({type(child).__name__})"


def _is_inside(name: str, merge: Merge) -> bool:
    """Whether a module belongs to a merged layer (as a parametrization does) or was dropped."""
    owners = [leaf.layer.name for leaf in merge.layers if leaf.layer.name]
    dropped = any(key.startswith(f"{name}.") for key in merge.consumed)
    return dropped or any(name.startswith(f"{owner}.") for owner in owners)


def _layer_problems(module: nn.Module | None, leaf: ResolvedLayer) -> Iterator[str]:
    """Where a module of the model computes something else than the manifest says of it."""
    name = leaf.label
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        eps = leaf.layer.settings.get("eps")
        if eps is None:
            yield f"{name}: is a {type(module).__name__} in the model, not a {leaf.layer.type}."
        elif module.eps != eps:
            yield f"{name}: has eps {module.eps} in the model, {eps} in the recipe."
    elif isinstance(module, nn.modules.conv._ConvNd):
        try:
            axes = _axes_of(module)
        except (GeometryError, TypeError) as error:
            yield f"{name}: {error}"
            return
        if axes != leaf.geometry.axes or module.groups != leaf.geometry.groups:
            told = leaf.layer.settings.items()
            settings = ", ".join(f"{key} {value}" for key, value in told)
            yield (
                f"{name}: is {module} in the model, the recipe merged a {leaf.layer.type} "
                f"with {settings}."
            )


def _hook_problems(module: nn.Module | None, leaf: ResolvedLayer) -> Iterator[str]:
    """A hook on a merged layer would go with it; weight norm's own is resolved."""
    if module is not None and has_hooks(module):
        yield f"{leaf.label}: has a hook in the model that would be lost. Remove it first."


def _hooks_lost(target: nn.Module, merge: Merge) -> Iterator[str]:
    """Hooks in a module that is replaced as a whole, on others than the merged layers."""
    layers = {leaf.layer.name for leaf in merge.layers}
    for name, module in target.named_modules(prefix=merge.into):
        if has_hooks(module) and name not in layers:
            yield (
                f"{merge.into}: {name} has a hook in the model that would be lost. Remove it first."
            )


def _order_problems(model: nn.Module, prefix: str, merge: Merge) -> Iterator[str]:
    """Children of one Sequential must be merged in its order, with nothing else between them."""
    names = [leaf.layer.name for leaf in merge.layers if leaf.layer.name]
    parents = {(prefix + name).rpartition(".")[0] for name in names}
    whole = isinstance(merge.tree, Chain) and len(names) == len(merge.layers)
    parent = submodule(model, parents.pop()) if len(parents) == 1 else None
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


def _axes_of(module: nn.modules.conv._ConvNd) -> tuple[Axis, ...]:
    weight = torch.empty(module.weight.shape, device="meta")
    if module.transposed:
        return layers.transposed(
            weight,
            stride=module.stride,
            padding=module.padding,  # type: ignore[arg-type]
            output_padding=module.output_padding,
            dilation=module.dilation,
            groups=module.groups,
        ).axes
    return layers.convolution(
        weight,
        stride=module.stride,
        padding=module.padding,  # type: ignore[arg-type]
        dilation=module.dilation,
        groups=module.groups,
        padding_mode=module.padding_mode,
    ).axes


def _parts_problems(
    model: nn.Module,
    own: Checkpoint,
    merge: Merge,
    place: Placement[ResolvedLayer] | None,
    trials: Trials,
) -> Iterator[str]:
    """Parts of the merge that the model's own code would go on doing, and modules that do something
    else than the layer that they are named after.
    """
    if place is None:
        yield from _left_in_code(merge)
        return
    whole = {part.name for part in place.replaced if isinstance(part.tree, Chain | Sum)}
    if isinstance(place.tree, Chain | Sum):
        whole.add(place.into)
    for leaf in merge.layers:
        name = leaf.layer.name
        if name is not None and not any(f"{name}.".startswith(f"{one}.") for one in whole):
            yield from _own_forward(submodule(model, own.prefix + name), name, leaf, trials)


def _left_in_code(merge: Merge) -> Iterator[str]:
    unnamed = [leaf.label for leaf in merge.layers if leaf.layer.name is None]
    does = unnamed[0] if unnamed else "rest"
    yield (
        f"{merge.into}: the model's own code does the {does} of this merge and would do it "
        "again. Leave it out of the manifest, so that the code goes on doing it, or merge into "
        "a module that does all of this merge and nothing else."
    )
