"""Every stored number of a squeezed layer against its value in float64, one by one.

Rounding to nearest costs at most half an ulp, so a number that is further off is wrong, whatever
rounded it. Values that are computed anew may be another float64 sum of the same products than the
merge's: that is granted where it is needed, and only there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import prod, sqrt

import numpy as np
import torch
from torch import Tensor

from convsqueeze.algebra.apply import transposed_layout
from convsqueeze.algebra.border.corrections import BORDER
from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import Geometry
from convsqueeze.algebra.precision import SMALLEST
from convsqueeze.algebra.tree import mapped
from convsqueeze.module import SqueezedConv
from convsqueeze.plan import Merge
from convsqueeze.squeezing import composed
from convsqueeze.verify.amplitude import Amplitudes
from convsqueeze.verify.comparison import UNIT_ROUNDOFF
from convsqueeze.verify.outcome import LayerReport, Worst, judged
from convsqueeze.verify.reference import term_count

_CHUNK = 1 << 18
"""Numbers that are looked at together: they stay in the processor's cache."""
_LIKELY = 10.0
"""Rounding errors are no larger than this many of the square roots of their count, but once in
10^21 sums."""


def numbers_checked(
    report: LayerReport,
    merge: Merge,
    module: SqueezedConv,
    exact: Mapping[str, Tensor],
    load: Callable[[str], Tensor],
    *,
    anew: bool,
) -> LayerReport:
    """The report after every number of the stored tensors was held against `exact`.

    `exact` is laid out as `squeeze.exact_values` gives it, and no `misfit`; `anew` says that the
    stored tensors were not rounded from these very values.
    """
    slack = _Slack(merge, load, module.weight.device) if anew else None
    for name, tensor in _as_in_geometry(module).items():
        values = exact[name]
        worst = _worst_of(tensor, values, f"{merge.into}.{name}", name, slack)
        if name.startswith(f"{BORDER}."):
            report = replace(report, border=_worse(report.border, worst))
        else:
            report = replace(report, interior=_worse(report.interior, worst))
        report = judged(report)
        if not report.ok:
            return report
    return report


def _worse(known: Worst, found: Worst) -> Worst:
    return found if not known.place or found.share > known.share else known


def misfit(merge: Merge, module: SqueezedConv, exact: Mapping[str, Tensor]) -> str | None:
    """How the stored tensors are not those that the merge makes, if they are not."""
    stored = _as_in_geometry(module)
    for name in sorted(exact.keys() ^ stored.keys()):
        return f"{merge.into}.{name} is {'missing' if name in exact else 'none that it has'}"
    for name, tensor in stored.items():
        if tensor.shape != exact[name].shape:
            shapes = f"shape {tuple(tensor.shape)}, {tuple(exact[name].shape)} was needed"
            return f"{merge.into}.{name} has {shapes}"
    return None


def _as_in_geometry(module: SqueezedConv) -> dict[str, Tensor]:
    """The stored tensors by name within the layer, weights laid out as those of `Geometry`."""
    tensors = {name: tensor.detach() for name, tensor in module.named_parameters()}
    if module.is_transposed:
        tensors["weight"] = transposed_layout(tensors["weight"], module.groups)
    return tensors


def _worst_of(
    stored: Tensor, exact: Tensor, full_name: str, name: str, slack: "_Slack | None"
) -> Worst:
    """The number that is off by the largest share of what it may be off by."""
    worst = Worst()
    for start, difference, bound in _chunks(stored, exact):
        beyond = ~(difference <= bound)  # also where it is no number
        if slack is not None and bool(beyond.any()):
            flat = beyond.nonzero().flatten()
            bound[flat] += slack.of(name, stored.shape, flat + start)
        share = torch.where(difference == 0, 0.0, difference / bound).nan_to_num(torch.inf)
        index = int(share.argmax())
        error, found = difference[index].item(), share[index].item()
        if not worst.place or found > worst.share:
            place = np.unravel_index(start + index, stored.shape)
            channel, *rest = (int(one) for one in place)
            where = f"{full_name}, output channel {channel}, at {rest}"
            worst = Worst(error, bound[index].item(), found, where)
    return worst


