"""Every stored number of a squeezed layer against its value in float64, one by one.

Rounding to nearest costs at most half a unit in the last place, so a number that is further off is
wrong, whatever rounded it. Values that are recomputed may be another float64 sum of the same
products than the merge's: that is granted where it is needed, and only there.
"""

from collections.abc import Callable
from functools import cache
from itertools import count
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from convsqueeze.algebra.precision import SMALLEST, half_ulp
from convsqueeze.plan import Merge
from convsqueeze.squeezing import stored_layout
from convsqueeze.verify.comparison import UNIT_ROUNDOFF
from convsqueeze.verify.magnitudes import magnitudes, roundings
from convsqueeze.verify.reference import Load
from convsqueeze.verify.worst import Worst, share_of

_CHUNK = 1 << 16
"""Numbers that are looked at together: they stay in the processor's cache."""
_LIKELY = 10.0
"""Rounding errors are no larger than this many of the square roots of their count, but once in
10^21 sums."""


def unfit(name: str, stored: Tensor | None, exact: Tensor) -> str | None:
    """How a stored tensor is none for these values, if it is not."""
    if stored is None:
        return f"{name} is missing, shape {tuple(exact.shape)} was needed"
    if stored.shape != exact.shape:
        return f"{name} has shape {tuple(stored.shape)}, {tuple(exact.shape)} was needed"
    return None


Granted = Callable[[Tensor], Tensor]
"""What numbers at flat places of a tensor may be off by beside their rounding."""


def worst_number(
    stored: Tensor, exact: Tensor, granted: Granted | None = None
) -> tuple[tuple[int, ...], Worst]:
    """The index of the number that is nearest to what it may be off by, or beyond, and how near.

    Both of the same shape, which `unfit` has seen; `granted` where `exact` are not the very values
    that were rounded.
    """
    worst, place = Worst(share=-1.0), 0
    pairs = zip(stored.reshape(-1).split(_CHUNK), exact.reshape(-1).split(_CHUNK), strict=True)
    for start, (numbers, values) in zip(count(0, _CHUNK), pairs, strict=False):
        error, bound = (numbers.double() - values).abs_(), half_ulp(numbers)
        share = share_of(error, bound)
        at = int(share.argmax())
        if granted is not None and share[at] > 1.0:
            flat = (share > 1.0).nonzero().flatten()
            bound[flat] += granted(flat + start)
            share = share_of(error, bound)
            at = int(share.argmax())
        if float(share[at]) > worst.share:
            worst, place = Worst(float(error[at]), float(bound[at]), float(share[at])), start + at
    return tuple(int(one) for one in np.unravel_index(place, stored.shape)), worst


def recomputed(merge: Merge, load: Load, device: torch.device) -> Callable[[str, Tensor], Tensor]:
    """What two float64 sums of the same products can differ by, for a stored tensor by its name
    within the layer and flat places in it.

    Each has met `T` roundings at most (see `comparison`), which are with a probability beyond doubt
    a few times `sqrt(T)` units of the sum of magnitudes (Higham and Mary, "A new approach to
    probabilistic rounding error analysis", SIAM Journal on Scientific Computing 41, 2019, theorem
    2.4).
    """
    terms = roundings(merge)
    noise = 2 * min(terms, _LIKELY * sqrt(terms)) * UNIT_ROUNDOFF

    @cache
    def sums() -> dict[str, Tensor]:
        """As costly as the merge, and seldom asked for."""
        return stored_layout(merge, magnitudes(merge, load, device))

    def granted(name: str, flat: Tensor) -> Tensor:
        found = sums()[name].reshape(-1)[flat]
        return noise * found + terms * SMALLEST * (found > 0)

    return granted


def number_place(merge: Merge, name: str, place: tuple[int, ...]) -> str:
    """A number of a stored tensor by its output channel, and its place on the other dimensions."""
    rest, geometry = list(place), merge.geometry
    if name == "weight" and geometry.is_transposed:
        group = rest[0] * geometry.groups // geometry.in_channels
        channel = group * (geometry.out_channels // geometry.groups) + rest.pop(1)
    else:
        channel = rest.pop(0)
    return f"{merge.into}.{name}, output channel {channel}" + (f", at {rest}" if rest else "")
