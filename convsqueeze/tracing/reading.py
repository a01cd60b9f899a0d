"""An exported program -> the graph of its steps: which value each reads, and what it does with it.

Knows fx nodes and their metadata; what an operator means is asked of the kinds.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import Node

from convsqueeze.copying import Sandbox
from convsqueeze.errors import TracingError
from convsqueeze.graph import AddOp, Graph, LayerOp, SizeRead
from convsqueeze.kinds.call import Derived, Numbers, Stored
from convsqueeze.kinds.identity import PASSING
from convsqueeze.kinds.pad import padding_by
from convsqueeze.kinds.semantics import Adding, Linear, Reason, Semantics
from convsqueeze.tracing.calls import semantics_of_node
from convsqueeze.tracing.constants import (
    constant_of,
    is_number_node,
    operator_name,
    shape_of,
    tensors_in,
)
from convsqueeze.tracing.exported import Exported, exported
from convsqueeze.tracing.idioms import bias_padded
from convsqueeze.tracing.reader import Reader
from convsqueeze.tracing.symbolic import symbolically_traced

T = TypeVar("T")
FIRST_RESULTS = {
    *("_native_batch_norm_legit_no_training", "_native_batch_norm_legit_functional"),
    *("_native_batch_norm_legit", "native_dropout"),
}
"""Operators of whose results the first is what counts."""


def traced(
    model: nn.Module, inputs: Sequence[Any], prefix: str = "", sandbox: Sandbox | None = None
) -> Graph:
    """The steps of the model's forward on `inputs`, each with the tensors of its state dict.

    Followed by torch.export, else by torch.fx, in the `sandbox`. Names leave out `prefix`, as a
    wrapper puts it before all of them. Raises TracingError where neither can follow the code.
    """
    sandbox = sandbox or Sandbox(model)
    try:
        return _Exported(model, prefix, exported(model, inputs, sandbox)).read()
    except TracingError as error:
        refusal = error
    try:
        graph = symbolically_traced(model, inputs, prefix, sandbox)
    except TracingError as error:
        raise TracingError(
            f"{type(model).__name__}: its code cannot be followed to a graph. torch.export says "
            f"{refusal}; torch.fx says {error}. Write a manifest by hand (`convsqueeze inspect`), "
            "or scan a part of the model that can be followed."
        ) from refusal
    note = f"torch.export cannot follow the model's code ({refusal}): read by torch.fx, no shapes"
    return replace(graph, notes=(note,))


class _Exported(Reader):
    """Reads the graph of an exported program."""

    def __init__(self, model: nn.Module, prefix: str, made: Exported) -> None:
        super().__init__(model, prefix)
        self._made = made
        specs = made.program.graph_signature.input_specs
        self._specs = {spec.arg.name: spec for spec in specs}
        self._cast = frozenset(map(self.bare, made.cast))
        self._unstored = dict(model.named_buffers()) | made.program.constants

    def read(self) -> Graph:
        """The operations that an output depends on."""
        for node in self._made.program.graph.nodes:
            if node.op == "placeholder":
                self._enter(node)
            elif node.op == "get_attr":
                self.constants[node] = Derived(())  # a graph that a higher-order call is given
            elif node.op == "call_function" and (constant := constant_of(node, self.constants)):
                self.constants[node] = constant
            elif node.op == "call_function" and not is_number_node(node):
                self._call(node)
        results = tensors_in(self._made.program.graph.output_node().args)
        self.outputs += [self.values[node] for node in results if node in self.values]
        for name, reason in self._made.kept.items():
            self.keep([self.bare(name)], reason)
        self.keep(self.keys_of(results), "the model gives it as an output")
        needed = set(self.outputs)
        for op in reversed(self.ops.values()):
            if op.name in needed:
                needed |= set(op.inputs)
        self.ops = {name: op for name, op in self.ops.items() if name in needed}
        size_reads: dict[str, dict[SizeRead, None]] = {}
        for value, read in self._of_calls(self._made.size_reads):
            size_read = SizeRead(self.bare(read.made), self.bare(read.by), read.place)
            size_reads.setdefault(value, {})[size_read] = None
        return self.graph(
            materialized=dict(self._of_calls(self._made.materialized)),
            size_reads={value: tuple(reads) for value, reads in size_reads.items()},
            notes=self._made.notes,
        )

    def _enter(self, node: Node) -> None:
        spec = self._specs[node.name]
        key = self.bare(spec.target or "")
        if spec.kind == InputKind.USER_INPUT:
            self.values[node] = node.name
            self.inputs[node.name] = shape_of(node)
        elif key in self.names:
            self.constants[node] = Stored(key, shape_of(node) or (), (key,))
        else:
            value = self._unstored.get(spec.target or "")
            has_values = isinstance(value, Tensor) and value.device.type != "meta"
            self.constants[node] = Numbers(value) if has_values else Derived(())

    def _call(self, node: Node) -> None:
        operator, given = operator_name(node.target), tensors_in(node.args, node.kwargs)
        inputs = [one for one in given if one not in self.constants]
        is_first = operator == "getitem" and node.args[1] == 0
        if is_first and operator_name(inputs[0].target) in FIRST_RESULTS:
            name = self.values[node] = self.values[inputs[0]]
            self.ops[name] = replace(self.ops[name], shape=shape_of(node))
        elif not self._bias_padded(node):
            meaning: Semantics
            if operator == "sum" and self._adds_stack(node):
                inputs, meaning = tensors_in(inputs[0].args), Adding()
            else:
                meaning = semantics_of_node(node, self.constants, self.names)
            keys = self.keys_of(given)
            if cast := [key for key in keys if key in self._cast]:
                text = f"it runs under autocast, which converts {cast[0]}"
                meaning = Reason("not linear", text) if isinstance(meaning, Reason) else meaning
            self.add(node, inputs, meaning, operator, keys, shape_of(node))

    def _adds_stack(self, node: Node) -> bool:
        """Whether it is `torch.stack(values).sum(0)`."""
        stack = node.args[0]
        return (
            isinstance(stack, Node)
            and operator_name(stack.target) == "stack"
            and list(stack.args[1:]) in ([], [0])
            and list(node.args[1:]) in ([[0]], [[0], False])
            and not any(one in self.constants for one in tensors_in(stack.args))
        )

    def _bias_padded(self, node: Node) -> bool:
        """Adds the operations of a pad with what a layer makes of zero, if the node is the last of
        it: a pad with zeros, then the layer.
        """
        found = bias_padded(node, self.constants)
        last = self.ops.get(self.values.get(found.inner, "")) if found else None
        if found is None or not isinstance(last, LayerOp | AddOp) or not last.node:
            return False
        self.values[node] = node.name
        inner = [op for op in self.ops.values() if op.node == last.node]
        place: dict[str, Any] = {"node": node.name, "calls": self.calls(node), "shape": None}
        names = {op.name: f"{node.name}.{op.name}" for op in inner} | {last.name: node.name}
        pad = padding_by(found.padding)
        if isinstance(pad, Linear):
            source = inner[0].inputs[0]
            names[source] = f"{node.name}.pad"
            layer: dict[str, Any] = {"layer": pad.tree, "rank": pad.rank}
            self.ops[names[source]] = replace(inner[0], name=names[source], **place, **layer)
        for op in inner:
            inputs = tuple(names.get(value, value) for value in op.inputs)
            self.ops[names[op.name]] = replace(op, name=names[op.name], inputs=inputs, **place)
        self.ops[node.name] = replace(self.ops[node.name], shape=shape_of(node))
        return True

    def _of_calls(self, by_node: Iterable[tuple[Node, T]]) -> Iterator[tuple[str, T]]:
        """Values of the module calls that made the nodes of which something is told: which of them,
        names do not tell from one graph to the other.
        """
        for node, what in by_node:
            calls = self.calls(_origin(node))
            for name, op in self.ops.items():
                if node.op == "call_function" and op.calls[-1:] == calls[-1:]:
                    yield name, what


def _origin(value: Node) -> Node:
    """What made a value: before operators that give what they take, such as dropout."""
    while operator_name(value.target) in PASSING and len(value.all_input_nodes) == 1:
        value = value.all_input_nodes[0]
    return value
