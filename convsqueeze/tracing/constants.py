"""What a graph computes from stored tensors and numbers alone: which of it a manifest can name.

A value that no input reaches is Stored (one tensor, by a factor), Product (of two), WithIdentity
(a kernel that is stored less the identity), Numbers (no stored tensor is in it) or Derived. Knows
ATen's operators on constants, no layers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from convsqueeze.kinds.call import Constant, Derived, Numbers, Product, Stored, WithIdentity
from convsqueeze.kinds.scale import is_number

MOST_NUMBERS = 1 << 20
"""Numbers up to which a constant is computed to be looked at."""

NUMBER = int | float | torch.SymInt | torch.SymFloat | torch.SymBool
Constants = Mapping[Node, Constant]

KEPT = {
    *("view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "flatten", "alias", "clone"),
    *("detach", "contiguous", "lift_fresh_copy", "_to_copy", "to", "expand", "repeat"),
}
"""Operators that leave the numbers and their order, where they keep how many there are."""
FROM_NOTHING = {"new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"}
"""Operators that take nothing but sizes and dtype from the tensor that they are given."""


@cache
def operator_name(target: Any) -> str:
    """`conv2d` of `aten.conv2d.padding`; of a Python function its name."""
    schema = getattr(target, "_schema", None)
    if schema is not None:
        return str(schema.name).partition("::")[2]
    return getattr(target, "__name__", str(target))


def bound(node: Node) -> dict[str, Any]:
    """The operator's arguments by name, defaults included."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(i): value for i, value in enumerate(node.args)}
    found = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    found |= {a.name: value for a, value in zip(schema.arguments, node.args, strict=False)}
    return found | dict(node.kwargs)


def constant_of(node: Node, constants: Constants) -> Constant | None:
    """What a call computes, if no input of the model reaches it."""
    operator = operator_name(node.target)
    tensors = [one for one in node.all_input_nodes if not is_number_node(one)]
    inputs = [constants[one] for one in tensors if one in constants]
    if operator not in FROM_NOTHING:
        if len(inputs) < len(tensors):
            return None
        if not tensors and not isinstance(node.meta.get("val"), Tensor):
            return None
        if keys := tuple(dict.fromkeys(key for one in inputs for key in one.keys)):
            made = _RULES[operator](node, inputs) if operator in _RULES else None
            if made is None and operator in KEPT and isinstance(inputs[0], Stored):
                made = _kept(node, inputs[0])
            return made or Derived(keys)
    return _computed(node, constants) or Derived(())


def tensors_in(*arguments: Any) -> list[Node]:
    """The nodes among arguments that are no numbers, each as often as it is given."""
    found: list[Node] = []
    torch.fx.map_arg(arguments, found.append)
    return [node for node in found if not is_number_node(node)]


def is_number_node(node: Node) -> bool:
    """Whether a node gives a number, as a size is one."""
    return isinstance(node.meta.get("val"), NUMBER)


def shape_of(node: Node) -> tuple[int, ...] | None:
    """The value's sizes, those of the example where they are open; None if it is no tensor, or has
    a size that depends on values.
    """
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    sizes = [size if isinstance(size, int) else size.node.hint for size in value.shape]
    return None if None in sizes else tuple(map(int, sizes))


def _computed(node: Node, constants: Constants) -> Numbers | None:
    """The node computed, unless that is large or its sizes are open."""
    like: Any = node.meta.get("val")
    operator = operator_name(node.target)
    if not _is_static(node) or like.numel() > MOST_NUMBERS:
        return None
    if operator in FROM_NOTHING:
        fill = {"new_zeros": 0, "zeros_like": 0, "new_ones": 1, "ones_like": 1}
        number = fill.get(operator, bound(node).get("fill_value"))
        if not isinstance(number, int | float):
            return None
        return Numbers(torch.full(like.shape, number, dtype=like.dtype))

    def real(value: Node) -> Any:
        constant = constants[value]
        if not isinstance(constant, Numbers):
            raise KeyError(value)
        return constant.value

    try:
        args = torch.fx.map_arg(node.args, real)
        kwargs = {k: v for k, v in torch.fx.map_arg(node.kwargs, real).items() if k != "device"}
        made = node.target(*args, **kwargs)  # type: ignore[operator]
    except (KeyError, RuntimeError, TypeError):
        return None
    return Numbers(made) if isinstance(made, Tensor) else None


