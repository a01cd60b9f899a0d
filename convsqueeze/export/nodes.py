"""ONNX nodes of an operator: the same steps as in `algebra.apply`.

Padding that reads the image, cropping, convolution, and what its output stride leaves out. Knows
axes and names of values, no squeezed layers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from convsqueeze.algebra.geometry import Axis

TO_THE_END = 2**63 - 1


class Nodes:
    """The nodes of one layer in order. `add` gives the name of what the new node computes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.made: list[NodeProto] = []

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output."""
        return self.add_many(operator, 1, *inputs, **attributes)[0]

    def add_many(self, operator: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """A node with `count` outputs."""
        stem = f"{self.name}/{operator.lower()}_{len(self.made)}"
        outputs = [stem] if count == 1 else [f"{stem}_{index}" for index in range(count)]
        self.made.append(helper.make_node(operator, inputs, outputs, name=stem, **attributes))
        return outputs

    def integers(self, values: "int | Sequence[int] | np.ndarray[Any, Any]") -> str:
        """A constant, int64: a number, a list or an array of any rank."""
        if isinstance(values, int):
            return self.add("Constant", value_int=values)
        if isinstance(values, np.ndarray):
            return self.add("Constant", value=numpy_helper.from_array(values.astype(np.int64)))
        return self.add("Constant", value_ints=values)

    def transposed(self, x: str, order: Sequence[int]) -> str:
        """A value with its dimensions in another order; itself where that is the same."""
        in_order = list(order) == sorted(order)
        return x if in_order else self.add("Transpose", x, perm=list(order))

    def size(self, x: str, dim: int) -> str:
        """How many samples a value has on one dimension: int64 (1,)."""
        return self.add("Gather", self.add("Shape", x), self.integers([dim]))


@dataclass(frozen=True)
class Operator:
    """An operator's values by name: `weight` in the layout of the ONNX operator that takes it."""

    weight: str
    bias: str | None
    axes: tuple[Axis, ...]
    groups: int
    doc: str

    @property
    def is_transposed(self) -> bool:
        return any(axis.upsample > 1 for axis in self.axes)

    @property
    def biases(self) -> list[str]:
        return [] if self.bias is None else [self.bias]


def operator(nodes: Nodes, x: str, op: Operator) -> str:
    """The operator on `x`: (batch, in_channels, *size)."""
    return _transposed(nodes, x, op) if op.is_transposed else _convolution(nodes, x, op)


def _convolution(nodes: Nodes, x: str, op: Operator) -> str:
    """Conv with zero padding, each side its own; behind other padding, which Conv has not."""
    outside = [
        axis if axis.padding_mode != "zeros" or min(axis.before, axis.after) < 0 else Axis()
        for axis in op.axes
    ]
    inside = [
        (axis.before - other.before, axis.after - other.after)
        for axis, other in zip(op.axes, outside, strict=True)
    ]
    return nodes.add(
        "Conv",
        padded(nodes, x, outside),
        op.weight,
        *op.biases,
        pads=_lows_then_highs(inside),
        strides=[axis.stride for axis in op.axes],
        **_kernel(op),
    )


def _kernel(op: Operator) -> dict[str, Any]:
    """Attributes that Conv and ConvTranspose share."""
    return {
        "kernel_shape": [axis.kernel_size for axis in op.axes],
        "dilations": [axis.dilation for axis in op.axes],
        "group": op.groups,
        "doc_string": op.doc,
    }


def _lows_then_highs(pairs: Iterable[tuple[int, int]]) -> list[int]:
    """ONNX's order of padding: the low side of every axis, then the high side."""
    return [amount for side in zip(*pairs, strict=True) for amount in side]


def _padded(nodes: Nodes, x: str, amounts: Sequence[tuple[int, int]], what: str) -> str:
    """Zeros added on each side of the spatial axes; negative amounts take away."""
    if not any(map(any, amounts)):
        return x
    pads = nodes.integers(_lows_then_highs([(0, 0), (0, 0), *amounts]))
    shown = ", ".join(f"{low:+d} before {high:+d} after" for low, high in amounts)
    return nodes.add("Pad", x, pads, doc_string=f"{what}: {shown}")


