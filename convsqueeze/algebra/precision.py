"""Rounding: exactly once, and how much one rounding can cost. Knows dtypes, nothing else."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

STORAGE_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float64}
"""The next dtype that holds every value of one and more."""
SMALLEST = 2.0**-1074
"""The smallest float64 above zero."""
BLOCK = 1 << 20
"""Numbers that are rounded or summed up at once: 8 MiB."""


def dtype_name(dtype: torch.dtype) -> str:
    """`float16`, without `torch.`."""
    return str(dtype).removeprefix("torch.")


def is_wider(dtype: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether `dtype` comes after `narrow` on the way of `WIDER`."""
    step = WIDER.get(narrow)
    return step is not None and (step == dtype or is_wider(dtype, step))


@contextmanager
def denormals_kept() -> Iterator[None]:
    """What runs inside sees denormal numbers, also after `torch.set_flush_denormal(True)`."""
    flushes = bool(torch.tensor(SMALLEST, dtype=torch.float64) * 1.0 == 0)
    if flushes:
        torch.set_flush_denormal(False)
    try:
        yield
    finally:
        if flushes:
            torch.set_flush_denormal(True)


def row_blocks(values: Tensor) -> Sequence[Tensor]:
    """Some rows (of dimension 0) at a time: whatever is made of them all at once takes memory."""
    return values.split(max(1, BLOCK * len(values) // max(values.numel(), 1)))


def round_once(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 `values` rounded to the nearest `dtype`, ties to even, in a single rounding.

    torch goes from float64 to a half type through float32, which rounds twice. Rounding to odd on
    the way keeps the second rounding exact (Boldo and Melquiond, "Emulation of FMA and correctly
    rounded sums: proved algorithms using rounding to odd", IEEE Trans. Computers 57, 2008).
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return values.to(dtype)
    if values.ndim and values.numel() > BLOCK:
        return torch.cat([_round_to_half(some, dtype) for some in row_blocks(values)])
    return _round_to_half(values, dtype)


def _round_to_half(values: Tensor, dtype: torch.dtype) -> Tensor:
    nearest = values.to(torch.float32)
    finite = nearest.isfinite()
    too_far = (nearest.double().abs() > values.abs()) & finite
    truncated = torch.where(too_far, nearest.nextafter(torch.zeros_like(nearest)), nearest)
    inexact = (truncated.double() != values) & finite
    return (truncated.view(torch.int32) | inexact.to(torch.int32)).view(torch.float32).to(dtype)


def half_ulp(values: Tensor) -> Tensor:
    """Half the distance from each value to its neighbour of the same dtype, away from zero.

    What storing the nearest value can have cost, in float64. Shape as `values`.
    """
    info = torch.finfo(values.dtype)
    # the power of two below a number is its bits without sign and fraction; torch's own ldexp is
    # a power that not every device rounds alike
    bits = values.double().view(torch.int64) & 0x7FF0000000000000
    return bits.view(torch.float64).mul_(info.eps / 2).clamp_(min=info.tiny * info.eps / 2)
