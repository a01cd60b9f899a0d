"""Code under a context manager of torch's, which torch.export makes a graph of its own: put back
where it stands.
"""

from collections.abc import Mapping
from operator import getitem
from typing import Any

import torch
from torch.fx import GraphModule, Node

GRAD_MODE = torch.ops.higher_order.wrap_with_set_grad_enabled
AUTOCAST = torch.ops.higher_order.wrap_with_autocast
CASTS = "convsqueeze: autocast"
"""The mark of a call that autocast may convert the tensors of, among a node's own metadata."""


def inline(module: GraphModule) -> None:
    """Puts every call under a grad mode or autocast in the graph that it is a part of, in place."""
    for node in [*module.graph.nodes]:
        if node.op == "call_function" and node.target in (GRAD_MODE, AUTOCAST):
            _put_back(module, node)
    module.delete_all_unused_submodules()
    module.recompile()


def casts(node: Node) -> bool:
    """Whether a call runs under autocast."""
    return CASTS in (node.meta.get("custom") or {})


def _put_back(module: GraphModule, call: Node) -> None:
    place, graph_node = next(
        (place, one) for place, one in enumerate(call.args) if isinstance(one, Node)
    )
    settings, operands = call.args[:place], call.args[place + 1 :]
    name = str(graph_node.target)
    inner = getattr(module, name)
    inline(inner)
    entries = [node for node in inner.graph.nodes if node.op == "placeholder"]
    copies: dict[Node, Any] = dict(zip(entries, operands, strict=True))
    is_cast = call.target is AUTOCAST and bool(settings[2])
    with module.graph.inserting_before(call):
        for node in inner.graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            copy = copies[node] = module.graph.node_copy(node, copies.__getitem__)
            if node.op == "get_attr":
                copy.target = f"{name}_{node.target}"
                module.add_module(copy.target, inner.get_submodule(str(node.target)))
            if is_cast:
                copy.meta["custom"] = {**copy.meta.get("custom", {}), CASTS: True}
    _read_instead(module, call, inner.graph.output_node().args[0], copies)
    module.graph.erase_node(call)
    module.graph.erase_node(graph_node)


def _read_instead(
    module: GraphModule, call: Node, results: Any, copies: Mapping[Node, Any]
) -> None:
    """What read the call's results reads the copies of them."""
    for reader in [*call.users]:
        if reader.target is not getitem:
            raise TypeError(f"{reader} reads all results of {call}")
        result = results[reader.args[1]]
        reader.replace_all_uses_with(copies[result] if isinstance(result, Node) else result)
        module.graph.erase_node(reader)
