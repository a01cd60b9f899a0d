"""A model from its own code, ready to be followed: in eval mode, and with what it is run on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from convsqueeze.copying import Sandbox
from convsqueeze.models.factory import load_checkpoint, load_model
from convsqueeze.models.inputs import Inputs, guess_inputs, parsed_inputs
from convsqueeze.pipeline.tracking import Track


@dataclass(frozen=True, eq=False)
class Code:
    """A model from its own code, and where that is run; `notes` say what was guessed."""

    model: nn.Module
    inputs: Inputs
    notes: tuple[str, ...]
    sandbox: Sandbox


def code_of(
    place: str,
    shapes: Sequence[str],
    track: Track,
    checkpoint: Path | None = None,
    key: str | None = None,
) -> Code:
    """The model that the user's code at `place` builds, with the tensors of a checkpoint if given.

    `shapes` are what its forward takes, guessed where there are none. Raises as `load_model`,
    `load_checkpoint`, `parsed_inputs` and `guess_inputs` do.
    """
    given = parsed_inputs(shapes) if shapes else None
    track(f"running {place}", 0, 0)
    model = load_model(place).eval()
    if checkpoint is not None:
        load_checkpoint(model, checkpoint, key)
    sandbox = Sandbox(model)
    if given is not None:
        return Code(model, given, (), sandbox)
    guess = guess_inputs(model, sandbox)
    return Code(model, guess.inputs, (guess.note,), sandbox)
