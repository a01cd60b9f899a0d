"""A manifest's layers with their tensors and geometry, and the operators they make.

Planning builds the operators from shapes alone (tensors on the meta device), squeezing from values:
the same functions serve both. Holds no tensor data.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from convsqueeze.algebra.conv import Conv
from convsqueeze.algebra.geometry import Geometry, add, compose
from convsqueeze.algebra.tree import Chain, Sum, Tree
from convsqueeze.algebra.tree import leaves as tree_leaves
from convsqueeze.errors import GeometryError
from convsqueeze.manifest import Entry, KeyPath, Layer
from convsqueeze.plan.order import Ends, fitting_order, misfit
from convsqueeze.plan.parameters import (
    Infos,
    Load,
    NamedLayer,
    Parameter,
    Problem,
    find,
)


@dataclass(frozen=True)
class ResolvedLayer:
    """One layer of the manifest with its tensors and its geometry.

    `parameters` maps torch's names (`weight`, `bias`, `running_mean`, ...) to where they are;
    `counters` are tensors that go with the layer and hold no weights.
    """

    layer: Layer
    path: KeyPath
    parameters: Mapping[str, Parameter]
    counters: tuple[str, ...]
    geometry: Geometry

    @property
    def label(self) -> str:
        return self.layer.label

    @property
    def rank(self) -> int:
        return len(self.geometry.axes)

    @property
    def keys(self) -> tuple[str, ...]:
        """Every tensor of the checkpoint that belongs to the layer."""
        stored = [key for parameter in self.parameters.values() for key in parameter.keys]
        return (*stored, *self.counters)

    def conv(self, load: Load) -> Conv:
        """The layer's operator with its values. Raises TensorDataError for those that make none."""
        tensors = {role: parameter.values(load) for role, parameter in self.parameters.items()}
        self.layer.check_values(tensors, self._places)
        return self.layer.operator(tensors, self.rank, self.geometry.in_channels)

    def value_notes(self, load: Load) -> list[str]:
        """Values that are merged, though no training gives them."""
        return self.layer.value_notes(self._places, load)

    @property
    def _places(self) -> dict[str, str]:
        """By role, the tensor that messages name."""
        return {role: parameter.keys[0] for role, parameter in self.parameters.items()}


def resolve(
    entry: Entry, infos: Infos
) -> tuple[Tree[ResolvedLayer] | None, Geometry | None, list[Problem]]:
    """The entry's layers with their tensors and geometry, the merged geometry, and what is wrong.

    With problems the first two may be None.
    """
    problems: list[Problem] = []
    named = find(entry, (), infos, problems)
    if named is None or problems:
        return None, None, problems
    rank = told_rank(entry, named)
    if rank is None:
        reason = "no convolution here tells the number of axes. Give input: [H, W]"
        return None, None, [Problem((), reason)]
    tree, geometry = _place(named, rank, told_channels(named), problems)
    return tree, geometry, problems


def told_rank(entry: Entry, tree: Tree[NamedLayer]) -> int | None:
    """The number of spatial axes: a convolution's, or as the manifest tells."""
    told: list[int] = [] if entry.input is None else [len(entry.input)]
    for leaf in tree_leaves(tree):
        rank = leaf.layer.kernel_rank(leaf.shapes)
        if rank is not None:
            return rank
        if leaf.layer.listed_rank is not None:
            told.append(leaf.layer.listed_rank)
    if not told and any(leaf.layer.mixes_channels for leaf in tree_leaves(tree)):
        return 0
    return told[0] if told else None


def told_channels(tree: Tree[NamedLayer]) -> int | None:
    """The channels that enter, told by the first layer whose weights say so."""
    if isinstance(tree, Chain):
        for link in tree.links:
            channels = told_channels(link)
            if channels is not None:
                return channels
        return None
    if isinstance(tree, Sum):
        return next(filter(None, map(told_channels, tree.branches)), None)
    return tree.layer.infer_in_channels(tree.shapes)


_NO_CHANNELS = "has no channels, at least one was needed. Leave the entry out"

Placed = tuple[Tree[ResolvedLayer] | None, Geometry | None]