def _padded_from_image(nodes: Nodes, x: str, axes: Sequence[Axis]) -> str:
    """Each axis with a mode of its own: its samples looked up where the mode says.

    Gather and not Pad, which refuses a reflection wider than the image and has no circular mode
    before opset 19.
    """
    for dim, axis in enumerate(axes, start=2):
        if axis.padding_mode != "zeros":
            source = _source(nodes, x, dim, axis)
            doc = f"{axis.padding_mode} padding: {axis.before} before, {axis.after} after"
            x = nodes.add("Gather", x, source, axis=dim, doc_string=doc)
    return x


def padded(nodes: Nodes, x: str, axes: Sequence[Axis]) -> str:
    """What the axes add around an image, or take away, and nothing else of them."""
    x = _padded_from_image(nodes, x, axes)
    zeros = [(a.before, a.after) if a.padding_mode == "zeros" else (0, 0) for a in axes]
    return _padded(nodes, x, zeros, "padding")


def _source(nodes: Nodes, x: str, dim: int, axis: Axis) -> str:
    """Which sample of the image stands at each place of the padded axis: int64 (padded_size,)."""
    size = nodes.add("Gather", nodes.add("Shape", x), nodes.integers(dim))
    stop = nodes.add("Add", size, nodes.integers(axis.after))
    place = nodes.add("Range", nodes.integers(-axis.before), stop, nodes.integers(1))
    if axis.padding_mode == "circular":
        return nodes.add("Mod", place, size)
    last = nodes.add("Sub", size, nodes.integers(1))
    if axis.padding_mode == "replicate":
        return nodes.add("Min", nodes.add("Max", place, nodes.integers(0)), last)
    # A single sample has period 0, by which some runtimes divide without a check.
    period = nodes.add("Max", nodes.add("Add", last, last), nodes.integers(1))
    folded = nodes.add("Mod", place, period)
    return nodes.add("Min", folded, nodes.add("Sub", period, folded))


def _ends(axis: Axis) -> tuple[tuple[int, int], int, tuple[int, int]]:
    """What becomes of the ends of one axis of a full transposed convolution.

    ConvTranspose's pads and output_padding, in torch's own form, both sides alike, where there is
    one; and the pads of a Pad behind it, for samples that no tap reaches, which are the bias alone.
    """
    reach = axis.extent - 1
    if axis.padding_mode != "zeros":
        return (reach, reach), 0, (0, 0)
    low, high = reach - axis.before, reach - axis.after
    if low >= 0 and 0 < low - high < axis.upsample:
        return (low, low), low - high, (0, 0)
    if min(low, high) >= 0:
        return (low, high), 0, (0, 0)
    return (0, 0), 0, (-low, -high)


def _transposed(nodes: Nodes, x: str, op: Operator) -> str:
    """ConvTranspose, cropped at each end, then every n-th sample where a stride is left."""
    rank = len(op.axes)
    pads, extra, behind = zip(*map(_ends, op.axes), strict=True)
    inside = [] if any(map(any, behind)) else op.biases
    x = nodes.add(
        "ConvTranspose",
        _padded_from_image(nodes, x, op.axes),
        op.weight,
        *inside,
        pads=_lows_then_highs(pads),
        output_padding=list(extra),
        strides=[axis.upsample for axis in op.axes],
        **_kernel(op),
    )
    x = _padded(nodes, x, behind, "ends")
    for bias in op.biases if not inside else ():
        column = nodes.add("Reshape", bias, nodes.integers([-1, *(1,) * rank]))
        x = nodes.add("Add", x, column)
    steps = [axis.stride for axis in op.axes]
    if max(steps) == 1:
        return x
    slices = [0] * rank, [TO_THE_END] * rank, [*range(2, 2 + rank)], steps
    doc = f"every n-th sample, n = {steps}"
    return nodes.add("Slice", x, *map(nodes.integers, slices), doc_string=doc)
