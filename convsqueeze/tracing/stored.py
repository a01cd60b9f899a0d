"""What modules say beside the code: which tensors are one, who calls whom."""

from torch import Tensor, nn
from torch.fx import Node

from convsqueeze.tracing.graph import Call


def calls_of(node: Node) -> tuple[Call, ...]:
    """The module calls that a node runs in, outermost first, without the model's own."""
    stack = node.meta.get("nn_module_stack") or {}
    found = []
    for key, (name, kind) in stack.items():
        if name and "nn_module_stack" not in name:
            kind = kind if isinstance(kind, str) else kind.__name__
            found.append(Call(key, name, kind.rpartition(".")[2]))
    return tuple(found)


def tied(model: nn.Module) -> dict[str, str]:
    """Stored tensors that are one in memory, each by the first name that it has."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            known = first.setdefault(id(tensor), name)
            if known != name:
                found |= {name: known, known: known}
    return found
