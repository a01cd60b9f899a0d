"""How much memory merging takes, from shapes alone, and how much this machine has."""

import os
from pathlib import Path

from convsqueeze.algebra.geometry import Geometry
from convsqueeze.algebra.sizes import merged
from convsqueeze.algebra.tree import Chain, Sum, Tree, children
from convsqueeze.plan.model import Merge

COPIES = 7
"""Of the largest weight, in float64, at once: the sum that it grows in and a product, or the
rounded one with what rounding it takes, or those that verification compares.
"""
MOST_GROWN = 4 << 30
"""What a merge may take that grows beyond twice its layers: a few numbers can ask for any amount.
"""
_CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def bytes_here() -> int | None:
    """The memory of this machine, or of the container that this runs in; None if unknown."""
    found = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in _CONTAINER_LIMITS:
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            found.append(int(text))
    return min(found, default=None)


def memory_problem(merge: Merge) -> str | None:
    """Of a merge that takes more memory at its peak than this machine has, or far more than its
    layers, as far as can be told from shapes: how much.
    """
    limit, needed = bytes_here(), bytes_needed(merge)
    takes = f"merging {merge.into} takes about {_shown(needed)} of memory"
    if limit is not None and needed > limit:
        return (
            f"{takes}, this machine has {_shown(limit)}. Leave these layers apart, or use a "
            "larger machine."
        )
    if needed > (most := max(MOST_GROWN, 2 * 8 * COPIES * merge.weights_before)):
        return f"{takes}, at most {_shown(most)} may be where it grows. Leave these layers apart."
    return None


def bytes_needed(merge: Merge) -> int:
    """What merging takes at its peak."""
    return 8 * COPIES * max(_largest(merge.geometry_tree), merge.weights_after)


def _largest(tree: Tree[Geometry]) -> int:
    """Weights of the largest operator on the way from the layers to the merged one."""
    if isinstance(tree, Chain | Sum):
        parts: tuple[Tree[Geometry], ...] = children(tree)
        ways = (type(tree)(parts[: end + 1]) for end in range(1, len(parts)))
        return max([*map(_largest, parts), *(merged(way).weights for way in ways)])
    return tree.weights


def _shown(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e6:.1f} MB"
