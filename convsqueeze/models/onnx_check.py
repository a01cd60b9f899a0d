"""A whole ONNX model in onnxruntime against the model in torch. Writes nothing but what is too
large for one message, to a temporary folder.

The reference runs in float64. What the dtype in which onnxruntime computes can lose is measured:
torch runs the squeezed model in that dtype too, and its distance from float64, the largest over all
inputs, is the unit; `FACTOR` of them are granted, and what storing merged weights was seen to cost.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime  # type: ignore[import-untyped]
import torch
from onnx import ModelProto, TensorProto, numpy_helper
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from convsqueeze.algebra.precision import dtype_name
from convsqueeze.errors import VerificationError
from convsqueeze.export.check import FORM_ERRORS, fits_one_message
from convsqueeze.export.runtime import RUNTIME_ERRORS, first_line, session_of
from convsqueeze.models.inputs import Inputs
from convsqueeze.models.running import (
    Running,
    largest_difference,
    largest_value,
    rounding_steps,
    runnable,
)
from convsqueeze.models.whole import FACTOR
from convsqueeze.module import SqueezedConv
from convsqueeze.verify import Worst

SEEDS = 2
"""Inputs of each shape."""
_FLOATS = {
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
}
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class OnnxReport:
    """What the check saw: the sizes of each input (a name: any), the shapes that were run, in which
    dtype onnxruntime computed, the output nearest to its bound, and what is good to know.
    """

    inputs: tuple[tuple[str, tuple[int | str, ...]], ...]
    shapes: tuple[Shapes, ...]
    dtype: str
    worst: Worst
    largest: float
    notes: tuple[str, ...] = ()

    def to_data(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class OnnxCheck:
    """What an ONNX model is held against: the `reference`, and the `squeezed` model that it is."""

    reference: nn.Module
    squeezed: nn.Module
    inputs: Inputs
    seed: int
    layers: Mapping[str, SqueezedConv]

    def report(self, model: ModelProto) -> OnnxReport:
        """Form, values of the merged layers, then outputs. Raises VerificationError."""
        with tempfile.TemporaryDirectory(prefix="convsqueeze-") as folder:
            runs = _Session(model, Path(folder))
            opened = tuple((value.name, _sizes(value)) for value in model.graph.input)
            return self._compared(runs, opened)

    def _compared(
        self, runs: "_Session", opened: tuple[tuple[str, tuple[int | str, ...]], ...]
    ) -> OnnxReport:
        exact, _ = runnable(self.reference, self.inputs.first, type(self.reference).__name__)
        wide, narrow = Running(self.squeezed, exact.dtype), Running(self.squeezed, runs.dtype)
        unit = _Unit(wide, narrow, self._stored() if self.reference is not self.squeezed else {})
        outcomes, tried = [], []
        for shapes in _shapes_to_try(self.inputs, [sizes for _, sizes in opened]):
            inputs = self.inputs.resized(shapes)
            for seed in range(self.seed, self.seed + SEEDS):
                arguments = inputs.drawn(seed, runs.dtype)
                wanted = _leaves(exact, arguments)
                if wanted is None:
                    break
                unit.measure(arguments, seed)
                outcomes.append((shapes, wanted, runs.run(arguments, shapes)))
            else:
                tried.append(tuple(shapes))
        if not outcomes:
            raise VerificationError(["the model in torch takes none of the inputs."])
        worst, largest = self._judged(outcomes, unit)
        notes = _widened_note(self.squeezed) + runs.notes + _fixed(opened)
        return OnnxReport(opened, tuple(tried), dtype_name(runs.dtype), worst, largest, notes)

    def _stored(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}" if name else key: p
            for name, layer in self.layers.items()
            for key, p in layer.named_parameters()
        }

    @staticmethod
    def _judged(
        outcomes: Sequence[tuple[Sequence[tuple[int, ...]], list[Tensor], list[Tensor]]],
        unit: "_Unit",
    ) -> tuple[Worst, float]:
        worst, largest = Worst(), 0.0
        for shapes, wanted, found in outcomes:
            place = f"input {' '.join('x'.join(map(str, one)) for one in shapes)}"
            if [t.shape for t in wanted] != [t.shape for t in found]:
                given = ", ".join(str(tuple(t.shape)) for t in found)
                needed = ", ".join(str(tuple(t.shape)) for t in wanted)
                raise VerificationError(
                    [f"gives outputs of shapes {given} in onnxruntime, {needed} in torch, {place}."]
                )
            for index, (one, other) in enumerate(zip(wanted, found, strict=True)):
                bound = unit.bound(index, one)
                error = largest_difference(one, other)
                share = 0.0 if error == 0 else error / bound if bound else torch.inf
                largest = max(largest, largest_value(one))
                if share >= worst.share:
                    worst = Worst(error, bound, share, f"output {index}, {place}")
        if not worst.share <= 1.0:
            raise VerificationError(
                [
                    f"onnxruntime and torch differ by {worst.error:.3e} where at most "
                    f"{worst.bound:.3e} is rounding, {worst.place}."
                ]
            )
        return worst, largest


class _Unit:
    """What rounding was seen to move each output by: computing in a narrow dtype, and storing."""

    def __init__(self, wide: Running, narrow: Running, stored: Mapping[str, Tensor]) -> None:
        self.wide, self.narrow = wide, narrow
        self.steps = rounding_steps(stored)
        self.eps = torch.finfo(narrow.coarsest).eps
        self.moved: dict[int, float] = {}

    def measure(self, arguments: tuple[Any, ...], seed: int) -> None:
        base = _leaves(self.wide, arguments) or []
        computed = _leaves(self.narrow, arguments) or []
        with self.wide.with_values(self.wide.moved(self.steps, seed)):
            stored = _leaves(self.wide, arguments) or []
        for index, one in enumerate(base):
            for others in (computed, stored):
                if index < len(others):
                    seen = largest_difference(one, others[index])
                    known = self.moved.get(index, 0.0)
                    self.moved[index] = max(known, seen if seen < torch.inf else 0.0)

    def bound(self, index: int, wanted: Tensor) -> float:
        """A few units in the last place are always granted."""
        granted = FACTOR * self.moved.get(index, 0.0)
        if wanted.is_floating_point():
            granted += FACTOR * self.eps * largest_value(wanted)
        return granted


def _leaves(running: Running, arguments: tuple[Any, ...]) -> list[Tensor] | None:
    """The tensors of an output in the order in which the exporter gives them; None where the model
    does not run.
    """
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            given = [_given(one, running.dtype) for one in arguments]
            output = running.module(*given)
    except Exception:  # noqa: BLE001  the user's code; not every size is one that it takes
        return None
    return [one.detach() for one in tree_leaves(output) if isinstance(one, Tensor)]


def _given(one: Any, dtype: torch.dtype | None) -> Any:
    """An argument of its own, floats in `dtype` if one is given."""
    if not isinstance(one, Tensor):
        return one
    return one.to(dtype, copy=True) if one.is_floating_point() else one.clone()


class _Session:
    """The model in onnxruntime, or a copy in float32 where that has no kernels for its dtype."""

    def __init__(self, model: ModelProto, folder: Path) -> None:
        self.notes: tuple[str, ...] = ()
        _check_form(model, folder)
        self.names = [value.name for value in model.graph.input]
        held = {_FLOATS[v.type.tensor_type.elem_type] for v in _float_values(model)}
        self.dtype = max(held or {torch.float32}, key=lambda dtype: torch.finfo(dtype).eps)
        try:
            self._session = _opened(model, folder)
        except RUNTIME_ERRORS as error:
            if self.dtype == torch.float32:
                raise VerificationError(
                    [f"onnxruntime refuses it: {first_line(error)}."]
                ) from error
            self.notes = (
                f"onnxruntime has no {dtype_name(self.dtype)} kernels for it on the CPU; a copy in "
                "float32 was run",
            )
            self.dtype = torch.float32
            self._session = _opened(_single(model), folder)

    def run(self, arguments: tuple[Any, ...], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Its outputs. Raises VerificationError where it fails."""
        tensors = [one.numpy() for one in arguments if isinstance(one, Tensor)]
        try:
            found = self._session.run(None, dict(zip(self.names, tensors, strict=True)))
        except (*RUNTIME_ERRORS, ValueError) as error:
            told = " ".join("x".join(map(str, one)) for one in shapes)
            raise VerificationError(
                [f"onnxruntime fails on an input of {told}: {first_line(error)}."]
            ) from error
        return [torch.from_numpy(one) for one in found]


