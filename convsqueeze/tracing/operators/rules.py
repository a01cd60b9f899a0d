"""By operator, the rule that says what a call of it is."""

from collections.abc import Callable, Mapping, Sequence

from torch.fx import Node

from convsqueeze.graph import Reason
from convsqueeze.tracing.constants import Constant, Stored, bound, operator_of
from convsqueeze.tracing.operators.arithmetic import combined, divided, multiplied, negated
from convsqueeze.tracing.operators.kernels import convolution, linear, transposed
from convsqueeze.tracing.operators.meanings import (
    ACTIVATIONS,
    Adding,
    Meaning,
    Parameters,
    alike,
    no_layer,
)
from convsqueeze.tracing.operators.norms import batch_norm, trained_norm
from convsqueeze.tracing.operators.pads_and_pools import pad, pad_by, pool
from convsqueeze.tracing.operators.passing import PASSING, kept, passed, seen


def meaning_of(
    node: Node, values: Sequence[Node], constants: Mapping[Node, Constant], names: frozenset[str]
) -> Meaning:
    """What the call is of the `values` that come in; its other tensors are constants."""
    operator = ALIASES.get(operator_of(node), operator_of(node))
    given = Parameters(node, operator, constants, names, bound(node))
    if len(values) > 1:
        return _of_several(given, values)
    rule = None if operator in ACTIVATIONS else _RULES.get(operator)
    if rule is None or not values:
        return no_layer(operator)
    meaning = rule(given)
    return meaning if isinstance(meaning, Reason) else _of_one_kind(given) or meaning


def _of_one_kind(given: Parameters) -> Reason | None:
    """Why a call is no layer although its operator is: it gives another dtype than it takes, or is
    given stored integers.
    """
    if converted := given.converted():
        return converted
    for node in given.node.all_input_nodes:
        constant = given.constants.get(node)
        if isinstance(constant, Stored) and not node.meta["val"].is_floating_point():
            return Reason("not linear", f"{constant.key} is stored as {node.meta['val'].dtype}")
    return None


def _of_several(given: Parameters, values: Sequence[Node]) -> Meaning:
    operator = given.operator
    if operator in ("add", "sub") and given.arguments["alpha"] != 1:
        return Reason("not linear", "a multiple of a value is added")
    if operator in ("add", "sub") and alike(values):
        return Adding(frozenset({1} if operator == "sub" else ()))
    if operator == "mul":
        return Reason("not linear", "two values are multiplied")
    if operator in ("add", "sub"):
        return Reason("not linear", "values of different shapes are added")
    return Reason("not linear", f"{operator} joins several values")


ALIASES = {
    **{"multiply": "mul", "divide": "div", "true_divide": "div"},
    **{"subtract": "sub", "negative": "neg"},
}
"""Other names of operators, which torch.export does not resolve."""
KEEPING = ("_to_copy", "to", "view", "reshape", "_unsafe_view", "expand", "slice")
"""Operators that give what they take where that has their shape and dtype."""

_RULES: Mapping[str, Callable[[Parameters], Meaning]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), transposed),
    "linear": linear,
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), batch_norm),
    **dict.fromkeys(
        ("_native_batch_norm_legit", "_native_batch_norm_legit_functional"), trained_norm
    ),
    "pad": pad,
    "constant_pad_nd": pad,
    **{f"reflection_pad{n}d": lambda g: pad_by(g, g["padding"], "reflect") for n in (1, 2, 3)},
    **{f"replication_pad{n}d": lambda g: pad_by(g, g["padding"], "replicate") for n in (1, 2, 3)},
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), pool),
    "mul": multiplied,
    "div": divided,
    "neg": negated,
    **dict.fromkeys(("add", "sub", "rsub"), combined),
    **dict.fromkeys(PASSING, passed),
    "seen": seen,
    **dict.fromkeys(KEEPING, kept),
}
