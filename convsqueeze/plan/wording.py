"""How a plan speaks of layers and borders: sentences for refusals, notes and tables."""

from collections.abc import Sequence
from itertools import takewhile

from convsqueeze.algebra.border.mismatches import Mismatch
from convsqueeze.algebra.geometry import Geometry
from convsqueeze.algebra.tree import Chain, Tree, at, children, leaves
from convsqueeze.plan.model import Form, FormName, Merge
from convsqueeze.plan.resolve import ResolvedLayer

_SIDES = {
    1: (("start", "end"),),
    2: (("top", "bottom"), ("left", "right")),
    3: (("front", "back"), ("top", "bottom"), ("left", "right")),
}
_LINES = {1: ("sample",), 2: ("row", "column"), 3: ("slice", "row", "column")}


def kernel(geometry: Geometry) -> str:
    """`3x3`, `5x1`, or `linear`."""
    return "x".join(map(str, geometry.kernel_size)) or "linear"


def rows_text(mismatches: Sequence[Mismatch], rank: int) -> str:
    """`1 output row on every side`, or side by side; sides that only some sizes spoil come last."""
    always = [one for one in mismatches if not one.depends_on_size]
    sometimes = [one for one in mismatches if one.depends_on_size]
    if len(always) == 2 * rank and len({one.rows for one in always}) == 1:
        return f"{_lines(always[0].rows, 'output row')} on every side"
    sides = [", ".join(_side(one, rank) for one in part) for part in (always, sometimes) if part]
    if sometimes:
        sides[-1] = f"for some input sizes {sides[-1]}"
    return " and ".join(sides)


def _side(one: Mismatch, rank: int) -> str:
    side = _SIDES[rank][one.axis][0 if one.side == "low" else 1]
    return f"{_lines(one.rows, _LINES[rank][one.axis])} at the {side}"


def _lines(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def part_name(leaf: ResolvedLayer, prefix: str) -> str:
    """A layer in a table, `expand 3x3` or `bn`; `prefix` is left away."""
    label = leaf.label.removeprefix(prefix)
    return f"{label} {kernel(leaf.geometry)}" if leaf.layer.has_taps else label


def common_stem(names: Sequence[str]) -> str:
    """The dotted components that all names begin with, final dot included."""
    stems = [name.split(".")[:-1] for name in names]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*stems, strict=False))
    return "".join(f"{parts[0]}." for parts in shared)


def border_refusal(merge: Merge) -> str:
    """Why the plain merge is not exact, where, and what can be done about it at which cost."""
    tree, mismatches = merge.tree, merge.mismatches
    outer = at(tree, mismatches[0].link)
    inner = _before(tree, mismatches[0].link)
    plain, *corrected = merge.forms[1:]
    exactly = "".join(f"border: corrected (exact, {_cost(merge, f)}) or " for f in corrected)
    return (
        f"{_reason(mismatches[0], inner, outer)}, so no plain convolution is exact: "
        f"{rows_text(mismatches, len(merge.geometry.axes))} would differ. Use {exactly}"
        f"border: interior to accept that ({_cost(merge, plain)}){_size_hint(mismatches)}, "
        "or leave these layers apart."
    )


def _cost(merge: Merge, form: Form) -> str:
    """`18,512 -> 12,688 weights`."""
    return f"{merge.weights_before:,} -> {form.weights:,} weights"


FORMS: dict[FormName, str] = {
    "apart": "layers apart",
    "plain": "plain",
    "bias": "corrected: bias at the border",
    "strips": "corrected: strips at the border",
}
"""What forms are called."""


def grows(before: int, after: int) -> str:
    return f"would grow from {before:,} to {after:,} weights ({after / before:.1f} times)"


def speed_note(merge: Merge) -> str | None:
    """Says where a merge saves no time; None where it does, or makes no difference to tell."""
    if merge.pays:
        return None
    times = f"{merge.macs_after / merge.macs_before if merge.macs_before else 1.0:.2g}"
    many = "as many multiplications as" if times == "1" else f"{times} times the multiplications of"
    return f"{merge.into} does {many} the layers apart: it may well not be faster"


def _reason(one: Mismatch, inner: Tree[ResolvedLayer], outer: Tree[ResolvedLayer]) -> str:
    padding = f"{' + '.join(leaf.label for leaf in leaves(outer))} pads what it reads"
    if one.cause == "bias":
        return f"{padding}, but {described(inner)} is not zero outside the image"
    if one.cause == "window":
        return f"{padding}, but {described(inner)} sees the image from outside it"
    axes = (axis for leaf in (*leaves(inner), *leaves(outer)) for axis in leaf.geometry.axes)
    modes = " and ".join(sorted({axis.padding_mode for axis in axes} - {"zeros"}))
    return f"{padding}, but {modes} padding does not pass {described(inner)}"


def described(tree: Tree[ResolvedLayer]) -> str:
    """`body.0 (3x3, bias)`."""
    return " then ".join(
        f"{leaf.label} ({kernel(leaf.geometry)}{', bias' if leaf.geometry.bias else ''})"
        for leaf in leaves(tree)
    )


def _before(tree: Tree[ResolvedLayer], link: Sequence[int]) -> Tree[ResolvedLayer]:
    """All that the blamed link follows, in whichever chain around it."""
    found: list[Tree[ResolvedLayer]] = []
    for index in link:
        if isinstance(tree, Chain):
            found += tree.links[:index]
        tree = children(tree)[index]
    return Chain(tuple(found))


def _size_hint(mismatches: Sequence[Mismatch]) -> str:
    """Sizes past every kernel that are exact on all sides, if there are any."""
    exact = set.intersection(*(set(one.exact_sizes) for one in mismatches))
    middle = mismatches[0].sizes[len(mismatches[0].sizes) // 2]
    large = ", ".join(map(str, [size for size in sorted(exact) if size > middle][:3]))
    hint = f" (sizes such as {large} are exact: give input: if only such a size matters)"
    return hint if large else ""
