"""Operations between values: what a manifest says and what a model's code does, in one form.

Each gives the value of its own name from the values that it reads. Knows layers in the manifest's
words and modules by their names; nothing of stored tensors, files or how code was followed.
"""

from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from convsqueeze.algebra.tree import Chain, Sum, Tree
from convsqueeze.kinds import Layer
from convsqueeze.kinds.semantics import Reason
from convsqueeze.names import KeyPath

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module: calls of the same module have the same `name` and differ in `id`."""

    id: str
    name: str
    type: str


@dataclass(frozen=True)
class Op:
    """One operation: it gives the value `name` from the values `inputs`.

    In a model's code, `node` is the node of the graph that it is a part of, `operator` what that
    calls, `calls` are the modules that it runs in, outermost first, `reads` the stored tensors that
    the node reads, and `shape` is the value's with the sizes of the example.
    """

    name: str
    inputs: tuple[str, ...]
    node: str = ""
    operator: str = ""
    calls: tuple[ModuleCall, ...] = ()
    reads: tuple[str, ...] = ()
    shape: Shape | None = None

    @property
    def place(self) -> str:
        """The module in whose code it stands, "" for the model itself."""
        return self.calls[-1].name if self.calls else ""

    @property
    def label(self) -> str:
        """What messages call it: the operator, and the module that runs it."""
        return f"{self.operator} in {self.place}" if self.place else self.operator


@dataclass(frozen=True)
class LayerOp(Op):
    """A layer of its only input, on the last `rank` axes (None: on any number of them).

    In a manifest, `path` leads to it from its entry.
    """

    layer: Layer = field(kw_only=True)
    rank: int | None = None
    path: KeyPath = ()

    @property
    def label(self) -> str:
        """What messages call it: the layer's name, else its type."""
        return self.layer.label

    @property
    def has_tensors(self) -> bool:
        """Whether the layer names stored tensors."""
        layer = self.layer
        return bool(layer.name or getattr(layer, "weight", None) or getattr(layer, "bias", None))


@dataclass(frozen=True)
class AddOp(Op):
    """The sum of its inputs; `nodes` are those of all additions that it stands for."""

    nodes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class OpaqueOp(Op):
    """Anything else: `reason` says why it is no layer and no sum."""

    reason: Reason = field(kw_only=True)


def layer_ops(
    tree: Tree[Layer], rank: int | None, name: str, value: str, **place: Any
) -> list[LayerOp | AddOp]:
    """The operations of one node that is several layers of a value; `place` are fields of each.

    The last one gives the value `name`; those before it are named after it.
    """
    if isinstance(tree, Chain):
        made: list[LayerOp | AddOp] = []
        for index, link in enumerate(tree.links):
            op_name = f"{name}.{index}" if index < len(tree.links) - 1 else name
            made += layer_ops(link, rank, op_name, value, **place)
            value = op_name
        return made
    if isinstance(tree, Sum):
        branches = [
            layer_ops(branch, rank, f"{name}.{i}", value, **place)
            for i, branch in enumerate(tree.branches)
        ]
        results = tuple(ops[-1].name for ops in branches)
        add = AddOp(name, results, **place, nodes=frozenset({place["node"]}))
        return [*chain.from_iterable(branches), add]
    return [LayerOp(name, (value,), **place, layer=tree, rank=rank)]
