"""A model's forward as operations between values."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from convsqueeze.graph.op import LayerOp, Op, Shape
from convsqueeze.kinds.semantics import Reason


@dataclass(frozen=True)
class SizeRead:
    """Code of the module `by` ("" for the model itself) asks at `place` for a size of what the
    module `made` gave.
    """

    made: str
    by: str
    place: str


@dataclass(frozen=True)
class Graph:
    """All operations in the order in which they run; `outputs` are the values that leave the model.

    `inputs` are values that enter, with their shapes. `hooked` are modules that call a hook of the
    user's, `tied` stored tensors that share memory, each by the first of its names.
    `materialized` are values, and `kept` stored tensors, that have to stay, each with the reason;
    `size_reads` are values whose sizes the model's code asks for, and `notes` tell what the graph
    does not hold for.
    """

    ops: Mapping[str, Op]
    inputs: Mapping[str, Shape | None]
    outputs: tuple[str, ...]
    hooked: frozenset[str] = frozenset()
    tied: Mapping[str, str] = field(default_factory=dict)
    materialized: Mapping[str, Reason] = field(default_factory=dict)
    size_reads: Mapping[str, tuple[SizeRead, ...]] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @cached_property
    def readers(self) -> Mapping[str, tuple[str, ...]]:
        """By value, the operations that read it, once for each time."""
        found: dict[str, list[str]] = {}
        for op in self.ops.values():
            for value in op.inputs:
                found.setdefault(value, []).append(op.name)
        return {value: tuple(names) for value, names in found.items()}

    @cached_property
    def uses(self) -> Counter[str]:
        """How often a value is read, leaving the model included."""
        counts = Counter(self.outputs)
        for value, names in self.readers.items():
            counts[value] += len(names)
        return counts

    @cached_property
    def labels(self) -> Mapping[str, str]:
        """By node, what messages call it: its layers, else the operator and its module."""
        layers: dict[str, list[str]] = {}
        for op in self.ops.values():
            if isinstance(op, LayerOp):
                layers.setdefault(op.node, []).append(op.label)
        joined = {node: " + ".join(dict.fromkeys(labels)) for node, labels in layers.items()}
        return {op.node: op.label for op in self.ops.values()} | joined

    def shape(self, value: str) -> Shape | None:
        """Of a value, with the sizes of the example."""
        return self.ops[value].shape if value in self.ops else self.inputs.get(value)

    def nodes_in(self, module: str) -> frozenset[str]:
        """The nodes that run in the calls of a module."""
        return frozenset(
            op.node for op in self.ops.values() if any(call.name == module for call in op.calls)
        )
