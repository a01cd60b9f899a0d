"""Which module of a model takes a merged layer, and what the other merged modules must do then.

Which module may be replaced follows from the shape of the merge: in a chain the other layers pass
their input on, in a sum the other branches add nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Generic

from convsqueeze.algebra.tree import Chain, Sum, Tree, children, leaves
from convsqueeze.graph.region import L


@dataclass(frozen=True)
class Replaced(Generic[L]):
    """A module that did a part of a merge. Now it passes its input on, or else it gives zeros.

    Zeros that are added to the merged layer's output (`beside` it) have that shape. Zeros that are
    added to a value which passes have the shape of the module's input.
    """

    name: str
    passes: bool
    tree: Tree[L]
    beside: bool = False


@dataclass(frozen=True)
class Placement(Generic[L]):
    """The module that takes the merged layer, and those that fall silent.

    `into` is "" where it is none of those that did the merge; else `tree` is what it did.
    """

    into: str
    replaced: tuple[Replaced[L], ...]
    tree: Tree[L] | None = None


Unit = Callable[[Tree[L]], str | None]
"""Gives the module that does a part of a merge and nothing else."""


def placement(
    tree: Tree[L], unit: Unit[L], may_take: Callable[[str], bool] = lambda name: True
) -> Placement[L] | None:
    """Where a merge goes in a model: the module that does all of it, else its first part that has a
    place, among those that `may_take` it; None where the model's code would go on doing some of it.
    """
    whole = unit(tree)
    if whole and may_take(whole):
        return Placement(whole, (), tree)
    tree = _in_units(tree, unit)
    for index, part in enumerate(children(tree)):
        inside = placement(part, unit, may_take)
        silent = _others_replaced(tree, index, unit, beside=True) if inside else None
        if inside is not None and silent is not None:
            return Placement(inside.into, (*inside.replaced, *silent), inside.tree)
    return None


def replaced_modules(
    tree: Tree[L], unit: Unit[L], *, passes: bool, beside: bool = False
) -> tuple[Replaced[L], ...] | None:
    """The modules of a part of a merge that passes its input on, or adds nothing, `beside` the
    merged layer or what passes; None where its code does some of it.
    """
    if whole := unit(tree):
        return (Replaced(whole, passes, tree, beside and not passes),)
    tree = _in_units(tree, unit)
    if isinstance(tree, Chain):
        last = len(tree.links) - 1
        return _together(
            replaced_modules(link, unit, passes=passes or index < last, beside=beside)
            for index, link in enumerate(tree.links)
        )
    if isinstance(tree, Sum) and passes:
        return _one_passes(tree, unit)
    if isinstance(tree, Sum):
        return _together(
            replaced_modules(way, unit, passes=False, beside=beside) for way in tree.branches
        )
    return () if passes and tree.layer.is_identity else None


def _others_replaced(
    tree: Tree[L], index: int, unit: Unit[L], *, beside: bool
) -> tuple[Replaced[L], ...] | None:
    """All parts but one: the other links pass, the other branches add nothing, `beside` the merged
    layer or what passes.
    """
    return _together(
        replaced_modules(part, unit, passes=isinstance(tree, Chain), beside=beside)
        for number, part in enumerate(children(tree))
        if number != index
    )


def _one_passes(tree: Sum[L], unit: Unit[L]) -> tuple[Replaced[L], ...] | None:
    """One branch, a skip in the model's code where there is one, passes; the others add nothing."""
    are_skips = [all(op.layer.is_identity for op in leaves(way)) for way in tree.branches]
    for index in sorted(range(len(are_skips)), key=lambda index: not are_skips[index]):
        others = _others_replaced(tree, index, unit, beside=False)
        one = replaced_modules(tree.branches[index], unit, passes=True)
        if one is not None and others is not None:
            return (*one, *others)
    return None


def _together(found: Iterator[tuple[Replaced[L], ...] | None]) -> tuple[Replaced[L], ...] | None:
    every: list[tuple[Replaced[L], ...]] = []
    for part in found:
        if part is None:
            return None
        every.append(part)
    return tuple(chain.from_iterable(every))


def _in_units(tree: Tree[L], unit: Unit[L]) -> Tree[L]:
    """A chain with every run of links that one module does, the longest first, as one link."""
    if not isinstance(tree, Chain):
        return tree
    links: list[Tree[L]] = []
    start, count = 0, len(tree.links)
    while start < count:
        for end in range(count if start else count - 1, start + 1, -1):
            run: Tree[L] = Chain(tree.links[start:end])
            if unit(run) is not None:
                break
        else:
            end, run = start + 1, tree.links[start]
        links.append(run)
        start = end
    return Chain(tuple(links))
