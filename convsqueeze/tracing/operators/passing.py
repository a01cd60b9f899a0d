"""Calls that give what they take, where they do."""

from convsqueeze.graph import Reason
from convsqueeze.tracing.operators.meanings import Meaning, Parameters, Passing

PASSING = {"alias", "clone", "detach", "contiguous", "lift_fresh_copy", "native_dropout", "dropout"}
"""Operators that give what they take, in eval mode."""


def passed(given: Parameters) -> Meaning:
    """What changes nothing in eval mode."""
    if given["train"] and given["p"]:
        return Reason("training", "dropout in training mode")
    return Passing()


def seen(given: Parameters) -> Meaning:
    """The mark that a watched module sets where it calls a hook."""
    return Reason("hook", f"{given['module']} calls a hook that sees it")


def kept(given: Parameters) -> Meaning:
    """A view, or a conversion, to the shape and the dtype that are there already."""
    return given.changed() or Passing()
