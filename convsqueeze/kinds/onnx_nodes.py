"""What a kind of layer needs to spell itself as ONNX nodes; who writes a graph provides it."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from convsqueeze.algebra.geometry import Axis


class OnnxNodes(Protocol):
    """Nodes that are added one after the other; values are told by their names."""

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output, whose name is given back."""

    def integers(self, values: Sequence[int]) -> str:
        """A constant of int64 numbers."""

    def constant(self, values: Tensor) -> str:
        """A constant in the dtype of the layers."""

    def padded(self, x: str, axes: Sequence[Axis]) -> str:
        """What the axes add around an image, or take away."""

    def convolved(
        self, x: str, weight: str, bias: str | None, axes: Sequence[Axis], groups: int
    ) -> str:
        """The convolution by the axes; a transposed one where they upsample."""
