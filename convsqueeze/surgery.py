"""Squeezed layers put into the user's own model.

Knows modules, plans and recipes. Which module may be silenced follows from the shape of the merge:
in a chain the other layers pass their input on, in a sum the other branches add nothing.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from convsqueeze.algebra import layers
from convsqueeze.algebra.geometry import Axis
from convsqueeze.algebra.sizes import merged, reach, smallest_size
from convsqueeze.algebra.tree import Chain, Sum, Tree, leaves
from convsqueeze.checkpoint import Checkpoint, from_state_dict, open_checkpoint
from convsqueeze.errors import GeometryError, ModelMismatchError, PlanError
from convsqueeze.manifest import BatchNormLayer, IdentityLayer, manifest_from_data
from convsqueeze.module import module_of, stored_tensors
from convsqueeze.plan import Merge, Plan, ResolvedLayer, geometry_tree, make_plan
from convsqueeze.recipe import Recipe, read_recipe
from convsqueeze.squeeze import recipe_differences
from convsqueeze.verify.reference import reference


class Zero(nn.Module):
    """Stands for a branch that now lives in another: adds nothing, whatever the sum's shape."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


def apply(model: nn.Module, path: str | Path, *, key: str | None = None) -> nn.Module:
    """A copy of `model` with the squeezed layers of a file in place and all its tensors loaded.

    The module named `into` becomes the squeezed layer; the other merged modules become
    `nn.Identity` (in another branch of a sum: `Zero`). `key` chooses the state dict in a wrapped
    file. The given model is left as it is.

    Raises ModelMismatchError with every reason where the model's layers are not those of the
    recipe, or its own code would still do a part of the merge; CheckpointError for the file.
    """
    checkpoint = open_checkpoint(Path(path), key=key)
    recipe = read_recipe(checkpoint.recipe, str(path))
    own = from_state_dict(model.state_dict())
    prefix, plan = own.prefix, _plan_of(own, recipe)
    problems = [
        *recipe_differences(plan, recipe, str(path)),
        *(p for merge in plan.merges for p in _module_problems(model, own, merge)),
    ]
    if problems:
        raise ModelMismatchError(problems)
    squeezed = copy.deepcopy(model)
    by_name = {layer.name: layer for layer in recipe.layers}
    for merge in plan.merges:
        layer = by_name[merge.into]
        module = module_of(layer, stored_tensors(layer, checkpoint))
        module = module.to(_like(squeezed, prefix, merge))
        _replace(squeezed, prefix, merge, module)
    _load(squeezed, prefix, checkpoint)
    return squeezed


def _plan_of(own: Checkpoint, recipe: Recipe) -> Plan:
    """The recipe's manifest planned on the model's own tensors."""
    manifest = manifest_from_data(recipe.manifest, "recipe")
    try:
        return make_plan(manifest, own, border=recipe.border, growth=recipe.growth)
    except PlanError as error:
        raise ModelMismatchError(
            [f"the model's layers are not those of the recipe: {p}" for p in error.problems]
        ) from error


def _like(model: nn.Module, prefix: str, merge: Merge) -> Tensor:
    """A tensor of the dtype and device that the merged layers have in the model."""
    key = next(key for leaf in merge.layers for p in leaf.parameters.values() for key in p.keys)
    tensor: Tensor = model.state_dict()[prefix + key]
    return tensor


def _module_problems(model: nn.Module, own: Checkpoint, merge: Merge) -> Iterator[str]:
    """What in the model stands against one merge; `own` are the model's tensors."""
    named = [
        (leaf, _submodule(model, own.prefix + leaf.layer.name))
        for leaf in merge.layers
        if leaf.layer.name is not None
    ]
    for leaf, module in named:
        yield from _layer_problems(module, leaf)
    target = _submodule(model, own.prefix + merge.into)
    if target is None:
        yield (
            f"{merge.into}: the model has no module of this name to put the squeezed layer in. "
            "Merge into the name of a module that the model calls."
        )
    elif _encloses(merge):
        yield from _lost(target, own, merge)
    else:
        yield from _left_in_code(merge.tree, merge.into, keep=True)
        for leaf, module in named:
            yield from _own_forward(module, own, leaf)


def _lost(target: nn.Module, own: Checkpoint, merge: Merge) -> Iterator[str]:
    """A module that holds all the merged layers must do nothing beside them."""
    if _computes(target, own, merge.tree):
        return
    others = ", ".join(_other_children(target, merge))
    beside = f"holds {others} too, which" if others else "does more in its forward, which"
    yield (
        f"{merge.into}: {beside} the merge would lose: it computes something else than the merged "
        "layers alone. Merge into one of the merged layers instead."
    )


