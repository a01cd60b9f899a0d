"""Examples as a user gives them -> the positional arguments of a model's forward."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from convsqueeze.errors import ModelInputError
from convsqueeze.names import listed


def positional(
    model: nn.Module, examples: Any, given_as: str = "example_inputs"
) -> tuple[Any, ...]:
    """A tensor, a sequence of positional arguments, or a mapping of named ones, as positional ones.

    `given_as` is the name under which the user gave them. Raises ModelInputError for anything else,
    and where forward does not take them.
    """
    name = type(model).__name__
    if isinstance(examples, Tensor):
        examples = (examples,)
    if isinstance(examples, str | bytes) or not isinstance(examples, Sequence | Mapping):
        raise ModelInputError(
            f"{given_as}: {type(examples).__name__} was given, a tensor, a tuple of positional "
            "arguments or a dict of named ones was needed."
        )
    signature = inspect.signature(model.forward)
    try:
        if isinstance(examples, Mapping):
            given = signature.bind(**examples).arguments
        else:
            signature.bind(*examples)
            return tuple(examples)
    except TypeError as error:
        raise ModelInputError(
            f"{name}: its forward does not take these {given_as} ({error}). A tuple has one "
            "for each positional argument, a dict one for each name; a tuple or dict that is "
            "itself an argument stands in a tuple, ({...},)."
        ) from error
    return _in_order(signature, given, name)


def _in_order(signature: inspect.Signature, given: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    """NamedTensors arguments in forward's order up to the last, with its defaults between them."""
    parameters = [
        one
        for one in signature.parameters.values()
        if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    if others := given.keys() - {one.name for one in parameters}:
        raise ModelInputError(
            f"{name}: its forward takes {listed(sorted(others))} by name alone, and its code is "
            "followed with positional arguments. Squeeze a module whose forward takes them by "
            "position and calls this one."
        )
    count = max((i for i, one in enumerate(parameters, 1) if one.name in given), default=0)
    return tuple(given.get(one.name, one.default) for one in parameters[:count])
