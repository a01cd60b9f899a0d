"""One squeezed layer against the layers it replaced: outputs, bound, verdict.

Storing a merged weight costs at most half an ulp of it, so an output may differ by half an ulp
summed over `|weight| * |input|`, plus what float64 sums of that many products can lose. Nothing
larger is accepted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from convsqueeze.algebra.border.leaks import wrong_rows
from convsqueeze.algebra.precision import SMALLEST, denormals_kept, half_ulp
from convsqueeze.errors import GeometryError
from convsqueeze.module import SqueezedConv
from convsqueeze.plan import Merge
from convsqueeze.verify.probes import (
    Size,
    border_impulses,
    every_impulse,
    every_kind,
    impulse_batches,
    kernel_impulses,
    random_image,
    sizes,
)
from convsqueeze.verify.reference import Part, Run, reference, term_count

UNIT_ROUNDOFF = 2.0**-53


@dataclass(frozen=True)
class Worst:
    """The largest share of the bound met in one part of the outputs, and where."""

    error: float = 0.0
    bound: float = 0.0
    share: float = 0.0
    place: str = ""


@dataclass(frozen=True)
class LayerReport:
    """What verification saw of one squeezed layer.

    `interior` and `border` are apart; under the `interior` policy the border is measured and not
    held to the bound, and `border_error` is its largest absolute difference, `border_range` the
    largest output there, both for random images of the largest of the `sizes`. `largest` is the
    largest error of all that is held to the bound, wherever it came nearest to it. `inputs` counts
    the images that were run.
    """

    name: str
    policy: str
    interior: Worst
    border: Worst
    border_error: float
    border_range: float
    sizes: tuple[Size, ...]
    inputs: int
    largest: Worst = Worst()
    problem: str | None = None

    @property
    def ok(self) -> bool:
        return self.problem is None

    @property
    def worst(self) -> Worst:
        """The part that counts for the verdict."""
        if self.policy == "interior":
            return self.interior
        return max(self.interior, self.border, key=lambda worst: worst.share)


@dataclass(frozen=True)
class Comparison:
    """Two functions of a float64 input (batch, in_channels, *size) that must agree, and the bound
    on their difference, all (batch, out_channels, *output_size).
    """

    original: Run
    squeezed: Run
    bound: Run


@dataclass(frozen=True)
class _Probe:
    """Inputs of one kind and the two functions that must agree on them."""

    kind: str
    inputs: Iterator[Tensor]
    both: Comparison


@denormals_kept()
def check_layer(
    merge: Merge,
    module: SqueezedConv,
    load: Callable[[str], Tensor],
    *,
    trials: int,
    seed: int,
    exhaustive: bool = False,
) -> LayerReport:
    """Run original and squeezed layer on random images and impulses and compare every output.

    `load` gives the original's stored tensors. Default impulses read off every single weight once;
    `exhaustive` ones stand at every position of small images, which proves equality for every
    input of those sizes, both sides being affine. The outcome is the report; nothing is raised.
    """
    tried = _sizes(merge)
    report = LayerReport(merge.into, merge.border, Worst(), Worst(), 0.0, 0.0, tuple(tried), 0)
    for probe in _probes(merge, module, load, tried, trials, seed, exhaustive):
        for x in probe.inputs:
            report = _compared(report, merge, probe, x)
            if not report.ok:
                return report
    if not report.worst.place:
        return replace(report, problem="no output of any input could be held to the bound")
    return report


def _sizes(merge: Merge) -> list[Size]:
    """The input sizes to try. Under `interior` a fixed size may be all border, so that one more
    that has an inside is tried: the kernel is the same for every size.
    """
    tried = sizes(merge.geometry_tree, merge.input_size)
    if merge.corrections is not None:
        found = border_impulses(merge.geometry_tree, merge.corrections)
        kinds = every_kind(merge.corrections)
        tried = list(dict.fromkeys([*tried, *(one.size for one in found), *kinds]))
    if merge.border == "interior" and merge.input_size is not None:
        tried += [size for size in sizes(merge.geometry_tree, None)[1:2] if size not in tried]
    return tried


def _probes(
    merge: Merge,
    module: SqueezedConv,
    load: Callable[[str], Tensor],
    tried: list[Size],
    trials: int,
    seed: int,
    exhaustive: bool,
) -> Iterator[_Probe]:
    shapes, geometry = merge.geometry_tree, merge.geometry
    generator = torch.Generator().manual_seed(seed)

    def probe(kind: str, inputs: Iterator[Tensor], part: Part) -> _Probe:
        return _Probe(kind, inputs, comparison(merge, module, load, part))

    yield probe(
        "random", (random_image(geometry, size, generator, trials) for size in tried), "affine"
    )
    zeros = (torch.zeros(1, geometry.in_channels, *size, dtype=torch.float64) for size in tried)
    yield probe("zero", zeros, "affine")
    kernel = kernel_impulses(shapes, None if merge.border == "interior" else merge.input_size)
    yield probe("impulse", impulse_batches(shapes, kernel), "linear")
    if merge.corrections is not None:
        for one in border_impulses(shapes, merge.corrections):
            yield probe("border impulse", impulse_batches(shapes, one), "linear")
    if exhaustive:
        every = every_impulse(shapes, merge.input_size)
        batches = chain.from_iterable(impulse_batches(shapes, one) for one in every)
        yield probe("impulse", batches, "linear")


def comparison(
    merge: Merge, module: SqueezedConv, load: Callable[[str], Tensor], part: Part
) -> Comparison:
    """The original layers and the squeezed one, or the linear `part` of both, and their bound."""
    terms = term_count(merge.tree) + sum(prod(shape[1:]) for shape in merge.tensors.values())
    noise, floor = 2 * terms * UNIT_ROUNDOFF, terms * SMALLEST
    biases = part == "affine"
    magnitude = reference(merge.tree, load, part, magnitude=True)

    def cost(values: Tensor) -> Tensor:
        """Of storing them, and of adding up more at the border than the layers do."""
        rounding = half_ulp(values)
        return rounding if module.border is None else rounding + noise * values.double().abs()

    own = module.converted(cost, cost if biases else None, signs=False)

    def bound(x: Tensor) -> Tensor:
        return own(x) + noise * magnitude(x) + floor

    return Comparison(
        original=reference(merge.tree, load, part),
        squeezed=_double(module, part),
        bound=lambda x: bound(x.abs()),
    )


def _double(module: SqueezedConv, part: Part) -> Run:
    """The squeezed layer, or its linear part, in float64."""
    double = module.converted(Tensor.double, Tensor.double if part == "affine" else None)
    if module.is_transposed and min(map(min, module.layer.padding)) >= 0:
        return lambda x: _as_torch_transposes(double, x)
    return double


_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _as_torch_transposes(module: SqueezedConv, x: Tensor) -> Tensor:
    """A stored transposed layer by torch's own op, which reads the file's layout as others will."""
    layer = module.layer
    full = _TRANSPOSED[len(layer.stride)](
        x,
        module.weight,
        module.bias,
        stride=layer.stride,
        groups=layer.groups,
        dilation=layer.dilation,
    )
    crop = [-amount for pair in reversed(layer.padding) for amount in pair]
    steps: tuple[Any, ...] = tuple(slice(None, None, s) for s in layer.output_stride or ())
    y = F.pad(full, crop)[(..., *steps)]
    return y if module.border is None else module.border(y, x)


def _compared(report: LayerReport, merge: Merge, probe: _Probe, x: Tensor) -> LayerReport:
    """The report after one batch of inputs."""
    size = tuple(x.shape[2:])
    expected = probe.both.original(x)
    try:
        actual = probe.both.squeezed(x)
        bound = probe.both.bound(x) if actual.shape == expected.shape else None
    except (RuntimeError, GeometryError) as error:
        first = str(error).split("\n")[0]
        return replace(
            report, problem=f"the squeezed layer does not run on {_shown(size)}: {first}"
        )
    if bound is None:
        return replace(
            report,
            problem=f"on an input of {_shown(size)} the output has shape "
            f"{tuple(actual.shape[1:])}, the original's has {tuple(expected.shape[1:])}",
        )
    infinite = (~actual.isfinite()).nonzero()
    if len(infinite):
        place = _place(probe.kind, size, infinite[0].tolist())
        return replace(report, problem=f"is {actual[tuple(infinite[0])].item()}, {place}")
    difference = (actual - expected).abs().nan_to_num(torch.inf, torch.inf, torch.inf)
    share = torch.where(difference > 0, difference / bound, 0.0)
    at_border = _border_mask(merge, size, expected.shape[2:])
    interior = _worse(report.interior, difference, bound, share, ~at_border, probe.kind, size)
    border = _worse(report.border, difference, bound, share, at_border, probe.kind, size)
    held = ~at_border if merge.border == "interior" else torch.ones_like(at_border)
    largest = _worse(report.largest, difference, bound, difference, held, probe.kind, size)
    largest_size = max(report.sizes, key=prod)  # one ordinary size: small ones are all border
    loud = probe.kind == "random" and size == largest_size and bool(at_border.any())
    report = replace(
        report,
        interior=interior,
        border=border,
        largest=largest,
        border_error=max(report.border_error, _largest(difference, at_border) if loud else 0.0),
        border_range=max(report.border_range, _largest(expected.abs(), at_border) if loud else 0.0),
        inputs=report.inputs + x.shape[0],
    )
    if report.worst.share > 1.0:
        worst = report.worst
        problem = (
            f"differs by {worst.error:.3e} where at most {worst.bound:.3e} is rounding, "
            f"{worst.place}"
        )
        return replace(report, problem=problem)
    return report


def _largest(values: Tensor, mask: Tensor) -> float:
    return float((values * mask).max())


def _border_mask(merge: Merge, size: Size, output: torch.Size) -> Tensor:
    """Which outputs the border can touch: under `interior` those that the plan excuses, otherwise
    those whose window leaves the image. Shape (*output_size).
    """
    mask = torch.zeros(tuple(output), dtype=torch.bool)
    for axis, (given, count) in enumerate(zip(size, output, strict=True)):
        if merge.border == "interior":
            rows = sorted(wrong_rows(merge.geometry_tree, axis, given))
        else:
            own = merge.geometry.axes[axis]
            last = own.upsample * (given - 1)
            starts = [own.stride * index for index in range(count)]
            rows = [
                index
                for index, start in enumerate(starts)
                if start + own.taps[0] < 0 or start + own.taps[-1] > last
            ]
        mask.index_fill_(axis, torch.tensor(rows, dtype=torch.long), True)
    return mask


def _worse(
    known: Worst,
    error: Tensor,
    bound: Tensor,
    rank: Tensor,
    mask: Tensor,
    kind: str,
    size: Size,
) -> Worst:
    """The output that ranks highest where the mask holds, or the known one if that ranks higher.

    `rank` is the error itself or its share of the bound.
    """
    if not bool(mask.any()):
        return known
    masked = torch.where(mask, rank, -1.0)
    index = np.unravel_index(int(masked.argmax()), masked.shape)  # torch's own imports sympy
    found = float(error[index]), float(bound[index])
    share = _share(*found)
    by_error = rank is error
    if known.place and (found[0] <= known.error if by_error else share <= known.share):
        return known
    return Worst(*found, share, _place(kind, size, [int(i) for i in index]))


def _place(kind: str, size: Size, index: list[int]) -> str:
    """Where an output stands: `index` is its batch entry, channel and position."""
    return f"{kind} input of {_shown(size)}, output channel {index[1]}, at {index[2:]}"


def _share(error: float, bound: float) -> float:
    if error == 0:
        return 0.0
    return error / bound if bound > 0 else torch.inf


def _shown(size: Size) -> str:
    return "x".join(map(str, size)) or "one vector"
