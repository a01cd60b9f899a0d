"""Nodes of torch.export's graphs as neutral calls.

Knows fx nodes and their metadata; the rules are those of the kinds.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from convsqueeze.kinds.call import Call, Constant, RuntimeNumber, Stored, Value
from convsqueeze.kinds.registry import semantics_of
from convsqueeze.kinds.semantics import Reason, Semantics
from convsqueeze.tracing.constants import bound, is_number_node, operator_name


def semantics_of_node(
    node: Node, constants: Mapping[Node, Constant], names: frozenset[str]
) -> Semantics:
    """What a call is of its values; `names` are those of the state dict."""
    operator = operator_name(node.target)
    if operator == "seen":  # set by a watched module where it calls a hook
        return Reason("hook", f"{bound(node)['module']} calls a hook that sees it")

    def neutral(argument: Node) -> Any:
        constant = constants.get(argument)
        if isinstance(constant, Stored):
            return replace(constant, dtype=getattr(argument.meta.get("val"), "dtype", None))
        return constant or (RuntimeNumber() if is_number_node(argument) else _value(argument))

    arguments = torch.fx.map_arg(bound(node), neutral)
    return semantics_of(Call(operator, arguments, _value(node), names))


def _value(node: Node) -> Value:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return Value()
    texts = [str(size) for size in value.shape]  # a symbolic size may be a number too
    return Value(tuple([int(t) if t.isdecimal() else t for t in texts]), value.dtype)
