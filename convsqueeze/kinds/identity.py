"""The layer that changes nothing: an identity branch."""

import sys
from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import Geometry
from convsqueeze.kinds.call import Call, Kind
from convsqueeze.kinds.layer import Layer, OnnxNodes, Tensors
from convsqueeze.kinds.pad import pad
from convsqueeze.kinds.semantics import Identity, Reason

PASSING = {"alias", "clone", "detach", "contiguous", "lift_fresh_copy", "native_dropout", "dropout"}
"""Operators that give what they take, in eval mode."""
_KEEPING = ("_to_copy", "to", "view", "reshape", "_unsafe_view", "expand")
"""Operators that give what they take where that has their shape and dtype."""


class IdentityLayer(Layer):
    """A branch that passes its input on."""

    type: Literal["identity"]

    is_identity = True

    def operator(self, tensors: Tensors, rank: int, channels: int) -> Conv:
        return identity(channels, rank=rank)

    def onnx(self, nodes: OnnxNodes, x: str, names: Mapping[str, str], geometry: Geometry) -> str:
        return x

    def run(self, x: Tensor, tensors: Tensors) -> Tensor:
        return x


def identity(channels: int, *, rank: int) -> Conv:
    """The operator that changes nothing. Raises GeometryError for no channels."""
    return pad(channels, padding=0, rank=rank)


def _passing(call: Call) -> Identity | Reason:
    """What changes nothing in eval mode."""
    if call["p"] and (call["train"] or call["training"]):
        return Reason("training", "dropout in training mode")
    return Identity()


def _keeping(call: Call) -> Identity | Reason:
    """A view, or a conversion, to the shape and the dtype that are there already."""
    return call.changed() or Identity()


def _cut(call: Call) -> Identity | Reason:
    """A slice without ends. One that ends at a number may cut something off another size."""
    start, end = call["start"] or 0, sys.maxsize if call["end"] is None else call["end"]
    if start == 0 and isinstance(end, int) and end >= sys.maxsize:
        return _keeping(call)
    return call.changed() or Reason("not linear", f"slice to {start}:{end}, whatever the size is")


KIND = Kind(
    IdentityLayer,
    aten={
        **dict.fromkeys(PASSING, _passing),
        **dict.fromkeys(_KEEPING, _keeping),
        "slice": _cut,
    },
    modules={
        **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), "dropout"),
        nn.Identity: "alias",
    },
)
