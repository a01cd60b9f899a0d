"""Every stored number of a squeezed layer against its value in float64, one by one.

Rounding to nearest costs at most half a unit in the last place, so a number that is further off is
wrong, whatever rounded it. Values that are recomputed may be another float64 sum of the same
products than the merge's: that is granted where it is needed, and only there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, sqrt

import numpy as np
import torch
from torch import Tensor

from convsqueeze.algebra.precision import SMALLEST, half_ulp
from convsqueeze.plan import Merge
from convsqueeze.verify.comparison import UNIT_ROUNDOFF, stored_layout
from convsqueeze.verify.magnitudes import magnitudes
from convsqueeze.verify.outcome import Worst
from convsqueeze.verify.reference import term_count

_CHUNK = 1 << 16
"""Numbers that are looked at together: they stay in the processor's cache."""
_LIKELY = 10.0
"""Rounding errors are no larger than this many of the square roots of their count, but once in
10^21 sums."""


@dataclass(frozen=True)
class Number:
    """The number of a stored tensor that is off by the largest share of what it may be off by."""

    place: tuple[int, ...]
    value: float
    error: float
    bound: float
    share: float

    def worst(self, where: str) -> Worst:
        return Worst(self.error, self.bound, self.share, where)

    def problem(self, where: str) -> str | None:
        """What is told of it where it is wrong."""
        return self.worst(where).problem if isfinite(self.value) else f"is {self.value}, {where}"


def unfit(name: str, stored: Tensor | None, exact: Tensor) -> str | None:
    """How a stored tensor is none for these values, if it is not."""
    if stored is None:
        return f"{name} is missing, shape {tuple(exact.shape)} was needed"
    if stored.shape != exact.shape:
        return f"{name} has shape {tuple(stored.shape)}, {tuple(exact.shape)} was needed"
    return None


Granted = Callable[[Tensor], Tensor]
"""What numbers at flat places of a tensor may be off by beside their rounding."""


def worst_number(stored: Tensor, exact: Tensor, granted: Granted | None = None) -> Number:
    """The number that is nearest to what it may be off by, or beyond. Both of the same shape, which
    `unfit` has seen; `granted` where `exact` are not the very values that were rounded.
    """
    worst = 0, 0.0, 0.0, -1.0
    pairs = zip(stored.reshape(-1).split(_CHUNK), exact.reshape(-1).split(_CHUNK), strict=True)
    for index, (numbers, values) in enumerate(pairs):
        difference, bound = (numbers.double() - values).abs_(), half_ulp(numbers)
        share = _share(difference, bound)
        at = int(share.argmax())
        if granted is not None and share[at] > 1.0:
            flat = (share > 1.0).nonzero().flatten()
            bound[flat] += granted(flat + index * _CHUNK)
            share = _share(difference, bound)
            at = int(share.argmax())
        if float(share[at]) > worst[-1]:
            found = float(difference[at]), float(bound[at]), float(share[at])
            worst = at + index * _CHUNK, *found
    place = tuple(int(one) for one in np.unravel_index(worst[0], stored.shape))
    return Number(place, stored[place].item(), *worst[1:])


def _share(difference: Tensor, bound: Tensor) -> Tensor:
    """Of the bound in float64; infinite where the difference is no number."""
    share = (difference / bound).masked_fill_(difference == 0, 0.0)
    return share.nan_to_num_(torch.inf)


class Recomputed:
    """What two float64 sums of the same products can differ by, for the numbers of a merge.

    An error of `n` roundings is at most `n` units of the sum of magnitudes, and with a probability
    beyond doubt a few times `sqrt(n)` of them (Higham and Mary, "A new approach to probabilistic
    rounding error analysis", SIAM Journal on Scientific Computing 41, 2019, theorem 2.4).
    """

    def __init__(self, merge: Merge, load: Callable[[str], Tensor], device: torch.device) -> None:
        self._merge, self._load, self._device = merge, load, device
        self._terms = term_count(merge.tree)

    def granted(self, name: str) -> Granted:
        """For a stored tensor, by name within the layer."""
        noise = 2 * min(self._terms, _LIKELY * sqrt(self._terms)) * UNIT_ROUNDOFF

        def of(flat: Tensor) -> Tensor:
            sizes = self._magnitudes[name].reshape(-1)[flat]
            return noise * sizes + self._terms * SMALLEST * (sizes > 0)

        return of

    @cached_property
    def _magnitudes(self) -> dict[str, Tensor]:
        """As costly as the merge, and seldom asked for."""
        return stored_layout(self._merge, magnitudes(self._merge, self._load, self._device))


def where_told(merge: Merge, name: str, place: tuple[int, ...]) -> str:
    """A number of a stored tensor by its output channel, and its place on the other dimensions."""
    rest, geometry = list(place), merge.geometry
    if name == "weight" and geometry.is_transposed:
        group = rest[0] * geometry.groups // geometry.in_channels
        channel = group * (geometry.out_channels // geometry.groups) + rest.pop(1)
    else:
        channel = rest.pop(0)
    return f"{merge.into}.{name}, output channel {channel}, at {rest}"
