"""What merging and verifying take, estimated from a plan alone, and refused beyond a bound.

A few bytes of a manifest can ask for images of gigabytes: by strides, of which images have to show
every remainder, by dilation and padding, which kernels reach as far as, by kernels of kernels. What
is estimated are the numbers that are held at once, in float64, and the multiplications. torch's
convolutions in float64 copy what each output reads, taps times outputs of an input channel, and a
number that is copied takes the time of some multiplications.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from convsqueeze.algebra.border.corrections import Corrections, SizeClass, span_length
from convsqueeze.algebra.geometry import Geometry, compose
from convsqueeze.algebra.sizes import merged
from convsqueeze.algebra.tree import Chain, Sum, Tree, children, leaves
from convsqueeze.errors import PlanError
from convsqueeze.formatting import format_size
from convsqueeze.plan import Merge, Plan, bytes_needed, memory_problem
from convsqueeze.verify.groups import share_run
from convsqueeze.verify.probes import COPY, Size, exhaustive_sizes, sizes_of

MOST_BYTES = 1 << 30
"""Held at once for the largest image: 1.1 GB, or what the merge takes where that is more."""
MOST_WORK = 30_000_000_000
"""Multiplications of all images together, or half of the merge's: some seconds where they are large
products of matrices, half a minute where what is copied takes longest.
"""
MOST_IN_ALL = 10 * MOST_WORK
"""Multiplications of the images of all merges together, or half of those of merging them."""
MOST_MERGING = 4_000_000_000_000
"""Multiplications of all merges: some minutes, as they are large products of matrices."""
MOST_EXHAUSTIVE = 10 * MOST_WORK
"""Multiplications of all impulses: some minutes."""
LOOK_UP = 64
"""What a number of a border's kernel takes that is looked up among the stored ones, in them."""
_CALL = 50_000
"""What a product of matrices takes beside its multiplications, in them."""
_KEPT = 8
"""Inputs and outputs that are there while a layer runs: of both sides, their bound and difference.
"""
_SMALL_ONES = 4
"""Images of the small size that meet the stored layer, by default."""
ALONE = 1 << 22
"""Numbers that an image makes of which no other is run with it."""


@dataclass(frozen=True)
class Effort:
    """Numbers held at once and multiplications, for one image or several."""

    numbers: int
    work: int


def check_effort(plan: Plan, *, exhaustive: bool = False) -> None:
    """Raises PlanError for every merge that takes more than this machine has or verification may,
    with the figure. An `exhaustive` verification may take ten times as long.
    """
    problems = [
        f"{merge.place}: {problem}"
        for merge in plan.merges
        if (problem := effort_problem(merge, exhaustive=exhaustive)) is not None
    ]
    if not problems:
        problems += _problems_together(plan.merges)
    if problems:
        raise PlanError(problems)


