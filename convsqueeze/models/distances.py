"""What models give as named tensors, how far two such are apart, and what of that may be rounding.

Values of one tensor are compared in bands of like size: rounding a value of 1e30, as of a mask,
says nothing of those that are around 1.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from convsqueeze.verify import Worst, worst_of

NamedTensors = dict[str, Tensor]
Distances = Mapping[str, float]
"""By band. Of values that are no floats, how many are not the same."""
GAP = 12
"""So many powers of two that no value has part two bands."""
FEW = 16
"""Of so many values of a tensor one."""
FACTOR = 16.0
"""Of the movement that was measured, what is granted: rounding errors are drawn anew in every run,
and of some ten drawings none is 16 times smaller than another but for an output of one number.
"""


@dataclass(frozen=True)
class Granted:
    """What a dtype in which a model computes may lose: `unit` of the largest value of a band, and
    `factor` times how far the band moves where weights move by as much of their largest.
    """

    unit: float
    factor: float


def granted_of(dtype: torch.dtype) -> Granted:
    """Of float64 and float32 16 units in the last place and 16 times their effect: more than the
    sums of a network lose, and still next to nothing. Of bfloat16 that would be all of a value, so
    coarser dtypes, in which values are rounded once and sums are not kept, are held to one unit and
    4 times its effect.
    """
    eps = torch.finfo(dtype).eps
    if eps > torch.finfo(torch.float32).eps:
        return Granted(eps, 4.0)
    return Granted(16 * eps, FACTOR)


class Band(NamedTuple):
    """Values of like size of one tensor; `of` are those, None where they are all."""

    place: str
    of: Tensor | None
    largest: float


def named_tensors(output: Any) -> NamedTensors:
    """Every tensor of an output by where it stands in it: `output[0]`, `output["sample"]`,
    `output.logits`; numbers and arrays are tensors too. Real, on the CPU, without gradients.
    """
    found = {}
    for place, tensor in tensors_in(output):
        tensor = tensor.detach()
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor.resolve_conj())
        found[place] = tensor.cpu()
    return found


def tensors_in(
    value: Any, place: str = "output", above: frozenset[int] = frozenset()
) -> Iterator[tuple[str, Tensor]]:
    """Tensors of tuples, dicts, dataclasses and what they hold, as they are."""
    inside: Any = ()
    if id(value) in above:
        return
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, bool | int | float):
        yield place, torch.tensor(value, dtype=torch.float64)
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        yield place, torch.from_numpy(value.copy())
    elif isinstance(value, Mapping):
        inside = ((f"[{key!r}]", one) for key, one in value.items())
    elif isinstance(value, list | tuple):
        inside = ((f"[{index}]", one) for index, one in enumerate(value))
    elif is_dataclass(value):
        inside = ((f".{one.name}", getattr(value, one.name)) for one in fields(value))
    for key, one in inside:
        yield from tensors_in(one, place + key, above | {id(value)})


def distances(
    one: NamedTensors, other: NamedTensors, like: NamedTensors | None = None
) -> Distances:
    """The largest difference in each band of `like`, which has the shapes of `one` and is that by
    default; infinite for other shapes.
    """
    found = {}
    for place, tensor in one.items():
        there = other.get(place)
        error = None
        if there is not None and there.shape == tensor.shape:
            error = _errors(tensor, there)
        base = tensor if like is None else like[place]
        for band in bands(place, base):
            found[band.place] = torch.inf if error is None else _largest(error, band, base)
    return found


def _largest(error: Tensor, band: Band, tensor: Tensor) -> float:
    if error.numel() == 0:
        return 0.0
    if not tensor.is_floating_point():
        return float(error.count_nonzero())
    return float((error if band.of is None else error.where(band.of, 0.0)).max())


def bands(place: str, tensor: Tensor) -> list[Band]:
    """From small values to large ones; zeros and what is not finite are in the first. What are no
    floats are one band, as large as there are values.
    """
    if not tensor.is_floating_point():
        return [Band(place, None, float(tensor.numel()))]
    if tensor.numel() == 0:
        return [Band(place, None, 0.0)]
    size = tensor.double().abs().nan_to_num(0.0, 0.0, 0.0)
    exponent = size.frexp().exponent.long()
    present = exponent[size > 0].unique().tolist()
    starts = [b for a, b in pairwise(present) if b - a > GAP]
    if not starts:
        return [Band(place, None, float(size.max()))]
    found = []
    band_of = torch.bucketize(exponent, torch.tensor(starts), right=True)
    band_of = band_of.where(size > 0, 0)
    for index, start in enumerate([present[0], *starts]):
        of = band_of == index
        named = place if index == 0 else f"{place} (values from {2.0 ** (start - 1):.0e} on)"
        found.append(Band(named, of, float(size.where(of, 0.0).max())))
    return found


def largest_value(tensor: Tensor) -> float:
    """The largest finite magnitude, 0 without any."""
    if tensor.numel() == 0:
        return 0.0
    return float(tensor.double().nan_to_num(0.0, 0.0, 0.0).abs().max())


def is_beyond(moved: Distances, outputs: NamedTensors, share: float) -> str | None:
    """The first band that moved by more than a share of its largest value."""
    every = (band for place, tensor in outputs.items() for band in bands(place, tensor))
    return next((one.place for one in every if moved[one.place] > share * one.largest), None)


class Compared(NamedTuple):
    """What a band differs by; `place` is its tensor, `largest` its largest value, `is_large` says
    whether it holds more than a few of the tensor's values.
    """

    place: str
    worst: Worst
    largest: float
    is_large: bool

    def share(self, moved: float) -> float:
        """Of its largest value; 0 for what a few values next to zero move by."""
        return moved / self.largest if self.largest and self.is_large else 0.0


def compared(
    wanted: NamedTensors, found: NamedTensors, granted: Granted, measured: Distances
) -> list[Compared]:
    """Every band against its bound: `granted.unit` of its largest value, if those are floats, and
    what it was `measured` to move by, with the factors that are granted of that in it. Infinite
    measurements are none.
    """
    every = []
    for place, tensor in wanted.items():
        error = _errors(tensor, found[place])
        for band in bands(place, tensor):
            moved = measured.get(band.place, 0.0)
            bound = moved if moved < torch.inf else 0.0
            if tensor.is_floating_point():
                bound += granted.unit * band.largest
            worst = _worst(error, bound, band, tensor)
            is_large = band.of is None or int(band.of.sum()) * FEW > tensor.numel()
            every.append(Compared(place, worst, band.largest, is_large))
    return every


def nearest(every: Iterable[Compared]) -> Compared:
    """The one nearest to its bound, or the furthest beyond one."""
    return max(every, key=lambda one: one.worst.share, default=Compared("", Worst(), 0.0, True))


def _errors(wanted: Tensor, found: Tensor) -> Tensor:
    """Infinite where only one is finite; equal infinities and NaNs agree."""
    a, b = wanted.double(), found.double()
    error = (a - b).abs().nan_to_num(torch.inf, torch.inf, torch.inf)
    return torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, error)


def _worst(error: Tensor, bound: float, band: Band, tensor: Tensor) -> Worst:
    if error.numel() == 0:
        return Worst(place=band.place)
    most = torch.tensor(bound, dtype=torch.float64).expand_as(error)
    rank = error if band.of is None else error.where(band.of, -1.0)
    worst = worst_of(error, most, lambda at: f"{band.place} at {at}", rank=rank)
    if tensor.is_floating_point() or not worst.error:
        return worst
    count = float(error.count_nonzero())
    return replace(worst, error=count, share=count / bound if bound else torch.inf)
