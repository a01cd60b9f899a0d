"""The squeezed layers of a file in the user's own model, and both models on an example."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convsqueeze.checkpoint import open_checkpoint
from convsqueeze.copying import Sandbox, copied
from convsqueeze.errors import ModelMismatchError
from convsqueeze.models.arguments import positional
from convsqueeze.models.inputs import inputs_of
from convsqueeze.models.outputs import named_tensors
from convsqueeze.models.running import Running, distances, largest_value, runnable
from convsqueeze.surgery.apply import applied

TOLERANCE = 1e-3
"""Of the largest output: far above float32's rounding, far below a lost activation."""
ROUNDINGS = 8
"""Where that is more: how many roundings to the coarsest dtype of merged weights may add up."""


def apply(
    model: nn.Module,
    path: str | Path,
    *,
    key: str | None = None,
    example: Tensor | Sequence[Any] | Mapping[str, Any] | None = None,
) -> nn.Module:
    """A copy of `model` with the squeezed layers of a file in place and all its tensors loaded.

    The module named `into` becomes the squeezed layer; the other merged modules become
    `nn.Identity` (in another branch of a sum: `Zero`). `key` chooses the state dict in a wrapped
    file. The given model is left as it is. With an `example` (a tensor, a tuple of positional
    arguments or a dict of named ones) both models are run on it in float64 and eval mode (the given
    one with the weights it has) and must agree: the only check that sees an activation between two
    layers, or an order that is not the model's.

    Raises ModelMismatchError with every reason where the model's layers are not those of the
    recipe, its own code would still do a part of the merge, or the outputs differ; ModelInputError
    where the model does not take the example; CheckpointError for the file.
    """
    arguments = None if example is None else positional(model, example, "example")
    sandbox = Sandbox(model)
    squeezed, plan = applied(model, open_checkpoint(Path(path), key=key), arguments, sandbox)
    if arguments is not None:
        coarsest = max((torch.finfo(merge.dtype).eps for merge in plan.merges), default=0.0)
        _check_example(sandbox, squeezed, arguments, max(TOLERANCE, ROUNDINGS * coarsest))
    return squeezed


def _check_example(
    sandbox: Sandbox, squeezed: nn.Module, arguments: tuple[Any, ...], tolerance: float
) -> None:
    """Raises ModelMismatchError where an output of two models differs by more than `tolerance` of
    its largest value.
    """
    one = runnable(sandbox, lambda dtype: inputs_of(arguments).first(dtype), "example")
    before = named_tensors(one.output)
    after = Running(copied(squeezed), one.running.dtype).run(one.arguments)
    for place, difference in distances(before, after).items():
        largest = largest_value(before[place])
        if not difference <= tolerance * largest:
            raise ModelMismatchError(
                [
                    f"the squeezed model differs by {difference:.3g} on the example, whose largest "
                    f"output is {largest:.3g}. Something stands between merged layers, or the "
                    "model runs them in another order, or it does not hold the weights that were "
                    "merged."
                ]
            )