def _chunks(stored: Tensor, exact: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Where a chunk of the flat tensors starts, its differences, and half an ulp of each number."""
    info = torch.finfo(stored.dtype)
    least = info.tiny * info.eps / 2
    pairs = zip(stored.reshape(-1).split(_CHUNK), exact.reshape(-1).split(_CHUNK), strict=True)
    for index, (numbers, values) in enumerate(pairs):
        if not numbers.numel():
            continue
        wide = numbers.double()
        # the power of two below a number is its bits without sign and fraction
        power = (wide.view(torch.int64) & 0x7FF0000000000000).view(torch.float64)
        bound = power.mul_(info.eps / 2).clamp_(min=least)
        yield index * _CHUNK, (wide - values).abs_(), bound


class _Slack:
    """What two float64 sums of the same products can differ by.

    An error of `n` roundings is at most `n` units of the sum of magnitudes, and with a probability
    beyond doubt a few times `sqrt(n)` of them (Higham and Mary, "A new approach to probabilistic
    rounding error analysis", SIAM Journal on Scientific Computing 41, 2019, theorem 2.4).
    """

    def __init__(self, merge: Merge, load: Callable[[str], Tensor], device: torch.device) -> None:
        self.merge, self.amplitudes, self.device = merge, Amplitudes(merge.tree, load), device
        terms = term_count(merge.tree)
        self.noise = 2 * min(terms, _LIKELY * sqrt(terms)) * UNIT_ROUNDOFF
        self.floor = terms * SMALLEST
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, name: str, shape: torch.Size, flat: Tensor) -> Tensor:
        """For the numbers at the flat places of a tensor of this shape."""
        out_channels = flat // prod(shape[1:])
        factor = 1.0 if name in ("weight", "bias") else self._factor
        if name.endswith("bias"):
            return self.noise * factor * self._constant[out_channels] + self.floor
        distinct, where = (flat // prod(shape[2:]) % shape[1]).unique(return_inverse=True)
        sizes = self._by_input(distinct.tolist(), single=name == "weight")[where, out_channels]
        if name == "weight":
            sizes = sizes * self._adds_up[flat % prod(shape[2:])]
        return self.noise * factor * sizes + self.floor * (sizes > 0)

    def _by_input(self, channels: Sequence[int], *, single: bool) -> Tensor:
        """What goes into a weight of these input channels of every group: (channels, out)."""
        geometry = self.merge.geometry
        missing = [channel for channel in channels if channel not in self._known]
        x = torch.zeros(len(missing), geometry.groups, geometry.in_channels // geometry.groups)
        x[range(len(missing)), :, missing] = 1.0
        found = self.amplitudes.of(x.to(self.device, torch.float64).flatten(1))
        self._known |= zip(missing, zip(found.single, found.every, strict=True), strict=True)
        return torch.stack([self._known[channel][0 if single else 1] for channel in channels])

    @cached_property
    def _adds_up(self) -> Tensor:
        """Which taps of the merged kernel add up any product: dilation and strides leave gaps."""

        def of_ones(geometry: Geometry) -> Conv:
            return Conv(torch.ones(1, 1, *geometry.kernel_size), None, geometry.axes)

        counts = composed(mapped(self.merge.geometry_tree, of_ones))
        return (counts.weight > 0).flatten().to(self.device)

    @cached_property
    def _constant(self) -> Tensor:
        """What goes into a bias: (out,)."""
        nothing = torch.zeros(1, self.merge.geometry.in_channels, dtype=torch.float64)
        return self.amplitudes.of(nothing.to(self.device), "affine").every[0]

    @cached_property
    def _factor(self) -> float:
        """How often a border term may take one combination of taps."""
        taken = [
            max(float(sums.abs().max()) for sums in every if sums.numel())
            for axis in self.merge.border_taps
            if (every := (axis.kernel, axis.border, axis.bias, axis.border_bias))
        ]
        return prod(max(one, 1.0) for one in taken)
