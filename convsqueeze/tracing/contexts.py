"""Code under a context manager of torch's, which torch.export makes a graph of its own: put back
where it stands.
"""

from operator import getitem
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

GRAD_MODE = torch.ops.higher_order.wrap_with_set_grad_enabled
AUTOCAST = torch.ops.higher_order.wrap_with_autocast
IS_ON = 2
"""Which of the arguments says whether autocast converts."""


def inline(module: GraphModule, *, converts: bool = False) -> None:
    """Puts every call under a grad mode in the graph that it is a part of, in place; under autocast
    too, where that is switched off and the code around it `converts` nothing either.
    """
    for node in [*module.graph.nodes]:
        if node.target is AUTOCAST and (converts or node.args[IS_ON]):
            inline(_inner(node), converts=True)
        elif node.target in (GRAD_MODE, AUTOCAST):
            inline(_inner(node), converts=converts)
            _put_back(module, node)
    module.recompile()


def graph_under_autocast(call: Node) -> Graph | None:
    """What a call runs under autocast, if it does."""
    return _inner(call).graph if call.target is AUTOCAST else None


def _inner(call: Node) -> GraphModule:
    owner: Any = call.graph.owning_module
    found: GraphModule = owner.get_submodule(str(_graph_of(call).target))
    return found


def _graph_of(call: Node) -> Node:
    """The first node among a call's arguments: behind it are those of its graph."""
    return next(one for one in call.args if isinstance(one, Node))


def _put_back(module: GraphModule, call: Node) -> None:
    graph_node = _graph_of(call)
    operands = call.args[call.args.index(graph_node) + 1 :]
    name, inner = str(graph_node.target), _inner(call)
    copies: dict[Node, Any] = dict(
        zip(inner.graph.find_nodes(op="placeholder"), operands, strict=True)
    )
    with module.graph.inserting_before(call):
        results: Any = module.graph.graph_copy(inner.graph, copies)
    for node, copy in copies.items():
        if node.op == "get_attr":
            copy.target = f"{name}_{node.target}"
            module.add_module(copy.target, inner.get_submodule(str(node.target)))
    for reader in [*call.users]:
        if reader.target is not getitem:
            raise TypeError(f"{reader} reads all results of {call}")
        reader.replace_all_uses_with(results[reader.args[1]])
        module.graph.erase_node(reader)
    module.graph.erase_node(call)
    module.graph.erase_node(graph_node)
    module.delete_submodule(name)
