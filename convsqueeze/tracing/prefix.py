"""A graph whose names leave out the prefix that all tensors have, as that of a wrapper module."""

from collections.abc import Mapping
from dataclasses import replace

from convsqueeze.algebra.tree import mapped
from convsqueeze.manifest import Layer
from convsqueeze.tracing.graph import Call, Graph, Step
from convsqueeze.tracing.sizes import Asking

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
        steps={name: _bare_step(step, prefix) for name, step in graph.steps.items()},
        hooked=frozenset(bare(name) for name in graph.hooked if f"{name}." != prefix),
        tied={name: bare(first) for name, first in keys(graph.tied).items()},
        asked={
            value: tuple(Asking(bare(one.made), bare(one.by), one.place) for one in askings)
            for value, askings in graph.asked.items()
        },
        kept=keys(graph.kept),
    )


def _bare_step(step: Step, prefix: str) -> Step:
    def bare(layer: Layer) -> Layer:
        held = {field: getattr(layer, field, None) for field in FIELDS}
        return layer.model_copy(
            update={field: name.removeprefix(prefix) for field, name in held.items() if name}
        )

    return replace(
        step,
        calls=tuple(
            Call(call.id, call.name.removeprefix(prefix), call.type)
            for call in step.calls
            if f"{call.name}." != prefix
        ),
        keys=tuple(key.removeprefix(prefix) for key in step.keys),
        tree=None if step.tree is None else mapped(step.tree, bare),
    )
