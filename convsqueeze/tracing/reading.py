"""An exported program -> the graph of its steps: which value each reads, and what it does with it.

Knows fx nodes and their metadata; what an operator means is asked of `operators`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import Node

from convsqueeze.copying import Sandbox
from convsqueeze.errors import TracingError
from convsqueeze.graph import AddOp, Graph, LayerOp, Op, SizeRead, layer_ops
from convsqueeze.kinds.call import Computed, Constant, Known, Stored
from convsqueeze.kinds.identity import PASSING
from convsqueeze.kinds.pad import padding_by
from convsqueeze.kinds.semantics import Adding, Identity, Linear, Reason, Semantics
from convsqueeze.tracing.calls import semantics_of_node
from convsqueeze.tracing.constants import constant_of, operator_of, shape_of
from convsqueeze.tracing.exported import Exported, exported
from convsqueeze.tracing.idioms import ringed
from convsqueeze.tracing.operations import opaque, summed
from convsqueeze.tracing.prefix import without_prefix
from convsqueeze.tracing.stored import calls_of, tied
from convsqueeze.tracing.symbolic import symbolically_traced
from convsqueeze.tracing.watched import hooked

Told = TypeVar("Told")


def traced(
    model: nn.Module, inputs: Sequence[Any], prefix: str = "", sandbox: Sandbox | None = None
) -> Graph:
    """The steps of the model's forward on `inputs`, each with the tensors of its state dict.

    Followed by torch.export, else by torch.fx, in the `sandbox`. Names leave out `prefix`, as a
    wrapper puts it before all of them. Raises TracingError where neither can follow the code.
    """
    return without_prefix(_traced(model, inputs, sandbox or Sandbox(model)), prefix)


def _traced(model: nn.Module, inputs: Sequence[Any], sandbox: Sandbox) -> Graph:
    try:
        made = exported(model, inputs, sandbox)
    except TracingError as error:
        return _by_fx(model, inputs, error, sandbox)
    reader = _Reader(made, model)
    for node in made.program.graph.nodes:
        reader.read(node)
    return reader.graph(made)


def _by_fx(
    model: nn.Module, inputs: Sequence[Any], refusal: TracingError, sandbox: Sandbox
) -> Graph:
    try:
        graph = symbolically_traced(model, inputs, sandbox)
    except TracingError as error:
        raise TracingError(
            f"{type(model).__name__}: its code cannot be followed to a graph. torch.export says "
            f"{refusal}; torch.fx says {error}. Write a manifest by hand (`convsqueeze inspect`), "
            "or scan a part of the model that can be followed."
        ) from refusal
    note = f"torch.export cannot follow the model's code ({refusal}): read by torch.fx, no shapes"
    return replace(graph, notes=(note,))


class _Reader:
    """What is known after each node: constants, and by which name a value is called."""

    def __init__(self, made: Exported, model: nn.Module) -> None:
        self.names = frozenset(model.state_dict())
        self.constants: dict[Node, Constant] = {}
        self.values: dict[Node, str] = {}
        self.ops: dict[str, Op] = {}
        self.inputs: dict[str, tuple[int, ...] | None] = {}
        self.hooked = frozenset(hooked(model))
        self.tied = tied(model)
        program = made.program
        self._specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self._buffers = dict(model.named_buffers())
        self._constants = program.constants
        self._cast = made.cast

    def read(self, node: Node) -> None:
        if node.op == "placeholder":
            self._enter(node)
        elif node.op == "get_attr":
            self.constants[node] = Computed(())  # the graph that a call of higher order is given
        elif node.op == "call_function" and (constant := constant_of(node, self.constants)):
            self.constants[node] = constant
        elif node.op == "call_function" and not _is_number(node):
            self._call(node)

    def _enter(self, node: Node) -> None:
        spec = self._specs[node.name]
        target, shape = spec.target or "", shape_of(node) or ()
        if spec.kind == InputKind.USER_INPUT:
            self.values[node] = node.name
            self.inputs[node.name] = shape_of(node)
        elif target in self.names:
            self.constants[node] = Stored(target, shape, (target,))
        else:
            value = self._constants.get(target, self._buffers.get(target))
            known = isinstance(value, Tensor) and value.device.type != "meta"
            self.constants[node] = Known(value) if known else Computed(())

    def _call(self, node: Node) -> None:
        inputs = [one for one in _tensors(node.args, node.kwargs) if one not in self.constants]
        if operator_of(node) == "getitem" and node.args[1] == 0 and _gives_first(inputs[0]):
            name = self.values[node] = self.values[inputs[0]]
            self.ops[name] = replace(self.ops[name], shape=shape_of(node))
        elif operator_of(node) == "sum" and self._adds_stack(node):
            self._add(node, _tensors(inputs[0].args), Adding())
        elif not self._ringed(node):
            self._add(node, inputs, semantics_of_node(node, self.constants, self.names))

    def _adds_stack(self, node: Node) -> bool:
        """Whether it is `torch.stack(values).sum(0)`."""
        stack = node.args[0]
        return (
            isinstance(stack, Node)
            and operator_of(stack) == "stack"
            and list(stack.args[1:]) in ([], [0])
            and list(node.args[1:]) in ([[0]], [[0], False])
            and not any(one in self.constants for one in _tensors(stack.args))
        )

    def _ringed(self, node: Node) -> bool:
        """Adds the operations of a pad with what a layer makes of zero, if the node is the last of
        it: a pad with zeros, then the layer.
        """
        found = ringed(node, self.constants)
        last = self.ops.get(self.values.get(found.inner, "")) if found else None
        if found is None or not isinstance(last, LayerOp | AddOp) or not last.node:
            return False
        self.values[node] = node.name
        inner = [op for op in self.ops.values() if op.node == last.node]
        place: dict[str, Any] = {"node": node.name, "calls": calls_of(node)}
        names = {op.name: f"{node.name}.{op.name}" for op in inner} | {last.name: node.name}
        pad = padding_by(found.padding)
        if isinstance(pad, Linear):
            source = inner[0].inputs[0]
            names[source] = f"{node.name}.pad"
            like = replace(inner[0], name=names[source], **place)
            made = layer_ops(pad.tree, pad.rank, like)
            self.ops.update((one.name, one) for one in made)
        for op in inner:
            inputs = tuple(names.get(value, value) for value in op.inputs)
            shape = shape_of(node) if op is last else None
            own = replace(op, name=names[op.name], inputs=inputs, shape=shape, **place)
            self.ops[own.name] = own
        return True

    def _add(self, node: Node, inputs: Sequence[Node], meaning: Semantics) -> None:
        names = tuple(self.values[one] for one in inputs)
        if isinstance(meaning, Identity):
            self.values[node] = names[0]
            return
        self.values[node] = node.name
        keys = self._keys_of(node)
        if isinstance(meaning, Linear):
            keys = tuple(dict.fromkeys((*meaning.keys, *keys)))
        op = Op(
            *(node.name, names, node.name, operator_of(node), calls_of(node), keys, shape_of(node))
        )
        made: Sequence[Op]
        if isinstance(meaning, Linear):
            made = layer_ops(meaning.tree, meaning.rank, op)
            made = [self._with_its_padding(made[0]), *made[1:]]
        elif isinstance(meaning, Adding):
            made = summed(op, meaning.negated)
        else:
            made = [opaque(op, self._under_autocast(keys) or meaning)]
        self.ops.update((one.name, one) for one in made)

    def _under_autocast(self, keys: Sequence[str]) -> Reason | None:
        """Why a call reads these stored tensors as it does, if that is autocast."""
        key = next((key for key in keys if key in self._cast), None)
        if key is None:
            return None
        return Reason("not linear", f"it runs under autocast, which converts {key}")

    def _keys_of(self, node: Node) -> tuple[str, ...]:
        """The stored tensors behind what a call is given, whatever it makes of them."""
        given = (self.constants.get(one) for one in _tensors(node.args, node.kwargs))
        return tuple(dict.fromkeys(key for one in given if one is not None for key in one.keys))

    def _with_its_padding(self, op: Op) -> Op:
        """A convolution that pads by a mode does so in a node before it: both are one layer."""
        before = self.ops.get(op.inputs[0])
        if not isinstance(op, LayerOp) or not isinstance(before, LayerOp):
            return op
        one_call = before.calls[-1:] == op.calls[-1:] and op.layer.name == op.place
        padded = op.layer.padded_by(before.layer) if one_call else None
        return replace(op, layer=padded, inputs=before.inputs) if padded else op

    def graph(self, made: Exported) -> Graph:
        """The operations that an output depends on."""
        results = _tensors(made.program.graph.output_node().args)
        outputs = tuple(self.values[node] for node in results if node in self.values)
        needed = set(outputs)
        for op in reversed(self.ops.values()):
            if op.name in needed:
                needed |= set(op.inputs)
        ops = {name: op for name, op in self.ops.items() if name in needed}
        kept = dict(made.kept)
        for constant in (self.constants[node] for node in results if node in self.constants):
            kept |= dict.fromkeys(constant.keys, "the model gives it as an output")
        return Graph(
            *(ops, self.inputs, outputs, self.hooked, self.tied),
            materialized=dict(_of_calls(ops, made.sealed)),
            size_reads=_size_reads(ops, made),
            kept=kept,
            notes=made.notes,
        )


def _of_calls(
    ops: Mapping[str, Op], told: Iterable[tuple[Node, Told]]
) -> Iterator[tuple[str, Told]]:
    """Values of the module calls that made the nodes of which something is told: which of them,
    names do not tell from one graph to the other.
    """
    for node, what in told:
        calls = calls_of(_origin(node))
        for name, op in ops.items():
            if node.op == "call_function" and op.calls[-1:] == calls[-1:]:
                yield name, what


def _size_reads(ops: Mapping[str, Op], made: Exported) -> dict[str, tuple[SizeRead, ...]]:
    found: dict[str, dict[SizeRead, None]] = {}
    for name, read in _of_calls(ops, made.asked):
        found.setdefault(name, {})[read] = None
    return {name: tuple(reads) for name, reads in found.items()}


def _origin(value: Node) -> Node:
    """What made a value: before operators that give what they take, such as dropout."""
    while operator_of(value) in PASSING and len(value.all_input_nodes) == 1:
        value = value.all_input_nodes[0]
    return value


def _is_number(node: Node) -> bool:
    return isinstance(
        node.meta.get("val"), int | float | torch.SymInt | torch.SymFloat | torch.SymBool
    )


def _gives_first(node: Node) -> bool:
    """Whether what counts of a call's results is the first."""
    return operator_of(node) in (
        "_native_batch_norm_legit_no_training",
        "_native_batch_norm_legit_functional",
        "_native_batch_norm_legit",
        "native_dropout",
    )


def _tensors(*arguments: Any) -> list[Node]:
    """The nodes among arguments that are no numbers, each as often as it is given."""
    found: list[Node] = []

    def take(node: Node) -> Node:
        if not _is_number(node):
            found.append(node)
        return node

    torch.fx.map_arg(arguments, take)
    return found
