"""An ONNX model against the squeezed layers in torch: form, values, outputs. Writes nothing.

The layer in torch runs in float64. onnxruntime's sum of k terms in a dtype of precision eps may be
off by `k * eps / 2` of the sum of their magnitudes, whatever the order (Higham, "Accuracy and
Stability of Numerical Algorithms", section 3.1); twice that is allowed, which covers inputs and
weights rounded once more and the noise of the reference. Terms that are zero do not count. So half
of the inputs are nearly empty: few terms meet in an output, and the bound is a few roundings even
in float16.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import count
from math import prod
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, helper, numpy_helper
from torch import Tensor

from convsqueeze.algebra.geometry import Geometry
from convsqueeze.algebra.precision import dtype_name
from convsqueeze.errors import CheckpointError, VerificationError, lacks_memory
from convsqueeze.export.ends import ends_of, sizes_in_words, smallest_size
from convsqueeze.export.graph import parameters
from convsqueeze.export.runtime import OnnxLayer, OnnxLayers
from convsqueeze.export.session import LARGEST_MESSAGE, RUNTIME_ERRORS, first_line
from convsqueeze.formatting import format_size
from convsqueeze.module import SqueezedConv
from convsqueeze.verify import Worst, worst_of
from convsqueeze.verify.comparison import size_text

Size = tuple[int, ...]

MOST_MIXTURES = 16
"""Sizes at most that are run for mixtures of kinds, each axis having its own."""
MOST_VALUES = 1 << 27
"""Numbers at most in an input, padded, or an output that is run: 1 GB in float64."""
FORM_ERRORS = (
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    ValueError,
    RuntimeError,
)
"""What onnx's checker raises; the last two for text that is none and for its own mistakes."""
_MESSAGE_MARGIN = 1 << 20


