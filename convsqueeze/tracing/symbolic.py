"""A model -> the graph of its steps by torch.fx, where torch.export cannot follow its code.

Nothing is run, so no shape is known: what cannot be told without one stays opaque. Layers are
torch's own modules, called as such; sums, and factors and summands that are numbers, may stand in
code.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from convsqueeze.errors import TracingError
from convsqueeze.manifest import (
    AvgPoolLayer,
    BatchNormLayer,
    ConvLayer,
    ConvTransposeLayer,
    Layer,
    LinearLayer,
)
from convsqueeze.tracing.exported import told
from convsqueeze.tracing.graph import Graph, Reason, Step
from convsqueeze.tracing.operators import (
    ACTIVATIONS,
    Adding,
    Linear,
    Meaning,
    Passing,
    axis_pairs,
    is_number,
    no_layer,
    on_every_axis,
    padding_meaning,
    per_axis_numbers,
    scale_meaning,
    shares,
)
from convsqueeze.tracing.stored import calls_of, tied
from convsqueeze.tracing.watched import hooked

ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}
SUBTRACTS = {operator.sub, operator.isub, torch.sub, "sub", "sub_"}
SUBTRACTED = {torch.rsub}
FACTORS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
DIVIDES = {operator.truediv, operator.itruediv, torch.div, "div", "div_"}
IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv}


def symbolically_traced(model: nn.Module) -> Graph:
    """The steps of the model's forward. Raises TracingError where torch.fx cannot follow it."""
    try:
        graph_module = torch.fx.symbolic_trace(model)
    except Exception as error:
        raise TracingError(told(error)) from error
    reader = _Reader(model)
    for node in graph_module.graph.nodes:
        reader.read(node)
    return Graph(
        reader.steps,
        reader.inputs,
        tuple(reader.outputs),
        frozenset(hooked(model)),
        tied(model),
    )


class _Reader:
    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        self._names = frozenset(model.state_dict())
        self._constants: set[Node] = set()
        self._values: dict[Node, str] = {}
        self.steps: dict[str, Step] = {}
        self.inputs: dict[str, tuple[int, ...] | None] = {}
        self.outputs: list[str] = []

    def read(self, node: Node) -> None:
        nodes: list[Node] = []
        torch.fx.map_arg((node.args, node.kwargs), nodes.append)
        inputs = [one for one in nodes if one not in self._constants]
        if node.op == "placeholder":
            self._values[node] = node.name
            self.inputs[node.name] = None
        elif node.op == "output":
            self.outputs += [self._values[one] for one in inputs]
        elif not inputs:
            self._constants.add(node)
        else:
            self._add(node, inputs, self._meaning(node, inputs, len(nodes)))

    def _meaning(self, node: Node, inputs: Sequence[Node], tensors: int) -> Meaning:
        if node.op == "call_module":
            name = str(node.target)
            return module_meaning(self._modules[name], name, self._names)
        target = node.target
        if _changes(node) and len(inputs[0].users) > 1:
            return Reason("not linear", "it changes in place what something else reads too")
        adds, subtracts = target in ADDS, target in SUBTRACTS
        if (adds or subtracts) and len(inputs) == 2 and "alpha" not in node.kwargs:
            return Adding(frozenset({1} if subtracts else ()))
        if tensors == 1 and len(node.args) == 2 and node.kwargs.keys() <= {"alpha"}:
            found = _with_number(node)
            if found is not None:
                return found
        return no_layer(getattr(target, "__name__", str(target)))

    def _add(self, node: Node, inputs: Sequence[Node], meaning: Meaning) -> None:
        names = tuple(self._values[one] for one in inputs)
        if isinstance(meaning, Passing):
            self._values[node] = names[0]
            return
        self._values[node] = node.name
        label = getattr(node.target, "__name__", str(node.target))
        step = Step(node.name, label, names, calls_of(node), None)
        if isinstance(meaning, Linear):
            step = replace(step, tree=meaning.tree, rank=meaning.rank, keys=meaning.keys)
        elif isinstance(meaning, Adding):
            step = replace(step, sums=True)
            for index in meaning.negated:
                minus = step.negated(names[index])
                self.steps[minus.name] = minus
                kept = (*names[:index], minus.name, *names[index + 1 :])
                step = replace(step, inputs=kept)
        else:
            step = replace(step, opaque=meaning)
        self.steps[node.name] = step


