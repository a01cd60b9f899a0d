"""A model's code run by torch.fx, with proxies for its inputs and stored tensors."""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partialmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node, Proxy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from convsqueeze.copying import Sandbox, copied
from convsqueeze.errors import TracingError
from convsqueeze.tracing.hooks import marked
from convsqueeze.tracing.raised import contained, describe_error

IN_PLACE = tuple(
    getattr(operator, name)
    for name in (
        *("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"),
        *("iand", "ior", "ixor", "ilshift", "irshift"),
    )
)
"""Python's operators that change a tensor, as `+=` does."""


def recorded(
    model: nn.Module, inputs: Sequence[Any], sandbox: Sandbox
) -> tuple[GraphModule, frozenset[str]]:
    """What the forward of a copy of the model calls, and the names of stored tensors that its code
    reads without a proxy. Raises whatever torch.fx, or that code, raises.
    """
    if "forward" in vars(model):
        raise TypeError("the model has a forward of its own, beside that of its class")
    made = sandbox.module()
    reads = _Reads(made)
    with torch.no_grad(), marked(made), reads, contained():
        graph = _Tracer(inputs).trace(made)
    return GraphModule(made, graph), frozenset(reads.names)


def tensors_in(inputs: Sequence[Any]) -> list[Tensor]:
    """What the placeholders of a recorded graph stand for, in order."""
    return [leaf for leaf in tree_leaves(tuple(inputs)) if isinstance(leaf, Tensor)]


class _Value(Proxy):
    """A proxy that tells `y += x` from `y = y + x`."""

    def _in_place(self, function: Callable[..., Any], other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})


for _function in IN_PLACE:
    setattr(_Value, f"__{_function.__name__}__", partialmethod(_Value._in_place, _function))


class _Tracer(torch.fx.Tracer):
    """Calls the forward as the inputs are given: proxies for their tensors, all else as it is."""

    proxy_buffer_attributes = True

    def __init__(self, inputs: Sequence[Any]) -> None:
        super().__init__()
        self._inputs = tuple(inputs)

    def proxy(self, node: Node) -> Proxy:
        return _Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_compiled = isinstance(m, torch.jit.ScriptModule)
        return is_compiled or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        def entered(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return self.create_proxy("placeholder", "input", (), {})

        return root_fn, [self.root, *tree_map(entered, self._inputs)]


class _Reads(TorchFunctionMode):
    """Notes stored tensors that torch's functions are given as they are."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        stored = model.state_dict(keep_vars=True)
        self._stored: Mapping[int, str] = {id(one): name for name, one in stored.items()}
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_leaves((args, kwargs or {}))
        self.names |= {self._stored[id(one)] for one in given if id(one) in self._stored}
        return func(*args, **(kwargs or {}))


def check_recorded(made: GraphModule, model: nn.Module, inputs: Sequence[Any]) -> None:
    """Raises TracingError where the graph does not compute what the model does on the inputs. What
    has no values is not run.
    """
    tensors = tensors_in(inputs)
    every = (*tensors, *model.parameters(), *model.buffers())
    if any(one.device.type == "meta" or isinstance(one, FakeTensor) for one in every):
        return
    wanted = _run(model, inputs, "the model does not run on its inputs")
    found = _run(made, tensors, "the graph that it makes of the code does not run")
    alike = len(wanted) == len(found) and all(map(_is_alike, wanted, found))
    if not alike:
        raise TracingError(
            "the graph that it makes of the code gives another output, so the code looks at what "
            "torch.fx does not follow, as the type of a value"
        )


def _run(model: nn.Module, inputs: Sequence[Any], refusal: str) -> list[Tensor]:
    """Every tensor of the output of a copy of the model. Raises TracingError."""
    cloned = tree_map(lambda one: one.clone() if isinstance(one, Tensor) else one, tuple(inputs))
    try:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            return list(_tensors(copied(model)(*cloned)))
    except Exception as error:
        raise TracingError(f"{refusal}: {describe_error(error)}") from error


def _tensors(output: Any) -> Iterator[Tensor]:
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf
        elif is_dataclass(leaf):
            yield from _tensors(list(vars(leaf).values()))


SAME = 1e-3
"""Of the largest value, far above what rounding in another order does."""


def _is_alike(wanted: Tensor, found: Tensor) -> bool:
    if (wanted.shape, wanted.dtype) != (found.shape, found.dtype):
        return False
    wanted, found = (one.detach().to(torch.complex128) for one in (wanted, found))
    largest = float(wanted.abs().nan_to_num(posinf=0).max()) if wanted.numel() else 0.0
    return torch.allclose(found, wanted, rtol=SAME, atol=SAME * largest, equal_nan=True)
