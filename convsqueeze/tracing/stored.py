"""What modules say beside the code: which tensors share memory, who calls whom."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node
from torch.nn.parameter import is_lazy

from convsqueeze.graph import Call
from convsqueeze.tracing.constants import operator_of


def calls_of(node: Node) -> tuple[Call, ...]:
    """The module calls that a node runs in, outermost first, without the model's own."""
    stack = node.meta.get("nn_module_stack") or {}
    found = []
    for key, (name, kind) in stack.items():
        if name and "nn_module_stack" not in name:
            kind = kind if isinstance(kind, str) else kind.__name__
            found.append(Call(key, name, kind.rpartition(".")[2]))
    return tuple(found)


def caller_of(node: Node) -> str:
    """The module in whose code a call stands; in that of the model itself, what is called."""
    calls = calls_of(node)
    return calls[-1].name if calls else operator_of(node)


@dataclass(frozen=True)
class _Memory:
    """The bytes from `start` to `end` of a `space` (a device, or a storage without addresses) over
    which the numbers of a tensor are spread.
    """

    name: str
    tensor: Tensor
    space: str
    start: int
    end: int

    def shares(self, other: "_Memory") -> bool:
        """Whether a number of one is a number of the other, where both are spread over some bytes
        of the same space.
        """
        size, start = self.tensor.element_size(), min(self.start, other.start)
        if self.start == other.start or size != other.tensor.element_size():
            return True
        if (self.start - other.start) % size:
            return True
        taken = torch.zeros((max(self.end, other.end) - start) // size, dtype=torch.bool)
        self._numbers(taken, start).fill_(True)
        return bool(other._numbers(taken, start).any())

    def _numbers(self, taken: Tensor, start: int) -> Tensor:
        """Those of the tensor, in a map of the memory from `start` on."""
        offset = (self.start - start) // self.tensor.element_size()
        return taken.as_strided(self.tensor.shape, self.tensor.stride(), offset)


def tied(model: nn.Module) -> dict[str, str]:
    """Stored tensors that share memory with another tensor of the model, each by the first of their
    names. Parts of one storage without a number in common share none.
    """
    first: dict[str, str] = {}
    objects: dict[int, str] = {}
    for name, tensor in _tensors(model):
        first[name] = objects.setdefault(id(tensor), name)
    order = {name: place for place, name in enumerate(first)}
    for pair in _sharing(model):
        joined = {first[name] for name in pair}
        known = min(joined, key=order.__getitem__)
        first = {name: known if now in joined else now for name, now in first.items()}
    shared = {known for name, known in first.items() if name != known}
    return {name: known for name, known in first.items() if known in shared}


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


def _sharing(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Pairs of tensors that share memory, by name."""
    different = {id(tensor): (name, tensor) for name, tensor in reversed([*_tensors(model)])}
    found = (_memory(name, tensor) for name, tensor in different.values())
    memories = sorted(filter(None, found), key=lambda one: (one.space, one.start))
    for place, one in enumerate(memories):
        for other in memories[place + 1 :]:
            if other.space != one.space or other.start >= one.end:
                break
            if one.shares(other):
                yield one.name, other.name


def _memory(name: str, tensor: Tensor) -> _Memory | None:
    """Where a tensor is, if its numbers are at places of their own."""
    if tensor.layout != torch.strided or is_lazy(tensor) or not tensor.numel():
        return None
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    length = sum((count - 1) * stride for count, stride in steps) + 1
    known = tensor.device.type != "meta" and not isinstance(tensor, FakeTensor)
    start = tensor.data_ptr() if known else 0
    space = str(tensor.device)
    if not start:
        start = int(tensor.storage_offset()) * tensor.element_size()
        space = f"storage {tensor.untyped_storage()._cdata}"
    return _Memory(name, tensor, space, start, start + length * tensor.element_size())
