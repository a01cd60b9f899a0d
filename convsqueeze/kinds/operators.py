"""What the `Conv` operators of several kinds of layers share: settings for each axis, diagonals.

Only shapes are looked at where nothing else is needed, so tensors on the meta device give the
geometry of a layer without its values. The oracle (`oracle.py`) uses nothing of this file.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import Axis
from convsqueeze.errors import GeometryError

PerAxis = int | Sequence[int]
Padding = int | Sequence[int] | Sequence[Sequence[int]] | Literal["same", "valid"]


def per_axis(value: PerAxis, rank: int, name: str) -> tuple[int, ...]:
    """One number for each of `rank` axes. Raises GeometryError for any other count."""
    if isinstance(value, int):
        return (value,) * rank
    if len(value) != rank:
        raise GeometryError(f"{name} {list(value)} has {len(value)} numbers for {rank} axes")
    return tuple(value)


def padding_pairs(padding: Padding, rank: int) -> tuple[tuple[int, int], ...]:
    """(before, after) for each axis, from an int, one number an axis or one pair an axis.

    Raises GeometryError for any other form or count.
    """
    if isinstance(padding, str):
        raise GeometryError(f"padding {padding!r} is for ordinary convolutions only")
    if isinstance(padding, int):
        return ((padding, padding),) * rank
    if len(padding) != rank:
        raise GeometryError(
            f"padding {list(padding)} has {len(padding)} entries for {rank} axes; "
            "give one number or one [before, after] pair for each axis"
        )
    pairs = tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)
    if any(len(pair) != 2 for pair in pairs):
        raise GeometryError(f"padding {list(padding)} needs [before, after] for each axis")
    return pairs  # type: ignore[return-value]


def growing_pairs(padding: Padding, rank: int) -> tuple[tuple[int, int], ...]:
    """As `padding_pairs`, for layers that do not crop: GeometryError for negative amounts too."""
    pairs = padding_pairs(padding, rank)
    if any(amount < 0 for pair in pairs for amount in pair):
        raise GeometryError(f"padding {[list(p) for p in pairs]} is negative; only `pad` crops")
    return pairs


def spatial_rank(weight: Tensor) -> int:
    """The number of axes of a kernel. Raises GeometryError where torch has no such convolution."""
    if weight.ndim not in (3, 4, 5):
        raise GeometryError(
            f"a convolution's weight has 3, 4 or 5 dimensions, this has {tuple(weight.shape)}"
        )
    return weight.ndim - 2


def is_vector(values: Tensor) -> bool:
    """Whether at most one axis is longer than one: numbers for channels, as (C, 1, 1) is."""
    return sum(size != 1 for size in values.shape) <= 1


def as_vector(values: Tensor | None) -> Tensor | None:
    """One number a channel, (channels,), of a tensor that may have axes of size one beside."""
    return values.flatten() if values is not None and is_vector(values) else values


def diagonal(weight: Tensor, bias: Tensor | None = None, *, rank: int) -> Conv:
    """One factor, and with a `bias` one summand, for each channel: both (channels,).

    Axes of size one beside do not matter. Raises GeometryError for a bias of another count.
    """
    flat = weight.reshape(-1, 1, *(1,) * rank)
    return Conv(flat, None if bias is None else bias.flatten(), (Axis(),) * rank, flat.shape[0])
