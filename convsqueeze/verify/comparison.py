"""Original layers and a squeezed one as functions that must agree, and how far they may differ.

The bound on the difference of one output, in every case:

    half_ulp(w) |x|  +  2 n u M  +  2 n u S  +  n s

*Roundings.* A sum of products, each of which went through `k` roundings at most, in whatever order
and by however many partial sums, differs from the exact one by at most `k u / (1 - k u)` times the
sum of the absolute values of its products, `u` being float64's unit roundoff (Higham, "Accuracy and
Stability of Numerical Algorithms", lemma 3.1 and section 3.1). On the way through the original
layers a product meets at most `T` roundings, the sum over the layers of what each adds up for an
output and of a few for its bias, its norm or a branch. A merged number is a sum of the same
products: composed one after the other they meet as many, and where layers behind are composed
first, `T` counts what that one adds up as well. The layer that the number belongs to adds `W`, what
each of its tensors adds up for an output; a border's kernel is made of stored numbers first, at
most as many as there are taps again. With `n = T + W` the original side loses less than `n u M`,
the squeezed one less than `2 n u` of the sum of its own products, and the factors 2 leave more than
`1 / (1 - k u)` asks for as long as `n` is below a hundred million.

*What is added up.* `M` is the sum of the absolute values of the products in the original layers.
Away from borders, and of a plain layer that is exact, the squeezed layer adds up the same products,
and `S` is left out. At a corrected border it adds up more, the plain kernel's, and takes some of it
off again: its errors follow what was added up and not what is left. So `S` is the sum of the
absolute values of the products that are in all its stored numbers (see `magnitudes`), a number of a
border being a difference of sums itself. A transposed layer has its products at fewer outputs,
which makes both sums smaller and the counts no larger.

*Storage.* Rounding to nearest costs at most half a unit in the last place of what is stored, in
each of the four dtypes, subnormal numbers included, whatever the number had lost before: that is in
`n u M`, also where in float64 it is more than half a unit. The term is left out where values are
compared before they were rounded.

*Underflow.* A product below float64's normal range loses up to `s`, the smallest number above zero,
once for each of `n`, and as much more as the input is larger than one. What a later layer makes of
that is not granted: partial products below 1e-308 take weights that float64 alone can store.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convsqueeze.algebra.precision import SMALLEST, half_ulp
from convsqueeze.errors import GeometryError, lacks_memory
from convsqueeze.formatting import format_size
from convsqueeze.module import SqueezedConv
from convsqueeze.plan import Merge
from convsqueeze.squeezing import stored_layout
from convsqueeze.verify.magnitudes import magnitudes, roundings
from convsqueeze.verify.reference import Load, Part, Run, reference

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

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For `x` on any device the original's and the squeezed layer's outputs, their difference,
        infinite where there is none, and its bound. Raises GeometryError where the squeezed layer
        does not run or has an output of another shape.
        """
        size, x = size_text(x), x.to(self.device)
        expected = self.original(x)
        try:
            actual = self.squeezed(x)
            bound = self.bound(x) if actual.shape == expected.shape else None
        except (RuntimeError, GeometryError) as error:
            if lacks_memory(error):
                raise
            first = str(error).partition("\n")[0]
            raise GeometryError(f"the squeezed layer does not run on {size}: {first}") from error
        if bound is None:
            raise GeometryError(
                f"on an input of {size} the output has shape {tuple(actual.shape[1:])}, "
                f"the original's has {tuple(expected.shape[1:])}"
            )
        difference = (actual - expected).abs().nan_to_num(torch.inf, torch.inf)
        return expected, actual, difference, bound


def size_text(x: Tensor) -> str:
    """`32x32`, of a batch of images."""
    return format_size(x.shape[2:]) or "one vector"


def comparison(
    merge: Merge,
    module: SqueezedConv,
    load: Load,
    part: Part = "affine",
    *,
    rounded: bool = True,
    stored: Run | None = None,
    layers: Run | None = None,
) -> Comparison:
    """The original layers and the squeezed one, or the linear `part` of both, and their bound.

    Unless `rounded`, the module's values are held to be those before they were rounded. `stored`
    are the magnitudes at a corrected border and `layers` those of the layers, where they are known.
    """
    terms = roundings(merge) + sum(prod(shape[1:]) for shape in merge.tensors.values())
    noise, floor, biases = 2 * terms * UNIT_ROUNDOFF, terms * SMALLEST, part == "affine"
    sums, cost = layers or reference(merge.tree, load, part, magnitude=True), None
    if rounded:
        cost = module.converted(half_ulp, half_ulp if biases else None, signs=False)
    if module.border is not None and stored is None:
        stored = stored_magnitudes(merge, module, load, biases=biases)

    def bound(x: Tensor) -> Tensor:
        x = x.abs()
        found = noise * sums(x) + floor * x.max().clamp(min=1.0)
        if stored is not None:
            found = found + noise * stored(x)
        return found if cost is None else found + cost(x)

    wide = module.converted(Tensor.double, Tensor.double if biases else None)
    original = reference(merge.tree, load, part)
    return Comparison(original, run_of(wide), bound, module.weight.device)


def stored_magnitudes(
    merge: Merge,
    module: SqueezedConv,
    load: Load,
    inputs: Tensor | None = None,
    *,
    biases: bool = True,
) -> Run:
    """For |x| the sum of the absolute values of the products of all that a squeezed layer stores.

    It is no less than that, and not much more where the channels of x are as large beside each
    other as `inputs` (in_channels,), by default all alike. Raises GeometryError.
    """
    groups, device = merge.geometry.groups, module.weight.device
    if inputs is None:
        inputs = torch.ones(merge.geometry.in_channels, dtype=torch.float64)
    inputs = inputs.to(device)
    found = stored_layout(merge, magnitudes(merge, load, device, inputs))
    kept = {name: t for name, t in found.items() if biases or not name.endswith("bias")}
    run = SqueezedConv.of(module.layer, kept, signs=False).requires_grad_(False)

    def summed(x: Tensor) -> Tensor:
        shares = x / inputs.reshape(-1, *(1,) * (x.ndim - 2))
        return run(shares.unflatten(1, (groups, -1)).amax(2))

    return summed


def run_of(module: SqueezedConv) -> Run:
    """A squeezed layer as it is, a stored transposed one by torch's own op where that takes it:
    that reads the file's layout as others will.
    """
    layer = module.layer
    is_torchs = module.is_transposed and layer.padding_mode == "zeros"
    if not is_torchs or min(map(min, layer.padding)) < 0:
        return module
    operator = getattr(F, f"conv_transpose{len(layer.stride)}d")
    settings = {"stride": layer.stride, "groups": layer.groups, "dilation": layer.dilation}
    crop = [-amount for pair in reversed(layer.padding) for amount in pair]
    steps: tuple[Any, ...] = tuple(slice(None, None, step) for step in layer.output_stride or ())

    def run(x: Tensor) -> Tensor:
        full = operator(x, module.weight, module.bias, **settings)
        y: Tensor = F.pad(full, crop)[(..., *steps)]
        return y if module.border is None else module.border(y, x)

    return run
