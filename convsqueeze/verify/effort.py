"""How much work verification is, in multiplications, and how much a layer is worth.

Knows shapes only. A layer on which every weight has its impulse within a moment is verified in
full; of a larger one as much is run as takes a fixed share of what merging it took.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod

from convsqueeze.algebra.geometry import Geometry, add, compose
from convsqueeze.algebra.tree import counted, fold
from convsqueeze.plan import Merge
from convsqueeze.verify.probes import Impulses, Size

MOMENT = 500_000_000
"""What is always spent: some 50 ms at the ten multiplications a nanosecond of small images."""
SHARE = 4
"""Of a merge's own work, one in so many is spent beyond that."""
TRIALS = 3
"""Random images a size for which this is meant; more of them are worth more."""
GROUPS_OF_IMAGES = 64
GROUPS_OF_SINGLES = 8
"""So many groups of a merged layer are run at least, on images or on zeros and impulses."""
_READ = 16
"""What reading a weight takes, for each image, in multiplications: small images wait for memory."""
_LAID_OUT = 8
"""What it takes to write and read an input in the order in which it is multiplied."""
_RUN = 1_000_000
"""What calling torch takes, whatever the image."""
_GROUP = 200_000
"""What a group takes beside its multiplications: torch convolves one after the other."""


def allowance(merge: Merge, trials: int) -> int:
    """What may be spent on a layer that is too large to be verified in full."""
    return (MOMENT + merge_work(merge) // SHARE) * max(trials, TRIALS) // TRIALS


def merge_work(merge: Merge) -> int:
    """Multiplications of the merge itself, one of each tap of a layer with each of the next."""
    found: list[int] = []

    def composed(inner: Geometry, outer: Geometry) -> Geometry:
        found.append(prod(outer.weight_shape) * prod(inner.weight_shape[1:]))
        return compose(outer, inner)

    fold(merge.geometry_tree, lambda leaf: leaf, lambda links: reduce(composed, links), _added)
    return sum(found) * merge.weights_after // max(merge.geometry.weights, 1)


def _added(branches: Sequence[Geometry]) -> Geometry:
    return add(*branches)


@dataclass(frozen=True)
class Work:
    """Multiplications of one run: for each image, and for each of the groups."""

    image: int
    run: int

    def of(self, images: int) -> int:
        return images * self.image + self.run


def original_work(merge: Merge, size: Size) -> Work:
    """The original layers on an image of this size."""
    tree = merge.geometry_tree
    macs, _ = counted(tree, size, lambda leaf, n: (_convolving(leaf, n), leaf.output_size(n)))
    convolved = (x for x in merge.layers if "groups" in type(x.layer).model_fields)
    groups = sum(leaf.geometry.groups for leaf in convolved)
    return Work(macs + _READ * merge.weights_before, _RUN + _GROUP * groups)


def _convolving(geometry: Geometry, size: Size) -> int:
    """Multiplications, and laying out their inputs, once for all outputs of a group."""
    return geometry.macs(size) * (_LAID_OUT * geometry.groups // geometry.out_channels + 1)


def squeezed_work(merge: Merge, size: Size) -> Work:
    """The squeezed layer, with its border."""
    geometry = merge.geometry
    macs, runs = _convolving(geometry, size), 1
    if merge.corrections is not None:
        macs += merge.corrections.macs(geometry, size)
        runs += sum(2 ** len(subset) for subset in merge.corrections.subsets)  # ends of each axis
    return Work(macs + _READ * merge.weights_after, (_RUN + _GROUP * geometry.groups) * runs)


def both(merge: Merge, size: Size) -> Work:
    one, other = original_work(merge, size), squeezed_work(merge, size)
    return Work(one.image + other.image, one.run + other.run)


def work_in_full(
    merge: Merge, sizes: Sequence[Size], impulses: Sequence[Impulses], trials: int
) -> int:
    """Random images and one of zeros of every size, every impulse, and the bounds of all."""
    per_group = merge.geometry.in_channels // merge.geometry.groups
    random = sum(both(merge, size).of(trials + 1) for size in sizes)
    singles = sum(
        both(merge, one.size).of(per_group * prod(map(len, one.positions))) for one in impulses
    )
    return 2 * (random + singles)  # what bounds an output costs what the output costs


def single_work(merge: Merge, size: Size) -> Work:
    """One input channel of every group through both, and the squeezed layer's bound."""
    one, other = original_work(merge, size), squeezed_work(merge, size)
    per_group = merge.geometry.in_channels // merge.geometry.groups
    return Work(one.image + 2 * other.image // per_group, one.run + 2 * other.run)


def groups_of_images(merge: Merge, sizes: Sequence[Size], allowed: int) -> int:
    """How many groups of a merged layer meet random images: all, if one of each size is allowed."""
    work = sum(both(merge, size).of(1) + squeezed_work(merge, size).run for size in sizes)
    return _share(merge, allowed, work, GROUPS_OF_IMAGES)


def groups_of_singles(
    merge: Merge, zeros: Sequence[Size], impulses: Sequence[Impulses], allowed: int
) -> int:
    """How many groups meet zeros and impulses: all, if one of each is allowed."""
    sizes = (*zeros, *(one.size for one in impulses))
    work = sum(single_work(merge, size).of(1) for size in sizes)
    return _share(merge, allowed, work, GROUPS_OF_SINGLES)


def _share(merge: Merge, allowed: int, work: int, least: int) -> int:
    groups = merge.geometry.groups
    return min(groups, max(least, groups * allowed // work))


def images_for(
    merge: Merge,
    needed: Sequence[Size],
    optional: Sequence[Size],
    trials: int,
    allowed: int,
) -> dict[Size, int]:
    """How many random images of each size: one of those that are needed, then, as far as they are
    allowed, one of the optional sizes, and then up to `trials` of each.
    """
    chosen = dict.fromkeys(needed, 1)
    left = allowed - sum(both(merge, size).of(1) for size in chosen)
    for size in sorted(optional, key=prod):
        left -= both(merge, size).of(1)
        if left < 0:
            return chosen
        chosen[size] = 1
    for number in range(2, trials + 1):
        left -= sum(both(merge, size).image for size in chosen)
        if left < 0:
            break
        chosen = dict.fromkeys(chosen, number)
    return chosen