def _float_values(model: ModelProto) -> Iterator[Any]:
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type in _FLOATS:
            yield value


def _check_form(model: ModelProto, folder: Path) -> None:
    try:
        if fits_one_message(model):
            onnx.checker.check_model(model, full_check=True)
        else:
            onnx.checker.check_model(str(_saved(model, folder)), full_check=False)
    except FORM_ERRORS as error:
        raise VerificationError([f"is not well-formed: {first_line(error)}."]) from error


def _saved(model: ModelProto, folder: Path) -> Path:
    """In a temporary folder, values apart: a model of more than 2 GiB is no single message."""
    place = folder / "model.onnx"
    if not place.exists():
        copy = ModelProto()
        copy.CopyFrom(model)
        onnx.save_model(copy, place, save_as_external_data=True, location="model.onnx.data")
    return place


def _opened(model: ModelProto, folder: Path) -> Any:
    if fits_one_message(model):
        return session_of(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    place = str(_saved(model, folder))
    return onnxruntime.InferenceSession(place, options, providers=["CPUExecutionProvider"])


def _single(model: ModelProto) -> ModelProto:
    """A copy in float32: the same nodes, every value of another dtype rounded to it."""
    others = (TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    copy = ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.tensor_type.elem_type in others:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in copy.graph.initializer:
        if tensor.data_type in others:
            tensor.CopyFrom(_widened(tensor))
    for node in copy.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in others:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t") and attribute.t.data_type in others:
                attribute.t.CopyFrom(_widened(attribute.t))
    return copy


def _widened(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name)


def _sizes(value: Any) -> tuple[int | str, ...]:
    return tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)


def _widened_note(squeezed: nn.Module) -> tuple[str, ...]:
    if not any(p.dtype == torch.bfloat16 for p in squeezed.parameters()):
        return ()
    return ("stored as bfloat16, exported as float32, which holds every value exactly",)


def _fixed(opened: Sequence[tuple[str, tuple[int | str, ...]]]) -> tuple[str, ...]:
    """Says which inputs have sizes that are not open, beside channels."""
    told = []
    for name, sizes in opened:
        rest = [size for index, size in enumerate(sizes) if index != 1 or len(sizes) < 3]
        if any(isinstance(size, int) for size in rest):
            shown = "x".join(map(str, sizes))
            told.append(f"input {name} is {shown}: the model's code takes numbers for sizes there")
    return tuple(told)


_CHANGES: tuple[Callable[[int, int], int], ...] = (
    lambda place, size: size + (1, 0, 32, 64, 96)[place],
    lambda place, size: size + (2, 0, 1, 2, 3)[place],
    lambda place, size: size if place < 2 else max(size // 2, 1),
    lambda place, size: size + (0, 8, 0, 0, 0)[place],
)
"""Another size for one, by its place: batch, channels, then the axes."""


def _place(index: int, rank: int) -> int:
    """What a dimension is likely to be: of three, the second is the length of a sequence, or the
    channels of a signal, whose length is the third.
    """
    return min(index, 4) if rank > 3 or index == 0 else index + 1


def _shapes_to_try(inputs: Inputs, opened: Sequence[tuple[int | str, ...]]) -> Iterator[Shapes]:
    """The given shapes, then others where sizes are open: the same name the same size everywhere.

    Larger by 32, which most networks with strides take, by a few each, and half as large, with
    other batches; and at last with other channels too, where they are open. Those that the model in
    torch does not take are left out by the caller.
    """
    given = [spec.shape for spec in inputs.tensors]
    yield tuple(given)
    names = list(dict.fromkeys(s for sizes in opened for s in sizes if isinstance(s, str)))
    if not names:
        return
    seen = {tuple(given)}
    for change in _CHANGES:
        sizes: dict[str, int] = {}
        shapes = []
        for shape, own in zip(given, opened, strict=True):
            made = []
            for index, (size, kind) in enumerate(zip(shape, own, strict=True)):
                if isinstance(kind, str):
                    size = sizes.setdefault(kind, change(_place(index, len(own)), size))
                made.append(size)
            shapes.append(tuple(made))
        if tuple(shapes) not in seen:
            seen.add(tuple(shapes))
            yield tuple(shapes)