def _own_forward(module: nn.Module | None, own: Checkpoint, leaf: ResolvedLayer) -> Iterator[str]:
    """A subclass of a torch layer may do more than that layer: it is run to see."""
    if module is None or type(module).__module__.startswith("torch.nn."):
        return
    if not _computes(module, own, leaf):
        yield (
            f"{leaf.label}: is a {type(module).__name__} in the model, whose forward is not "
            f"that of the {leaf.layer.type} in the recipe. Describe what it does, or leave it out."
        )


def _computes(module: nn.Module, own: Checkpoint, tree: Tree[ResolvedLayer]) -> bool:
    """Whether a module computes what the layers do, on a random image and in float64."""
    shapes = geometry_tree(tree)
    rank = len(merged(shapes).axes)
    size = tuple(smallest_size(shapes, axis) + reach(shapes, axis) for axis in range(rank))
    generator = torch.Generator().manual_seed(0)
    shape = (2, merged(shapes).in_channels, *size)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        expected = reference(tree, own.load)(x)
        try:
            found = copy.deepcopy(module).cpu().double().eval()(x)
        except (RuntimeError, TypeError, ValueError):
            return False
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= 1e-9 * expected.abs().max())


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _encloses(merge: Merge) -> bool:
    """Whether the module `into` holds every merged layer, so that replacing it replaces all."""
    return all(
        key.startswith(f"{merge.into}.") for leaf in merge.layers for key in leaf.keys
    ) and any(leaf.layer.name != merge.into for leaf in merge.layers)


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
        if not isinstance(leaf.layer, BatchNormLayer):
            yield f"{name}: is a {type(module).__name__} in the model, not a {leaf.layer.type}."
        elif module.eps != leaf.layer.eps:
            yield f"{name}: has eps {module.eps} in the model, {leaf.layer.eps} in the recipe."
    elif isinstance(module, nn.modules.conv._ConvNd):
        try:
            axes = _axes_of(module)
        except (GeometryError, TypeError) as error:
            yield f"{name}: {error}"
            return
        if axes != leaf.geometry.axes or module.groups != leaf.geometry.groups:
            told = leaf.layer.model_dump(exclude={"name", "weight", "bias", "type"})
            settings = ", ".join(f"{key} {value}" for key, value in told.items())
            yield (
                f"{name}: is {module} in the model, the recipe merged a {leaf.layer.type} "
                f"with {settings}."
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


def _left_in_code(tree: Tree[ResolvedLayer], into: str, *, keep: bool) -> Iterator[str]:
    """Parts of the merge that the model's own code would go on doing.

    `keep`: this part must pass its input on; otherwise it must add nothing.
    """
    for leaf, passes in _roles(tree, into, keep):
        if leaf.layer.name is not None or (passes and isinstance(leaf.layer, IdentityLayer)):
            continue
        yield (
            f"{into}: the model's own code does the {leaf.label} of this merge and would do it "
            f"again. Merge into the module that holds all of {into}'s layers."
        )


def _roles(
    tree: Tree[ResolvedLayer], into: str, keep: bool = True
) -> Iterator[tuple[ResolvedLayer, bool]]:
    """Every layer beside `into`, and whether it must pass its input on (or else add nothing)."""
    if isinstance(tree, Chain):
        kept = [keep] * len(tree.links) if keep else [True] * (len(tree.links) - 1) + [False]
        for link, passes in zip(tree.links, kept, strict=True):
            yield from _roles(link, into, passes)
    elif isinstance(tree, Sum):
        chosen = _passing_branch(tree, into) if keep else -1
        for index, branch in enumerate(tree.branches):
            yield from _roles(branch, into, index == chosen)
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


def _replace(model: nn.Module, prefix: str, merge: Merge, module: nn.Module) -> None:
    if not _encloses(merge):
        for leaf, passes in _roles(merge.tree, merge.into):
            if leaf.layer.name is not None:
                silent: nn.Module = nn.Identity() if passes else Zero()
                model.set_submodule(prefix + leaf.layer.name, silent)
    for name in _dropped_modules(model, prefix, merge):
        model.set_submodule(prefix + name, nn.Identity())
    model.set_submodule(prefix + merge.into, module)


def _dropped_modules(model: nn.Module, prefix: str, merge: Merge) -> list[str]:
    """Modules all of whose tensors go with the merge, beside the merged layers themselves."""
    merged = {key for leaf in merge.layers for key in leaf.keys}
    owners = {key.rpartition(".")[0] for key in merge.consumed if key not in merged}
    return [
        name
        for name in sorted(owners)
        if name and not _encloses(merge) and _submodule(model, prefix + name) is not None
    ]


def _load(model: nn.Module, prefix: str, checkpoint: Checkpoint) -> None:
    tensors = {prefix + name: checkpoint.load(name) for name in checkpoint.tensors}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).split("\n")[1:] if line.strip()]
        raise ModelMismatchError(
            [f"the model does not take the squeezed file: {x}" for x in lines]
        ) from error
