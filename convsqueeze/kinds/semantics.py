"""What a call is of the values that go into it: layers in a row, a sum, nothing, or a reason."""

from dataclasses import dataclass
from typing import Literal

from convsqueeze.algebra.tree import Tree
from convsqueeze.kinds.layer import Layer

ReasonKind = Literal[
    "activation",
    "read elsewhere",
    "used twice",
    "tied",
    "training",
    "hook",
    "in code",
    "not linear",
    "growth",
    "border",
    "not one convolution",
    "axes",
    "too large",
    "no gain",
]

ACTIVATIONS = {
    *("relu", "relu6", "leaky_relu", "prelu", "_prelu_kernel", "rrelu", "elu", "celu", "selu"),
    *("gelu", "silu", "mish", "sigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid", "glu"),
    *("softplus", "softsign", "softmax", "_softmax", "log_softmax", "logsigmoid", "threshold"),
    *("hardshrink", "softshrink", "tanhshrink", "clamp", "clamp_min", "clamp_max", "abs", "sin"),
    *("cos", "exp", "log", "sqrt", "rsqrt", "pow", "reciprocal", "sign", "square", "logsumexp"),
}


@dataclass(frozen=True)
class Reason:
    """Why something is left alone: what kind of reason it is, and a phrase that says it."""

    kind: ReasonKind
    text: str


@dataclass(frozen=True)
class Linear:
    """The layers that a call is of its only value.

    `rank` is the number of axes that they work on, None where any number does; `keys` are the
    stored tensors that they hold.
    """

    tree: Tree[Layer]
    rank: int | None
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Identity:
    """A call that gives what it takes."""


@dataclass(frozen=True)
class Adding:
    """A call that adds its values; `negated` are those that it subtracts, by their number."""

    negated: frozenset[int] = frozenset()


Semantics = Linear | Identity | Adding | Reason


def not_linear(text: str) -> Reason:
    return Reason("not linear", text)


def no_layer(operator: str) -> Reason:
    """Why an operator without a rule is none of the kinds of layers."""
    if operator.rstrip("_") in ACTIVATIONS:
        return Reason("activation", f"{operator} is not linear")
    return not_linear(f"{operator} is no layer that can be merged")
