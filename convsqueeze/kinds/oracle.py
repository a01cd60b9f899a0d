"""How torch's own operators pad by the manifest's words, for the oracle of verification.

Written from torch's documentation. It must use nothing of the algebra and nothing of the `Conv`
operators of the kinds (`operators.py`), so that the two can disagree.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def is_nested(padding: Any) -> bool:
    """Whether padding is given as one pair an axis."""
    return isinstance(padding, list | tuple) and any(isinstance(p, list | tuple) for p in padding)


def padded(x: Tensor, padding: Any, mode: str = "zeros") -> Tensor:
    """`F.pad` of (batch, channels, *size): by an int, one number an axis or one pair an axis."""
    per_axis = [padding] * (x.ndim - 2) if isinstance(padding, int) else list(padding)
    pairs = [(p, p) if isinstance(p, int) else tuple(p) for p in per_axis]
    grown = [max(amount, 0) for pair in reversed(pairs) for amount in pair]
    cropped = [min(amount, 0) for pair in reversed(pairs) for amount in pair]
    if any(grown):
        x = F.pad(x, grown, mode="constant" if mode == "zeros" else mode)
    return F.pad(x, cropped) if any(cropped) else x


def channel_vector(values: Tensor | None) -> Tensor | None:
    """(channels,) of one number a channel that is stored with axes of size one, as (C, 1, 1)."""
    return None if values is None else values.flatten()


def channel_column(values: Tensor, x: Tensor) -> Tensor:
    """The shape in which one number a channel broadcasts over (batch, channels, *size)."""
    return values.reshape(-1, *(1,) * (x.ndim - 2))
