"""A model -> the graph of its steps by torch.fx, where torch.export cannot follow its code.

The code is followed without values, so no shape is known: what cannot be told without one stays
opaque. Layers are torch's own modules, called as such; sums, and factors and summands that are
numbers, may stand in code. What the code asks of a value's type, fx does not see: so the graph is
run beside the model on its inputs.
"""

import operator
from collections.abc import Collection, Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import fx, nn
from torch.fx import Node

from convsqueeze.copying import Sandbox
from convsqueeze.errors import TracingError
from convsqueeze.graph import Graph
from convsqueeze.kinds.call import Call, Derived, Value
from convsqueeze.kinds.registry import semantics_of, semantics_of_module
from convsqueeze.kinds.scale import is_number
from convsqueeze.kinds.semantics import Adding, Linear, Reason, Semantics, no_layer
from convsqueeze.tracing.changes import Effects, changes, crossed, stale_reads
from convsqueeze.tracing.constants import operator_name, tensors_in
from convsqueeze.tracing.proxies import IN_PLACE, check_recorded, recorded
from convsqueeze.tracing.raised import describe_error
from convsqueeze.tracing.reader import Reader
from convsqueeze.tracing.stored import caller_of

_PYTHON = {"add": "add", "sub": "sub", "mul": "mul", "div": "truediv"}
ARITHMETIC: Mapping[Any, str] = {torch.rsub: "rsub"} | {
    target: name
    for name, python in _PYTHON.items()
    for target in (
        *(getattr(operator, python), getattr(operator, f"i{python}")),
        *(getattr(torch, name), name, f"{name}_"),
    )
}
"""What gives a tensor of its own, where it changes none in place, by the operator's name."""
SIZES = {"size", "dim", "numel", "shape", "ndim", "dtype", "device"}
"""What is asked of a tensor without its numbers."""


def symbolically_traced(
    model: nn.Module, inputs: Sequence[Any], prefix: str = "", sandbox: Sandbox | None = None
) -> Graph:
    """The steps of the model's forward on `inputs`. Raises TracingError where torch.fx cannot
    follow it, or what it follows does not compute what the model does.
    """
    try:
        made, read = recorded(model, inputs, sandbox or Sandbox(model))
    except Exception as error:
        raise TracingError(describe_error(error)) from error
    check_recorded(made, model, inputs)
    return _Recorded(model, prefix, made.graph, read).read()


class _Recorded(Reader):
    """Reads the graph that torch.fx recorded."""

    def __init__(
        self, model: nn.Module, prefix: str, graph: fx.Graph, read: Collection[str]
    ) -> None:
        super().__init__(model, prefix)
        self._graph = graph
        self._modules = {self.bare(name): module for name, module in model.named_modules()}
        self._changes = changes(self._graph, self._effects)
        self._stale = stale_reads(self._changes)
        self.keep([*map(self.bare, read)], "the model's code reads it too")

    def read(self) -> Graph:
        for node in self._graph.nodes:
            self._read(node)
        crossing = [*crossed(self._graph, self._changes)]
        return self.graph(
            materialized={
                self.values[node]: change.reason for node, change in crossing if node in self.values
            }
        )

    def _read(self, node: Node) -> None:
        given = tensors_in(node.args, node.kwargs)
        inputs = [one for one in given if one not in self.constants]
        keys = (*self._own_keys(node), *self.keys_of(given))
        if node.op == "placeholder":
            self.values[node] = node.name
            self.inputs[node.name] = None
        elif node.op == "get_attr":
            self.constants[node] = Derived(keys)
        elif node.op == "output":
            self.outputs += [self.values[one] for one in inputs]
            self.keep(keys, "the model gives it as an output")
        elif not inputs:
            self.constants[node] = Derived(keys)
            self.keep(keys, "the model's code reads it too")
        else:
            self.add(node, inputs, self._meaning(node, given, inputs), self._operator(node), keys)

    def _own_keys(self, node: Node) -> tuple[str, ...]:
        """The stored tensors of a module, or the one that an attribute is."""
        name = self.bare(str(node.target))
        if node.op != "call_module":
            return (name,) if node.op == "get_attr" and name in self.names else ()
        inside = [key for key in self.names if key.startswith(f"{name}.")]
        return tuple(sorted(key for key in inside if "num_batches" not in key))

    def _meaning(self, node: Node, given: Sequence[Node], inputs: Sequence[Node]) -> Semantics:
        if node in self._stale:
            change = caller_of(self._stale[node].node)
            return Reason("not linear", f"{change} has changed in place what it reads")
        if node.op == "call_module":
            return self._module_meaning(node)
        if node.target is torch.ops.convsqueeze.seen:
            return Reason("hook", f"{node.args[1]} calls a hook that sees it")
        name, kwargs = ARITHMETIC.get(node.target, ""), node.kwargs
        if name and len(node.args) == 2 and kwargs.keys() <= {"alpha"}:
            numbers = [one for one in (*node.args, *kwargs.values()) if is_number(one)]
            if len(inputs) == 2 and name in ("add", "sub") and not kwargs:
                return Adding(frozenset({1} if name == "sub" else ()))
            if len(given) == 1 and len(numbers) == 1 + len(kwargs):
                first, second = [Value() if isinstance(a, Node) else a for a in node.args]
                return semantics_of(Call(name, {"self": first, "other": second, **kwargs}, Value()))
        return no_layer(operator_name(node.target))

    def _module_meaning(self, node: Node) -> Semantics:
        name = self.bare(str(node.target))
        module = self._modules[name]
        if len(node.args) + len(node.kwargs) != 1:
            return Reason("not linear", f"{name} is given more than its input")
        if "forward" in vars(module):
            return Reason("not linear", f"{name} has a forward of its own")
        meaning = semantics_of_module(module, name, self.names)
        if name in self.hooked and not isinstance(meaning, Linear):
            return Reason("hook", f"{name} calls a hook that sees it")
        return meaning

    def _operator(self, node: Node) -> str:
        """`conv2d` of a module, too."""
        if node.op != "call_module":
            return operator_name(node.target)
        return type(self._modules[self.bare(str(node.target))]).__name__.lower()

    def _effects(self, node: Node) -> Effects:
        """What a call writes to; and all that it is given, where its result is not known to be a
        tensor of its own.
        """
        first = node.args[:1] if self._changes_first(node) else ()
        written = [one for one in (*first, node.kwargs.get("out")) if isinstance(one, Node)]
        if node.op == "call_module":
            is_new = isinstance(self._module_meaning(node), Linear)
        else:
            asked = node.args[1] if node.target is getattr else node.target
            is_new = asked in ARITHMETIC or asked in SIZES
        return written, written or ([] if is_new else node.all_input_nodes)

    def _changes_first(self, node: Node) -> bool:
        if node.op == "call_module":
            module = self._modules[self.bare(str(node.target))]
            return bool(getattr(module, "inplace", False))
        if node.op not in ("call_function", "call_method"):
            return False
        name = operator_name(node.target)
        named = name.endswith("_") and not name.endswith("__")
        return named or node.target in (*IN_PLACE, operator.setitem) or _is_asked_in_place(node)


def _is_asked_in_place(node: Node) -> bool:
    """Whether a function is called with `inplace=True`, by name or by place."""
    if node.op != "call_function" or not callable(node.target):
        return False
    try:
        given = signature(node.target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return bool(node.kwargs.get("inplace"))
    return bool(given.arguments.get("inplace"))
