"""Original layers and a squeezed one as functions that must agree, and how far they may differ.

Storing a merged weight costs at most half an ulp of it, so an output may differ by half an ulp
summed over `|weight| * |input|`, plus what float64 sums of that many products can lose. Nothing
larger is accepted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convsqueeze.algebra.precision import SMALLEST, half_ulp
from convsqueeze.module import SqueezedConv
from convsqueeze.plan import Merge
from convsqueeze.verify.reference import Part, Run, reference, term_count

UNIT_ROUNDOFF = 2.0**-53


@dataclass(frozen=True)
class Comparison:
    """Two functions of a float64 input (batch, in_channels, *size) on the `device` that must agree,
    and the bound on their difference, all (batch, out_channels, *output_size).
    """

    original: Run
    squeezed: Run
    bound: Run
    device: torch.device


def noise_of(merge: Merge) -> tuple[float, float]:
    """What float64 can lose of the sum of magnitudes of one output's products, and below it."""
    terms = term_count(merge.tree) + sum(prod(shape[1:]) for shape in merge.tensors.values())
    return 2 * terms * UNIT_ROUNDOFF, terms * SMALLEST


def comparison(
    merge: Merge, module: SqueezedConv, load: Callable[[str], Tensor], part: Part
) -> Comparison:
    """The original layers and the squeezed one, or the linear `part` of both, and their bound."""
    noise, floor = noise_of(merge)
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
        device=module.weight.device,
    )


def _double(module: SqueezedConv, part: Part) -> Run:
    """The squeezed layer, or its linear part, in float64."""
    return run_of(module.converted(Tensor.double, Tensor.double if part == "affine" else None))


def run_of(module: SqueezedConv) -> Run:
    """A squeezed layer as it is, a stored transposed one by torch's own op where that takes it."""
    if module.is_transposed and min(map(min, module.layer.padding)) >= 0:
        return lambda x: _as_torch_transposes(module, x)
    return module


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
