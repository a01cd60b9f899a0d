"""Where a part of a region would go in the model: which modules do it and nothing else.

Read off the graph: a module does a part if its calls are one, and their nodes are the part's.
"""

from collections import Counter
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

from convsqueeze.algebra.tree import Chain, Sum, Tree, leaves
from convsqueeze.graph import (
    Added,
    Graph,
    LayerOp,
    ModuleCall,
    Modules,
    Placement,
    Region,
    additions,
    placement,
)

L = TypeVar("L", bound=LayerOp)


class Placing:
    """The modules of a graph, and which parts of it they do."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def of(self, tree: Tree[L]) -> Placement[L] | None:
        """Where a part goes: in the place of the module that does all of it, if there is one, else
        of its first; None where the model's code would go on doing some of it.
        """
        if whole := self.unit(tree):
            return Placement(whole, ())
        bare = {self.unit(op) for op in leaves(tree) if op.layer.is_bare}
        with_tensors = Modules[L](self.unit, _is_skip, lambda name: name not in bare)
        return placement(tree, with_tensors) or placement(tree, Modules[L](self.unit, _is_skip))

    def named(self, region: Region[LayerOp]) -> Region[LayerOp]:
        """The region as a manifest has it: a pad or a pool has the name of its module, if one does
        nothing else.
        """
        bare = {op: self.unit(op) for op in region.layers if op.layer.is_bare}
        return region.with_layers(
            {
                op.name: replace(op, layer=op.layer.model_copy(update={"name": name}))
                for op, name in bare.items()
                if name is not None
            }
        )

    def left_in_code(self, tree: Tree[LayerOp]) -> str:
        """The first layer of a part that no module does alone, and where it stands."""
        for op in leaves(tree):
            if self.unit(op) is None and op.place == op.label:
                return f"the code of {op.label} does more than this layer"
            if self.unit(op) is None:
                where = f"in {op.place}" if op.place else "of the model"
                return f"the {op.label} stands in the code {where}"
        return "no module takes the place of all of it"

    def unit(self, tree: Tree[LayerOp]) -> str | None:
        """The innermost module that does these layers and nothing else."""
        if isinstance(tree, Sum) and not isinstance(tree, Added):
            return None  # some branches of a sum: what adds them adds others too
        calls = self._calls_around(tree)
        nodes = self._nodes_of(tree) if calls and self._is_named(tree) else None
        for call in calls if nodes else ():
            alone = self._calls[call.name] == 1 and call.name not in self._graph.hooked
            if alone and self._within[call.id] == nodes and not self._keeps(call.name):
                return call.name
        return None

    def _calls_around(self, tree: Tree[LayerOp]) -> list[ModuleCall]:
        """Calls, innermost first, that may be these layers and nothing else, as far as is seen
        without looking at every node: long chains have many parts.
        """
        first, last = next(iter(leaves(tree)), None), _last(tree)
        if first is None or last is None:
            return []
        both = [call for call in reversed(first.calls) if call in last.calls]
        count = sum(not _is_skip(op) for op in leaves(tree)) if both else 0
        return [call for call in both if self._layers_within[call.id] == count]

    def _keeps(self, module: str) -> bool:
        """Whether a module holds tensors that have to stay."""
        return any(key.startswith(f"{module}.") for key in self._graph.kept)

    def _is_named(self, tree: Tree[LayerOp]) -> bool:
        """Whether a manifest says where a part is: by tensors, or the name of a module that does
        one of its layers.
        """
        if any(op.has_tensors for op in leaves(tree)):
            return True
        bare = (op for op in leaves(tree) if op.layer.is_bare)
        return any(op is tree or self.unit(op) for op in bare)

    def _nodes_of(self, tree: Tree[LayerOp]) -> frozenset[str] | None:
        """All nodes of a part, unless it holds only some layers of one."""
        layers = Counter(op.node for op in leaves(tree) if not _is_skip(op))
        if any(count != self._layers_of[node] for node, count in layers.items()):
            return None
        return frozenset(layers).union(*(add.nodes for add in additions(tree)))

    @cached_property
    def _layers_of(self) -> Counter[str]:
        """How many layers every node is, beside identities."""
        ops = self._graph.ops.values()
        return Counter(op.node for op in ops if isinstance(op, LayerOp) and not _is_skip(op))

    @cached_property
    def _within(self) -> dict[str, frozenset[str]]:
        """The nodes of every call."""
        found: dict[str, set[str]] = {}
        for op in self._graph.ops.values():
            for call in op.calls:
                found.setdefault(call.id, set()).add(op.node)
        return {call: frozenset(nodes) for call, nodes in found.items()}

    @cached_property
    def _layers_within(self) -> dict[str, int]:
        """How many layers every call is, beside identities."""
        return {
            call: sum(self._layers_of[node] for node in nodes)
            for call, nodes in self._within.items()
        }

    @cached_property
    def _calls(self) -> Counter[str]:
        """How often every module is called."""
        calls = {(call.id, call.name) for op in self._graph.ops.values() for call in op.calls}
        return Counter(name for _, name in calls)


def _is_skip(op: LayerOp) -> bool:
    return op.layer.is_identity


def _last(tree: Tree[LayerOp]) -> LayerOp | None:
    while isinstance(tree, Chain | Sum):
        parts = tree.links if isinstance(tree, Chain) else tree.branches
        if not parts:
            return None
        tree = parts[-1]
    return tree
