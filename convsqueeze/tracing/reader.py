"""Nodes -> operations between values; the same for every way to follow code."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.fx import Node

from convsqueeze.graph import AddOp, Graph, LayerOp, ModuleCall, Op, OpaqueOp, Shape, layer_ops
from convsqueeze.kinds.call import Constant
from convsqueeze.kinds.scale import ScaleLayer
from convsqueeze.kinds.semantics import Adding, Identity, Linear, Semantics
from convsqueeze.tracing.hooks import hooked
from convsqueeze.tracing.stored import calls_of, tied


class Reader:
    """What is known after each node: constants, and by which name a value is called.

    Names of modules and tensors leave out `prefix`, that of a wrapper, which itself has no name.
    """

    def __init__(self, model: nn.Module, prefix: str = "") -> None:
        self._prefix = prefix
        self.names = frozenset(map(self.bare, model.state_dict()))
        self.constants: dict[Node, Constant] = {}
        self.values: dict[Node, str] = {}
        self.ops: dict[str, Op] = {}
        self.inputs: dict[str, Shape | None] = {}
        self.outputs: list[str] = []
        self.kept: dict[str, str] = {}
        self.hooked = frozenset(map(self.bare, {*hooked(model)} - {prefix.removesuffix(".")}))
        self.tied = {self.bare(name): self.bare(first) for name, first in tied(model).items()}

    def bare(self, name: str) -> str:
        """A module's or a tensor's name without the prefix."""
        return name.removeprefix(self._prefix)

    def calls(self, node: Node) -> tuple[ModuleCall, ...]:
        """The module calls that a node runs in, outermost first."""
        return calls_of(node, self._prefix)

    def keep(self, keys: Sequence[str], reason: str) -> None:
        """Stored tensors have to stay."""
        self.kept |= dict.fromkeys(keys, reason)

    def keys_of(self, nodes: Sequence[Node]) -> tuple[str, ...]:
        """The stored tensors behind what a call is given, whatever it makes of them."""
        given = [self.constants[one].keys for one in nodes if one in self.constants]
        return tuple(dict.fromkeys(sum(given, ())))

    def add(
        self,
        node: Node,
        inputs: Sequence[Node],
        meaning: Semantics,
        operator: str,
        keys: Sequence[str],
        shape: Shape | None = None,
    ) -> None:
        """The operations of a node that makes a value of `inputs` and of stored tensors."""
        values = tuple(self.values[one] for one in inputs)
        if isinstance(meaning, Identity):
            self.values[node] = values[0]
            return
        name = self.values[node] = node.name
        place: dict[str, Any] = {
            **{"node": name, "operator": operator, "calls": self.calls(node)},
            "reads": tuple(dict.fromkeys((*getattr(meaning, "keys", ()), *keys))),
        }
        made: list[Op]
        if isinstance(meaning, Linear):
            made = [*layer_ops(meaning.tree, meaning.rank, name, values[0], **place)]
            made[0] = self._with_its_padding(made[0])
        elif isinstance(meaning, Adding):
            made = _added(name, values, meaning.negated, place)
        else:
            made = [OpaqueOp(name, values, **place, reason=meaning)]
        made[-1] = replace(made[-1], shape=shape)
        self.ops.update((one.name, one) for one in made)

    def _with_its_padding(self, op: Op) -> Op:
        """A convolution that pads by a mode does so in a node before it: both are one layer."""
        before = self.ops.get(op.inputs[0])
        if not isinstance(op, LayerOp) or not isinstance(before, LayerOp):
            return op
        one_call = before.calls[-1:] == op.calls[-1:] and op.layer.name == op.place
        padded = op.layer.padded_by(before.layer) if one_call else None
        return replace(op, layer=padded, inputs=before.inputs) if padded else op

    def graph(self, **more: Any) -> Graph:
        """What was read, as a graph; `more` are fields that not every reader fills."""
        given = {"ops": self.ops, "outputs": tuple(self.outputs)} | more
        return Graph(
            inputs=self.inputs, hooked=self.hooked, tied=self.tied, kept=self.kept, **given
        )


def _added(
    name: str, values: Sequence[str], negated: Collection[int], place: dict[str, Any]
) -> list[Op]:
    """The sum of some values, with an operation in front of it for each that is subtracted."""
    minus = ScaleLayer(type="scale", factor=-1.0)
    made: list[Op] = [
        LayerOp(f"{name}.minus{i}", (values[i],), **place | {"operator": "neg"}, layer=minus)
        for i in negated
    ]
    terms = [f"{name}.minus{i}" if i in negated else value for i, value in enumerate(values)]
    return [*made, AddOp(name, tuple(terms), **place, nodes=frozenset({place["node"]}))]
