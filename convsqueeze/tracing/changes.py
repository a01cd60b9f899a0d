"""Values that code changes in place, and what must not be merged for it.

Of the modules of a merge all but one pass on what they are given, the same tensor and no copy of
it: a change in place that stood before or behind them would then show where it did not. Knows fx
nodes, and is told which of them write, and what may be the same memory.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch.fx import Graph, Node

from convsqueeze.kinds.semantics import Reason
from convsqueeze.tracing.stored import caller_of

Effects = tuple[Sequence[Node], Sequence[Node]]
"""The arguments that a call writes to, and those whose memory its result may be."""


@dataclass(frozen=True)
class Change:
    """`node` changes the memory of all of `values`, which are there before it."""

    node: Node
    values: frozenset[Node]

    @property
    def reason(self) -> Reason:
        """Why a value that `crossed` gives must stay."""
        what = f"{caller_of(self.node)} changes a value in place that it is, or is made of"
        return Reason("read elsewhere", what)


def changes(graph: Graph, effects: Callable[[Node], Effects]) -> tuple[Change, ...]:
    """Every change in a graph."""
    memory: dict[Node, set[Node]] = {}
    written: list[tuple[Node, Node]] = []
    for node in graph.nodes:
        memory[node] = {node}
        targets, aliases = effects(node)
        written += [(node, value) for value in targets]
        for other in aliases:
            if memory[other] is not memory[node]:
                memory[other] |= memory[node]
                for one in memory[node]:
                    memory[one] = memory[other]
    return tuple(
        Change(node, frozenset(one for one in memory[value] if one < node))
        for node, value in written
    )


def crossed(graph: Graph, found: Sequence[Change]) -> Iterator[tuple[Node, Change]]:
    """Values that no merge may go across, each with the change: what is changed after it was read,
    and what is made of it before the change, and read after it.
    """
    for change in found:
        values, at = change.values, change.node
        for value in values:
            if any(one < at and one not in values for one in value.users):
                yield value, change
        made: set[Node] = set()
        for node in graph.nodes:
            if node is at:
                break
            if any(one in values or one in made for one in node.all_input_nodes):
                made.add(node)
        for value in made - values:
            if any(at < one for one in value.users):
                yield value, change


def stale_reads(found: Sequence[Change]) -> dict[Node, Change]:
    """Calls that read a value by a name that is older than its last change, which `changes` names:
    they get what it was changed to.
    """
    return {
        reader: change
        for change in found
        for value in change.values
        for reader in value.users
        if change.node < reader
    }