def _place(
    tree: Tree[NamedLayer], rank: int, channels: int | None, problems: list[Problem]
) -> Placed:
    """Every layer with its geometry, given the channels that enter, and that of the whole.

    What does not fit is added to `problems`; the rest is placed all the same, as far as its own
    tensors tell, so that one run tells everything.
    """
    if isinstance(tree, Chain):
        return _place_chain(tree, rank, channels, problems)
    if isinstance(tree, Sum):
        return _place_sum(tree, rank, channels, problems)
    if channels is None:
        channels = told_channels(tree)
    if channels == 0:
        problems.append(Problem(tree.path, f"{tree.layer.label}: {_NO_CHANNELS}"))
        return None, None
    if channels is None:
        if not problems:  # else it is the misfit before that hides the channels
            reason = "nothing here tells the number of channels. Name a layer that has weights"
            problems.append(Problem(tree.path, f"{tree.layer.label}: {reason}"))
        return None, None
    try:
        geometry = tree.layer.operator(tree.meta(), rank, channels).geometry
    except GeometryError as error:
        problems.append(Problem(tree.path, f"{tree.layer.label}: {error}"))
        return None, None
    if not geometry.in_channels or not geometry.out_channels:
        problems.append(Problem(tree.path, f"{tree.layer.label}: {_NO_CHANNELS}"))
        return None, None
    return (
        ResolvedLayer(tree.layer, tree.path, tree.parameters, tree.counters, geometry),
        geometry,
    )


def _place_chain(
    chain: Chain[NamedLayer], rank: int, channels: int | None, problems: list[Problem]
) -> Placed:
    placed: list[Tree[ResolvedLayer]] = []
    whole: Geometry | None = None
    misplaced, order = _misplaced(chain, rank)
    for index, link in enumerate(chain.links):
        known = len(problems)
        tree, geometry = _place(link, rank, channels, problems)
        if tree is not None:
            placed.append(tree)
        if index == 0:
            whole = geometry
        elif whole is not None and geometry is not None:
            whole = _combined(compose, geometry, whole, link, problems)
        else:
            whole = None
        if index == misplaced and len(problems) > known:
            problems[known] = replace(problems[known], reason=f"{problems[known].reason}. {order}")
        rest = Chain(chain.links[index + 1 :])
        leaving = _leaving(tree) if geometry is None else geometry.out_channels
        channels = told_channels(rest) if leaving is None else leaving
    return (Chain(tuple(placed)), whole) if len(placed) == len(chain.links) else (None, None)


def _leaving(tree: Tree[ResolvedLayer] | None) -> int | None:
    """The channels that leave layers which need not be one convolution."""
    while isinstance(tree, Chain | Sum):
        parts = tree.links[-1:] if isinstance(tree, Chain) else tree.branches[:1]
        tree = parts[0] if parts else None
    return tree.geometry.out_channels if tree is not None else None


def _misplaced(chain: Chain[NamedLayer], rank: int) -> tuple[int | None, str]:
    """The first link whose channels do not fit though another order's would, and that order."""
    try:
        ends = [_ends(link, rank) for link in chain.links]
    except GeometryError:  # what a link is must be told before where it belongs
        return None, ""
    wrong = misfit(ends)
    order = fitting_order(ends) if wrong is not None else None
    if order is None:
        return None, ""
    names = " then ".join(_name(chain.links[index]) for index in order)
    return wrong, f"{names} would fit: are they given in the wrong order?"


def _name(tree: Tree[NamedLayer]) -> str:
    labels = [leaf.layer.label for leaf in tree_leaves(tree)]
    return labels[0] if len(labels) == 1 else f"({', '.join(labels)})"


def _ends(tree: Tree[NamedLayer], rank: int) -> Ends:
    """The channels that enter and leave. Raises GeometryError where they are not known."""
    if isinstance(tree, Chain | Sum):
        parts = tree.links if isinstance(tree, Chain) else tree.branches
        told = [ends for part in parts if (ends := _ends(part, rank)) is not None]
        if isinstance(tree, Chain) and misfit(told) is not None:
            raise GeometryError("channels that do not chain")
        return (told[0][0], told[-1][1]) if told else None
    channels = told_channels(tree)
    if channels is None:
        return None
    geometry = tree.layer.operator(tree.meta(), rank, channels).geometry
    return geometry.in_channels, geometry.out_channels


def _place_sum(
    branches: Sum[NamedLayer], rank: int, channels: int | None, problems: list[Problem]
) -> Placed:
    found = [_place(branch, rank, channels, problems) for branch in branches.branches]
    placed = tuple(tree for tree, _ in found if tree is not None)
    whole = found[0][1]
    for branch, (_, geometry) in zip(branches.branches[1:], found[1:], strict=True):
        if whole is None or geometry is None:
            whole = None
            break
        whole = _combined(add, whole, geometry, branch, problems)
    return (Sum(placed), whole) if len(placed) == len(found) else (None, None)


def _combined(
    operation: Callable[[Geometry, Geometry], Geometry],
    left: Geometry,
    right: Geometry,
    blamed: Tree[NamedLayer],
    problems: list[Problem],
) -> Geometry | None:
    try:
        return operation(left, right)
    except GeometryError as error:
        first = next(tree_leaves(blamed))
        problems.append(Problem(first.path, f"{first.layer.label}: {error}"))
        return None
