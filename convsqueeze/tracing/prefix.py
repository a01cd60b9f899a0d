"""A graph whose names leave out the prefix that all tensors have, as that of a wrapper module."""

from collections.abc import Mapping
from dataclasses import replace

from convsqueeze.graph import Graph, LayerOp, ModuleCall, Op, SizeRead

FIELDS = ("name", "weight", "bias")
"""Fields of a layer that hold names."""


def without_prefix(graph: Graph, prefix: str) -> Graph:
    """The graph with bare names of modules and tensors; the wrapper itself has none."""
    if not prefix:
        return graph

    def bare(name: str) -> str:
        return name.removeprefix(prefix)

    def keys(named: Mapping[str, str]) -> dict[str, str]:
        return {bare(name): value for name, value in named.items()}

    return replace(
        graph,
        ops={name: _bare_op(op, prefix) for name, op in graph.ops.items()},
        hooked=frozenset(bare(name) for name in graph.hooked if f"{name}." != prefix),
        tied={name: bare(first) for name, first in keys(graph.tied).items()},
        size_reads={
            value: tuple(SizeRead(bare(one.made), bare(one.by), one.place) for one in reads)
            for value, reads in graph.size_reads.items()
        },
        kept=keys(graph.kept),
    )


def _bare_op(op: Op, prefix: str) -> Op:
    calls = tuple(
        ModuleCall(call.id, call.name.removeprefix(prefix), call.type)
        for call in op.calls
        if f"{call.name}." != prefix
    )
    op = replace(op, calls=calls, reads=tuple(key.removeprefix(prefix) for key in op.reads))
    if not isinstance(op, LayerOp):
        return op
    held = {field: getattr(op.layer, field, None) for field in FIELDS}
    named = {field: name.removeprefix(prefix) for field, name in held.items() if name}
    return replace(op, layer=op.layer.model_copy(update=named))
