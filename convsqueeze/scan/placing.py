"""Where a part of a region would go in the model: which modules do it and nothing else.

Read off the graph: a module does a part if its calls are one, and their nodes are the part's.
"""

from collections import Counter
from dataclasses import replace
from functools import cached_property

from convsqueeze.algebra.tree import Sum, Tree, leaves
from convsqueeze.graph import Added, AddOp, Graph, LayerOp, Placement, Region, placement
from convsqueeze.graph.region import L


class Placing:
    """The modules of a graph, and which parts of it they do: by the nodes within every call, and
    how many layers, beside identities, each of them is.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        layers = [op for op in graph.ops.values() if isinstance(op, LayerOp)]
        self._layers_of = Counter([op.node for op in layers if not op.layer.is_identity])
        self._within: dict[str, set[str]] = {}
        for op in graph.ops.values():
            for call in op.calls:
                self._within.setdefault(call.id, set()).add(op.node)
        self._layers_within = {
            call: sum([self._layers_of[node] for node in nodes])
            for call, nodes in self._within.items()
        }

    def of(self, tree: Tree[L]) -> Placement[L] | None:
        """Where a part goes: in the place of the module that does all of it, if there is one, else
        of its first, one with tensors if there is one; None where the model's code would go on
        doing some of it.
        """
        if whole := self.unit(tree):
            return Placement(whole, ())
        bare = {self.unit(op) for op in leaves(tree) if op.layer.is_bare}
        found = placement(tree, self.unit, lambda name: name not in bare) if bare else None
        return found or placement(tree, self.unit)

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
        every = Region.of(tree).ops
        ops = [op for op in every if isinstance(op, LayerOp)]
        count = len(ops) - sum([op.layer.is_identity for op in ops])
        calls = [  # told without looking at every node, as long chains have many parts
            call
            for call in reversed(ops[0].calls)
            if call in ops[-1].calls and self._layers_within[call.id] == count
        ]
        if not calls or not self._is_named(tree, ops):
            return None
        layers = Counter([op.node for op in ops if not op.layer.is_identity])
        if any(found != self._layers_of[node] for node, found in layers.items()):
            return None  # it holds only some layers of a node
        nodes = frozenset(layers).union(*[op.nodes for op in every if isinstance(op, AddOp)])
        for call in calls:
            is_own = self._calls[call.name] == 1 and call.name not in self._graph.hooked
            stays = any(key.startswith(f"{call.name}.") for key in self._graph.kept)
            if is_own and not stays and self._within[call.id] == nodes:
                return call.name
        return None

    def _is_named(self, tree: Tree[LayerOp], ops: list[LayerOp]) -> bool:
        """Whether a manifest says where a part is: by tensors, or the name of a module that does
        one of its layers.
        """
        if any(op.has_tensors for op in ops):
            return True
        return any(op is tree or self.unit(op) for op in ops if op.layer.is_bare)

    @cached_property
    def _calls(self) -> Counter[str]:
        """How often every module is called."""
        calls = {(call.id, call.name) for op in self._graph.ops.values() for call in op.calls}
        return Counter([name for _, name in calls])
