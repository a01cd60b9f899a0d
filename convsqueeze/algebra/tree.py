"""Chains and sums of anything: the shape that a merge has, whatever stands at its leaves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Generic, TypeAlias, TypeVar

Leaf = TypeVar("Leaf")
Leaf_co = TypeVar("Leaf_co", covariant=True)
Result = TypeVar("Result")
State = TypeVar("State")


@dataclass(frozen=True)
class Chain(Generic[Leaf_co]):
    """Links in execution order: the first takes the input."""

    links: "tuple[Tree[Leaf_co], ...]"


@dataclass(frozen=True)
class Sum(Generic[Leaf_co]):
    """Branches that all take the input and whose outputs are added."""

    branches: "tuple[Tree[Leaf_co], ...]"


Tree: TypeAlias = Leaf | Chain[Leaf] | Sum[Leaf]


def children(tree: Tree[Leaf]) -> "tuple[Tree[Leaf], ...]":
    """The links of a chain or the branches of a sum; a leaf has none."""
    if isinstance(tree, Chain):
        return tree.links
    return tree.branches if isinstance(tree, Sum) else ()


def at(tree: Tree[Leaf], place: "Sequence[int]") -> "Tree[Leaf]":
    """What stands where an index for each step leads."""
    for index in place:
        tree = children(tree)[index]
    return tree


def fold(
    tree: Tree[Leaf],
    leaf: Callable[[Leaf], Result],
    chain: Callable[[Sequence[Result]], Result],
    add: Callable[[Sequence[Result]], Result],
) -> Result:
    """The tree with every leaf, chain and sum replaced by what the three functions make of it."""
    if isinstance(tree, Chain):
        return chain([fold(link, leaf, chain, add) for link in tree.links])
    if isinstance(tree, Sum):
        return add([fold(branch, leaf, chain, add) for branch in tree.branches])
    return leaf(tree)


def mapped(tree: Tree[Leaf], leaf: Callable[[Leaf], Result]) -> "Tree[Result]":
    """The same tree with something else at its leaves."""
    return fold(tree, leaf, lambda links: Chain(tuple(links)), lambda ways: Sum(tuple(ways)))  # type: ignore[arg-type,return-value]


def leaves(tree: Tree[Leaf]) -> "tuple[Leaf, ...]":
    """Every leaf, in execution order."""
    found: list[Leaf] = []
    left: list[Tree[Leaf]] = [tree]
    while left:
        part = left.pop()
        if isinstance(part, Chain):
            left += reversed(part.links)
        elif isinstance(part, Sum):
            left += reversed(part.branches)
        else:
            found.append(part)
    return tuple(found)


def counted(
    tree: Tree[Leaf], state: State, step: Callable[[Leaf, State], tuple[int, State]]
) -> tuple[int, State]:
    """What `step` counts at all leaves together, and the state behind the tree.

    `step` is given a leaf and the state in front of it; branches of a sum all begin with the same
    and end with the same.
    """
    if isinstance(tree, Chain):
        total = 0
        for link in tree.links:
            count, state = counted(link, state, step)
            total += count
        return total, state
    if isinstance(tree, Sum):
        parts = [counted(branch, state, step) for branch in tree.branches]
        return sum(count for count, _ in parts), parts[0][1]
    return step(tree, state)


Step: TypeAlias = tuple[Leaf, bool]


def paths(tree: Tree[Leaf]) -> tuple[tuple[Step[Leaf], ...], ...]:
    """Every way through the tree, a chain of leaves each, whose sum is the tree.

    The flag of a leaf says whether this way counts what the leaf adds by itself: ways that share
    a leaf behind a sum would each add its bias, and only one of them may.
    """
    return fold(tree, lambda leaf: (((leaf, True),),), _ways_along, lambda ways: sum(ways, ()))


def _ways_along(
    links: Sequence[tuple[tuple[Step[Leaf], ...], ...]],
) -> tuple[tuple[Step[Leaf], ...], ...]:
    found = []
    for choice in product(*(range(len(ways)) for ways in links)):
        way: list[Step[Leaf]] = []
        for index, ways in enumerate(links):
            first = not any(choice[:index])
            way += [(leaf, counts and first) for leaf, counts in ways[choice[index]]]
        found.append(tuple(way))
    return tuple(found)
