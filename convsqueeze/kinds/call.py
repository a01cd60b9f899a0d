"""One call of an operator in neutral words, and the rules that a kind of layer has for calls.

Every front end says its calls so, whether they are nodes of torch.fx or of an ONNX graph. The rules
of the kinds read nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from convsqueeze.kinds.layer import Layer
from convsqueeze.kinds.semantics import Reason, Semantics, not_linear

Size = int | str | None
"""A number, the text of an expression where a size is open, None where nothing is known."""


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the model's input, with what is known of its shape and dtype."""

    shape: tuple[Size, ...] | None = None
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class RuntimeNumber:
    """A number that is computed when the model runs."""


@dataclass(frozen=True)
class Stored:
    """`factor` times a stored tensor, its numbers in order, as a tensor of `shape`.

    `key` is the tensor's name; for weight norm the name that the weight has without it, and `keys`
    are the two that are stored. `spread` says that numbers are repeated along axes of any size,
    `reshaped` that the tensor is stored in another shape.
    """

    key: str
    shape: tuple[int, ...]
    keys: tuple[str, ...]
    factor: float = 1.0
    spread: bool = False
    reshaped: bool = False
    dtype: torch.dtype | None = None

    @property
    def is_raw(self) -> bool:
        """Whether it is the stored tensor as it is stored."""
        return self.factor == 1.0 and not self.spread


@dataclass(frozen=True)
class Product:
    """Two stored tensors multiplied, each broadcast as torch does it."""

    left: Stored
    right: Stored

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.left.keys, *self.right.keys)


@dataclass(frozen=True)
class WithIdentity:
    """A 1x1 kernel plus the identity."""

    kernel: Stored

    @property
    def keys(self) -> tuple[str, ...]:
        return self.kernel.keys


@dataclass(frozen=True, eq=False)
class Numbers:
    """Numbers that follow from the code alone."""

    value: Tensor
    keys: tuple[str, ...] = ()

    @property
    def number(self) -> float | None:
        """The number that all of them are, if they are one."""
        numbers = self.value.double().unique()
        return float(numbers[0]) if numbers.numel() == 1 else None


@dataclass(frozen=True)
class Derived:
    """Something else that is made of stored tensors."""

    keys: tuple[str, ...]


Constant = Stored | Product | WithIdentity | Numbers | Derived


@dataclass(frozen=True)
class Call:
    """One call of `operator`.

    `arguments` hold by name, defaults included: a Value, a Constant, a number, a text, None, a
    RuntimeNumber, or lists of these. `result` is what comes out, and `names` are those of the
    model's state dict.
    """

    operator: str
    arguments: Mapping[str, Any]
    result: Value
    names: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    @cached_property
    def values(self) -> tuple[Value, ...]:
        """The values that go in, each as often as it is given."""
        return tuple([one for one in tree_leaves(self.arguments) if isinstance(one, Value)])

    @property
    def value(self) -> Value:
        """The value that goes in, the first if there are several."""
        return self.values[0]

    @property
    def rank(self) -> int:
        """The axes that the operator's name tells, as `conv2d`, else those behind the channels."""
        digit = self.operator[-2:-1]
        return int(digit) if digit.isdecimal() else len(self.value.shape or ()) - 2

    def converted(self) -> Reason | None:
        """What becomes of the dtype of what goes in, if anything does."""
        made = self.result.dtype
        if made is not None and made != self.value.dtype:
            return not_linear(f"it converts to {made}")
        return None

    def changed(self) -> Reason | None:
        """What becomes of the shape or the dtype of what goes in, if anything does."""
        if alike((self.value, self.result)):
            return self.converted()
        return not_linear(f"{self.operator} gives another shape")

    def stored_numbers(self) -> Reason | None:
        """Why a stored tensor that goes in is none of a layer, if it holds whole numbers."""
        for one in tree_leaves(self.arguments):
            if isinstance(one, Stored) and one.dtype and not one.dtype.is_floating_point:
                return not_linear(f"{one.key} is stored as {one.dtype}")
        return None


def module_call(operator: str, module: nn.Module, name: str, names: frozenset[str]) -> Call:
    """The call of `operator` that one of torch's own modules is: its settings and tensors are the
    arguments. Of what goes in, the number of axes is known where the module's type tells it.
    """
    digit = type(module).__name__[-2:-1]
    value = Value((None,) * (2 + int(digit)) if digit.isdecimal() else None)
    held = {**vars(module), **module._parameters, **module._buffers}
    arguments: dict[str, Any] = {}
    for role, setting in held.items():
        key = f"{name}.{role}"
        if isinstance(setting, Tensor) and role != "num_batches_tracked":
            keys = tuple(k for k in (f"{key}_g", f"{key}_v", key) if k in names)  # weight norm's
            stored = Stored(key, tuple(setting.shape), keys, dtype=setting.dtype)
            arguments[role] = stored if keys else Derived(())
        elif not role.startswith("_"):
            arguments[role] = setting
    return Call(operator, arguments | {"input": value}, Value(), names)


Rule = Callable[[Call], Semantics]


@dataclass(frozen=True)
class Kind:
    """A kind of layer: its class, and the rules that find it by the name of an operator.

    `modules` are those of torch by their type, each with the operator that it calls.
    """

    layer: type[Layer]
    aten: Mapping[str, Rule] = field(default_factory=dict)
    modules: Mapping[type[nn.Module], str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As a manifest has it: `conv_transpose`."""
        return get_args(self.layer.model_fields["type"].annotation)[0]


def alike(values: Sequence[Value]) -> bool:
    """Whether all have the same shape, for every input."""
    shapes = {value.shape for value in values}
    return len(shapes) == 1 and not any(shape is None or None in shape for shape in shapes)


def are_fixed(settings: Any) -> bool:
    """Whether no number in them, or in lists of them, is computed when the model runs."""
    return not any(isinstance(number, RuntimeNumber) for number in tree_leaves(settings))


def on_every_axis(numbers: Any) -> Any:
    """`2` instead of `[2, 2]`; what is one for all axes already stays."""
    if not isinstance(numbers, list | tuple):
        return numbers
    return numbers[0] if len(set(numbers)) == 1 else list(numbers)


def axis_pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    """(before, after) for each axis in order, of torch's flat list, which begins with the last."""
    return [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)][::-1]
