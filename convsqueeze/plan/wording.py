"""How a plan speaks of layers and borders: sentences for refusals, notes and tables."""

from collections.abc import Sequence

from convsqueeze.algebra.border import Leak
from convsqueeze.algebra.geometry import Geometry
from convsqueeze.algebra.tree import Chain, Sum, Tree, leaves
from convsqueeze.plan.resolve import ResolvedLayer

_SIDES = {
    1: (("start", "end"),),
    2: (("top", "bottom"), ("left", "right")),
    3: (("front", "back"), ("top", "bottom"), ("left", "right")),
}


def kernel(geometry: Geometry) -> str:
    """`3x3`, `5x1`, or `linear`."""
    return "x".join(map(str, geometry.kernel_size)) or "linear"


def side_name(leak: Leak, rank: int) -> str:
    low, high = _SIDES[rank][leak.axis]
    return low if leak.side == "low" else high


def rows_told(leaks: Sequence[Leak], rank: int) -> str:
    """`1 output row on every side`, or side by side."""
    counts = {leak.rows for leak in leaks}
    if len(leaks) == 2 * rank and len(counts) == 1:
        return f"{_rows(leaks[0].rows)} on every side"
    return ", ".join(f"{_rows(leak.rows)} at the {side_name(leak, rank)}" for leak in leaks)


def _rows(count: int) -> str:
    return f"{count} output row{'' if count == 1 else 's'}"


def border_refusal(tree: Tree[ResolvedLayer], leaks: Sequence[Leak], rank: int) -> str:
    """Why the plain merge is not exact, where, and what can be done about it."""
    outer = _at(tree, leaks[0].link)
    inner = _before(tree, leaks[0].link)
    sizes = _size_hint(leaks)
    return (
        f"{_reason(leaks[0], inner, outer)}, so no plain convolution is exact: "
        f"{rows_told(leaks, rank)} would differ. Use border: interior to accept that{sizes}, "
        "or leave these layers apart."
    )


def _reason(leak: Leak, inner: Tree[ResolvedLayer], outer: Tree[ResolvedLayer]) -> str:
    padding = f"{names(outer)} pads what it reads"
    if leak.cause == "bias":
        return f"{padding}, but {described(inner)} is not zero outside the image"
    if leak.cause == "window":
        return f"{padding}, but {described(inner)} sees the image from outside it"
    modes = sorted(
        {
            axis.padding_mode
            for leaf in (*leaves(inner), *leaves(outer))
            for axis in leaf.geometry.axes
        }
        - {"zeros"}
    )
    return f"{padding}, but {' and '.join(modes)} padding does not pass {described(inner)}"


def described(tree: Tree[ResolvedLayer]) -> str:
    """`body.0 (3x3, bias)`."""
    facts = []
    for leaf in leaves(tree):
        bias = ", bias" if leaf.geometry.bias else ""
        facts.append(f"{leaf.label} ({kernel(leaf.geometry)}{bias})")
    return " then ".join(facts)


def names(tree: Tree[ResolvedLayer]) -> str:
    return " + ".join(leaf.label for leaf in leaves(tree))


def _at(tree: Tree[ResolvedLayer], link: Sequence[int]) -> Tree[ResolvedLayer]:
    for index in link:
        tree = _children(tree)[index]
    return tree


def _before(tree: Tree[ResolvedLayer], link: Sequence[int]) -> Tree[ResolvedLayer]:
    """The part of the chain in front of the blamed link."""
    chain = _at(tree, link[:-1])
    return Chain(_children(chain)[: link[-1]])


def _children(tree: Tree[ResolvedLayer]) -> tuple[Tree[ResolvedLayer], ...]:
    if isinstance(tree, Chain):
        return tree.links
    return tree.branches if isinstance(tree, Sum) else ()


def _size_hint(leaks: Sequence[Leak]) -> str:
    if not all(leak.depends_on_size for leak in leaks):
        return ""
    exact = sorted(set.intersection(*(set(leak.exact_sizes) for leak in leaks)))
    sizes = [size for size in exact if size > leaks[0].sizes[len(leaks[0].sizes) // 2]] or exact
    if not sizes:
        return ""
    shown = ", ".join(map(str, sizes[:3]))
    return f" (sizes such as {shown} are exact: give input: if only such a size matters)"
