"""A model's forward as steps over values, each of which is linear in one value, a sum, or opaque.

Knows layers in the manifest's words, modules by their names and nothing of how it was traced.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from convsqueeze.algebra.tree import Chain, Tree, leaves
from convsqueeze.kinds.scale import ScaleLayer
from convsqueeze.kinds.semantics import Reason
from convsqueeze.manifest import Layer
from convsqueeze.tracing.sizes import Asking


@dataclass(frozen=True)
class Call:
    """One call of a module: calls of the same module have the same `name` and differ in `id`."""

    id: str
    name: str
    type: str


@dataclass(frozen=True)
class Step:
    """One operation: it gives the value of its own name from the values `inputs`.

    `tree` are the layers that it is of its only input, `rank` the number of axes that they work
    on (None where any number does); `sums` says that it adds its inputs; otherwise `opaque` says
    why it is neither. `keys` are the stored tensors that it reads, `calls` the modules that it runs
    in, outermost first, and `shape` the value's with the sizes of the example.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    calls: tuple[Call, ...]
    shape: tuple[int, ...] | None
    tree: Tree[Layer] | None = None
    rank: int | None = None
    sums: bool = False
    opaque: Reason | None = None
    keys: tuple[str, ...] = ()

    def negated(self, value: str) -> "Step":
        """A step of its own in front of this sum, for one of its inputs that it subtracts."""
        return replace(
            self,
            name=f"{self.name}.minus",
            operator="neg",
            inputs=(value,),
            tree=ScaleLayer(type="scale", factor=-1.0),
            sums=False,
        )

    @property
    def place(self) -> str:
        """The module in whose code it stands, "" for the model itself."""
        return self.calls[-1].name if self.calls else ""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that it is, in order."""
        tree: Tree[Layer] = self.tree if self.tree is not None else Chain(())
        return tuple(leaves(tree))

    @property
    def label(self) -> str:
        """What messages call it: its layers, or the operator and the module that runs it."""
        if self.tree is not None:
            return " + ".join(dict.fromkeys(layer.label for layer in self.layers))
        return f"{self.operator} in {self.place}" if self.place else self.operator


@dataclass(frozen=True)
class Graph:
    """All steps in the order in which they run; `outputs` are the values that leave the model.

    `inputs` are values that enter, with their shapes. `hooked` are modules that call a hook of the
    user's, `tied` stored tensors that share memory: each by the first of its names. `sealed` are
    values, and `kept` stored tensors, that have to stay, each with the reason, `asked` values whose
    sizes the model's code asks for, and `notes` tell what the graph does not hold for.
    """

    steps: Mapping[str, Step]
    inputs: Mapping[str, tuple[int, ...] | None]
    outputs: tuple[str, ...]
    hooked: frozenset[str] = frozenset()
    tied: Mapping[str, str] = field(default_factory=dict)
    sealed: Mapping[str, Reason] = field(default_factory=dict)
    asked: Mapping[str, tuple[Asking, ...]] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @cached_property
    def readers(self) -> Mapping[str, tuple[str, ...]]:
        """By value, the steps that read it, once for each time."""
        found: dict[str, list[str]] = {}
        for step in self.steps.values():
            for value in step.inputs:
                found.setdefault(value, []).append(step.name)
        return {value: tuple(names) for value, names in found.items()}

    @cached_property
    def uses(self) -> Counter[str]:
        """How often a value is read, leaving the model included."""
        counts = Counter(self.outputs)
        for value, names in self.readers.items():
            counts[value] += len(names)
        return counts

    def shape(self, value: str) -> tuple[int, ...] | None:
        """Of a value, with the sizes of the example."""
        return self.steps[value].shape if value in self.steps else self.inputs.get(value)

    def steps_of(self, module: str) -> frozenset[str]:
        """The steps that run in the calls of a module."""
        return frozenset(
            step.name
            for step in self.steps.values()
            if any(call.name == module for call in step.calls)
        )
