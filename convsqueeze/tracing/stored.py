"""What modules say beside the code: which tensors share memory, who calls whom."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.fx import Node

from convsqueeze.graph import ModuleCall
from convsqueeze.sharing import ties
from convsqueeze.tracing.constants import operator_name


def calls_of(node: Node, prefix: str = "") -> tuple[ModuleCall, ...]:
    """The module calls that a node runs in, outermost first, without the model's own and that of a
    wrapper, whose name and dot are the `prefix`.
    """
    found = []
    for key, (name, kind) in (node.meta.get("nn_module_stack") or {}).items():
        if name and f"{name}." != prefix and "nn_module_stack" not in name:
            kind = kind if isinstance(kind, str) else kind.__name__
            found.append(ModuleCall(key, name.removeprefix(prefix), kind.rpartition(".")[2]))
    return tuple(found)


def caller_of(node: Node) -> str:
    """The module in whose code a call stands; in that of the model itself, what is called."""
    calls = calls_of(node)
    return calls[-1].name if calls else operator_name(node.target)


def tied(model: nn.Module) -> dict[str, str]:
    """Stored tensors that share memory with another tensor of the model, each by the first of their
    names. Parts of one storage without a number in common share none.
    """
    named = dict(_tensors(model))
    first = {name: group[0] for group in ties(named) for name in group}
    objects: dict[int, list[str]] = {}
    for name, tensor in named.items():
        objects.setdefault(id(tensor), []).append(name)
    for names in objects.values():
        if len(names) > 1 and names[0] not in first:  # of no memory that is seen
            first |= dict.fromkeys(names, names[0])
    return first


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Those of the state dict, then others that modules hold: buffers that are not stored, and
    plain attributes.
    """
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            yield name, tensor
    for prefix, module in model.named_modules():
        for name, tensor in (*module._buffers.items(), *vars(module).items()):
            if isinstance(tensor, Tensor):
                yield f"{prefix}.{name}".removeprefix("."), tensor
