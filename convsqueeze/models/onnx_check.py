"""A whole ONNX model in onnxruntime against the model in torch. Writes nothing but what is too
large for one message, to a temporary folder.

The reference runs in float64. A few units in the last place of the dtype in which onnxruntime
computes are granted. Where a difference is larger, what that dtype can lose is measured: torch runs
the squeezed model in it too, and its distance from float64, the largest over all inputs, is the
unit; `FACTOR` of them are granted, and what storing merged weights was seen to cost.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from convsqueeze.algebra.precision import dtype_name
from convsqueeze.copying import Sandbox, as_wide
from convsqueeze.errors import VerificationError, lacks_memory
from convsqueeze.export.check import FORM_ERRORS, fits_one_message
from convsqueeze.export.graph import DTYPES
from convsqueeze.export.runtime import in_float32
from convsqueeze.export.session import RUNTIME_ERRORS, first_line, session_of
from convsqueeze.models.distances import (
    FACTOR,
    Granted,
    NamedTensors,
    compared,
    distances,
    largest_value,
    nearest,
)
from convsqueeze.models.inputs import Inputs, Shapes
from convsqueeze.models.running import Running, Steps, rounding_steps, runnable
from convsqueeze.module import SqueezedConv
from convsqueeze.verify import Worst

_Outcome = tuple[tuple[Any, ...], NamedTensors, NamedTensors]
"""The arguments, and what torch and onnxruntime gave, in the order in which the exporter gives it.
"""


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


class OnnxCheck:
    """What an ONNX model of `squeezed` is held against: the original, where `both` are that and the
    squeezed model as they ran, otherwise the squeezed model itself, which then must run.

    Raises ModelInputError where it does not.
    """

    def __init__(
        self,
        squeezed: nn.Module,
        inputs: Inputs,
        seed: int = 0,
        both: tuple[Running, Running] | None = None,
    ) -> None:
        self.inputs, self.seed = inputs, seed
        self.steps: Steps = {}
        if both is None:
            one = runnable(Sandbox(squeezed), lambda dtype: inputs.drawn(seed, dtype))
            both = one, one
        else:
            merged = {
                f"{name}.{key}".removeprefix("."): p
                for name, layer in squeezed.named_modules()
                if isinstance(layer, SqueezedConv)
                for key, p in layer.named_parameters()
            }
            self.steps = rounding_steps(merged)
        self.reference, self.squeezed = both
        self.notes: tuple[str, ...] = ()
        if any(p.dtype == torch.bfloat16 for p in squeezed.parameters()):
            self.notes = (
                "stored as bfloat16, exported as float32, which holds every value exactly",
            )

    def report(self, model: ModelProto) -> OnnxReport:
        """Form, then outputs. Raises VerificationError."""
        opened = tuple((value.name, _sizes(value)) for value in model.graph.input)
        outcomes: dict[Shapes, _Outcome] = {}
        with tempfile.TemporaryDirectory(prefix="convsqueeze-") as folder:
            session, dtype, notes = _opened(model, Path(folder))
            given = tuple(spec.shape for spec in self.inputs.tensors)
            for shapes in [given, *self.inputs.other_shapes([sizes for _, sizes in opened])]:
                arguments, wanted = self._in_torch(shapes, dtype)
                if wanted:
                    found = _found(session, shapes, arguments, wanted)
                    outcomes[shapes] = arguments, wanted, found
        if not outcomes:
            raise VerificationError(["the model in torch takes none of the inputs."])
        worst = _nearest(outcomes, {}, dtype)
        if not worst.share <= 1.0:
            worst = _nearest(outcomes, self._moved(outcomes, dtype), dtype)
        if not worst.share <= 1.0:
            raise VerificationError([f"onnxruntime and torch differ by {worst.excess}."])
        largest = max(largest_value(y) for _, one, _ in outcomes.values() for y in one.values())
        notes = self.notes + notes + _fixed(opened)
        return OnnxReport(opened, tuple(outcomes), dtype_name(dtype), worst, largest, notes)

    def _in_torch(self, shapes: Shapes, dtype: torch.dtype) -> tuple[tuple[Any, ...], NamedTensors]:
        """Arguments of these shapes, and what the reference gives for them: nothing where it does
        not take them.
        """
        if shapes == tuple(spec.shape for spec in self.inputs.tensors):
            return _cast(self.reference.given, dtype), _named(self.reference.gave)
        arguments = self.inputs.resized(shapes).drawn(self.seed, dtype)
        return arguments, _outputs(self.reference, arguments)

    def _moved(
        self, outcomes: Mapping[Shapes, _Outcome], dtype: torch.dtype
    ) -> Mapping[str, float]:
        """`FACTOR` times what rounding was seen to move each output by: computing in `dtype`, and
        storing.
        """
        running, seen = self.squeezed, dict[str, float]()
        tensors = {**running.parameters(), **dict(running.module.named_buffers())}
        for seed, (arguments, _, _) in enumerate(outcomes.values(), self.seed):
            base = _outputs(running, arguments)
            with running.with_values(tensors, dtype):
                computed = _outputs(running, arguments, dtype)
            with running.moved(self.steps, seed):
                stored = _outputs(running, arguments)
            for moved in (distances(base, computed), distances(base, stored)):
                for place in (one for one in moved if moved[one] < torch.inf):
                    seen[place] = max(seen.get(place, 0.0), FACTOR * moved[place])
        return seen


def _nearest(
    outcomes: Mapping[Shapes, _Outcome], moved: Mapping[str, float], dtype: torch.dtype
) -> Worst:
    """The output nearest to its bound. A few units in the last place are always granted."""
    worst = Worst()
    for shapes, (_, wanted, found) in outcomes.items():
        granted = Granted(FACTOR * torch.finfo(dtype).eps, FACTOR)
        one = nearest(compared(wanted, found, granted, moved)).worst
        if one.share >= worst.share:
            worst = replace(one, place=f"{one.place}, {_place(shapes)}")
    return worst


def _place(shapes: Shapes) -> str:
    return f"input {' '.join('x'.join(map(str, one)) for one in shapes)}"


def _cast(arguments: tuple[Any, ...], dtype: torch.dtype | None) -> tuple[Any, ...]:
    cast: tuple[Any, ...] = tree_map_only(Tensor, lambda x: as_wide(x, dtype), arguments)
    return cast


def _outputs(
    running: Running, arguments: tuple[Any, ...], dtype: torch.dtype | None = None
) -> NamedTensors:
    """Those of a model that computes in `dtype`, by default its own; empty where it does not run,
    as not every size is one that its code takes.
    """
    with suppress(Exception):
        return _named(running.output(_cast(arguments, dtype or running.dtype)))
    return {}


def _named(output: Any) -> NamedTensors:
    tensors = (one.detach() for one in tree_leaves(output) if isinstance(one, Tensor))
    return {f"output {index}": tensor for index, tensor in enumerate(tensors)}


def _opened(model: ModelProto, folder: Path) -> tuple[Any, torch.dtype, tuple[str, ...]]:
    """The model in onnxruntime, or a copy in float32 where that has no kernels for its dtype; the
    dtype that is run, and what is to be told. Raises VerificationError for a model that is not
    well-formed, or refused.
    """
    held = _held(model, folder / "model.onnx")
    try:
        if isinstance(held, Path):
            onnx.checker.check_model(str(held))
        else:
            onnx.checker.check_model(held, full_check=True)
    except FORM_ERRORS as error:
        if lacks_memory(error):
            raise
        raise VerificationError([f"is not well-formed: {first_line(error)}."]) from error
    kinds = [v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)]
    floats = [DTYPES[kind] for kind in kinds if kind in DTYPES] or [torch.float32]
    dtype = max(floats, key=lambda dtype: torch.finfo(dtype).eps)
    try:
        return session_of(held), dtype, ()
    except RUNTIME_ERRORS as error:
        if lacks_memory(error):
            raise
        if dtype == torch.float32:
            raise VerificationError([f"onnxruntime refuses it: {first_line(error)}."]) from error
    reason = f"onnxruntime has no {dtype_name(dtype)} kernels for it on the CPU; a copy in float32"
    session = session_of(_held(in_float32(model), folder / "float32.onnx"))
    return session, torch.float32, (f"{reason} was run",)


def _found(
    session: Any, shapes: Shapes, arguments: tuple[Any, ...], wanted: NamedTensors
) -> NamedTensors:
    """What onnxruntime gives. Raises VerificationError where it fails, and for other shapes than
    are `wanted`.
    """
    tensors = [one.numpy() for one in arguments if isinstance(one, Tensor)]
    names, place = [value.name for value in session.get_inputs()], _place(shapes)
    try:
        made = session.run(None, dict(zip(names, tensors, strict=True)))
    except (*RUNTIME_ERRORS, ValueError) as error:
        if lacks_memory(error):
            raise
        raise VerificationError(
            [f"onnxruntime fails on an {place}: {first_line(error)}."]
        ) from error
    found = _named([torch.from_numpy(one) for one in made])
    given, needed = ([tuple(y.shape) for y in one.values()] for one in (found, wanted))
    if given != needed:
        actual, other = (", ".join(map(str, one)) for one in (given, needed))
        raise VerificationError(
            [f"gives outputs of shapes {actual} in onnxruntime, {other} in torch, {place}."]
        )
    return found


def _held(model: ModelProto, place: Path) -> ModelProto | Path:
    """The model, or a file of it with its values apart: more than 2 GiB are no single message."""
    if fits_one_message(model):
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    onnx.save_model(copy, place, save_as_external_data=True, location=f"{place.name}.data")
    return place


def _sizes(value: Any) -> tuple[int | str, ...]:
    return tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)


def _fixed(opened: Sequence[tuple[str, tuple[int | str, ...]]]) -> tuple[str, ...]:
    """Says which inputs have sizes that are not open, beside channels."""
    return tuple(
        f"input {name} is {'x'.join(map(str, sizes))}: the model's code takes numbers for sizes "
        "there"
        for name, sizes in opened
        if any(
            isinstance(size, int) and (index != 1 or len(sizes) < 3)
            for index, size in enumerate(sizes)
        )
    )
