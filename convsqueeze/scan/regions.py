"""Maximal linear regions of a graph: chains and sums of layers from one value to another.

A value inside a region is read nowhere else. Regions are found by reduction, as series-parallel
graphs are (Valdes, Tarjan and Lawler, 1982): a step that reads one value extends the chain of it,
a sum whose inputs all come from one value is one link more behind it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from convsqueeze.algebra.tree import Chain, Sum, Tree, children, leaves, mapped
from convsqueeze.kinds.identity import IdentityLayer
from convsqueeze.manifest import Layer
from convsqueeze.tracing import Graph, Reason, Step


@dataclass(frozen=True)
class Placed:
    """A layer and the step that computes it (for an identity, the sum that adds it)."""

    layer: Layer
    step: str

    @property
    def has_tensors(self) -> bool:
        return any(getattr(self.layer, field, None) for field in ("name", "weight", "bias"))


@dataclass(frozen=True)
class Added(Sum[Placed]):
    """A sum, and the steps that add."""

    steps: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Region:
    """`links` take the value `source` to the value `result`; inner values are read nowhere else."""

    source: str
    result: str
    links: tuple[Tree[Placed], ...]

    @property
    def layers(self) -> tuple[Placed, ...]:
        return tuple(leaves(Chain(self.links)))


@dataclass(frozen=True)
class _Expression:
    """A value as layers of another; `reads` says how often they read that."""

    source: str
    links: tuple[Tree[Placed], ...]
    reads: int
    rank: int | None
    through: frozenset[str]
    """Values that no longer are ends of a region, as they are within this one."""


def find_regions(graph: Graph) -> tuple[tuple[Region, ...], Mapping[str, Reason]]:
    """The regions, in the order of their results, and why values are ends of one although a layer
    reads them.
    """
    asked: dict[str, Reason] = {}
    while True:
        reduction = _Reduction(graph, asked)
        for step in graph.steps.values():
            reduction.add(step)
        regions = reduction.regions()
        more = {value: reason for region in regions for value, reason in _asked(graph, region)}
        if more.keys() <= asked.keys():
            return regions, reduction.ends
        asked |= more


class _Reduction:
    def __init__(self, graph: Graph, asked: Mapping[str, Reason]) -> None:
        self.graph = graph
        self.found: dict[str, _Expression] = {}
        self.ends: dict[str, Reason] = {}
        self._refused = dict(unusable(graph))
        self._sealed = {**dict(_sealed(graph)), **asked}

    def add(self, step: Step) -> None:
        """The expression of one step, after those of its inputs."""
        if step.name in self._refused or step.opaque is not None:
            reason = self._refused.get(step.name) or step.opaque
            for value in step.inputs:
                if reason is not None:
                    self.ends.setdefault(value, reason)
            return
        if step.sums:
            expression = self._summed(step)
        else:
            link = mapped(step.tree, lambda layer: Placed(layer, step.name))  # type: ignore[arg-type]
            links = link.links if isinstance(link, Chain) else (link,)
            expression = _Expression(step.inputs[0], links, 1, step.rank, frozenset())
        if expression is not None:
            self.found[step.name] = self._extended(expression)

    def _summed(self, step: Step) -> _Expression | None:
        branches = [self._branch(value) for value in step.inputs]
        sources = {branch.source for branch in branches}
        ranks = {branch.rank for branch in branches} - {None}
        if len(sources) > 1 or len(ranks) > 1:
            what = "outputs of different layers" if len(sources) > 1 else "different axes"
            for value in step.inputs:
                self.ends.setdefault(value, Reason("not linear", f"a sum adds {what}"))
            return None
        ways = [way for branch in branches for way in _ways(branch.links, step.name)]
        adds = {step.name, *(add for branch in branches for add in _adds(branch.links))}
        through = frozenset().union(*(branch.through for branch in branches))
        inner = {v for v, b in zip(step.inputs, branches, strict=True) if v != b.source}
        return _Expression(
            sources.pop(),
            (Added(tuple(ways), frozenset(adds)),),
            sum(branch.reads for branch in branches),
            ranks.pop() if ranks else None,
            through | inner,
        )

    def _branch(self, value: str) -> _Expression:
        """A value that a sum reads, as layers of an earlier one if nothing else reads it."""
        known = self.found.get(value)
        if known is not None and self.graph.uses[value] == 1 and value not in self._sealed:
            return known
        return _Expression(value, (), 1, None, frozenset())

    def _extended(self, one: _Expression) -> _Expression:
        """As far back as every value on the way is read by these layers alone."""
        while (before := self.found.get(one.source)) is not None:
            end = self._end(one, before)
            if end is not None:
                self.ends.setdefault(one.source, end)
                break
            one = _Expression(
                before.source,
                (*before.links, *one.links),
                before.reads,
                one.rank if before.rank is None else before.rank,
                one.through | before.through | {one.source},
            )
        return one

    def _end(self, one: _Expression, before: _Expression) -> Reason | None:
        """Why the chain does not go back through its source."""
        if one.source in self._sealed:
            return self._sealed[one.source]
        if self.graph.uses[one.source] != one.reads:
            return Reason("read elsewhere", _also_read(self.graph, one))
        if None not in (one.rank, before.rank) and one.rank != before.rank:
            return Reason("axes", "the layers work on different axes")
        return None

    def regions(self) -> tuple[Region, ...]:
        through = frozenset().union(*(one.through for one in self.found.values()), ())
        return tuple(
            Region(one.source, value, one.links)
            for value, one in self.found.items()
            if value not in through
        )


def _asked(graph: Graph, region: Region) -> Iterator[tuple[str, Reason]]:
    """Inner values whose sizes are asked for by code that will go on running, unless it gets the
    same sizes whichever of the values is there instead.
    """
    steps = frozenset(_steps(region.links))
    shapes = {graph.shape(value) for value in (region.source, *steps)}
    if len(shapes) == 1 and None not in shapes:
        return
    for value in steps - {region.result}:
        for asking in graph.asked.get(value, ()):
            own = graph.steps_of(asking.by)
            if not asking.by or not own or not own <= steps:
                yield value, Reason("read elsewhere", f"{asking.place} asks for its size")


def _steps(links: Sequence[Tree[Placed]]) -> Iterator[str]:
    """The steps that make the values behind the first."""
    for link in links:
        if isinstance(link, Chain | Sum):
            yield from link.steps if isinstance(link, Added) else ()
            yield from _steps(children(link))
        else:
            yield link.step


def _ways(links: tuple[Tree[Placed], ...], step: str) -> Iterator[Tree[Placed]]:
    """The branches that a chain is in a sum: a sum in a sum is one sum."""
    if not links:
        yield Placed(IdentityLayer(type="identity"), step)
    elif len(links) == 1 and isinstance(links[0], Sum):
        yield from links[0].branches
    else:
        yield links[0] if len(links) == 1 else Chain(links)


def _adds(links: tuple[Tree[Placed], ...]) -> frozenset[str]:
    """The steps of a sum that becomes a part of another."""
    only = links[0] if len(links) == 1 else None
    return only.steps if isinstance(only, Added) else frozenset()


def _also_read(graph: Graph, one: _Expression) -> str:
    """Who reads the source of an expression beside it."""
    links: Tree[Placed] = Chain(one.links)
    inside = Counter(placed.step for placed in leaves(links))
    readers = [graph.steps[name] for name in graph.readers.get(one.source, ())]
    others = [step.label for step in readers if step.name not in inside]
    if one.source in graph.outputs:
        others.append("the model's output")
    return f"{' and '.join(dict.fromkeys(others)) or 'other code'} reads it too"


def unusable(graph: Graph) -> Iterator[tuple[str, Reason]]:
    """Steps that no region may hold: of layers that are called twice, share a tensor, or call a
    hook.
    """
    users: dict[str, list[Step]] = {}
    for step in graph.steps.values():
        for key in dict.fromkeys(step.keys):
            users.setdefault(key, []).append(step)
    for step in graph.steps.values():
        if step.tree is None:
            continue
        if step.place in graph.hooked and step.place:
            yield step.name, Reason("hook", f"{step.place} calls a hook")
        elif reasons := [*_shared(graph, step, users)]:
            yield step.name, reasons[0]


def _shared(graph: Graph, step: Step, users: Mapping[str, list[Step]]) -> Iterator[Reason]:
    """Why the tensors of a step are not its own."""
    for key in step.keys:
        if key in graph.tied:
            first = graph.tied[key]
            twins = sorted(name for name, other in graph.tied.items() if other == first)
            yield Reason("tied", f"{' and '.join(twins)} share memory (tied weights)")
        others = [one for one in users[key] if one is not step]
        if any(one.label != step.label for one in others):
            labels = dict.fromkeys(one.label for one in others if one.label != step.label)
            yield Reason("read elsewhere", f"{' and '.join(labels)} reads {key} too")
        elif others:
            yield Reason("used twice", f"{step.label} is called {len(others) + 1} times")
        if key in graph.kept:
            yield Reason("read elsewhere", f"{key}: {graph.kept[key]}")


def _sealed(graph: Graph) -> Iterator[tuple[str, Reason]]:
    """Values that have to stay: what the graph says of them, or the hook of a module that they
    enter or leave.
    """
    yield from graph.sealed.items()
    for value, names in graph.readers.items():
        made = (
            {call.id: call.name for call in graph.steps[value].calls}
            if value in graph.steps
            else {}
        )
        for name in names:
            read = {call.id: call.name for call in graph.steps[name].calls}
            crossed = {*made.items()} ^ {*read.items()}
            if seen := sorted(module for _, module in crossed if module in graph.hooked):
                yield value, Reason("hook", f"{seen[0]} calls a hook that sees it")
                break
