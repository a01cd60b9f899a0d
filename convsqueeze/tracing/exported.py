"""A model and example inputs -> a functional ATen graph, by torch.export."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map_only

from convsqueeze.copying import Sandbox
from convsqueeze.errors import TracingError
from convsqueeze.graph import SizeRead
from convsqueeze.kinds.identity import PASSING
from convsqueeze.kinds.semantics import Reason
from convsqueeze.tracing.changes import changes, crossed, reason_of
from convsqueeze.tracing.constants import operator_of
from convsqueeze.tracing.contexts import cast, graph_under_autocast, inline
from convsqueeze.tracing.quiet import torch_quiet
from convsqueeze.tracing.raised import describe_error, exits_caught, is_user_code
from convsqueeze.tracing.sizes import SizesAsked
from convsqueeze.tracing.stored import caller_of, calls_of
from convsqueeze.tracing.watched import marked


@dataclass(frozen=True, eq=False)
class Exported:
    """The functional `program`, and the values that must stay, each with the reason: nodes of the
    graph before, which code reads on which no output depends, or changes in place.

    `asked` are nodes for whose sizes code asks. Stored tensors that must stay are `kept`, by name:
    those that such code reads, or changes; `cast` are those that are read under autocast. `notes`
    tell what the graph does not hold for.
    """

    program: ExportedProgram
    sealed: tuple[tuple[Node, Reason], ...]
    asked: tuple[tuple[Node, SizeRead], ...]
    kept: Mapping[str, str]
    cast: frozenset[str]
    notes: tuple[str, ...] = ()


def exported(model: nn.Module, inputs: Sequence[Any], sandbox: Sandbox | None = None) -> Exported:
    """The model's forward on `inputs` as one graph without mutation, its sizes left open.

    Nothing is computed: torch runs the model's own code, in the `sandbox`, on tensors that have no
    values. Sizes of which that code makes numbers are those of the example. Raises TracingError
    where torch.export cannot follow the code, ModelCodeError where the model cannot be copied.
    """
    sandbox = sandbox or Sandbox(model)
    refusal: Exception | None = None
    for is_open in (True, False):
        module = sandbox.module()
        arguments = tree_map_only(Tensor, Tensor.detach, tuple(inputs))  # torch marks open ones
        try:
            program, functional, asked = _programs(module, arguments, is_open=is_open)
        except Exception as error:  # noqa: BLE001 - the model's own code, and torch's on it
            refusal = error
        else:
            return _with_what_stays(program, functional, asked, is_open=is_open)
    assert refusal is not None
    raise TracingError(describe_error(refusal)) from refusal


def _programs(
    model: nn.Module, inputs: tuple[Any, ...], *, is_open: bool
) -> tuple[ExportedProgram, ExportedProgram, Collection[SizeRead]]:
    """The program as the code is written, and without mutation; the sizes that code asks for."""
    shapes: Any = _open(inputs) if is_open else None
    with torch_quiet(), torch.no_grad():
        with marked(model), SizesAsked(model) as asked, exits_caught():
            program = torch.export.export(model, inputs, dynamic_shapes=shapes, strict=False)
        inline(program.graph_module)
        _forget_uncalled(program, asked.called)
        functional = program.run_decompositions({})
        _put_views_back(program, functional)
        return program, functional, asked.found


def _forget_uncalled(program: ExportedProgram, called: Collection[str]) -> None:
    """A graph of torch.fx tells of the modules of the model that it was made of, which it does not
    call itself.
    """
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        kept = {key: one for key, one in stack.items() if not one[0] or one[0] in called}
        node.meta["nn_module_stack"] = kept


def _put_views_back(program: ExportedProgram, functional: ExportedProgram) -> None:
    """Without mutation, a view of what was changed in place is made anew where it is read, inside
    the module that reads it: it belongs to the code that made it first.
    """
    first = {node.name: node for node in program.graph.nodes}
    made_as: dict[Node, Node] = {}
    for node in functional.graph.nodes:
        source = node.meta.get("from_node") or [node]
        made = first.get(source[-1].name)
        base = made_as.get(node.args[0]) if node.args and isinstance(node.args[0], Node) else None
        if made and base and _is_view(node) and base not in made.all_input_nodes:
            made = next((one for one in base.users if one is not made and _is_view(one)), made)
            node.meta["nn_module_stack"] = made.meta.get("nn_module_stack")
        if made:
            made_as[node] = made


def _is_view(node: Node) -> bool:
    views = any(not argument.is_write for _, argument in _aliased(node))
    return node.op == "call_function" and (views or operator_of(node) == "getitem")


def _with_what_stays(
    program: ExportedProgram,
    functional: ExportedProgram,
    asked: Collection[SizeRead],
    *,
    is_open: bool,
) -> Exported:
    kept = dict(_kept_in_vain(program))
    for name in functional.graph_signature.buffers_to_mutate.values():
        kept.setdefault(name, "the model's code changes it")
    for name in cast(program):
        kept.setdefault(name, "the model's code reads it under autocast")
    sealed = (*_read_in_vain(program), *_changed(program), *_converted(program))
    notes = tuple(_size_notes(program, is_open=is_open))
    return Exported(functional, sealed, tuple(_asked(program, asked)), kept, cast(program), notes)


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


def _read_in_vain(program: ExportedProgram) -> Iterator[tuple[Node, Reason]]:
    """Values that an output or a mutation depends on, and that code reads on which none does: it
    will go on calling the module that reads them.
    """
    needed = _needed(program)
    for node in program.graph.nodes:
        if node in needed or not isinstance(node.meta.get("val"), Tensor):
            continue
        reason = Reason("read elsewhere", f"{caller_of(node)} reads it too, for nothing")
        for value in node.all_input_nodes:
            if value in needed and isinstance(value.meta.get("val"), Tensor):
                yield value, reason


def _asked(
    program: ExportedProgram, asked: Collection[SizeRead]
) -> Iterator[tuple[Node, SizeRead]]:
    """What the modules computed whose values' sizes are asked for."""
    for node in program.graph.nodes:
        for call in calls_of(node)[-1:]:
            yield from ((node, asking) for asking in asked if asking.made == call.name)