@dataclass(frozen=True)
class ExportReport:
    """What the check saw of one layer.

    `dtype` is the layer's in the model, `sizes` are the input sizes that were run, `inputs` counts
    the images. `worst` is the output that came nearest to its bound.
    """

    name: str
    dtype: str
    sizes: tuple[Size, ...]
    inputs: int
    worst: Worst
    notes: tuple[str, ...] = ()

    def to_data(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def fits_one_message(model: ModelProto) -> bool:
    """Whether the model can be serialised in one piece."""
    held = (
        prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in model.graph.initializer
    )
    return bool(sum(held) + _MESSAGE_MARGIN < LARGEST_MESSAGE)


def check_model(
    model: ModelProto,
    layers: Mapping[str, SqueezedConv],
    *,
    seed: int = 0,
    where: str = "the ONNX model",
) -> tuple[ExportReport, ...]:
    """Check the model's form, each initializer bit for bit, and each layer's outputs.

    Outputs at three input sizes a layer: the smallest legal one, one that is a multiple of the
    strides and one that is not, with 1, 2 and 3 images. Raises VerificationError with every
    failure, each with layer, place, size, error and bound.
    """
    try:
        runnable = OnnxLayers(model, where)
    except CheckpointError as error:
        raise VerificationError([str(error)]) from error
    problems = list(_form_problems(runnable, layers))
    reports = []
    for name, layer in layers.items() if not problems else ():
        try:
            reports.append(_check_layer(runnable, name, layer, seed))
        except _Difference as difference:
            problems.append(f"{name}: {difference}.")
    if problems:
        raise VerificationError([f"{where}: {problem}" for problem in problems])
    return tuple(reports)


class _Difference(Exception):
    """What is wrong with one layer, in words."""


def _form_problems(runnable: OnnxLayers, layers: Mapping[str, SqueezedConv]) -> Iterator[str]:
    """What is wrong with the model before anything is run."""
    missing = [name for name in layers if name not in runnable.names]
    for name in missing:
        yield f"{name}: is not in the model, its input and output were needed."
    if fits_one_message(runnable.model):
        pieces = [runnable.model]
    else:
        pieces = [runnable.part(name) for name in layers if name not in missing]
    for piece in pieces:
        try:
            onnx.checker.check_model(piece, full_check=True)
        except FORM_ERRORS as error:
            if lacks_memory(error):
                raise
            yield f"is not well-formed: {first_line(error)}."


def _check_layer(runnable: OnnxLayers, name: str, layer: SqueezedConv, seed: int) -> ExportReport:
    """One layer's report. Raises _Difference."""
    try:
        exported = runnable[name]
    except RUNTIME_ERRORS as error:
        if lacks_memory(error):
            raise
        _check_values(runnable.part(name), name, layer)
        raise _Difference(f"onnxruntime refuses it: {first_line(error)}") from error
    _check_values(exported.model, name, layer)
    geometry, reference = layer.geometry, _Reference(layer, exported.computes_in, exported.scale)
    generator = torch.Generator().manual_seed(seed)
    worst, inputs, tried = Worst(), 0, input_sizes(layer)
    few = 2 / prod(geometry.weight_shape[1:])  # about two of them meet in an output
    for batch, size in enumerate(tried, start=1):
        _check_cost(geometry, batch, size)
        shape = (batch, geometry.in_channels, *size)
        for kind, share in (("dense", 1.0), ("sparse", few)):
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
            x = (x * (torch.rand(shape, generator=generator) < share)).to(exported.computes_in)
            worst = max(worst, _compare(exported, reference, x, kind), key=lambda one: one.share)
            inputs += batch
    notes = tuple(_notes(exported, layer))
    return ExportReport(name, dtype_name(exported.dtype), tuple(tried), inputs, worst, notes)


def _check_cost(geometry: Geometry, batch: int, size: Size) -> None:
    """Raises _Difference where running one input would take too much memory."""
    axes = list(zip(geometry.axes, size, strict=True))
    padded = prod(max(a.upsample * n + max(a.before, 0) + max(a.after, 0), 1) for a, n in axes)
    leaving = prod(geometry.output_size(size))
    values = batch * max(geometry.in_channels * padded, geometry.out_channels * leaving)
    if values > MOST_VALUES:
        raise _Difference(
            f"an input of {format_size(size)} takes {values:,} numbers to check, at most "
            f"{MOST_VALUES:,} are made"
        )


def _notes(exported: OnnxLayer, layer: SqueezedConv) -> Iterator[str]:
    kinds = sorted({dtype_name(tensor.dtype) for tensor in layer.parameters()})
    name, named = exported.name, dtype_name(exported.dtype)
    what = f"{name}: stored as {' and '.join(kinds)}, exported as {named}, which holds every value"
    if len(kinds) > 1:
        yield f"{what} exactly; so are its input and output"
    elif exported.dtype != layer.dtype:
        yield f"{what} exactly; onnxruntime has no such convolution on the CPU"
    if exported.computes_in != exported.dtype:
        yield (
            f"{name}: onnxruntime has no {named} kernel for it on the CPU; a copy rounded to "
            f"{dtype_name(exported.computes_in)} was run, the values were compared bit for bit"
        )
    sizes = sizes_in_words(layer)
    if sizes is not None:
        yield f"{name}: the graph takes inputs of {sizes} and fails for others"


def _check_values(model: ModelProto, name: str, layer: SqueezedConv) -> None:
    """Raises _Difference unless the model holds a layer's very values, bit for bit."""
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    wanted = parameters(name, layer)
    for key in wanted.keys() ^ held.keys():
        what = "is missing" if key in wanted else "belongs to no squeezed layer"
        raise _Difference(f"the initializer {key} {what}")
    for key, value in wanted.items():
        found, needed = numpy_helper.to_array(held[key]), value.numpy()
        if found.dtype != needed.dtype or found.shape != needed.shape:
            raise _Difference(
                f"{key} is {found.dtype} {found.shape}, {needed.dtype} {needed.shape} was needed"
            )
        bits = f"u{needed.itemsize}"
        for place in np.argwhere(found.view(bits) != needed.view(bits))[:1].tolist():
            here = tuple(place)
            raise _Difference(
                f"{key} holds {found[here].item()!r} at {place}, {needed[here].item()!r} was needed"
            )


def input_sizes(layer: SqueezedConv) -> list[Size]:
    """The input sizes that are run, of those that the graph of a layer takes.

    The first is the smallest. The others have a whole kernel inside and three outputs or more on
    each axis, so that a wrong stride shows: a multiple of the stride, and the size after it. Where
    strides make several kinds of sizes, every kind is run. No two axes are equally long, where
    they may differ. Three times () for a linear layer.
    """
    every = ends_of(layer)
    kinds = max([2, *(len(ends.classes) for ends in every)])
    smallest, more = [], []
    for index, (ends, least) in enumerate(zip(every, smallest_size(layer), strict=True)):
        axis = ends.axis
        # torch refuses to take away more samples than there are
        cropped = max(-axis.before, 0) + max(-axis.after, 0)
        first = next(ends.legal(max(1 + cropped, least)))
        enough = count(max(first, cropped + axis.extent))
        telling = next(size for size in enough if axis.output_size(size) >= 3)
        sizes = ends.legal((-(-telling // axis.stride) + index) * axis.stride)
        smallest.append(first)
        more.append([next(sizes, first) for _ in range(kinds)])
    turns = 1 if layer.border is None else max(1, MOST_MIXTURES // kinds)
    mixed = [
        tuple(sizes[(kind + turn * index) % kinds] for index, sizes in enumerate(more))
        for turn in range(min(turns, kinds))
        for kind in range(kinds)
    ]
    tried = [tuple(smallest), *mixed]
    return list(dict.fromkeys(tried)) if layer.border else tried


class _Reference:
    """A squeezed layer in float64, its values times `scale`.

    A runtime computes it in `dtype`; `bound` says how far off it may be.
    """

    def __init__(self, layer: SqueezedConv, dtype: torch.dtype, scale: float) -> None:
        self.info = torch.finfo(dtype)
        self.exact = layer.converted(*[lambda values: values.double() * scale] * 2)
        self.magnitude = self.exact.converted(Tensor.abs, Tensor.abs, signs=False)
        self.terms = layer.converted(lambda values: (values != 0).double(), None, signs=False)

    def bound(self, x: Tensor) -> Tensor:
        """Twice `k * eps / 2 * (|weight| conv |x| + |bias|)`, k the terms that are not zero and
        two for bias and output; never below k of the smallest steps. Shape of the output.
        """
        terms = self.terms((x != 0).double()) + 2
        magnitude = self.magnitude(x.abs())
        bound = terms * (self.info.eps * magnitude + self.info.tiny * self.info.eps)
        overflows = magnitude * (1 + terms * self.info.eps) > self.info.max
        return torch.where(overflows, torch.inf, bound)


@torch.no_grad()
def _compare(exported: OnnxLayer, reference: _Reference, x: Tensor, kind: str) -> Worst:
    """The output nearest to its bound. Raises _Difference where one is beyond it."""
    place = f"{kind} input of {size_text(x)}, batch {len(x)}"
    expected = reference.exact(x.double())
    try:
        actual = exported(x).double()
    except RUNTIME_ERRORS as error:
        if lacks_memory(error):
            raise
        raise _Difference(f"onnxruntime fails on a {place}: {first_line(error)}") from error
    if actual.shape != expected.shape:
        raise _Difference(
            f"a {place} gives an output of shape {tuple(actual.shape)} in onnxruntime, "
            f"{tuple(expected.shape)} in torch"
        )
    bound = reference.bound(x.double())
    # where the bound is infinite it may be any number, or none
    difference = (actual - expected).abs().where(bound != torch.inf, 0.0)
    worst = worst_of(difference.nan_to_num(torch.inf), bound, f"{place}, output {{}}".format)
    if worst.share > 1.0:
        raise _Difference(f"onnxruntime and torch differ by {worst.excess}")
    return worst
