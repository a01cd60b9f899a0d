"""The user's own model -> a graph of layers. Runs the model's code on tensors without values."""

from convsqueeze.tracing.reading import traced

__all__ = ["traced"]
