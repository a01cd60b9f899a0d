"""Where a part of a region would go in the model: which modules do it and nothing else.

Read off the graph: a module does a part if its calls are one, and the steps of that are the part's.
"""

from collections import Counter
from functools import cached_property

from convsqueeze.algebra.tree import Chain, Sum, Tree, leaves
from convsqueeze.manifest import Layer
from convsqueeze.scan.regions import Added, Placed
from convsqueeze.surgery.places import Modules, Placement, placement
from convsqueeze.tracing import Call, Graph


class Placing:
    """The modules of a graph, and which parts of it they do."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def of(self, tree: Tree[Placed]) -> Placement[Placed] | None:
        """Where a part goes: in the place of the module that does all of it, if there is one, else
        of its first; None where the model's code would go on doing some of it.
        """
        if whole := self.unit(tree):
            return Placement(whole, ())
        bare = {self.unit(placed) for placed in leaves(tree) if placed.layer.is_bare}
        with_tensors = Modules(self.unit, _is_skip, lambda name: name not in bare)
        return placement(tree, with_tensors) or placement(tree, Modules(self.unit, _is_skip))

    def layer(self, placed: Placed) -> Layer:
        """The layer as a manifest has it: a pad or a pool has the name of its module, if one does
        nothing else.
        """
        if not placed.layer.is_bare or (name := self.unit(placed)) is None:
            return placed.layer
        return placed.layer.model_copy(update={"name": name})

    def left_in_code(self, tree: Tree[Placed]) -> str:
        """The first layer of a part that no module does alone, and where it stands."""
        for placed in leaves(tree):
            if self.unit(placed) is None:
                step = self._graph.steps[placed.step]
                where = f"in {step.place}" if step.place else "of the model"
                return f"the {placed.layer.label} stands in the code {where}"
        return "no module takes the place of all of it"

    def unit(self, tree: Tree[Placed]) -> str | None:
        """The innermost module that does these layers and nothing else."""
        if isinstance(tree, Sum) and not isinstance(tree, Added):
            return None  # some branches of a sum: what adds them adds others too
        calls = self._calls_around(tree)
        steps = self._steps_of(tree) if calls and self._is_named(tree) else None
        for call in calls if steps else ():
            alone = self._calls[call.name] == 1 and call.name not in self._graph.hooked
            if alone and self._within[call.id] == steps and not self._keeps(call.name):
                return call.name
        return None

    def _calls_around(self, tree: Tree[Placed]) -> list[Call]:
        """Calls, innermost first, that may be these layers and nothing else, as far as is seen
        without looking at every step: long chains have many parts.
        """
        first, last = next(leaves(tree), None), _last(tree)
        if first is None or last is None:
            return []
        behind = self._graph.steps[last.step].calls
        both = [call for call in reversed(self._graph.steps[first.step].calls) if call in behind]
        count = sum(not _is_skip(placed) for placed in leaves(tree)) if both else 0
        return [call for call in both if self._layers_within[call.id] == count]

    def _keeps(self, module: str) -> bool:
        """Whether a module holds tensors that have to stay."""
        return any(key.startswith(f"{module}.") for key in self._graph.kept)

    def _is_named(self, tree: Tree[Placed]) -> bool:
        """Whether a manifest says where a part is: by tensors, or the name of a module that does
        one of its layers.
        """
        if any(one.has_tensors for one in leaves(tree)):
            return True
        bare = (one for one in leaves(tree) if one.layer.is_bare)
        return any(one is tree or self.unit(one) for one in bare)

    def _steps_of(self, tree: Tree[Placed]) -> frozenset[str] | None:
        """All steps of a part, unless it holds only some layers of one."""
        layers = Counter(placed.step for placed in leaves(tree) if not _is_skip(placed))
        if any(count != self._layers_of(step) for step, count in layers.items()):
            return None
        return frozenset(layers) | frozenset(_adds(tree))

    def _layers_of(self, name: str) -> int:
        layers = self._graph.steps[name].layers
        return sum(not layer.is_identity for layer in layers)

    @cached_property
    def _within(self) -> dict[str, frozenset[str]]:
        """The steps of every call."""
        found: dict[str, set[str]] = {}
        for step in self._graph.steps.values():
            for call in step.calls:
                found.setdefault(call.id, set()).add(step.name)
        return {call: frozenset(names) for call, names in found.items()}

    @cached_property
    def _layers_within(self) -> dict[str, int]:
        """How many layers every call is, beside identities."""
        return {call: sum(map(self._layers_of, steps)) for call, steps in self._within.items()}

    @cached_property
    def _calls(self) -> Counter[str]:
        """How often every module is called."""
        calls = {(call.id, call.name) for step in self._graph.steps.values() for call in step.calls}
        return Counter(name for _, name in calls)


def _is_skip(placed: Placed) -> bool:
    return placed.layer.is_identity


def _last(tree: Tree[Placed]) -> Placed | None:
    while isinstance(tree, Chain | Sum):
        parts = tree.links if isinstance(tree, Chain) else tree.branches
        if not parts:
            return None
        tree = parts[-1]
    return tree


def _adds(tree: Tree[Placed]) -> frozenset[str]:
    """The steps that add in all sums of a part."""
    if isinstance(tree, Chain):
        return frozenset().union(*map(_adds, tree.links))
    if isinstance(tree, Sum):
        own = tree.steps if isinstance(tree, Added) else frozenset()
        return own.union(*map(_adds, tree.branches))
    return frozenset()
