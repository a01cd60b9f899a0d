"""Where a plain merged operator differs from the layers it replaces.

Valid convolutions compose exactly. The one inexact step is moving a layer's padding past the layer
before it: the original outer layer sees its padding in the ring around the intermediate image,
the merged kernel sees what the inner layer would have computed there. So an output is wrong when
its window meets a ring sample on which the two differ, or an intermediate sample that is wrong
already; in a chain the wrong rows grow as `ceil((rows + p) / s)`.

Instead of one inequality a case, the ring is walked in whole numbers, axis by axis and layer by
layer, for every input size until the answer repeats (it depends on the size modulo the strides): at
each ring position the input samples that the merged kernel reads are held against those that the
padding stands for. Knows geometry only; what it says holds for generic values of weights and
biases. In chains of three and more layers a padding mode that repeats an already wrong sample, or
a stride that a later upsampling undoes, may name a row too many, never one too few.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from convsqueeze.algebra.geometry import Axis, Geometry, common_axis, merge_axes
from convsqueeze.algebra.sizes import GeometryTree, along, merged, sizes_to_examine
from convsqueeze.algebra.tree import Chain, Sum
from convsqueeze.errors import GeometryError

Side = Literal["low", "high"]
Cause = Literal["bias", "window", "mode"]
Place = tuple[int, ...]
Event = tuple[Side, Cause, Place]
SIDES: tuple[Side, ...] = ("low", "high")


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


def leaks(tree: GeometryTree, size: Sequence[int] | None = None) -> tuple[Leak, ...]:
    """Every axis side on which the plain merge of `tree` differs from the layers themselves.

    With `size` (one number an axis) only that input counts, otherwise every size that the layers
    accept. Empty: the plain merge is exact at every pixel.
    """
    sizes = (None,) * len(merged(tree).axes) if size is None else tuple(size)
    return tuple(
        replace(leak, axis=axis)
        for axis in range(len(merged(tree).axes))
        for leak in _leaks(along(tree, axis), sizes[axis])
    )


@lru_cache(maxsize=4096)
def _leaks(tree: GeometryTree, size: int | None) -> tuple[Leak, ...]:
    """Those of a tree with a single axis."""
    if _pads_only_input(tree, 0):
        return ()
    sizes = sizes_to_examine(tree, 0) if size is None else [size]
    traces = {n: _trace(tree, 0, n) for n in sizes}
    found = (_summary(traces, 0, side) for side in SIDES)
    return tuple(leak for leak in found if leak is not None)


def _pads_only_input(tree: GeometryTree, axis: int, first: bool = True) -> bool:
    """Whether no layer pads what another layer computed: then nothing can differ."""
    if isinstance(tree, Chain):
        return all(
            _pads_only_input(link, axis, first and not index)
            for index, link in enumerate(tree.links)
        )
    if isinstance(tree, Sum):
        return all(_pads_only_input(branch, axis, first) for branch in tree.branches)
    return first or max(tree.axes[axis].before, tree.axes[axis].after) <= 0


@lru_cache(maxsize=4096)
def wrong_rows(tree: GeometryTree, axis: int, size: int) -> frozenset[int]:
    """The output indices on one axis at which the plain merge differs, for one input size."""
    trace = _trace(tree, axis, size)
    return trace.low | trace.high


@dataclass(frozen=True)
class _Inner:
    """On one axis, the operator that all layers so far make: what a merged kernel sees.

    `taps` are the positions that are read, relative to `stride * i`; their hull may have gaps.
    """

    axis: Axis
    taps: frozenset[int]
    bias: bool

    def then(self, outer: Geometry, axis: int) -> "_Inner":
        own = outer.axes[axis]
        whole = merge_axes(own, self.axis).axis
        common = self.axis.upsample * own.upsample // whole.upsample
        taps = {own.upsample * t + self.axis.stride * b for t in self.taps for b in own.taps}
        kept = frozenset(tap // common for tap in taps if tap % common == 0)
        return _Inner(whole, kept, self.bias or outer.bias)

    def reads(self, position: int, size: int, mode: str) -> list[int | None]:
        """Which of `size` input samples each tap reads for its output at `position`."""
        return [
            _sample(self.axis.stride * position + tap, size, mode, self.axis.upsample)
            for tap in sorted(self.taps)
        ]


def _sample(position: int, size: int, mode: str, upsample: int = 1) -> int | None:
    """The sample that stands at a position of an image padded by `mode`; None: a zero."""
    index, rest = divmod(position, upsample)
    if rest:
        return None
    if 0 <= index < size:
        return index
    if mode == "circular":
        return index % size
    if mode == "replicate":
        return min(max(index, 0), size - 1)
    if mode == "reflect":
        period = max(2 * (size - 1), 1)
        return min(index % period, period - index % period) if size > 1 else 0
    return None


@dataclass(frozen=True)
class _Trace:
    """What one input size meets on one axis: wrong output indices by the side they come from.

    `inner` is the operator that led here, None where nothing did.
    """

    count: int
    low: frozenset[int] = frozenset()
    high: frozenset[int] = frozenset()
    events: tuple[Event, ...] = ()
    inner: _Inner | None = None

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


def _trace(tree: GeometryTree, axis: int, size: int) -> _Trace:
    return _walk(tree, axis, size, _Trace(size), (), ())


def _walk(
    tree: GeometryTree, axis: int, size: int, trace: _Trace, path: Place, blamed: Place
) -> _Trace:
    """`trace` after the layers of `tree`; `blamed` is the last place that has a layer before it."""
    if isinstance(tree, Chain):
        for index, link in enumerate(tree.links):
            place = (*path, index)
            later = place if index else blamed
            trace = _along(link, axis, size, trace, place, later)
        return trace
    if isinstance(tree, Sum):
        parts = [
            _walk(branch, axis, size, trace, (*path, index), blamed)
            for index, branch in enumerate(tree.branches)
        ]
        return _union(parts)
    return _through(tree, axis, size, trace, blamed)


def _along(
    link: GeometryTree, axis: int, size: int, trace: _Trace, place: Place, blamed: Place
) -> _Trace:
    """A link layer by layer; as one layer where only all of it can follow what came before."""
    try:
        return _walk(link, axis, size, trace, place, blamed)
    except GeometryError:
        own = _walk(link, axis, trace.count, _Trace(trace.count), place, blamed)
        whole = _through(merged(link), axis, size, trace, blamed)
        return _union([whole, replace(own, inner=whole.inner)])


def _union(parts: Sequence[_Trace]) -> _Trace:
    inners = [part.inner for part in parts if part.inner is not None]
    return _Trace(
        parts[0].count,
        frozenset().union(*(part.low for part in parts)),
        frozenset().union(*(part.high for part in parts)),
        tuple(dict.fromkeys(event for part in parts for event in part.events)),
        _Inner(
            common_axis([inner.axis for inner in inners]),
            frozenset().union(*(inner.taps for inner in inners)),
            any(inner.bias for inner in inners),
        ),
    )


def _through(layer: Geometry, axis: int, size: int, trace: _Trace, blamed: Place) -> _Trace:
    """`trace` after one layer: what reads a wrong sample is wrong, and what reads a false ring."""
    own = layer.axes[axis]
    count = own.output_size(trace.count)
    inner = trace.inner
    if inner is None:
        return _Trace(count, inner=_Inner(own, frozenset(own.taps), layer.bias))
    whole = inner.then(layer, axis)
    wrong = {side: set(_readers(own, trace.side(side), count)) for side in SIDES}
    events = list(trace.events)
    for side, positions in _ring(own, trace.count).items():
        for position in positions:
            cause = _differs(inner, whole.axis, own, position, trace, size)
            met = _readers(own, (position,), count) if cause else frozenset()
            if cause and met:
                wrong[side] |= met
                events.append((side, cause, blamed))
    return _Trace(count, frozenset(wrong["low"]), frozenset(wrong["high"]), tuple(events), whole)


def _ring(own: Axis, count: int) -> dict[Side, range]:
    """Positions around `count` samples that a layer's padding fills."""
    last = (own.upsample * (count - 1) + max(own.after, 0)) // own.upsample
    return {
        "low": range(-(max(own.before, 0) // own.upsample), 0),
        "high": range(count, last + 1),
    }


def _differs(
    inner: _Inner, whole: Axis, own: Axis, position: int, trace: _Trace, size: int
) -> Cause | None:
    """Why the sample that the merged kernel implies at a ring position is not the padding's."""
    implied = inner.reads(position, size, whole.padding_mode)
    source = _sample(position, trace.count, own.padding_mode)
    if source is not None:
        actual = inner.reads(source, size, inner.axis.padding_mode)
        spoiled = source in trace.low or source in trace.high
        return "mode" if spoiled or implied != actual else None
    if all(sample is None for sample in implied):
        return "bias" if inner.bias else None
    if whole.padding_mode != "zeros":
        return "mode"
    return "bias" if inner.bias else "window"


def _readers(outer: Axis, positions: Iterable[int], count: int) -> frozenset[int]:
    """The outputs whose window meets one of the given intermediate samples."""
    met = set()
    for position in positions:
        for tap in outer.taps:
            output, rest = divmod(outer.upsample * position - tap, outer.stride)
            if rest == 0 and 0 <= output < count:
                met.add(output)
    return frozenset(met)
