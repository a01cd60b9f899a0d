"""The layer that changes nothing: an identity branch."""

from typing import Literal

from torch import Tensor

from convsqueeze.algebra.conv import Conv
from convsqueeze.kinds.layer import Layer, Tensors
from convsqueeze.kinds.pad import pad


class IdentityLayer(Layer):
    """A branch that passes its input on."""

    type: Literal["identity"]

    is_identity = True

    def operator(self, tensors: Tensors, rank: int, channels: int) -> Conv:
        return identity(channels, rank=rank)

    def run(self, x: Tensor, tensors: Tensors) -> Tensor:
        return x


def identity(channels: int, *, rank: int) -> Conv:
    """The operator that changes nothing."""
    return pad(channels, padding=0, rank=rank)
