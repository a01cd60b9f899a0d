"""Other inputs on which a model's own code may do something else than on its example: another size
and batch, those on the other side of what it compares sizes with, and other dtypes, where it asks
for them.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from convsqueeze.algebra.precision import dtype_name
from convsqueeze.copying import Sandbox
from convsqueeze.models.inputs import Inputs, Shapes, example_arguments
from convsqueeze.tracing.branches import Axis, Condition, Followed, followed

MOST = 8
"""So many other inputs at most of which lines of the code are known to ask."""
MOST_OF_LINE = 3
"""So many of them for one line of the code."""
LARGEST = 16
"""Other inputs have at most so many times the numbers of the example, or SMALL numbers."""
SMALL = 1 << 18
FAR = (1024, 64, 8)
"""So many times larger sizes are that are far away, if the code takes them."""
BATCH = 64
"""As many times more images."""
MORE_CALLS = 4
"""Other inputs are followed for so many times the calls of the example, and SOME_CALLS."""
SOME_CALLS = 200
USUAL = (
    *(64, 48, 96, 56, 128, 16, 32, 28, 50, 24),
    *(100, 80, 112, 8, 20, 160, 192, 224, 256, 384, 512),
)
"""Sizes of images that are tried where the code makes numbers of sizes: what it asks of a number is
not known.
"""
USUAL_BATCHES = (4, 8, 3, 16, 10, 32, 2, 64)
"""Likewise."""
USUAL_CALLS = 4000
"""As many of the usual sizes are followed as take so many calls, if each takes as many as the
example, and FEWEST at least.
"""
FEWEST = 4
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Other:
    """Another input, the line of the code that asks for what it has (none: no line is known to),
    and the dtype of which its floating-point tensors say that they are.
    """

    inputs: Inputs
    place: str = ""
    seen_as: torch.dtype | None = None

    def __str__(self) -> str:
        shown = f"{self.inputs}" + (f" as {dtype_name(self.seen_as)}" if self.seen_as else "")
        return f"{shown} ({self.place})" if self.place else shown


@dataclass(frozen=True)
class Others:
    """Inputs to compare two models on as well; lines whose other side none of them is on, and those
    that make a number of the batch.
    """

    found: tuple[Other, ...]
    unreached: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()


def other_inputs(sandbox: Sandbox, inputs: Inputs) -> Others:
    """What to compare on beside the example. The model's code is followed without values, in the
    `sandbox`; where it cannot be, some sizes that differ from those of the example are taken.
    """
    search = _Search(sandbox, inputs)
    if search.example.raised:
        return Others(tuple(Other(inputs.resized(shapes)) for shapes in inputs.other_shapes()[:3]))
    search.sizes()
    search.dtypes()
    search.any_other()
    unreached, numbers = (tuple(dict.fromkeys(x)) for x in (search.unreached, search.numbers))
    return Others(tuple(search.found), unreached, numbers)


class _Search:
    def __init__(self, sandbox: Sandbox, inputs: Inputs) -> None:
        self.sandbox, self.inputs = sandbox, inputs
        self.shapes: Shapes = tuple(spec.shape for spec in inputs.tensors)
        self.found: list[Other] = []
        self.unreached: list[str] = []
        self.numbers: list[str] = []
        self._turned = Counter[str]()
        self._asked = set[tuple[str, object]]()
        self._single = [(i, 0) for i, shape in enumerate(self.shapes) if shape[:1] == (1,)]
        self._most = max(LARGEST * _numbers(self.shapes), SMALL)
        self._most_calls: int | None = None
        self.example = self._followed(self.shapes)
        self._most_calls = SOME_CALLS + MORE_CALLS * len(self.example.calls)

    def sizes(self) -> None:
        """Every size is open; a batch of one is two, as torch takes a size of 1 for a number."""
        for shapes in (_with(self.shapes, self._single, 2), self.shapes):
            now = self._followed(shapes, is_open=True)
            if not now.raised:
                break
        made = [(one.place, a) for one in now.conditions if one.is_number for _, a in one.axes]
        self.numbers += [place for place, axis in made if axis == 0]
        numbers = {axis for _, axis in made}
        if now.raised or numbers - {0}:
            self._usual(USUAL, range(2, max(map(len, shapes), default=0)))
        if now.raised or 0 in numbers:
            self._usual(USUAL_BATCHES, [0])
        if shapes != self.shapes and (line := now.turns_from(self.example)):
            self._add(shapes, line)
        left = [(shapes, now), *self._far(shapes)]
        while left:
            around, now = left.pop()
            asks_batch = any(axis == 0 for one in now.conditions for _, axis in one.axes)
            for condition in now.conditions:
                if self._is_new(condition, shapes):
                    left += self._beyond(condition, around, () if asks_batch else self._single)

    def _usual(self, sizes: Sequence[int], axes: Collection[int]) -> None:
        """Images or batches of usual sizes on which the code does something else."""
        every = [(i, a) for i, shape in enumerate(self.shapes) for a in axes if a < len(shape)]
        for size in sizes[: max(FEWEST, USUAL_CALLS // max(len(self.example.calls), 1))]:
            shapes = _with(self.shapes, every, size)
            if _numbers(shapes) <= self._most and not (there := self._followed(shapes)).raised:
                line = there.turns_from(self.example)
                if line is not None and self._turned[line] < MOST_OF_LINE:
                    self._add(shapes, line)

    def _far(self, near: Shapes) -> list[tuple[Shapes, Followed]]:
        """The sizes `near`, with what the code asks of sizes that are far larger, if it does
        something else there: torch's own code may know a size to be small, and asks no more of it.
        """
        for far in FAR:
            shapes = tuple(
                tuple(
                    n * (1 if axis == 1 else far if axis else BATCH) for axis, n in enumerate(one)
                )
                for one in near
            )
            there = self._followed(shapes)
            if not there.raised:
                break
        if there.raised or (line := there.turns_from(self.example)) is None:
            return []
        there = self._followed(shapes, is_open=True)
        if not there.conditions:
            self._towards(shapes, line)
        sizes = {(i, axis): n for i, one in enumerate(near) for axis, n in enumerate(one)}
        otherwise = tuple(one.seen_from(sizes) for one in there.conditions)
        return [(near, replace(there, conditions=otherwise))]

    def _towards(self, far: Shapes, line: str) -> None:
        """Larger and larger sizes, until the code does something else."""

        def only(axes: Collection[int]) -> Shapes:
            return tuple(
                tuple(
                    f if a in axes else n for a, (n, f) in enumerate(zip(one, other, strict=True))
                )
                for one, other in zip(self.shapes, far, strict=True)
            )

        rank = max(map(len, far))
        for end in (only(range(2, rank)), only([0]), far):
            shapes = self.shapes
            while shapes != end:
                shapes = tuple(
                    tuple(min(2 * n, f) for n, f in zip(one, other, strict=True))
                    for one, other in zip(shapes, end, strict=True)
                )
                there = self._followed(shapes)
                if _numbers(shapes) > self._most or there.raised:
                    break
                if found := there.turns_from(self.example):
                    self._add(shapes, found)
                    return
        self.unreached.append(line)

    def _is_new(self, condition: Condition, example: Shapes) -> bool:
        """Whether the example is on the same side, and its line has not had its share."""
        if condition.holds({(i, axis): example[i][axis] for i, axis in condition.symbols}) is False:
            return False
        if (asked := (condition.place, condition.relation)) in self._asked:
            return False
        self._asked.add(asked)
        return self._turned[condition.place] < MOST_OF_LINE

    def _beyond(
        self, condition: Condition, around: Shapes, single: Collection[Axis]
    ) -> list[tuple[Shapes, Followed]]:
        """The nearest sizes on the other side that the code takes, and what it does there: one axis
        has another size, or with it all that are alike. Those of `single` are 1 again.
        """
        too_large, known = False, False
        for index, axis in condition.axes:
            size = around[index][axis]
            alike = [  # batches are like batches, axes of images like each other
                (i, a)
                for i, shape in enumerate(around)
                for a, n in enumerate(shape)
                if n == size and min(a, 2) == min(axis, 2)
            ]
            for other in condition.other_side((index, axis)):
                known = True
                for axes in ([(index, axis)], alike):
                    shapes = _with(around, axes, other)
                    shown = _with(shapes, single, 1)
                    if _numbers(shown) > self._most:
                        too_large = True
                    elif not (there := self._followed(shapes, is_open=True)).raised:
                        self._add(shown, condition.place)
                        return [(shapes, there)]
        if too_large or not known:
            self.unreached.append(condition.place)
        return []

    def dtypes(self) -> None:
        """Dtypes for which the code calls other functions than for that in which it is run."""
        if not self.example.asks_dtype:
            return
        wide = self._followed(self.shapes, seen_as=torch.float64)
        for dtype in DTYPES:
            narrow = self._followed(self.shapes, seen_as=dtype)
            if not (wide.raised or narrow.raised) and (line := narrow.turns_from(wide)):
                self.found.append(Other(self.inputs, line, dtype))

    def any_other(self) -> None:
        """The first of some inputs of another batch and size, else of another batch, that the code
        takes: what it makes of sizes without comparing them is another number there.
        """
        batch = tuple((one[0] + 1, *one[1:]) if one else one for one in self.shapes)
        candidates = (*self.inputs.other_shapes(), batch)
        taken = (one for one in candidates if not self._followed(one).raised)
        if (shapes := next(taken, None)) is not None and self._is_another(shapes):
            self.found.append(Other(self.inputs.resized(shapes)))

    def _add(self, shapes: Shapes, place: str) -> None:
        self._turned[place] += 1
        if len(self.found) >= MOST:
            self.unreached.append(place)
        elif self._is_another(shapes):
            self.found.append(Other(self.inputs.resized(shapes), place))

    def _is_another(self, shapes: Shapes) -> bool:
        return shapes not in [tuple(s.shape for s in one.inputs.tensors) for one in self.found]

    def _followed(
        self, shapes: Shapes, *, is_open: bool = False, seen_as: torch.dtype | None = None
    ) -> Followed:
        inputs = self.inputs if shapes == self.shapes else self.inputs.resized(shapes)
        with FakeTensorMode(allow_non_fake_inputs=True):  # far sizes would take memory
            arguments = example_arguments(self.sandbox.model, inputs)
        axes = [(i, a) for i, shape in enumerate(shapes) for a, n in enumerate(shape) if n > 1]
        return followed(
            *(self.sandbox.module(), arguments, axes if is_open else (), seen_as, self._most_calls),
            runs_others=_numbers(shapes) <= self._most,
        )


def _with(shapes: Shapes, axes: Collection[Axis], size: int) -> Shapes:
    return tuple(
        tuple(size if (i, axis) in axes else n for axis, n in enumerate(shape))
        for i, shape in enumerate(shapes)
    )


def _numbers(shapes: Shapes) -> int:
    return sum(map(prod, shapes))
