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

Named = Callable[[Node], Sequence[Node]]


@dataclass(frozen=True)
class Change:
    """`node` changes the memory of all of `values`, which are there before it."""

    node: Node
    values: frozenset[Node]


def changes(graph: Graph, written: Named, alike: Named) -> tuple[Change, ...]:
    """Every change in a graph. `written` gives the arguments that a call writes to, `alike` those
    whose memory its result may be.
    """
    memory: dict[Node, set[Node]] = {}
    for node in graph.nodes:
        memory[node] = {node}
        for other in alike(node):
            if memory[other] is not memory[node]:
                memory[other] |= memory[node]
                for one in memory[node]:
                    memory[one] = memory[other]
    order = {node: place for place, node in enumerate(graph.nodes)}
    return tuple(
        Change(node, frozenset(v for v in memory[value] if order[v] < order[node]))
        for node in graph.nodes
        for value in written(node)
    )


def crossed(graph: Graph, found: Sequence[Change]) -> Iterator[tuple[Node, Change]]:
    """Values that no merge may go across, each with the change: what is changed after it was read,
    and what is made of it before the change, and read after it.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    for change in found:
        at = order[change.node]
        for value in change.values:
            before = (one for one in value.users if order[one] < at)
            if any(one not in change.values for one in before):
                yield value, change
        for value in _made_before(graph, change):
            if any(order[one] > at for one in value.users):
                yield value, change


def _made_before(graph: Graph, change: Change) -> set[Node]:
    """What is computed of the values before they change."""
    made: set[Node] = set()
    for node in graph.nodes:
        if node is change.node:
            break
        if any(one in change.values or one in made for one in node.all_input_nodes):
            made.add(node)
    return made - change.values


def stale(graph: Graph, found: Sequence[Change]) -> dict[Node, Change]:
    """Calls that read a value by a name that is older than its last change, which `changes` names:
    they get what it was changed to.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    return {
        reader: change
        for change in found
        for value in change.values
        for reader in value.users
        if order[reader] > order[change.node]
    }


def reason_of(change: Change) -> Reason:
    """Why a value that `crossed` gives must stay."""
    what = f"{caller_of(change.node)} changes a value in place that it is, or is made of"
    return Reason("read elsewhere", what)
