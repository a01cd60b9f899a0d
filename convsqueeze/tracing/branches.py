"""A model's own code followed without values: what it asks of open sizes, the dtypes that it asks
for, and what it calls.

What it does for other sizes and dtypes shows as other answers and other calls.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from convsqueeze.copying import in_eval_mode
from convsqueeze.tracing.quiet import torch_quiet
from convsqueeze.tracing.raised import contained, is_user_code
from convsqueeze.tracing.sizes import user_line

Axis = tuple[int, int]
"""Which of the tensors that a model is given, and which of its dimensions."""
FAR = 1 << 16
"""Sizes that are looked at for the other side of a condition end here."""
_DTYPE = Tensor.dtype.__get__  # type: ignore[attr-defined]
_BYTES = (Tensor.element_size, Tensor.itemsize.__get__)  # type: ignore[attr-defined]
_CASTS = {Tensor.double, Tensor.float, Tensor.half, Tensor.bfloat16}
NEAR = 64
"""Sizes so near are looked at one by one, as remainders need it."""
MUCH = 16
"""So many times larger a size is tried of which the code made a number."""
ROUND = (1, 8, 32, 64)
"""Networks with strides take multiples of such numbers."""


@dataclass(frozen=True)
class Condition:
    """What a line of the code (`net.py:12`) asks of open sizes, as it came out; `sizes` are what
    they were, by axis.
    """

    relation: sympy.Basic
    place: str
    symbols: Mapping[Axis, sympy.Symbol]
    sizes: Mapping[Axis, int]

    @property
    def axes(self) -> list[Axis]:
        """Those whose sizes it is about, one for each size."""
        return [axis for axis, one in self.symbols.items() if one in self.relation.free_symbols]

    @property
    def is_number(self) -> bool:
        """Whether the code made a number of a size."""
        one = self.relation
        return bool(one.is_Equality and one.lhs.is_Symbol and len(self.axes) == 1)

    def holds(self, sizes: Mapping[Axis, int]) -> bool | None:
        """Whether it comes out so for other sizes; None where that cannot be told."""
        known = {one: sympy.Integer(sizes[axis]) for axis, one in self.symbols.items()}
        found = self.relation.xreplace(known)
        return bool(found) if found in (True, False) else None

    def seen_from(self, sizes: Mapping[Axis, int]) -> "Condition":
        """The same, as it comes out for other sizes."""
        holds = self.holds(sizes) is not False
        return replace(
            self, relation=self.relation if holds else sympy.Not(self.relation), sizes=sizes
        )

    def other_side(self, axis: Axis) -> Iterator[int]:
        """Sizes of an axis for which it comes out the other way: the nearest above it, and those
        near to that which networks with strides take; the same below. Where the code made a number
        of the size, what it asks of that is not known: one that is much larger comes first.
        """
        if self.is_number:
            yield MUCH * self.sizes[axis]
        for step in (1, -1):
            found = self._turning(axis, step)
            if found is None:
                continue
            for unit in ROUND:
                near = step * -(-step * found // unit) * unit
                if near > 0 and self._holds_at(axis, near) is False:
                    yield near

    def _holds_at(self, axis: Axis, size: int) -> bool | None:
        return self.holds({**self.sizes, axis: size})

    def _turning(self, axis: Axis, step: int) -> int | None:
        """The nearest size, upwards or downwards, for which it comes out the other way."""
        size = self.sizes[axis]
        for near in range(size + step, max(size + step * NEAR, 0), step):
            if self._holds_at(axis, near) is False:
                return near
        if not isinstance(self.relation, sympy.Ne):
            return self._beyond(axis, step)
        left, right = self.relation.args  # equal at a single size: where neither is larger
        larger = replace(self, relation=left > right)
        if not larger.holds(self.sizes):
            larger = replace(self, relation=left < right)
        crossing = larger._beyond(axis, step)
        found = crossing is not None and self._holds_at(axis, crossing) is False
        return crossing if found else None

    def _beyond(self, axis: Axis, step: int) -> int | None:
        """The nearest of the sizes from which on it comes out the other way."""
        known, distance = self.sizes[axis], NEAR
        while 1 <= (turned := self.sizes[axis] + step * distance) <= FAR:
            if not self._holds_at(axis, turned):
                break
            known, distance = turned, distance * 2
        else:
            turned = FAR if step > 0 else 1
        if self._holds_at(axis, turned) is not False:
            return None
        while abs(turned - known) > 1:
            middle = (turned + known) // 2
            known, turned = (middle, turned) if self._holds_at(axis, middle) else (known, middle)
        return turned


@dataclass(frozen=True)
class Followed:
    """What a model's code did until it ended or `raised`: functions that it called, each with its
    line, what it asked of open sizes, and the lines that asked for a dtype.
    """

    calls: tuple[tuple[str, str], ...]
    conditions: tuple[Condition, ...]
    asks_dtype: tuple[str, ...]
    raised: bool

    def turns_from(self, other: "Followed") -> str | None:
        """The first line of the code where it did something else than `other`."""
        pairs = zip((*self.calls, ("", "")), (*other.calls, ("", "")), strict=False)
        return next((max(a[1], b[1]) for a, b in pairs if a != b), None)


def followed(
    model: nn.Module,
    arguments: Sequence[Any],
    opened: Collection[Axis] = (),
    seen_as: torch.dtype | None = None,
    most: int | None = None,
    *,
    runs_others: bool = True,
) -> Followed:
    """The model's forward without values, with some sizes of 2 and more open. `seen_as` and `most`
    as for `SeenAs`. `runs_others`: operators of which torch does not know what they give without
    values are run, on zeros.
    """
    shapes, tensors = ShapeEnv(specialize_zero_one=False, duck_shape=False), count()
    fake = FakeTensorMode(
        shape_env=shapes, allow_non_fake_inputs=True, allow_fallback_kernels=runs_others
    )
    symbols: dict[Axis, sympy.Symbol] = {}
    sizes: dict[Axis, int] = {}

    def without_values(x: Tensor) -> Tensor:
        index = next(tensors)
        axes = [(index, axis) for axis in range(x.ndim)]
        kinds = [DimDynamic.DYNAMIC if a in opened else DimDynamic.STATIC for a in axes]
        context: Any = StatelessSymbolicContext(dynamic_sizes=kinds)
        source = ConstantSource(f"input_{index}")
        made: Any = fake.from_tensor(x, symbolic_context=context, source=source)
        for axis in (a for a in axes if a in opened):
            symbols[axis], sizes[axis] = made.shape[axis[1]].node.expr, x.shape[axis[1]]
        return made

    floats = [x.dtype for x in tree_leaves(arguments) if isinstance(x, Tensor)]
    floats = [dtype for dtype in floats if dtype.is_floating_point]
    calls = SeenAs(seen_as, floats[0] if floats else torch.float32, most)
    raised = False
    try:
        given = tree_map_only(Tensor, without_values, tuple(arguments))
        without_numbers = torch_quiet(), fake, enable_python_dispatcher(), torch.no_grad()
        with ExitStack() as stack:
            for one in (in_eval_mode(model), *without_numbers, calls, contained()):
                stack.enter_context(one)
            model(*given)
    except Exception:  # noqa: BLE001  the user's code may raise anything
        raised = True
    conditions = (
        Condition(relation, place, symbols, sizes) for relation, place in user_guards(shapes)
    )
    return Followed(tuple(calls.made), tuple(conditions), tuple(calls.asks_dtype), raised)


def user_guards(shapes: ShapeEnv) -> Iterator[tuple[sympy.Basic, str]]:
    """What lines outside torch asked of a size that was open, as it came out."""
    for guard in shapes.guards:
        frame = getattr(getattr(guard, "sloc", None), "framework_loc", None)
        path = getattr(frame, "filename", None)
        if path is not None and is_user_code(Path(path)):
            yield guard.expr, f"{Path(path).name}:{getattr(frame, 'lineno', None)}"


class SeenAs(TorchFunctionMode):
    """While code runs within it, floating-point tensors say that they are of `dtype`, and are of
    their `actual` one whatever they are cast to: what the code does for the one is done in the
    precision of the other. None: they say what they are.

    `made` are the functions that were called, each with the line of the model's code, `asks_dtype`
    the lines that asked for a dtype. After `most` calls the code is stopped.
    """

    def __init__(
        self, dtype: torch.dtype | None, actual: torch.dtype, most: int | None = None
    ) -> None:
        super().__init__()
        self.most = most
        self.dtype, self.actual = dtype, actual
        self.made: list[tuple[str, str]] = []
        self.asks_dtype: dict[str, None] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if func == _DTYPE or func in _BYTES:
            self.asks_dtype[user_line()] = None
        elif name != "__get__":  # sizes and the like are no work
            self.made.append((name, user_line()))
            if self.most is not None and len(self.made) > self.most:
                raise RuntimeError("the code calls too many functions to be followed")
        names_type = func == Tensor.type and len(args) == 1 and not kwargs
        if names_type:
            self.asks_dtype[user_line()] = None
        if name in _RECURRENT and isinstance(args[0], FakeTensor):
            return _recurrent(*args)
        if self.dtype is None:
            return func(*args, **(kwargs or {}))
        if func in _CASTS and args[0].is_floating_point():
            return args[0]
        args, kwargs = tree_map(self._as_it_is, (args, kwargs or {}))
        result = func(*args, **kwargs)
        if names_type and args[0].is_floating_point():
            return torch.empty(0, dtype=self.dtype).type()
        if func in _BYTES and args[0].is_floating_point():
            return self.dtype.itemsize
        return self.dtype if func == _DTYPE and result.is_floating_point else result

    def _as_it_is(self, value: Any) -> Any:
        """A dtype in which code asks for a tensor: the one that tensors really have."""
        is_float = isinstance(value, torch.dtype) and value.is_floating_point
        return self.actual if is_float else value


_RECURRENT = {"gru", "lstm", "rnn_tanh", "rnn_relu"}


def _recurrent(given: Tensor, states: Any, *more: Any) -> tuple[Tensor, ...]:
    """What `torch.gru` and its kin give for a tensor without values: torch follows them step by
    step, two minutes for some thousand. (Packed sequences need values and do not come here.)
    """
    is_bidirectional = more[5]
    states = [states] if isinstance(states, Tensor) else states
    channels = states[0].shape[-1] * (2 if is_bidirectional else 1)
    made = given.new_empty((*given.shape[:-1], channels))
    return made, *map(torch.empty_like, states)
