"""The user's own model -> a graph of layers. Runs the model's code on tensors without values."""

from convsqueeze.kinds.semantics import Reason, ReasonKind
from convsqueeze.tracing.graph import Call, Graph, Step
from convsqueeze.tracing.reading import traced

__all__ = ["Call", "Graph", "Reason", "ReasonKind", "Step", "traced"]
