"""Where a plain merged operator differs from the layers it replaces.

Valid convolutions compose exactly. The one inexact step is moving a layer's padding past the layer
before it: the original outer layer sees its padding in the ring around the intermediate image,
the merged kernel sees what the inner layer would have computed there. So an output is wrong when
its window meets a ring sample on which the two differ, or an intermediate sample that is wrong
already; in a chain the wrong rows grow as `ceil((rows + p) / s)`.

Instead of one inequality a case, the ring is walked in whole numbers, axis by axis, for every
input size until the answer repeats (it depends on the size modulo the strides). Knows geometry
only; what it says holds for generic values of weights and biases.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from math import lcm
from typing import Literal

from convsqueeze.algebra.geometry import Axis, Geometry, add, carries_padding, compose
from convsqueeze.algebra.tree import Chain, Sum, Tree, fold
from convsqueeze.errors import GeometryError

Side = Literal["low", "high"]
Cause = Literal["bias", "window", "mode"]
GeometryTree = Tree[Geometry]


@dataclass(frozen=True)
class Leak:
    """One side of one axis on which a plain merge is not exact.

    `rows` output rows differ at most; `cause` is what fills the ring of the layer at `link` (its
    place in the tree): the inner layer's `bias`, its `window` reaching the image, or a padding
    `mode` that does not pass it. `exact_sizes` are the examined input sizes without a leak.
    """

    axis: int
    side: Side
    rows: int
    cause: Cause
    link: tuple[int, ...]
    exact_sizes: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def depends_on_size(self) -> bool:
        """Whether sizes past every kernel are exact: one that is smaller is no case to speak of."""
        middle = self.sizes[len(self.sizes) // 2]
        return any(size > middle for size in self.exact_sizes)


@lru_cache(maxsize=4096)
def merged(tree: GeometryTree) -> Geometry:
    """The geometry of the one operator that a tree of layers makes.

    Raises GeometryError where they do not make one.
    """
    return fold(
        tree,
        lambda leaf: leaf,
        lambda links: reduce(lambda inner, outer: compose(outer, inner), links),
        lambda branches: add(*branches),
    )


def output_size(tree: GeometryTree, axis: int, size: int) -> int | None:
    """Samples that leave on one axis, as the original layers compute it; None if one refuses."""
    if isinstance(tree, Chain):
        current: int | None = size
        for link in tree.links:
            current = None if current is None else output_size(link, axis, current)
        return current
    if isinstance(tree, Sum):
        sizes = [output_size(branch, axis, size) for branch in tree.branches]
        return None if None in sizes else sizes[0]
    own = tree.axes[axis]
    return own.output_size(size) if own.accepts(size) else None


def smallest_size(tree: GeometryTree, axis: int) -> int:
    """The smallest input size that all the original layers accept on one axis.

    Raises GeometryError where they accept none.
    """
    for size in range(1, 2 * reach(tree, axis) + 3):
        if output_size(tree, axis, size) is not None:
            return size
    raise GeometryError("no input is large enough for these layers one after the other")


def reach(tree: GeometryTree, axis: int) -> int:
    """Input samples from the border beyond which nothing but the kernels matters, at most."""
    return _reach_and_stride(tree, axis)[0]


def period(tree: GeometryTree, axis: int) -> int:
    """A multiple of the strides of every chain: sizes that far apart meet the border alike."""
    return _reach_and_stride(tree, axis)[1]


def _reach_and_stride(tree: GeometryTree, axis: int) -> tuple[int, int]:
    """A chain's reach is `r1 + s1*r2 + s1*s2*r3 + ...`, its stride the product."""
    return fold(
        tree,
        lambda leaf: (_width(leaf.axes[axis]), leaf.axes[axis].stride),
        lambda links: reduce(lambda a, b: (a[0] + a[1] * b[0], a[1] * b[1]), links),
        lambda branches: (max(r for r, _ in branches), lcm(*(s for _, s in branches))),
    )


def _width(axis: Axis) -> int:
    return axis.extent + abs(axis.before) + abs(axis.after)


def sizes_to_examine(tree: GeometryTree, axis: int) -> range:
    """Input sizes after which what happens at the border repeats: past every kernel, one period."""
    first = smallest_size(tree, axis)
    enough = reach(tree, axis) + _width(merged(tree).axes[axis]) + period(tree, axis)
    return range(first, first + enough + 1)


def leaks(tree: GeometryTree, size: Sequence[int] | None = None) -> tuple[Leak, ...]:
    """Every axis side on which the plain merge of `tree` differs from the layers themselves.

    With `size` (one number an axis) only that input counts, otherwise every size that the layers
    accept. Empty: the plain merge is exact at every pixel.
    """
    found = []
    for axis in range(len(merged(tree).axes)):
        sizes = sizes_to_examine(tree, axis) if size is None else [size[axis]]
        traces = {n: _trace(tree, axis, n, ()) for n in sizes}
        for side in ("low", "high"):
            leak = _summary(traces, axis, side)
            if leak is not None:
                found.append(leak)
    return tuple(found)


