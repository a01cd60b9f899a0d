"""What a call can be of the values that come in, and what it is given beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import Node

from convsqueeze.algebra.tree import Tree
from convsqueeze.graph import Reason
from convsqueeze.manifest import Layer
from convsqueeze.tracing.constants import Constant, Stored, operator_of

ACTIVATIONS = {
    *("relu", "relu6", "leaky_relu", "prelu", "_prelu_kernel", "rrelu", "elu", "celu", "selu"),
    *("gelu", "silu", "mish", "sigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid", "glu"),
    *("softplus", "softsign", "softmax", "_softmax", "log_softmax", "logsigmoid", "threshold"),
    *("hardshrink", "softshrink", "tanhshrink", "clamp", "clamp_min", "clamp_max", "abs", "sin"),
    *("cos", "exp", "log", "sqrt", "rsqrt", "pow", "reciprocal", "sign", "square", "logsumexp"),
}


@dataclass(frozen=True)
class Linear:
    """The layers that a call is of its input."""

    tree: Tree[Layer]
    rank: int | None
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Passing:
    """A call that gives what it takes."""


@dataclass(frozen=True)
class Adding:
    """A call that adds its inputs; `negated` are those that it subtracts, by their number."""

    negated: frozenset[int] = frozenset()


Meaning = Linear | Passing | Adding | Reason


@dataclass(frozen=True)
class Parameters:
    """What a call is given beside the values: constants by argument, numbers, and the names there
    are in the state dict.
    """

    node: Node
    operator: str
    constants: Mapping[Node, Constant]
    names: frozenset[str]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        value = self.arguments.get(name)
        return self.constants.get(value) if isinstance(value, Node) else value

    @property
    def value(self) -> Node:
        """The value that comes in, the first if there are several."""
        return next(one for one in self.node.all_input_nodes if self._is_value(one))

    def _is_value(self, node: Node) -> bool:
        return node not in self.constants and isinstance(node.meta.get("val"), Tensor)

    def ndim(self) -> int:
        """Dimensions of what comes in."""
        return int(self.value.meta["val"].ndim)

    def converted(self) -> Reason | None:
        """What becomes of the dtype of what comes in, if anything does."""
        taken, made = self.value.meta["val"], self.node.meta["val"]
        if isinstance(made, Tensor) and made.dtype != taken.dtype:
            return Reason("not linear", f"it converts to {made.dtype}")
        return None

    def changed(self) -> Reason | None:
        """What becomes of the shape or the dtype of what comes in, if anything does."""
        if alike((self.value, self.node)):
            return self.converted()
        return Reason("not linear", f"{operator_of(self.node)} gives another shape")


def no_layer(operator: str) -> Reason:
    """Why an operator without a rule is none of the manifest's layers."""
    if operator.rstrip("_") in ACTIVATIONS:
        return Reason("activation", f"{operator} is not linear")
    return Reason("not linear", f"{operator} is no layer that can be merged")


def alike(values: Sequence[Node]) -> bool:
    """Whether all have the same shape, for every input."""
    shapes = [[str(size) for size in value.meta["val"].shape] for value in values]
    return all(shape == shapes[0] for shape in shapes)


def is_raw(constant: Constant | None) -> bool:
    """Whether it is a stored tensor as it is stored."""
    return isinstance(constant, Stored) and constant.factor == 1.0 and not constant.spread
