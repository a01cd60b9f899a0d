"""Calls that give what they take, where they do."""

from convsqueeze.tracing.graph import Reason
from convsqueeze.tracing.operators.meanings import Meaning, Parameters, Passing, alike

PASSING = {"alias", "clone", "detach", "contiguous", "lift_fresh_copy", "native_dropout", "dropout"}
"""Operators that give what they take, in eval mode."""


def passed(given: Parameters) -> Meaning:
    """What changes nothing in eval mode."""
    if given["train"] and given["p"]:
        return Reason("training", "dropout in training mode")
    return Passing()


def converted(given: Parameters) -> Meaning:
    """A conversion to the dtype that is there already."""
    before, after = (n.meta["val"].dtype for n in (given.node.all_input_nodes[0], given.node))
    return Passing() if before == after else Reason("not linear", f"it converts to {after}")


def seen(given: Parameters) -> Meaning:
    """The mark that a watched module sets where it calls a hook."""
    return Reason("hook", f"{given['module']} calls a hook that sees it")


def reshaped(given: Parameters) -> Meaning:
    """A view of the shape that is there already."""
    values = (given.node.all_input_nodes[0], given.node)
    same = values[0].meta["val"].dtype == values[1].meta["val"].dtype
    return Passing() if same and alike(values) else Reason("not linear", "it reshapes")
