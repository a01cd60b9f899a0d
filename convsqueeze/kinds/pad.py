"""Padding alone: `torch.nn.functional.pad` and the modules that pad."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import Axis, Geometry
from convsqueeze.errors import GeometryError
from convsqueeze.kinds import fields, oracle
from convsqueeze.kinds.call import Call, Kind, axis_pairs
from convsqueeze.kinds.layer import Layer, OnnxNodes, Tensors
from convsqueeze.kinds.operators import Padding, padding_pairs
from convsqueeze.kinds.semantics import Identity, Linear, Semantics, not_linear


class PadLayer(Layer):
    """Padding alone; negative amounts crop."""

    type: Literal["pad"]
    padding: fields.Padding
    padding_mode: fields.PaddingMode = "zeros"

    def operator(self, tensors: Tensors, rank: int, channels: int) -> Conv:
        if not rank and self.padding:
            raise GeometryError(
                "a pad needs an axis, and no layer here tells any. Give a number for each ([1, 1])"
            )
        return pad(channels, rank=rank, **self.settings)

    def onnx(self, nodes: OnnxNodes, x: str, names: Mapping[str, str], geometry: Geometry) -> str:
        return nodes.padded(x, geometry.axes)

    def run(self, x: Tensor, tensors: Tensors) -> Tensor:
        return oracle.padded(x, self.padding, self.padding_mode)


def pad(channels: int, *, padding: Padding, rank: int, padding_mode: str = "zeros") -> Conv:
    """`torch.nn.functional.pad`: padding and nothing else; negative amounts crop.

    Raises GeometryError for padding of another count than `rank`, an unknown mode, and circular
    padding that also crops.
    """
    pairs = padding_pairs(padding, rank)
    if padding_mode == "circular" and any(min(pair) < 0 < max(pair) for pair in pairs):
        raise GeometryError(
            f"circular padding {[list(pair) for pair in pairs]} crops one side and wraps what is "
            "left to the other, which is not the padding of one convolution"
        )
    axes = tuple(
        Axis(before=before, after=after, padding_mode=padding_mode) for before, after in pairs
    )
    return Conv(torch.ones(channels, 1, *(1,) * rank, dtype=torch.float64), None, axes, channels)


def padding_by(pairs: Sequence[tuple[int, int]], mode: str = "zeros") -> Linear | Identity:
    """A pad by (before, after) on each axis."""
    numbers = {number for pair in pairs for number in pair}
    if not any(numbers):
        return Identity()
    settings = {} if mode == "zeros" else {"padding_mode": mode}
    padding = pairs[0][0] if len(numbers) == 1 else [list(pair) for pair in pairs]
    return Linear(PadLayer(type="pad", padding=padding, **settings), len(pairs))


def _call(call: Call) -> Semantics:
    """`pad`, with a mode or a value."""
    mode = call["mode"] or "constant"
    if mode == "constant" and call["value"] not in (None, 0, 0.0):
        return not_linear(f"it pads with {call['value']}")
    return _call_by("zeros" if mode == "constant" else mode, call)


def _call_by(mode: str, call: Call) -> Semantics:
    """A pad by a mode: before and after of the last axis, then of others."""
    flat = call["padding"] if call["pad"] is None else call["pad"]
    if not all(isinstance(number, int) for number in flat):
        return not_linear("how far it pads depends on the size of the input")
    pairs = axis_pairs(flat)
    return padding_by([(0, 0)] * (call.rank - len(pairs)) + pairs, mode)


_BY_MODE = {
    f"{name}_pad{rank}d": partial(_call_by, mode)
    for mode, name in (("reflect", "reflection"), ("replicate", "replication"))
    for rank in (1, 2, 3)
}

KIND = Kind(
    PadLayer,
    aten={"pad": _call, "constant_pad_nd": _call, **_BY_MODE},
    modules={
        **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d), "constant_pad_nd"),
        **{nn.ReflectionPad1d: "reflection_pad1d", nn.ReflectionPad2d: "reflection_pad2d"},
        **{nn.ReplicationPad1d: "replication_pad1d", nn.ReplicationPad2d: "replication_pad2d"},
    },
)
