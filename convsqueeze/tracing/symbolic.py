"""A model -> the graph of its steps by torch.fx, where torch.export cannot follow its code.

The code is followed without values, so no shape is known: what cannot be told without one stays
opaque. Layers are torch's own modules, called as such; sums, and factors and summands that are
numbers, may stand in code. What the code asks of a value's type, fx does not see: so the graph is
run beside the model on its inputs.
"""

import operator
from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from convsqueeze.copying import Sandbox
from convsqueeze.errors import TracingError
from convsqueeze.graph import Graph, Op, layer_ops
from convsqueeze.kinds.scale import is_number, scaling_by, shares
from convsqueeze.kinds.semantics import (
    Adding,
    Identity,
    Linear,
    Reason,
    Semantics,
    no_layer,
)
from convsqueeze.tracing.calls import keys_of, semantics_of_named
from convsqueeze.tracing.changes import changes, crossed, reason_of, stale
from convsqueeze.tracing.operations import opaque, summed
from convsqueeze.tracing.proxies import IN_PLACE, Recorded, check_recorded, recorded
from convsqueeze.tracing.raised import describe_error
from convsqueeze.tracing.stored import caller_of, calls_of, tied
from convsqueeze.tracing.watched import hooked

ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}
SUBTRACTS = {operator.sub, operator.isub, torch.sub, "sub", "sub_"}
SUBTRACTED = {torch.rsub}
FACTORS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
DIVIDES = {operator.truediv, operator.itruediv, torch.div, "div", "div_"}
NEW = {*ADDS, *SUBTRACTS, *SUBTRACTED, *FACTORS, *DIVIDES}
"""What gives a tensor of its own, where it changes none in place."""
SIZES = {"size", "dim", "numel", "shape", "ndim", "dtype", "device"}
"""What is asked of a tensor without its numbers."""


def symbolically_traced(
    model: nn.Module, inputs: Sequence[Any], sandbox: Sandbox | None = None
) -> Graph:
    """The steps of the model's forward on `inputs`. Raises TracingError where torch.fx cannot
    follow it, or what it follows does not compute what the model does.
    """
    try:
        made = recorded(model, inputs, sandbox)
    except Exception as error:
        raise TracingError(describe_error(error)) from error
    check_recorded(made, model, inputs)
    return _Reader(made, model).graph()