def _is_static(node: Node) -> bool:
    """Whether a node gives a tensor of sizes that are not open."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and all(isinstance(size, int) for size in value.shape)


def _kept(node: Node, one: Stored) -> Stored | None:
    """A stored tensor in another form, where the dtype holds every number of it."""
    shape = shape_of(node)
    before, after = (n.meta["val"].dtype for n in (node.all_input_nodes[0], node))
    if shape is None or torch.promote_types(before, after) != after:
        return None
    if prod(shape) == prod(one.shape) and _is_static(node):
        return replace(one, shape=shape, reshaped=one.reshaped or shape != one.shape)
    if operator_name(node.target) in ("expand", "repeat") and _spreads(one.shape, shape):
        return replace(one, shape=shape, spread=True)
    return None


def _spreads(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether only axes of one number are repeated."""
    padded = (*(1,) * (len(after) - len(before)), *before)
    return all(b in (1, a) for a, b in zip(after, padded, strict=True))


def _multiplied(node: Node, inputs: list[Constant]) -> Constant | None:
    arguments = bound(node)
    numbers = [value for value in arguments.values() if is_number(value)]
    stored = [one for one in inputs if isinstance(one, Stored)]
    known = [one.number for one in inputs if isinstance(one, Numbers)]
    if len(stored) == 1 and len(inputs) == 1 and numbers:
        return replace(stored[0], factor=stored[0].factor * float(numbers[0]))
    if len(stored) == 1 and known and known[0] is not None and stored[0].shape == shape_of(node):
        return replace(stored[0], factor=stored[0].factor * known[0])
    return Product(*stored) if len(stored) == 2 else None


def _divided(node: Node, inputs: list[Constant]) -> Constant | None:
    other = bound(node).get("other")
    if isinstance(inputs[0], Stored) and len(inputs) == 1 and is_number(other) and other:
        return replace(inputs[0], factor=inputs[0].factor / float(other))
    return None


def _added(node: Node, inputs: list[Constant]) -> Constant | None:
    if len(inputs) != 2 or bound(node).get("alpha", 1) != 1:
        return None
    kernels = [one for one in inputs if isinstance(one, Stored) and one.factor == 1.0]
    known = [one.value for one in inputs if isinstance(one, Numbers)]
    if len(kernels) != 1 or len(known) != 1 or kernels[0].shape != shape_of(node):
        return None
    return WithIdentity(kernels[0]) if _is_identity(known[0], kernels[0].shape) else None


def _is_identity(value: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a 1x1 kernel passes every channel on, in as many groups as it is narrow."""
    if len(shape) < 3 or prod(shape[2:]) != 1 or shape[0] % shape[1]:
        return False
    eye = torch.eye(shape[1]).repeat(shape[0] // shape[1], 1).reshape(shape)
    return bool(torch.equal(value.double().expand(shape), eye.double()))


def _normed(node: Node, inputs: list[Constant]) -> Constant | None:
    """Weight norm's `v` and `g`: named as the weight is named without it."""
    stored = [one for one in inputs if isinstance(one, Stored) and one.factor == 1.0]
    name = _without_norm(*(one.key for one in stored)) if len(stored) == 2 else None
    if name is None:
        return None
    direction, length = stored
    return Stored(name, direction.shape, (length.key, direction.key))


def _without_norm(v: str, g: str) -> str | None:
    if v.endswith("_v") and g == f"{v[:-2]}_g":
        return v[:-2]
    stem, middle, tail = v.rpartition("parametrizations.")
    leaf, _, number = tail.partition(".")
    named = middle and number == "original1" and g == f"{stem}parametrizations.{leaf}.original0"
    return f"{stem}{leaf}" if named else None


def _first(node: Node, inputs: list[Constant]) -> Constant | None:
    return inputs[0] if node.args[1] == 0 and isinstance(inputs[0], Stored) else None


_RULES: Mapping[str, Callable[[Node, list[Constant]], Constant | None]] = {
    "mul": _multiplied,
    "div": _divided,
    "add": _added,
    "_weight_norm": _normed,
    "_weight_norm_interface": _normed,
    "getitem": _first,
}
