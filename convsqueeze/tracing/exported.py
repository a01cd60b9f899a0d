"""A model and example inputs -> a functional ATen graph, by torch.export."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map_only

from convsqueeze.copying import Sandbox
from convsqueeze.errors import TracingError
from convsqueeze.graph import SizeRead
from convsqueeze.kinds.identity import PASSING
from convsqueeze.kinds.semantics import Reason
from convsqueeze.tracing.branches import user_guards
from convsqueeze.tracing.changes import Effects, changes, crossed
from convsqueeze.tracing.constants import operator_name, tensors_in
from convsqueeze.tracing.contexts import graph_under_autocast, inline
from convsqueeze.tracing.hooks import marked
from convsqueeze.tracing.quiet import torch_quiet
from convsqueeze.tracing.raised import contained, describe_error
from convsqueeze.tracing.sizes import Asked, StoredRead
from convsqueeze.tracing.stored import caller_of, calls_of

CONVERTED = Reason("read elsewhere", "code under autocast reads it")


@dataclass(frozen=True, eq=False)
class Exported:
    """The functional `program`, and what holds for nodes of the graph before it.

    `materialized` are values that must stay, each with the reason: code reads them on which no
    output depends, or changes them in place. `size_reads` are values for whose sizes code asks.
    Stored tensors that must stay are `kept`, by name; `cast` are read under autocast. `notes` tell
    what the graph does not hold for.
    """

    program: ExportedProgram
    materialized: tuple[tuple[Node, Reason], ...]
    size_reads: tuple[tuple[Node, SizeRead], ...]
    kept: Mapping[str, str]
    cast: frozenset[str]
    notes: tuple[str, ...] = ()


def exported(model: nn.Module, inputs: Sequence[Any], sandbox: Sandbox) -> Exported:
    """The model's forward on `inputs` as one graph without mutation, its sizes left open.

    Nothing is computed: torch runs the model's own code, in the `sandbox`, on tensors that have no
    values. Sizes of which that code makes numbers are those of the example. Raises TracingError
    where torch.export cannot follow the code, ModelCodeError where the model cannot be copied.
    """
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
) -> tuple[ExportedProgram, ExportedProgram, Asked]:
    """The program as the code is written, and without mutation; what code asks of tensors."""
    shapes: Any = _open(inputs) if is_open else None
    with torch_quiet(), torch.no_grad():
        with marked(model), Asked(model) as asked, contained():
            program = torch.export.export(model, inputs, dynamic_shapes=shapes, strict=False)
        inline(program.graph_module)
        _forget_uncalled(program, asked.called)
        functional = program.run_decompositions({})
        _put_views_back(program, functional)
        return program, functional, asked


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
    arguments = getattr(getattr(node.target, "_schema", None), "arguments", ())
    views = any(one.alias_info and not one.alias_info.is_write for one in arguments)
    return node.op == "call_function" and (views or operator_name(node.target) == "getitem")


def _with_what_stays(
    program: ExportedProgram,
    functional: ExportedProgram,
    asked: Asked,
    *,
    is_open: bool,
) -> Exported:
    stored = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs}
    in_vain = [*_read_in_vain(program)]
    crossing = crossed(program.graph, changes(program.graph, _effects))
    cast = [node for node in program.graph.nodes if graph_under_autocast(node) is not None]
    entering = [value for node in cast for value in node.all_input_nodes]
    under_autocast = frozenset(t for value in entering if (t := stored.get(value.name)))
    kept = {
        **{
            name: f"code outside {read.of} reads its {read.name} ({read.place})"
            for read in _read_without_computing(program, asked)
            for name in (*program.graph_signature.parameters, *program.graph_signature.buffers)
            if name.rpartition(".")[0] == read.of
        },
        **dict.fromkeys(under_autocast, "the model's code reads it under autocast"),
        **dict.fromkeys(
            functional.graph_signature.buffers_to_mutate.values(), "the model's code changes it"
        ),
        **{
            target: "the model's code reads it too, for nothing"
            for value, _ in in_vain
            if (target := stored.get(value.name))
        },
    }
    return Exported(
        functional,
        materialized=(
            *in_vain,
            *((value, change.reason) for value, change in crossing),
            *((value, CONVERTED) for value in entering),
        ),
        size_reads=tuple(
            (node, read)
            for node in program.graph.nodes
            for call in calls_of(node)[-1:]
            for read in asked.found
            if read.made == call.name
        ),
        kept=kept,
        cast=under_autocast,
        notes=tuple(_size_notes(program, is_open=is_open)),
    )


def _read_in_vain(program: ExportedProgram) -> Iterator[tuple[Node, Reason]]:
    """Values, and stored tensors, that code reads on which no output and no mutation depends: it
    will go on calling the module that reads them.
    """
    needed: set[Node] = set()
    for node in reversed(program.graph.nodes):
        is_mutation = getattr(getattr(node.target, "_schema", None), "is_mutable", False)
        if node.op == "output" or is_mutation or node in needed:
            needed |= {node, *node.all_input_nodes}
    for node in program.graph.nodes:
        for value in node.all_input_nodes if node not in needed else ():
            tensors = all(isinstance(one.meta.get("val"), Tensor) for one in (node, value))
            if value.op == "placeholder" or (value in needed and tensors):
                reason = Reason("read elsewhere", f"{caller_of(node)} reads it too, for nothing")
                yield value, reason


def _read_without_computing(program: ExportedProgram, asked: Asked) -> Iterator[StoredRead]:
    """What code of another module reads of a module and computes nothing with: its dtype, its
    device, its size, or whether it is there. A part of the model that holds both may be merged as
    a whole, as a LoRA layer is, and reads nothing then.
    """
    specs = program.graph_signature.input_specs
    stored = {spec.arg.name: spec.target for spec in specs if spec.target}
    computed = {
        (stored[value.name], "".join(call.name for call in calls_of(node)[-1:]))
        for node in program.graph.nodes
        for value in node.all_input_nodes
        if value.name in stored
    }
    for read in asked.stored:
        holds_both = bool(read.by) and read.of.startswith(f"{read.by}.")
        if not holds_both and (f"{read.of}.{read.name}", read.by) not in computed:
            yield read


def _effects(node: Node) -> Effects:
    """What a call writes to, and what its result may be a view of."""
    if (inner := graph_under_autocast(node)) is not None:
        given = node.all_input_nodes
        return (given if any(_effects(one)[0] for one in inner.nodes) else []), given
    if operator_name(node.target) in {*PASSING, "getitem"}:
        return [], node.all_input_nodes
    schema = getattr(node.target, "_schema", None)
    arguments = zip(schema.arguments, node.args, strict=False) if schema else ()
    aliased = [(one, value) for one, value in arguments if one.alias_info is not None]
    written = [value for one, value in aliased if one.alias_info.is_write]
    return tensors_in(written), tensors_in([value for _, value in aliased])


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
        lines = ", ".join(places[:MOST_PLACES]) + (", ..." if len(places) > MOST_PLACES else "")
        yield (
            f"the model's code looks at the size of its input ({lines}): what was found holds for "
            "sizes for which it does what it does for the example's"
        )
    if any(_fixed_sizes(program)):
        yield (
            "the model's code makes numbers of the size of its input, so what was found holds for "
            "the example's size"
        )


def _fixed_sizes(program: ExportedProgram) -> Iterator[int | torch.SymInt]:
    """Sizes of images that were open, and of which the code makes numbers."""
    entered = program.graph_signature.user_inputs
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.name in entered and isinstance(value, Tensor) and value.ndim >= IMAGE:
            for size in value.shape[2:]:
                number = size.node.maybe_as_int() if isinstance(size, torch.SymInt) else size
                if number is not None and number > 1:  # torch opens none that is 0 or 1
                    yield size


def _places(program: ExportedProgram) -> Iterator[str]:
    """Lines outside torch that asked something of a size that was open."""
    shapes = (getattr(node.meta.get("val"), "shape", ()) for node in program.graph.nodes)
    sizes = (size for shape in shapes for size in shape if isinstance(size, torch.SymInt))
    first = next(sizes, None)
    for _, place in user_guards(first.node.shape_env) if first is not None else ():
        yield place
