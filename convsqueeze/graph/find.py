"""The maximal linear regions of a graph, and why values are ends of one."""

from collections.abc import Iterator, Mapping, Sequence

from convsqueeze.graph.graph import Graph
from convsqueeze.graph.op import AddOp, LayerOp, ModuleCall, Op, OpaqueOp
from convsqueeze.graph.region import Reduction, Region, Run
from convsqueeze.kinds.identity import IdentityLayer
from convsqueeze.kinds.semantics import Reason


def find_regions(graph: Graph) -> tuple[tuple[Region[LayerOp], ...], Mapping[str, Reason]]:
    """The regions, in the order of their results, and why values are ends of one although a layer
    reads them.
    """
    size_reads: dict[str, Reason] = {}
    while True:
        search = _Search(graph, size_reads)
        for op in graph.ops.values():
            search.read(op)
        regions = search.regions()
        more = {value: reason for one in regions for value, reason in _sizes_read(graph, one)}
        if more.keys() <= size_reads.keys():
            return regions, search.ends
        size_reads |= more


class _Search(Reduction[LayerOp]):
    """A reduction of a whole graph, in which some operations and values are not to be touched."""

    def __init__(self, graph: Graph, size_reads: Mapping[str, Reason]) -> None:
        super().__init__(graph.uses)
        self.graph = graph
        self._refused = dict(unusable(graph))
        self._stays = {**dict(_materialized(graph)), **size_reads}

    def read(self, op: Op) -> None:
        reason = op.reason if isinstance(op, OpaqueOp) else self._refused.get(op.name)
        if reason is not None:
            for value in op.inputs:
                self.ends.setdefault(value, reason)
        elif isinstance(op, LayerOp | AddOp):
            self.add(op)

    def may_cross(self, value: str) -> bool:
        return super().may_cross(value) and value not in self._stays

    def _why_apart(self, run: Run[LayerOp], before: Run[LayerOp]) -> Reason | None:
        if run.source in self._stays:
            return self._stays[run.source]
        if super()._why_apart(run, before):
            return Reason("read elsewhere", _also_read(self.graph, run))
        if None not in (run.rank, before.rank) and run.rank != before.rank:
            return Reason("axes", "the layers work on different axes")
        return None

    def not_one_source(self, add: AddOp, branches: Sequence[Run[LayerOp]]) -> None:
        several = len({branch.source for branch in branches}) > 1
        what = "outputs of different layers" if several else "different axes"
        for value in add.inputs:
            self.ends.setdefault(value, Reason("not linear", f"a sum adds {what}"))

    def skip(self, op: AddOp, index: int) -> LayerOp:
        return LayerOp(
            *(f"{op.name}.skip{index}", (op.inputs[index],), op.node, "identity", op.calls),
            layer=IdentityLayer(type="identity"),
        )

    def regions(self) -> tuple[Region[LayerOp], ...]:
        inner = frozenset().union(*(run.inner for run in self.runs.values()), ())
        return tuple(Region.of(run.tree) for value, run in self.runs.items() if value not in inner)


def _sizes_read(graph: Graph, region: Region[LayerOp]) -> Iterator[tuple[str, Reason]]:
    """Inner values whose sizes are asked for by code that will go on running, unless it gets the
    same sizes whichever of the values is there instead.
    """
    values = [op.name for op in region.ops if op.name in graph.ops]
    shapes = {graph.shape(value) for value in (*region.sources, *values)}
    if len(shapes) == 1 and None not in shapes:
        return
    nodes = frozenset(op.node for op in region.ops)
    for value in values:
        for read in graph.size_reads.get(value, ()) if value != region.result else ():
            asking = graph.nodes_in(read.by)
            if not read.by or not asking or not asking <= nodes:
                yield value, Reason("read elsewhere", f"{read.place} asks for its size")


def _also_read(graph: Graph, run: Run[LayerOp]) -> str:
    """Who reads the source of a run beside it."""
    inside = {op.node for op in Region.of(run.tree).ops}
    readers = (graph.ops[name] for name in graph.readers.get(run.source, ()))
    others = [graph.labels[op.node] for op in readers if op.node not in inside]
    if run.source in graph.outputs:
        others.append("the model's output")
    return f"{' and '.join(dict.fromkeys(others)) or 'other code'} reads it too"


def unusable(graph: Graph) -> Iterator[tuple[str, Reason]]:
    """Layers that no region may hold: they are called twice, share a tensor, or call a hook."""
    users: dict[str, dict[str, None]] = {}
    for op in graph.ops.values():
        for key in op.reads:
            users.setdefault(key, {})[op.node] = None
    for op in graph.ops.values():
        if not isinstance(op, LayerOp):
            continue
        if op.place in graph.hooked and op.place:
            yield op.name, Reason("hook", f"{op.place} calls a hook")
        elif reasons := [*_shared(graph, op, users)]:
            yield op.name, reasons[0]


def _shared(graph: Graph, op: Op, users: Mapping[str, Mapping[str, None]]) -> Iterator[Reason]:
    """Why the tensors of an operation are not its own."""
    label = graph.labels[op.node]
    for key in op.reads:
        if key in graph.tied:
            first = graph.tied[key]
            twins = sorted(name for name, other in graph.tied.items() if other == first)
            yield Reason("tied", f"{' and '.join(twins)} share memory (tied weights)")
        others = [graph.labels[node] for node in users[key] if node != op.node]
        strangers = dict.fromkeys(other for other in others if other != label)
        if strangers:
            yield Reason("read elsewhere", f"{' and '.join(strangers)} reads {key} too")
        elif others:
            yield Reason("used twice", f"{label} is called {len(others) + 1} times")
        if key in graph.kept:
            yield Reason("read elsewhere", f"{key}: {graph.kept[key]}")


def _materialized(graph: Graph) -> Iterator[tuple[str, Reason]]:
    """Values that have to stay: what the graph says of them, or the hook of a module that they
    enter or leave.
    """
    yield from graph.materialized.items()
    calls = {name: {*op.calls} for name, op in graph.ops.items()} if graph.hooked else {}
    for value, names in graph.readers.items() if graph.hooked else ():
        made: set[ModuleCall] = calls.get(value, set())  # in none where it is an input
        for name in names:
            crossed = {call.name for call in made ^ calls[name]}
            if seen := sorted(crossed & graph.hooked):
                yield value, Reason("hook", f"{seen[0]} calls a hook that sees it")
                break
