"""A model and example inputs -> a functional ATen graph, by torch.export."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx import Node

from convsqueeze.errors import TracingError


@dataclass(frozen=True, eq=False)
class Exported:
    """The functional `program`, and what is read for nothing: a node of the graph before, and the
    one that reads it though no output depends on that.

    The model's code goes on calling the module of such a reader, on a value that must stay.
    """

    program: ExportedProgram
    read_in_vain: tuple[tuple[Node, Node], ...]


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
            return _functional(model, arguments, shapes)
        except Exception as error:  # noqa: BLE001 - the model's own code, and torch's on it
            failed.append(error)
    raise TracingError(_told(failed[-1])) from failed[-1]


def _functional(model: nn.Module, inputs: tuple[Any, ...], shapes: Any) -> Exported:
    with warnings.catch_warnings(), _without_log(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, inputs, dynamic_shapes=shapes, strict=False)
        in_vain = tuple(_read_in_vain(program))
        return Exported(program.run_decompositions({}), in_vain)


@contextmanager
def _without_log() -> Iterator[None]:
    """Torch tells of every axis that the model's code fixes; no one asked."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _read_in_vain(program: ExportedProgram) -> list[tuple[Node, Node]]:
    """Nodes that an output or a mutation depends on, with those readers on which none does."""
    needed: set[Node] = set()
    for node in reversed(program.graph.nodes):
        if node.op == "output" or _mutates(node) or node in needed:
            needed |= {node, *node.all_input_nodes}
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


def _told(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no more is said'}"