def _changed(program: ExportedProgram) -> Iterator[tuple[Node, Reason]]:
    """Values that no merge may go across, for what the code changes in place."""
    for value, change in crossed(program.graph, changes(program.graph, _written, _alike)):
        yield value, reason_of(change)


def _converted(program: ExportedProgram) -> Iterator[tuple[Node, Reason]]:
    """Values that enter code under autocast, of which not all is told."""
    for node in program.graph.nodes:
        if graph_under_autocast(node) is not None:
            for value in node.all_input_nodes:
                yield value, Reason("read elsewhere", "code under autocast reads it")


def _written(node: Node) -> list[Node]:
    if (inner := graph_under_autocast(node)) is not None:
        return node.all_input_nodes if any(map(_written, inner.nodes)) else []
    return [value for value, argument in _aliased(node) if argument.is_write]


def _alike(node: Node) -> list[Node]:
    """Arguments whose memory the result may be."""
    if operator_of(node) in {*PASSING, "getitem"} or graph_under_autocast(node) is not None:
        return node.all_input_nodes
    return [value for value, _ in _aliased(node)]


def _aliased(node: Node) -> Iterator[tuple[Node, Any]]:
    """Arguments that the result is a view of, or that are written to."""
    schema = getattr(node.target, "_schema", None)
    for argument, value in zip(schema.arguments, node.args, strict=False) if schema else ():
        if argument.alias_info is not None:
            nodes: list[Node] = []
            torch.fx.map_arg(value, nodes.append)
            yield from ((one, argument.alias_info) for one in nodes)


def _mutates(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _open(inputs: tuple[Any, ...]) -> ShapesCollection:
    """Every axis may have another size, as far as the code allows."""
    shapes = ShapesCollection()
    for value in tree_leaves(inputs):
        if isinstance(value, Tensor):
            shapes[value] = dict.fromkeys(range(value.ndim), Dim.AUTO)
    return shapes


IMAGE = 4
"""Dimensions of an input from which on those behind the second are taken for an image's axes."""
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
    if any(_fixed_sizes(program)):
        yield (
            "the model's code takes inputs of the example's size alone, and what was found holds "
            "for that size"
        )


def _fixed_sizes(program: ExportedProgram) -> Iterator[int | torch.SymInt]:
    """Sizes of images that were open, and of which the code makes numbers."""
    entered = {
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind == InputKind.USER_INPUT
    }
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.name in entered and isinstance(value, Tensor) and value.ndim >= IMAGE:
            yield from filter(_is_fixed, value.shape[2:])


def _is_fixed(size: int | torch.SymInt) -> bool:
    """Whether an open size has become a number; torch opens none that is 0 or 1."""
    number = size.node.maybe_as_int() if isinstance(size, torch.SymInt) else size
    return number is not None and number > 1


def _places(program: ExportedProgram) -> Iterator[str]:
    """Lines outside torch that asked something of a size that was open."""
    for guard in _guards(program):
        frame = getattr(getattr(guard, "sloc", None), "framework_loc", None)
        path = getattr(frame, "filename", None)
        if path is not None and is_user_code(Path(path)):
            yield f"{Path(path).name}:{getattr(frame, 'lineno', None)}"


def _guards(program: ExportedProgram) -> Sequence[Any]:
    for node in program.graph.nodes:
        value = node.meta.get("val")
        for size in value.shape if isinstance(value, Tensor) else ():
            if isinstance(size, torch.SymInt):
                return size.node.shape_env.guards
    return ()