@lru_cache(maxsize=4096)
def wrong_rows(tree: GeometryTree, axis: int, size: int) -> frozenset[int]:
    """The output indices on one axis at which the plain merge differs, for one input size."""
    trace = _trace(tree, axis, size, ())
    return trace.low | trace.high


@dataclass(frozen=True)
class _Trace:
    """What one input size meets on one axis: wrong output indices by the side they come from."""

    count: int
    low: frozenset[int] = frozenset()
    high: frozenset[int] = frozenset()
    events: tuple[tuple[Side, Cause, tuple[int, ...]], ...] = ()

    def side(self, side: Side) -> frozenset[int]:
        return self.low if side == "low" else self.high


def _summary(traces: dict[int, _Trace], axis: int, side: Side) -> Leak | None:
    wrong = {n: trace for n, trace in traces.items() if trace.side(side)}
    if not wrong:
        return None
    rows = max(
        1 + max(trace.low) if side == "low" else trace.count - min(trace.high)
        for trace in wrong.values()
    )
    largest = wrong[max(wrong)]
    _, cause, link = next(event for event in largest.events if event[0] == side)
    exact = tuple(n for n in traces if n not in wrong)
    return Leak(axis, side, rows, cause, link, exact, tuple(traces))


def _trace(tree: GeometryTree, axis: int, size: int, place: tuple[int, ...]) -> _Trace:
    if isinstance(tree, Chain):
        return _trace_chain(tree, axis, size, place)
    if isinstance(tree, Sum):
        parts = [_trace(b, axis, size, (*place, i)) for i, b in enumerate(tree.branches)]
        return _union(parts[0].count, parts)
    return _Trace(tree.axes[axis].output_size(size))


def _union(count: int, parts: Iterable[_Trace]) -> _Trace:
    low: frozenset[int] = frozenset()
    high: frozenset[int] = frozenset()
    events: tuple[tuple[Side, Cause, tuple[int, ...]], ...] = ()
    for part in parts:
        low, high, events = low | part.low, high | part.high, events + part.events
    return _Trace(count, low, high, events)


def _trace_chain(chain: Chain[Geometry], axis: int, size: int, place: tuple[int, ...]) -> _Trace:
    trace = _trace(chain.links[0], axis, size, (*place, 0))
    for index, link in enumerate(chain.links[1:], start=1):
        inner = merged(Chain(chain.links[:index]))
        outer = merged(link).axes[axis]
        count = outer.output_size(trace.count)
        own = _trace(link, axis, trace.count, (*place, index))
        carried = _Trace(
            count,
            _readers(outer, trace.low, count),
            _readers(outer, trace.high, count),
            trace.events,
        )
        ring = _ring(inner, axis, outer, trace.count, size, count, (*place, index))
        trace = _union(count, (carried, own, ring))
    return trace


def _ring(
    inner: Geometry,
    axis: int,
    outer: Axis,
    middle: int,
    size: int,
    count: int,
    link: tuple[int, ...],
) -> _Trace:
    """What the ring around `middle` intermediate samples spoils among `count` outputs."""
    last_read = (outer.upsample * (middle - 1) + max(outer.after, 0)) // outer.upsample
    sides: dict[Side, range] = {
        "low": range(-(max(outer.before, 0) // outer.upsample), 0),
        "high": range(middle, last_read + 1),
    }
    wrong: dict[Side, frozenset[int]] = {}
    events: list[tuple[Side, Cause, tuple[int, ...]]] = []
    for side, positions in sides.items():
        spoiled: set[int] = set()
        for position in positions:
            cause = _differs(inner, axis, outer, position, size)
            met = _readers(outer, (position,), count) if cause else frozenset()
            if cause and met:
                spoiled |= met
                events.append((side, cause, link))
        wrong[side] = frozenset(spoiled)
    return _Trace(count, wrong["low"], wrong["high"], tuple(events))


def _differs(inner: Geometry, axis: int, outer: Axis, position: int, size: int) -> Cause | None:
    """Why the sample that the merged kernel implies at a ring position is not the padding's."""
    own = inner.axes[axis]
    if carries_padding(outer, own):
        return None
    if outer.padding_mode != "zeros" or own.padding_mode != "zeros":
        return "mode"
    if inner.bias:
        return "bias"
    image = range(0, own.upsample * (size - 1) + 1, own.upsample)
    reads_image = any(own.stride * position + tap in image for tap in own.taps)
    return "window" if reads_image else None


def _readers(outer: Axis, positions: Iterable[int], count: int) -> frozenset[int]:
    """The outputs whose window meets one of the given intermediate samples."""
    met = set()
    for position in positions:
        for tap in outer.taps:
            output, rest = divmod(outer.upsample * position - tap, outer.stride)
            if rest == 0 and 0 <= output < count:
                met.add(output)
    return frozenset(met)
