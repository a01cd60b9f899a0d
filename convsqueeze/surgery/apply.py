"""Squeezed layers put into a copy of the user's own model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convsqueeze.algebra.geometry import Geometry
from convsqueeze.checkpoint import Checkpoint, from_state_dict
from convsqueeze.copying import PLAIN, Sandbox, copied
from convsqueeze.errors import ModelMismatchError, PlanError, lacks_memory
from convsqueeze.graph import Placement, Replaced
from convsqueeze.manifest import manifest_from_data
from convsqueeze.module import SqueezedConv, module_of, stored_tensors
from convsqueeze.plan import Merge, Plan, ResolvedLayer, make_plan
from convsqueeze.recipe import Recipe, read_recipe
from convsqueeze.squeezing import recipe_differences
from convsqueeze.surgery.checks import encloses, module_problems, placement_in
from convsqueeze.surgery.trials import Trials
from convsqueeze.tracing.raised import describe_error


class Zero(nn.Module):
    """Stands for a branch that now lives in another: adds nothing.

    It gives zeros, which code may add to in place, of the shape that a layer of `geometry` gives,
    (N, channels, ...), without one of the shape of what it takes.
    """

    def __init__(self, geometry: Geometry | None = None) -> None:
        super().__init__()
        self.geometry = geometry

    def forward(self, input: Tensor) -> Tensor:
        x = input
        if self.geometry is None:
            return torch.zeros_like(x)
        rank = len(self.geometry.axes)
        channels = x.ndim - rank - 1
        size = self.geometry.output_size(x.shape[channels + 1 :])
        shape = (*x.shape[:channels], self.geometry.out_channels, *size)
        return x.new_zeros(shape)


def applied(
    model: nn.Module,
    checkpoint: Checkpoint,
    arguments: Sequence[Any] | None = None,
    sandbox: Sandbox | None = None,
) -> tuple[nn.Module, Plan]:
    """A copy of `model` with a checkpoint's squeezed layers and all its tensors, and the plan by
    which they were made.

    The module named `into` becomes the squeezed layer; the other merged modules become
    `nn.Identity` (in another branch of a sum: `Zero`). `arguments` are ones that the model takes,
    if any are known, `sandbox` is that of the model. Raises ModelMismatchError with every reason
    where the model's layers are not those of the recipe, or its own code would still do a part of
    the merge; CheckpointError for the checkpoint.
    """
    recipe = read_recipe(checkpoint.recipe, f"{checkpoint.path}")
    model_state = from_state_dict(model.state_dict())
    plan = plan_of(model_state, recipe)
    by_name = {layer.name: layer for layer in recipe.layers}

    def layer_of(merge: Merge) -> SqueezedConv:
        layer = by_name[merge.into]
        return module_of(layer, stored_tensors(layer, checkpoint))

    differences = recipe_differences(plan, recipe, f"{checkpoint.path}")
    squeezed = with_layers(
        *(model, model_state, plan.merges, layer_of),
        arguments=arguments,
        sandbox=sandbox,
        problems=[*differences],
    )
    # beside tensors a state dict holds what modules keep of their own, and their versions
    state = squeezed.state_dict()
    for key in [key for key, value in state.items() if isinstance(value, Tensor)]:
        del state[key]
    state.update({model_state.prefix + name: checkpoint.load(name) for name in checkpoint.tensors})
    load_state(squeezed, state, "the model does not take the squeezed file")
    return squeezed, plan


def with_layers(
    model: nn.Module,
    model_state: Checkpoint,
    merges: Sequence[Merge],
    layer_of: Callable[[Merge], SqueezedConv],
    *,
    arguments: Sequence[Any] | None = None,
    sandbox: Sandbox | None = None,
    problems: Sequence[str] = (),
) -> nn.Module:
    """A copy of `model`, whose tensors are `own`, with what `layer_of` gives for each merge
    in its place.

    A merge has the place that was found in the model's code; where that was not followed, its
    modules are looked at, and run where their type does not tell what they compute: on images of
    the sizes that they are given when the model runs on `arguments`, where they take no others.
    Raises ModelMismatchError with the `problems` that are known already and whatever stands against
    it.
    """
    sandbox = sandbox or Sandbox(model)
    against, trials = [*problems], Trials(sandbox, model_state, arguments)
    places: list[Placement[ResolvedLayer] | None] = []
    for merge in merges:
        places.append(merge.placement or placement_in(merge, trials))
        if merge.placement is None:
            against += module_problems(merge, places[-1], trials)
    if against:
        raise ModelMismatchError(against)
    sandbox.restore()
    squeezed, stored = copied(model), model.state_dict(keep_vars=True)
    for merge, place in zip(merges, places, strict=True):
        parameters = [p for leaf in merge.layers for p in leaf.parameters.values()]
        old = [stored[model_state.prefix + key] for p in parameters for key in p.keys]
        new = layer_of(merge).stored_as(merge.dtype).to(device=old[0].device)
        new.requires_grad_(any(tensor.requires_grad for tensor in old))
        _replace(squeezed, model_state.prefix, merge, place, new)
    return squeezed


def plan_of(model_state: Checkpoint, recipe: Recipe) -> Plan:
    """The recipe's manifest planned on a model's own tensors. Raises ModelMismatchError."""
    manifest = manifest_from_data(recipe.manifest, "recipe")
    try:
        return make_plan(manifest, model_state, border=recipe.border, growth=recipe.growth)
    except PlanError as error:
        raise ModelMismatchError(
            [f"the model's layers are not those of the recipe: {p}" for p in error.problems]
        ) from error


def _replace(
    model: nn.Module,
    prefix: str,
    merge: Merge,
    place: Placement[ResolvedLayer] | None,
    module: nn.Module,
) -> None:
    """Puts the modules of a merge into the places of others, in the modes of these; so goes, beside
    what was merged, a module all of whose tensors go with it.
    """
    for part in place.replaced if place is not None else ():
        _put(model, prefix + part.name, _silent(part, merge))
    merged = {key for leaf in merge.layers for key in leaf.keys}
    owners = {key.rpartition(".")[0] for key in merge.consumed if key not in merged}
    there = dict(model.named_modules(remove_duplicate=False))
    for name in sorted(owners) if not encloses(merge) else ():
        if name and prefix + name in there:
            _put(model, prefix + name, nn.Identity())
    _put(model, prefix + merge.into, module)


def _put(model: nn.Module, name: str, new: nn.Module) -> None:
    """In the mode of the module that stood there, and with its settings (`out_channels`), which the
    model's code may read.
    """
    old = model.get_submodule(name)
    for key, value in vars(old).items():
        values = value if isinstance(value, tuple) else (value,)
        if not hasattr(new, key) and all(isinstance(one, PLAIN) for one in values):
            setattr(new, key, value)
    model.set_submodule(name, new.train(old.training))


def _silent(part: Replaced[ResolvedLayer], merge: Merge) -> nn.Module:
    if part.passes:
        return nn.Identity()
    return Zero(merge.geometry if part.beside else None)


def load_state(
    model: nn.Module, state: Mapping[str, Any], prefix: str, *, assign: bool = False
) -> None:
    """`Module.load_state_dict`. Raises ModelMismatchError, `prefix` before each of its reasons."""
    try:
        model.load_state_dict(state, assign=assign)
    except RuntimeError as error:
        if lacks_memory(error):
            raise
        # torch's own has a headline and a line for each reason: another is of the model's own code
        lines = [line.strip() for line in str(error).split("\n")[1:] if line.strip()]
        if not lines:
            raise
        raise ModelMismatchError([f"{prefix}: {line}" for line in lines]) from error
    except KeyError as error:
        raise ModelMismatchError(
            [
                f"{prefix} ({describe_error(error)}): one of its modules reads more than tensors, "
                "as quantised ones do. Merge the model before it is quantised, or in Python by "
                "convsqueeze.squeeze."
            ]
        ) from error