def _problems_together(merges: Sequence[Merge]) -> Iterator[str]:
    """Of merges each of which may be made: what they take together, if that is too much."""
    name = "the plan"
    advice = (
        f"Make its {len(merges):,} merges in several runs, each from the file that the one before "
        "wrote."
    )
    if (work := sum(map(merging, merges))) > MOST_MERGING:
        yield _too_much(name, work, "merge", MOST_MERGING) + advice
    total = sum(map(verifying, merges))
    if total > (allowed := max(MOST_IN_ALL, work // 2)):
        yield _too_much(name, total, "verify", allowed) + advice


def is_affordable(merge: Merge, size: Size) -> bool:
    """Whether images of a size may be run."""
    one = image(merge, size)
    return 8 * one.numbers <= _most_bytes(merge) and one.work <= MOST_WORK


def _most_bytes(merge: Merge) -> int:
    return max(MOST_BYTES, bytes_needed(merge))


def effort_problem(merge: Merge, *, exhaustive: bool = False) -> str | None:
    """Of a merge that takes more than this machine has or verification may: how much."""
    if (problem := memory_problem(merge)) is not None:
        return problem
    name, advice = merge.into, "Leave some of these layers apart."
    if (work := merging(merge)) > MOST_MERGING:
        return _too_much(name, work, "merge", MOST_MERGING) + advice
    images = _images(merge)
    for size, _, one in images:
        if (held := 8 * one.numbers) > (most := _most_bytes(merge)):
            return (
                f"{name} takes {held / 1e9:,.1f} GB to verify on an image of "
                f"{format_size(size)}, at most {most / 1e9:.1f} GB may be. {advice}"
            )
    if (total := _work(images)) > (allowed := max(MOST_WORK, work // 2)):
        return _too_much(name, total, "verify", allowed) + advice
    if exhaustive:
        channels = merge.geometry.in_channels // merge.geometry.groups
        every = exhaustive_sizes(merge.geometry_tree, merge.input_size)
        total = sum(image(merge, size).work * channels * prod(size) for size in every)
        if total > MOST_EXHAUSTIVE:
            return _too_much(name, total, "verify exhaustively", MOST_EXHAUSTIVE) + advice
    return None


def _too_much(name: str, work: int, what: str, most: int) -> str:
    return (
        f"{name} takes {work / 1e9:,.0f} billion multiplications to {what}, at most "
        f"{most / 1e9:,.0f} billion may be. "
    )


Images = list[tuple[Size, int, Effort]]
"""Of each size, how many, and what one takes."""


def _images(merge: Merge) -> Images:
    """Those that a merge is verified on, with the channels that are run."""
    tree, fixed = merge.geometry_tree, merge.input_size
    sizes, small = sizes_of(tree, merge.corrections, fixed, merge.border)
    share = share_run(merge, sizes)
    found = []
    for size, count in (*((size, 1) for size in sizes), (small, _SMALL_ONES)):
        one = image(merge, size)
        found.append((size, count, Effort(round(one.numbers * share), round(one.work * share))))
    return found


def verifying(merge: Merge) -> int:
    """Multiplications of all images that a merge is verified on."""
    return _work(_images(merge))


def _work(images: Images) -> int:
    return sum(count * one.work for _, count, one in images)


def merging(merge: Merge) -> int:
    """Multiplications of composing the layers one after the other, and of the border's terms."""
    work, _ = _composing(merge.geometry_tree)
    if merge.corrections is not None:
        apart = max(prod(leaf.weight_shape[1:]) for leaf in leaves(merge.geometry_tree))
        work += merge.corrections.weights(merge.geometry) * apart
    return work


def _composing(tree: Tree[Geometry]) -> tuple[int, Geometry]:
    if not isinstance(tree, Chain | Sum):
        return 0, tree
    below: tuple[Tree[Geometry], ...] = children(tree)
    works, parts = zip(*map(_composing, below), strict=True)
    total = sum(works)
    if isinstance(tree, Chain):
        for inner, outer in zip(_composed(parts), parts[1:], strict=True):
            ins, outs = inner.in_channels // inner.groups, outer.out_channels // outer.groups
            taps = prod(inner.kernel_size) * prod(outer.kernel_size)
            runs = taps // (inner.kernel_size[-1] if inner.axes else 1)
            total += ins * inner.out_channels * outs * taps + _CALL * runs
    return total, merged(tree)


def _composed(parts: Sequence[Geometry]) -> Iterator[Geometry]:
    """What stands before each part but the first."""
    before = parts[0]
    for part in parts[1:]:
        yield before
        before = compose(part, before)


def image(merge: Merge, size: Size) -> Effort:
    """Of one image, on both sides and for their bound."""
    work, held, _ = _layers(merge.geometry_tree, size)
    whole = merge.geometry
    macs, most = _operator(whole, size)
    work, held = work + macs, max(held, most)
    for macs, most in _borders(merge.corrections, whole, size):
        work, held = work + macs, max(held, most)
    ends = whole.in_channels * prod(size) + whole.out_channels * prod(whole.output_size(size))
    return Effort(held + _KEPT * ends, 2 * (work + _KEPT * COPY * ends))


def _layers(tree: Tree[Geometry], size: Size) -> tuple[int, int, Size]:
    """Multiplications, numbers held at once, and the size behind."""
    if isinstance(tree, Chain):
        work, held = 0, 0
        for link in tree.links:
            more, most, size = _layers(link, size)
            work, held = work + more, max(held, most)
        return work, held, size
    if isinstance(tree, Sum):
        works, most_of, sizes = zip(*(_layers(one, size) for one in tree.branches), strict=True)
        kept = len(works) * merged(tree).out_channels * prod(sizes[0])
        return sum(works), max(most_of) + kept, sizes[0]
    return (*_operator(tree, size), tree.output_size(size))


def _operator(one: Geometry, size: Size) -> tuple[int, int]:
    """Multiplications and numbers of one convolution: what it pads, copies and gives."""
    outputs, taps = prod(one.output_size(size)), prod(one.kernel_size)
    padded = [n + max(a.before, 0) + max(a.after, 0) for a, n in zip(one.axes, size, strict=True)]
    if one.is_transposed:
        full = [a.upsample * n + a.extent for a, n in zip(one.axes, size, strict=True)]
        outputs = prod(full)
        copied = one.out_channels // one.groups * taps * prod(size)
        macs = prod(one.weight_shape) * prod(size)
    else:
        copied = one.in_channels // one.groups * taps * outputs if taps > 1 else 0
        macs = prod(one.weight_shape) * outputs
    held = one.in_channels * prod(padded) + copied + one.out_channels * outputs
    moved = one.in_channels * prod(padded) + one.groups * copied + one.out_channels * outputs
    return macs + COPY * moved, held


def _borders(found: Corrections | None, whole: Geometry, size: Size) -> Iterator[tuple[int, int]]:
    """Of each set of axes, the kernel that is made for this size and the slab that it meets."""
    if found is None:
        return
    classes = [axis.of(n) for axis, n in zip(found.axes, size, strict=True)]
    for subset in found.subsets:
        rows = prod(span_length(classes[axis].row_spans) for axis in subset)
        columns = prod(max(span_length(classes[axis].column_spans), 1) for axis in subset)
        terms = prod(_terms(classes[axis]) for axis in subset)
        beside = [axis for axis in range(len(size)) if axis not in subset]
        axes = tuple(whole.axes[axis] for axis in beside)
        channels = whole.in_channels * columns, whole.out_channels * rows
        one = Geometry(*channels, axes, whole.groups)
        work, held = _operator(one, tuple(size[axis] for axis in beside))
        kernel = prod(one.weight_shape)
        places = kernel // prod(whole.weight_shape[:2])
        yield work + LOOK_UP * (kernel + 4 * places) * terms, held + 3 * kernel + 4 * places * terms


def _terms(one: SizeClass) -> int:
    """Border taps that are added up at a place, at most."""
    places = Counter((row, column) for row, column, *_ in one.weights)
    return max(places.values(), default=1)
