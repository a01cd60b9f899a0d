"""A model and example inputs -> a functional ATen graph, by torch.export."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx import Node

from convsqueeze.errors import TracingError
from convsqueeze.tracing.watched import watched

TORCH = Path(torch.__file__).parent


@dataclass(frozen=True, eq=False)
class Exported:
    """The functional `program`, and what is read for nothing: a node of the graph before, and the
    one that reads it though no output depends on that.

    The model's code goes on calling the module of such a reader, on a value that must stay; so must
    the stored tensors `kept`, by name, which are read so too, or which the code changes. `notes`
    tell what the graph does not hold for.
    """

    program: ExportedProgram
    read_in_vain: tuple[tuple[Node, Node], ...]
    kept: Mapping[str, str]
    notes: tuple[str, ...] = ()


def exported(model: nn.Module, inputs: Sequence[Any]) -> Exported:
    """The model's forward on `inputs` as one graph without mutation, its sizes left open.

    Nothing is computed: torch runs the model's own code on tensors that have no values. Sizes of
    which that code makes numbers are those of the example. Raises TracingError where torch.export
    cannot follow the code.
    """
    arguments = tuple(inputs)
    failed: list[Exception] = []
    for shapes in (_open(arguments), None):
        try:
            return _functional(watched(model), arguments, shapes)
        except Exception as error:  # noqa: BLE001 - the model's own code, and torch's on it
            failed.append(error)
    raise TracingError(told(failed[-1])) from failed[-1]


def _functional(model: nn.Module, inputs: tuple[Any, ...], shapes: Any) -> Exported:
    with warnings.catch_warnings(), _silently(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, inputs, dynamic_shapes=shapes, strict=False)
        in_vain = tuple(_read_in_vain(program))
        kept = dict(_kept_in_vain(program))
        notes = tuple(_size_notes(program, is_open=shapes is not None))
        functional = program.run_decompositions({})
    for name in functional.graph_signature.buffers_to_mutate.values():
        kept.setdefault(name, "the model's code changes it")
    return Exported(functional, in_vain, kept, notes)


@contextmanager
def _silently() -> Iterator[None]:
    """Torch tells of every axis that the model's code fixes, and of what it cannot follow before it
    raises that: in its log, and printed.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(before)


def _needed(program: ExportedProgram) -> set[Node]:
    """Nodes that an output or a mutation depends on."""
    needed: set[Node] = set()
    for node in reversed(program.graph.nodes):
        if node.op == "output" or _mutates(node) or node in needed:
            needed |= {node, *node.all_input_nodes}
    return needed


def _kept_in_vain(program: ExportedProgram) -> Iterator[tuple[str, str]]:
    """Stored tensors that code reads on which nothing depends."""
    needed = _needed(program)
    stored = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs}
    for node in program.graph.nodes:
        target = stored.get(node.name) if node.op == "placeholder" else None
        if target and any(reader not in needed for reader in node.users):
            yield target, "the model's code reads it too, for nothing"


def _read_in_vain(program: ExportedProgram) -> list[tuple[Node, Node]]:
    """Nodes that an output or a mutation depends on, with those readers on which none does."""
    needed = _needed(program)
    return [
        (value, node)
        for node in program.graph.nodes
        if node not in needed and isinstance(node.meta.get("val"), Tensor)
        for value in node.all_input_nodes
        if value in needed and isinstance(value.meta.get("val"), Tensor)
    ]


def _mutates(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _open(inputs: Sequence[Any]) -> ShapesCollection:
    """Every axis may have another size, as far as the code allows."""
    shapes = ShapesCollection()
    for value in inputs:
        if isinstance(value, Tensor):
            shapes[value] = dict.fromkeys(range(value.ndim), Dim.AUTO)
    return shapes


MOST_PLACES = 3
"""So many lines of the model's code are told in a note."""


def _size_notes(program: ExportedProgram, *, is_open: bool) -> Iterator[str]:
    """Where the model's own code took a path by the size of its input."""
    if not is_open:
        yield (
            "torch could not follow the model's code for inputs of any size, so what was found "
            "holds for the size of the example"
        )
        return
    places = list(dict.fromkeys(_places(program)))
    if places:
        told = ", ".join(places[:MOST_PLACES]) + (", ..." if len(places) > MOST_PLACES else "")
        yield (
            f"the model's code looks at the size of its input ({told}): what was found holds for "
            "sizes for which it does what it does for the example's"
        )


def _places(program: ExportedProgram) -> Iterator[str]:
    """Lines outside torch that asked something of a size that was open."""
    for guard in _guards(program):
        frame = getattr(getattr(guard, "sloc", None), "framework_loc", None)
        path = getattr(frame, "filename", None)
        if path is not None and not Path(path).is_relative_to(TORCH):
            yield f"{Path(path).name}:{getattr(frame, 'lineno', None)}"


def _guards(program: ExportedProgram) -> Sequence[Any]:
    for node in program.graph.nodes:
        value = node.meta.get("val")
        for size in value.shape if isinstance(value, Tensor) else ():
            if isinstance(size, torch.SymInt):
                return size.node.shape_env.guards
    return ()


def told(error: Exception) -> str:
    """Kind and first line of what torch, or the model's own code, raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no more is said'}"