class _Reader:
    """What is known after each node: the stored tensors behind constants, and by which name a value
    is called.
    """

    def __init__(self, made: Recorded, model: nn.Module) -> None:
        self._graph = made.module.graph
        self._modules = dict(model.named_modules())
        self._names = frozenset(model.state_dict())
        self._hooked = frozenset(hooked(model))
        self._tied = tied(model)
        self._constants: dict[Node, tuple[str, ...]] = {}
        self._values: dict[Node, str] = {}
        self._changes = changes(self._graph, self._written, self._alike)
        self._stale = stale(self._graph, self._changes)
        self._ops: dict[str, Op] = {}
        self._inputs: dict[str, tuple[int, ...] | None] = {}
        self._outputs: list[str] = []
        self._kept = dict.fromkeys(made.read, "the model's code reads it too")

    def graph(self) -> Graph:
        for node in self._graph.nodes:
            self._read(node)
        return Graph(
            *(self._ops, self._inputs, tuple(self._outputs), self._hooked, self._tied),
            materialized=dict(self._materialized()),
            kept=self._kept,
        )

    def _read(self, node: Node) -> None:
        inputs = [one for one in _arguments(node) if one not in self._constants]
        if node.op == "placeholder":
            self._values[node] = node.name
            self._inputs[node.name] = None
        elif node.op == "get_attr":
            target = str(node.target)
            self._constants[node] = (target,) if target in self._names else ()
        elif node.op == "output":
            self._outputs += [self._values[one] for one in inputs]
            self._keep(self._keys(node), "the model gives it as an output")
        elif not inputs:
            self._constants[node] = self._keys(node)
            self._keep(self._keys(node), "the model's code reads it too")
        else:
            self._add(node, inputs, self._meaning(node, inputs))

    def _keep(self, keys: Sequence[str], reason: str) -> None:
        self._kept |= dict.fromkeys(keys, reason)

    def _keys(self, node: Node) -> tuple[str, ...]:
        """The stored tensors that a call reads."""
        own = keys_of(str(node.target), self._names) if node.op == "call_module" else ()
        given = (key for one in _arguments(node) for key in self._constants.get(one, ()))
        return tuple(dict.fromkeys((*own, *given)))

    def _meaning(self, node: Node, inputs: Sequence[Node]) -> Semantics:
        if node in self._stale:
            change = caller_of(self._stale[node].node)
            return Reason("not linear", f"{change} has changed in place what it reads")
        if node.op == "call_module":
            return self._module_meaning(node)
        if node.target is torch.ops.convsqueeze.seen:
            return Reason("hook", f"{node.args[1]} calls a hook that sees it")
        adds, subtracts = node.target in ADDS, node.target in SUBTRACTS
        if (adds or subtracts) and len(inputs) == len(node.args) == 2 and not node.kwargs:
            return Adding(frozenset({1} if subtracts else ()))
        is_alone = len(node.args) == 2 and len(_arguments(node)) == 1
        with_number = is_alone and node.kwargs.keys() <= {"alpha"}
        return (_with_number(node) if with_number else None) or no_layer(_name(node))

    def _module_meaning(self, node: Node) -> Semantics:
        name = str(node.target)
        if len(node.args) + len(node.kwargs) != 1:
            return Reason("not linear", f"{name} is given more than its input")
        meaning = semantics_of_named(self._modules[name], name, self._names)
        if name in self._hooked and not isinstance(meaning, Linear):
            return Reason("hook", f"{name} calls a hook that sees it")
        return meaning

    def _add(self, node: Node, inputs: Sequence[Node], meaning: Semantics) -> None:
        names = tuple(self._values[one] for one in inputs)
        if isinstance(meaning, Identity):
            self._values[node] = names[0]
            return
        self._values[node] = node.name
        operator, reads = self._operator(node), self._keys(node)
        op = Op(node.name, names, node.name, operator, calls_of(node), reads)
        made: Sequence[Op]
        if isinstance(meaning, Linear):
            made = layer_ops(meaning.tree, meaning.rank, op)
        elif isinstance(meaning, Adding):
            made = summed(op, meaning.negated)
        else:
            made = [opaque(op, meaning)]
        self._ops.update((one.name, one) for one in made)

    def _operator(self, node: Node) -> str:
        """`conv2d` of a module, too."""
        module = self._modules[str(node.target)] if node.op == "call_module" else None
        return type(module).__name__.lower() if module is not None else _name(node)

    def _written(self, node: Node) -> list[Node]:
        """Arguments that a call changes in place."""
        first = node.args[0] if node.args else None
        out = node.kwargs.get("out")
        changed = [first] if self._changes_first(node) else []
        return [one for one in (*changed, out) if isinstance(one, Node)]

    def _changes_first(self, node: Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self._modules[str(node.target)], "inplace", False))
        if node.op not in ("call_function", "call_method"):
            return False
        name = _name(node)
        named = name.endswith("_") and not name.endswith("__")
        return named or node.target in (*IN_PLACE, operator.setitem) or _is_asked_in_place(node)

    def _alike(self, node: Node) -> list[Node]:
        """Arguments whose memory the result may be: all, where it is not known to be new."""
        if written := self._written(node):
            return written
        if node.op == "call_module":
            is_new = isinstance(self._module_meaning(node), Linear)
        else:
            is_new = node.target in NEW or node.target in SIZES or _asks_size(node)
        return [] if is_new else node.all_input_nodes

    def _materialized(self) -> Iterator[tuple[str, Reason]]:
        for node, change in crossed(self._graph, self._changes):
            if node in self._values:
                yield self._values[node], reason_of(change)


def _arguments(node: Node) -> list[Node]:
    """The nodes that a node is given, each as often as it is."""
    found: list[Node] = []
    torch.fx.map_arg((node.args, node.kwargs), found.append)
    return found


def _name(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _is_asked_in_place(node: Node) -> bool:
    """Whether a function is called with `inplace=True`, by name or by place."""
    if node.op != "call_function" or not callable(node.target):
        return False
    try:
        given = signature(node.target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return bool(node.kwargs.get("inplace"))
    return bool(given.arguments.get("inplace"))


def _asks_size(node: Node) -> bool:
    return node.target is getattr and node.args[1] in SIZES


def _with_number(node: Node) -> Semantics | None:
    """A product, quotient, sum or difference of the value and a number that stands in the code."""
    first, second = node.args
    is_second, alpha = isinstance(first, Node), node.kwargs.get("alpha", 1)
    number = second if is_second else first
    if not is_number(number) or not is_number(alpha):
        return None
    if node.target in FACTORS:
        return scaling_by(factor=number)
    if node.target in DIVIDES and is_second and number:
        return scaling_by(factor=1 / number)
    for name, targets in (("add", ADDS), ("sub", SUBTRACTS), ("rsub", SUBTRACTED)):
        if node.target in targets:
            factor, share = shares(name, alpha, is_second=is_second)
            return scaling_by(factor=factor, shift=share * number)
    return None
