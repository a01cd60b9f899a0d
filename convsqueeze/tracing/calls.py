"""Nodes of torch.export's graphs as neutral calls, and torch's modules: what each is of its input.

Knows fx nodes and their metadata; the rules are those of the kinds.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from convsqueeze.kinds.call import Call, Constant, RuntimeNumber, Stored, Value
from convsqueeze.kinds.registry import semantics_of, semantics_of_module
from convsqueeze.kinds.semantics import Linear, Reason, Semantics
from convsqueeze.tracing.constants import bound, operator_of


def semantics_of_node(
    node: Node, constants: Mapping[Node, Constant], names: frozenset[str]
) -> Semantics:
    """What a call is of its values; `names` are those of the state dict."""
    if operator_of(node) == "seen":  # set by a watched module where it calls a hook
        return Reason("hook", f"{bound(node)['module']} calls a hook that sees it")
    return semantics_of(call_of(node, constants, names))


def call_of(node: Node, constants: Mapping[Node, Constant], names: frozenset[str]) -> Call:
    """The node in neutral words."""

    def said(argument: Any) -> Any:
        if isinstance(argument, list | tuple):
            return [said(one) for one in argument]
        if not isinstance(argument, Node):
            return argument
        constant = constants.get(argument)
        if isinstance(constant, Stored):
            return replace(constant, dtype=getattr(argument.meta.get("val"), "dtype", None))
        return constant or _value(argument)

    arguments = {name: said(value) for name, value in bound(node).items()}
    result = _value(node)
    return Call(
        operator_of(node), arguments, result if isinstance(result, Value) else Value(), names
    )


def _value(node: Node) -> Value | RuntimeNumber:
    value = node.meta.get("val")
    if isinstance(value, int | float | torch.SymInt | torch.SymFloat | torch.SymBool):
        return RuntimeNumber()
    if not isinstance(value, Tensor):
        return Value()
    texts = map(str, value.shape)  # a symbolic size may be a number too
    return Value(tuple(int(t) if t.isdecimal() else t for t in texts), value.dtype)


def semantics_of_named(module: nn.Module, name: str, names: frozenset[str]) -> Semantics:
    """The layer that one of torch's own modules is; `names` are those of the state dict."""
    if "forward" in vars(module):
        return Reason("not linear", f"{name} has a forward of its own")
    found = semantics_of_module(module, name)
    if isinstance(found, Linear) and found.keys:
        return replace(found, keys=keys_of(name, names))
    return found


def keys_of(name: str, names: frozenset[str]) -> tuple[str, ...]:
    """The stored tensors of a module."""
    inside = (key for key in names if key.startswith(f"{name}.") and "num_batches" not in key)
    return tuple(sorted(inside))
