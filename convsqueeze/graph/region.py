"""A region: linear operations from a source to one result, whose inner values nothing else reads.

A region is a graph of operations. Its expression is the same as nested runs and sums, of which the
words of a manifest, the search for parts and the placement in a model are made; it is derived from
the operations by reduction, as for series-parallel graphs (Valdes, Tarjan and Lawler, "The
recognition of series parallel digraphs", 1982).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, TypeVar

from convsqueeze.algebra.tree import Chain, Sum, Tree, children, leaves
from convsqueeze.errors import GeometryError
from convsqueeze.graph.op import AddOp, LayerOp
from convsqueeze.kinds.semantics import Reason

L = TypeVar("L", bound=LayerOp)


@dataclass(frozen=True)
class Added(Sum[L]):
    """Branches that all take one value, and the operation that adds them."""

    add: AddOp


@dataclass(frozen=True)
class Region(Generic[L]):
    """Operations in the order in which they run; the last one gives the result."""

    ops: tuple[L | AddOp, ...]

    @property
    def result(self) -> str:
        return self.ops[-1].name

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """The values that come in from outside, in the order in which they are read first."""
        made = {op.name for op in self.ops}
        read = dict.fromkeys([value for op in self.ops for value in op.inputs])
        return tuple(value for value in read if value not in made)

    @cached_property
    def layers(self) -> tuple[L, ...]:
        """The layers, in the order in which they run."""
        return leaves(self.expression)

    @cached_property
    def expression(self) -> Tree[L]:
        """Chains and sums of the layers: no chain holds a chain, no sum a sum.

        Raises GeometryError for operations that are not in series and in parallel.
        """
        uses = Counter([value for op in self.ops for value in op.inputs])
        reduction = Reduction[L](uses)
        for op in self.ops:
            reduction.add(op)
        run = reduction.runs.get(self.result)
        if run is None or run.source not in self.sources:
            raise GeometryError("these layers are not in series and in parallel from one value")
        return run.tree

    @classmethod
    def of(cls, tree: Tree[L]) -> "Region[L]":
        """The region of some links of a chain, or of branches of a sum, of an expression."""
        region = cls(tuple(_ops(tree)))
        if isinstance(tree, Added) or not isinstance(tree, Sum):
            vars(region)["expression"] = tree  # it is what would be derived
        return region

    def with_layers(self, change: Mapping[str, LayerOp]) -> "Region[LayerOp]":
        """The same region with other operations for its layers, by their names."""
        return Region(tuple([change.get(op.name, op) for op in self.ops]))


def _ops(tree: Tree[L]) -> list[L | AddOp]:
    made: list[L | AddOp] = []
    for part in children(tree):
        made += _ops(part)
    if isinstance(tree, Added):
        made.append(tree.add)
    elif isinstance(tree, Sum):  # some branches of a sum: an addition of their own
        results = tuple(map(result_of, tree.branches))
        made.append(AddOp("+".join(results), results))
    elif not isinstance(tree, Chain):
        made.append(tree)
    return made


def result_of(tree: Tree[L]) -> str:
    """The value that a part of an expression gives."""
    while isinstance(tree, Chain):
        tree = tree.links[-1]
    if isinstance(tree, Added):
        return tree.add.name
    if isinstance(tree, Sum):
        return "+".join(map(result_of, tree.branches))
    return tree.name


@dataclass(frozen=True)
class Run(Generic[L]):
    """A value as links behind another: they read that `reads` times, on `rank` axes.

    `inner` are values that no longer end a region, as they are within this one.
    """

    source: str
    links: tuple[Tree[L], ...]
    reads: int
    rank: int | None = None
    inner: frozenset[str] = frozenset()

    @property
    def tree(self) -> Tree[L]:
        return self.links[0] if len(self.links) == 1 else Chain(self.links)


class Reduction(Generic[L]):
    """The longest run to every value, found one operation after the other.

    A layer extends the run to the value that it reads; a sum whose inputs all begin at one value is
    one link behind that. `uses` counts how often every value is read; `ends` say why runs are not
    joined.
    """

    def __init__(self, uses: Mapping[str, int]) -> None:
        self.uses = uses
        self.runs: dict[str, Run[L]] = {}
        self.ends: dict[str, Reason] = {}

    def _why_apart(self, run: Run[L], before: Run[L]) -> Reason | None:
        """Why a run does not go on behind the one to its source, if it does not."""
        is_alone = self.uses[run.source] == run.reads
        return None if is_alone else Reason("read elsewhere", "other code reads it too")

    def may_cross(self, value: str) -> bool:
        """Whether a sum may look behind a value that it reads."""
        return self.uses[value] == 1

    def not_one_source(self, add: AddOp, branches: Sequence[Run[L]]) -> None:
        """Called for a sum of several sources, or along different axes."""

    def add(self, op: L | AddOp) -> None:
        """The run to one operation's value, after those of its inputs."""
        run = self._summed(op) if isinstance(op, AddOp) else Run(op.inputs[0], (op,), 1, op.rank)
        if run is not None:
            self.runs[op.name] = self._extended(run)

    def _branch(self, value: str) -> Run[L]:
        known = self.runs.get(value)
        return known if known is not None and self.may_cross(value) else Run(value, (), 1)

    def _summed(self, op: AddOp) -> Run[L] | None:
        branches = [self._branch(value) for value in op.inputs]
        ranks = {branch.rank for branch in branches} - {None}
        if len({branch.source for branch in branches}) > 1 or len(ranks) > 1:
            self.not_one_source(op, branches)
            return None
        source = branches[0].source
        ways = [way for i, branch in enumerate(branches) for way in self._ways(op, i, branch.links)]
        results = tuple(map(result_of, ways))
        alone = [branch.links[0] for branch in branches if len(branch.links) == 1]
        flattened = [link.add.nodes for link in alone if isinstance(link, Added)]
        nodes = frozenset({op.node}).union(op.nodes, *flattened)
        inner = {v for v, b in zip(op.inputs, branches, strict=True) if v != source and b.links}
        link: Tree[L] = Added(tuple(ways), replace(op, inputs=results, nodes=nodes))
        return Run(
            source,
            (link,),
            sum(branch.reads for branch in branches),
            ranks.pop() if ranks else None,
            frozenset(inner).union(*(branch.inner for branch in branches)),
        )

    def _ways(self, op: AddOp, index: int, links: tuple[Tree[L], ...]) -> Iterator[Tree[L]]:
        """The branches that a run is in a sum: a sum in a sum is one sum."""
        if not links:
            yield self.skip(op, index)
        elif len(links) == 1 and isinstance(links[0], Sum):
            yield from links[0].branches
        else:
            yield links[0] if len(links) == 1 else Chain(links)

    def skip(self, op: AddOp, index: int) -> L:
        """The identity on an input that a sum reads as it is."""
        raise GeometryError("a sum reads its source as it is, an identity was needed there")

    def _extended(self, run: Run[L]) -> Run[L]:
        """As far back as every value on the way is read by these layers alone."""
        while (before := self.runs.get(run.source)) is not None:
            if reason := self._why_apart(run, before):
                self.ends.setdefault(run.source, reason)
                break
            run = Run(
                before.source,
                (*before.links, *run.links),
                before.reads,
                run.rank if before.rank is None else before.rank,
                run.inner | before.inner | {run.source},
            )
        return run
