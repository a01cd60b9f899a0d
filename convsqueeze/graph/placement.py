"""Which module of a model takes a merged layer, and what the other merged modules must do then.

Which module may be replaced follows from the shape of the merge: in a chain the other layers pass
their input on, in a sum the other branches add nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic

from convsqueeze.algebra.tree import Chain, Leaf, Sum, Tree, children, leaves


@dataclass(frozen=True)
class Replaced(Generic[Leaf]):
    """A module that did a part of a merge. Now it passes its input on, or else it gives zeros.

    Zeros that are added to the merged layer's output (`beside` it) have that shape. Zeros that are
    added to a value which passes have the shape of the module's input.
    """

    name: str
    passes: bool
    tree: Tree[Leaf]
    beside: bool = False


@dataclass(frozen=True)
class Placement(Generic[Leaf]):
    """The module that takes the merged layer, and those that fall silent.

    `into` is "" where it is none of those that did the merge; else `tree` is what it did.
    """

    into: str
    replaced: tuple[Replaced[Leaf], ...]
    tree: Tree[Leaf] | None = None


@dataclass(frozen=True)
class Modules(Generic[Leaf]):
    """What is known of a model: `unit` gives the module that does a part of a merge and nothing
    else, `is_identity` says that a leaf is a skip in the model's own code, and `may_take` whether a
    module may take the merged layer.
    """

    unit: Callable[[Tree[Leaf]], str | None]
    is_identity: Callable[[Leaf], bool]
    may_take: Callable[[str], bool] = lambda name: True


def placement(tree: Tree[Leaf], modules: Modules[Leaf]) -> Placement[Leaf] | None:
    """Where a merge goes in a model: the module that does all of it, else its first part that has a
    place; None where the model's code would go on doing some of it.
    """
    unit = modules.unit(tree)
    if unit and modules.may_take(unit):
        return Placement(unit, (), tree)
    tree = _in_units(tree, modules)
    for index, part in enumerate(children(tree)):
        inside = placement(part, modules)
        silent = _others_replaced(tree, index, modules, beside=True) if inside else None
        if inside is not None and silent is not None:
            return Placement(inside.into, (*inside.replaced, *silent), inside.tree)
    return None


def replaced_modules(
    tree: Tree[Leaf],
    modules: Modules[Leaf],
    *,
    passes: bool,
    beside: bool = False,
) -> tuple[Replaced[Leaf], ...] | None:
    """The modules of a part of a merge that passes its input on, or adds nothing, `beside` the
    merged layer or what passes; None where its code does some of it.
    """
    if unit := modules.unit(tree):
        return (Replaced(unit, passes, tree, beside and not passes),)
    tree = _in_units(tree, modules)
    if isinstance(tree, Chain):
        last = len(tree.links) - 1
        return _together(
            replaced_modules(link, modules, passes=passes or index < last, beside=beside)
            for index, link in enumerate(tree.links)
        )
    if isinstance(tree, Sum) and passes:
        return _one_passes(tree, modules)
    if isinstance(tree, Sum):
        return _together(
            replaced_modules(way, modules, passes=False, beside=beside) for way in tree.branches
        )
    return () if passes and modules.is_identity(tree) else None


def _others_replaced(
    tree: Tree[Leaf], index: int, modules: Modules[Leaf], *, beside: bool
) -> tuple[Replaced[Leaf], ...] | None:
    """All parts but one: the other links pass, the other branches add nothing, `beside` the merged
    layer or what passes.
    """
    return _together(
        replaced_modules(part, modules, passes=isinstance(tree, Chain), beside=beside)
        for number, part in enumerate(children(tree))
        if number != index
    )


def _one_passes(tree: Sum[Leaf], modules: Modules[Leaf]) -> tuple[Replaced[Leaf], ...] | None:
    """One branch, a skip in the model's code where there is one, passes; the others add nothing."""
    skips = [i for i, way in enumerate(tree.branches) if _is_skip(way, modules)]
    for index in (*skips, *range(len(tree.branches))):
        others = _others_replaced(tree, index, modules, beside=False)
        one = replaced_modules(tree.branches[index], modules, passes=True)
        if one is not None and others is not None:
            return (*one, *others)
    return None


def _is_skip(tree: Tree[Leaf], modules: Modules[Leaf]) -> bool:
    return all(modules.is_identity(leaf) for leaf in leaves(tree))


def _together(
    found: Iterator[tuple[Replaced[Leaf], ...] | None],
) -> tuple[Replaced[Leaf], ...] | None:
    every: list[Replaced[Leaf]] = []
    for part in found:
        if part is None:
            return None
        every += part
    return tuple(every)


def _in_units(tree: Tree[Leaf], modules: Modules[Leaf]) -> Tree[Leaf]:
    """A chain with every run of links that one module does, the longest first, as one link."""
    if not isinstance(tree, Chain):
        return tree
    links: list[Tree[Leaf]] = []
    start, count = 0, len(tree.links)
    while start < count:
        longest = min(count, start + count - 1)
        ends = (end for end in range(longest, start + 1, -1) if _is_unit(tree, start, end, modules))
        end = next(ends, start + 1)
        run = tree.links[start:end]
        links.append(run[0] if len(run) == 1 else Chain(run))
        start = end
    return Chain(tuple(links))


def _is_unit(chain: Chain[Leaf], start: int, end: int, modules: Modules[Leaf]) -> bool:
    return end - start > 1 and modules.unit(Chain(chain.links[start:end])) is not None
