"""Sizes of signals on their way through a tree of layers: which are legal, which are alike.

Knows geometry only, and nothing of what the layers compute.
"""

from bisect import bisect_left
from functools import lru_cache, reduce
from math import lcm

from convsqueeze.algebra.geometry import LARGEST, Axis, Geometry, add, compose
from convsqueeze.algebra.tree import Chain, Sum, Tree, fold, mapped
from convsqueeze.errors import GeometryError, TooLargeError

GeometryTree = Tree[Geometry]

FARTHEST = 4 * LARGEST
MOST_SIZES = 2048
"""Input sizes at most that are examined, each of which takes the time that it has samples."""


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


@lru_cache(maxsize=4096)
def along(tree: GeometryTree, axis: int) -> GeometryTree:
    """The layers as they are on one axis, with one channel: all that border questions depend on.

    Equal for axes, and for blocks of a network, that differ in their channels alone.
    """
    return mapped(tree, lambda leaf: Geometry(1, 1, (leaf.axes[axis],), 1, leaf.bias))


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
    this_axis = tree.axes[axis]
    return this_axis.output_size(size) if this_axis.accepts(size) else None


@lru_cache(maxsize=4096)
def smallest_size(tree: GeometryTree, axis: int) -> int:
    """The smallest input size that all the original layers accept on one axis. They accept every
    larger one: outputs grow with inputs, and each layer takes all from its own smallest on.

    Raises GeometryError where they accept none.
    """
    sizes = range(1, 2 * reach(tree, axis) + 3)
    found = bisect_left(sizes, True, key=lambda n: output_size(tree, axis, n) is not None)
    if found == len(sizes):
        raise GeometryError("no input is large enough for these layers one after the other")
    return sizes[found]


def reach(tree: GeometryTree, axis: int) -> int:
    """Input samples from the border beyond which nothing but the kernels matters, at most."""
    return _reach_and_stride(tree, axis)[0]


def period(tree: GeometryTree, axis: int) -> int:
    """A multiple of the strides of every chain: sizes that far apart meet the border alike."""
    return _reach_and_stride(tree, axis)[1]


@lru_cache(maxsize=4096)
def _reach_and_stride(tree: GeometryTree, axis: int) -> tuple[int, int]:
    """A chain's reach is `r1 + s1*r2 + s1*s2*r3 + ...`, its stride the product.

    Raises TooLargeError where they are larger than any network's.
    """
    found, stride = fold(
        tree,
        lambda leaf: (_width(leaf.axes[axis]), leaf.axes[axis].stride),
        lambda links: reduce(lambda a, b: (a[0] + a[1] * b[0], a[1] * b[1]), links),
        lambda branches: (max(r for r, _ in branches), lcm(*(s for _, s in branches))),
    )
    if max(found, stride) > FARTHEST:
        raise TooLargeError(
            f"the layers reach over {max(found, stride):,} samples of an axis, at most "
            f"{FARTHEST:,} can be"
        )
    return found, stride


def past_both_borders(tree: GeometryTree, axis: int, least: int = 0) -> int:
    """An input size, `least` or more, with a place between the borders that neither reaches."""
    return max(smallest_size(tree, axis) + 2 * reach(tree, axis), least)


def equivalent_size(tree: GeometryTree, axis: int, size: int, least: int = 0) -> int:
    """The size itself, or a smaller one past both borders that meets them in the same way."""
    repeat, enough = period(tree, axis), past_both_borders(tree, axis, least)
    return size if size <= enough + repeat else enough + (size - enough) % repeat


def _width(axis: Axis) -> int:
    return axis.extent + abs(axis.before) + abs(axis.after)


ONE_SIZE = ", or give the entry the one size of its input (input: [...])"
"""Advice where it is the number of sizes that is too large."""


def sizes_to_examine(tree: GeometryTree, axis: int) -> range:
    """Input sizes after which what happens at the border repeats: past every kernel, one period.

    Raises TooLargeError where they are too many to look at one by one.
    """
    first = smallest_size(tree, axis)
    enough = reach(tree, axis) + _width(merged(tree).axes[axis]) + period(tree, axis)
    if enough > MOST_SIZES:
        raise TooLargeError(
            f"what happens at the border depends on {enough:,} input sizes, at most "
            f"{MOST_SIZES:,} are looked at. Leave the layer with the large padding, dilation or "
            f"stride apart{ONE_SIZE}"
        )
    return range(first, first + enough + 1)
