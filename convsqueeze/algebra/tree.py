"""Chains and sums of anything: the shape that a merge has, whatever stands at its leaves."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

Leaf = TypeVar("Leaf")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Chain(Generic[Leaf]):
    """Links in execution order: the first takes the input."""

    links: "tuple[Tree[Leaf], ...]"


@dataclass(frozen=True)
class Sum(Generic[Leaf]):
    """Branches that all take the input and whose outputs are added."""

    branches: "tuple[Tree[Leaf], ...]"


Tree: TypeAlias = Leaf | Chain[Leaf] | Sum[Leaf]


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


def leaves(tree: Tree[Leaf]) -> Iterator[Leaf]:
    """Every leaf, in execution order."""
    if isinstance(tree, Chain):
        for link in tree.links:
            yield from leaves(link)
    elif isinstance(tree, Sum):
        for branch in tree.branches:
            yield from leaves(branch)
    else:
        yield tree