def _changes(node: Node) -> bool:
    """Whether a call changes its first value in place."""
    is_method = node.op == "call_method" and str(node.target).endswith("_")
    return is_method or node.target in IN_PLACE


def _with_number(node: Node) -> Meaning | None:
    """A product, quotient, sum or difference of the value and a number that stands in the code."""
    first, second = node.args
    is_second, alpha = isinstance(first, Node), node.kwargs.get("alpha", 1)
    number = second if is_second else first
    if not is_number(number) or not is_number(alpha):
        return None
    if node.target in FACTORS:
        return scale_meaning(factor=number)
    if node.target in DIVIDES and is_second and number:
        return scale_meaning(factor=1 / number)
    for name, targets in (("add", ADDS), ("sub", SUBTRACTS), ("rsub", SUBTRACTED)):
        if node.target in targets:
            factor, share = shares(name, alpha, is_second=is_second)
            return scale_meaning(factor=factor, shift=share * number)
    return None


def module_meaning(module: nn.Module, name: str, names: frozenset[str]) -> Meaning:
    """The layer that one of torch's own modules is; `names` are those of the state dict."""
    rule = next((rule for kind, rule in _MODULES.items() if type(module) is kind), None)
    if rule is None:
        kind = type(module).__name__
        return no_layer(kind.lower() if kind.lower() in ACTIVATIONS else kind)
    meaning = rule(module, name)
    if isinstance(meaning, Linear) and meaning.keys:
        return replace(meaning, keys=tuple(key for key in _keys(name, names)))
    return meaning


def _keys(name: str, names: frozenset[str]) -> list[str]:
    return sorted(key for key in names if key.startswith(f"{name}.") and "num_batches" not in key)


def _convolution(module: Any, name: str) -> Meaning:
    rank = module.weight.ndim - 2
    settings: dict[str, Any] = {
        field: on_every_axis(getattr(module, field))
        for field, default in (("stride", 1), ("padding", 0), ("dilation", 1))
        if on_every_axis(getattr(module, field)) != default
    }
    if module.groups != 1:
        settings["groups"] = module.groups
    layer: Layer
    if module.transposed:
        if on_every_axis(module.output_padding) != 0:
            settings["output_padding"] = on_every_axis(module.output_padding)
        layer = ConvTransposeLayer(type="conv_transpose", name=name, **settings)
    else:
        if module.padding_mode != "zeros":
            settings["padding_mode"] = module.padding_mode
        layer = ConvLayer(name=name, **settings)
    return Linear(layer, rank, (name,))


def _norm(module: Any, name: str) -> Meaning:
    if module.training or module.running_mean is None:
        what = "is in training mode" if module.training else "keeps no running statistics"
        return Reason("training", f"a norm that {what}, so it is not linear")
    rank = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}[type(module)]
    return Linear(BatchNormLayer(type="batch_norm", name=name, eps=module.eps), rank, (name,))


def _linear(module: Any, name: str) -> Meaning:
    return Linear(LinearLayer(type="linear", name=name), 0, (name,))


def _pool(module: Any, name: str) -> Meaning:
    rank = {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3}[type(module)]
    sizes = {
        field: per_axis_numbers(getattr(module, field), rank)
        for field in ("kernel_size", "stride", "padding")
    }
    padded = any(sizes["padding"])
    if module.ceil_mode or getattr(module, "divisor_override", None):
        return Reason("not linear", "a pool that rounds its size up, or has its own divisor")
    if padded and not module.count_include_pad:
        return Reason("not linear", "a pool that does not count what it pads")
    return Linear(AvgPoolLayer(type="avg_pool", **sizes), rank)


def _padding(mode: str) -> Callable[[Any, str], Meaning]:
    def rule(module: Any, name: str) -> Meaning:
        return padding_meaning(axis_pairs(module.padding), mode)

    return rule


def _dropout(module: Any, name: str) -> Meaning:
    if module.training and module.p:
        return Reason("training", "dropout in training mode")
    return Passing()


def _identity(module: Any, name: str) -> Meaning:
    return Passing()


_MODULES: Mapping[type[nn.Module], Callable[[Any, str], Meaning]] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _convolution),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _norm),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _pool),
    **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d), _padding("zeros")),
    **dict.fromkeys((nn.ReflectionPad1d, nn.ReflectionPad2d), _padding("reflect")),
    **dict.fromkeys((nn.ReplicationPad1d, nn.ReplicationPad2d), _padding("replicate")),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _dropout),
    nn.Linear: _linear,
    nn.Identity: _identity,
}
