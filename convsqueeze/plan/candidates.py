"""One entry -> one merge, or why there is none: geometry, border policy and cost of it alone.

Knows no other entries, no conflicts between them and no growth: those are for the plan.
"""

from dataclasses import dataclass, replace
from functools import reduce
from math import prod

import torch

from convsqueeze.algebra.border.leaks import leaks
from convsqueeze.algebra.border.taps import corrections
from convsqueeze.algebra.geometry import Geometry
from convsqueeze.algebra.sizes import smallest_size
from convsqueeze.algebra.tree import Tree, at, leaves
from convsqueeze.errors import GeometryError
from convsqueeze.manifest import (
    Border,
    Entry,
    unbound,
)
from convsqueeze.plan.model import Merge, geometry_tree
from convsqueeze.plan.parameters import Infos, Problem
from convsqueeze.plan.resolve import ResolvedLayer, resolve
from convsqueeze.plan.wording import border_refusal

NOMINAL_SIZE = 64
"""Samples on each axis that costs are told for, where the manifest fixes no input size."""


@dataclass(frozen=True)
class Candidate:
    """The merge of an entry, or its problems. `leaking`: the border policy is what refuses it."""

    merge: Merge | None
    problems: tuple[Problem, ...] = ()
    leaking: bool = False


def candidate(place: str, entry: Entry, infos: Infos, policy: Border) -> Candidate:
    """The merge of an entry without placeholders; `place` names it in messages."""
    tree, geometry, problems = resolve(entry, infos)
    problems += entry_problems(entry, infos)
    if tree is None or geometry is None or problems:
        return Candidate(None, tuple(problems))
    return candidate_of(place, entry, tree, geometry, infos, policy)


def candidate_of(
    place: str,
    entry: Entry,
    tree: Tree[ResolvedLayer],
    geometry: Geometry,
    infos: Infos,
    policy: Border,
) -> Candidate:
    """As `candidate`, for an entry whose layers are found: `tree`, merged to `geometry`."""
    try:
        plain = _merge(place, entry, tree, geometry, infos)
    except GeometryError as error:
        return Candidate(None, (Problem((), str(error)),))
    try:
        merge = _closer_look(plain)
    except GeometryError as error:
        if policy == "corrected":
            return Candidate(None, (Problem((), str(error)),))
        merge = plain
    if merge.leaks and policy == "exact":
        problem = Problem(_blamed(merge), border_refusal(merge))
        return Candidate(None, (problem,), leaking=True)
    corrected = policy == "corrected" and merge.exact_by is not None
    return Candidate(replace(merge, corrected=corrected))


def _closer_look(merge: Merge) -> Merge:
    """The merge with what makes it exact; without leaks where a closer look than that of `leaks`
    finds nothing wrong.
    """
    if not merge.leaks:
        return merge
    found = corrections(merge.geometry_tree, merge.input_size)
    return replace(merge, exact_by=found, leaks=merge.leaks if found else ())


def _merge(
    place: str, entry: Entry, tree: Tree[ResolvedLayer], geometry: Geometry, infos: Infos
) -> Merge:
    dropped = [name for given in entry.drop for name in dropped_keys(given, infos)]
    consumed = tuple(
        dict.fromkeys([*(key for leaf in leaves(tree) for key in leaf.keys), *dropped])
    )
    counters = {key for leaf in leaves(tree) for key in leaf.counters}
    shapes = geometry_tree(tree)
    rank = len(geometry.axes)
    if entry.input is not None and len(entry.input) != rank:
        raise GeometryError(f"input has {len(entry.input)} numbers for {rank} axes")
    smallest = [smallest_size(shapes, axis) for axis in range(rank)]
    if entry.input is not None and any(n < s for n, s in zip(entry.input, smallest, strict=True)):
        raise GeometryError(
            f"input {list(entry.input)} is smaller than the smallest the layers take, {smallest}"
        )
    return Merge(
        place=place,
        into=_into(entry, tree),
        tree=tree,
        geometry=geometry,
        leaks=leaks(shapes, entry.input),
        input_size=entry.input,
        dtype=_dtype(tree, infos),
        consumed=consumed,
        weights_before=sum(prod(infos[key].shape) for key in consumed if key not in counters),
        size=entry.input or tuple(max(n, NOMINAL_SIZE) for n in smallest),
    )


def _into(entry: Entry, tree: Tree[ResolvedLayer]) -> str:
    if entry.into is not None:
        return entry.into
    return next((leaf.layer.name for leaf in leaves(tree) if leaf.layer.name), "")


def _blamed(merge: Merge) -> tuple[str | int, ...]:
    """The key of the layer whose padding leaks."""
    return next(leaves(at(merge.tree, merge.leaks[0].link))).path


def entry_problems(entry: Entry, infos: Infos) -> list[Problem]:
    problems = [
        Problem(("drop",), f"{name} is neither a layer nor a tensor of the checkpoint")
        for name in entry.drop
        if not dropped_keys(name, infos)
    ]
    if unbound(entry):
        names = ", ".join(f"{{{name}}}" for name in unbound(entry))
        problems.append(Problem((), f"{names} stands in no layer's name, so nothing fills it in"))
    return problems


def dropped_keys(name: str, infos: Infos) -> list[str]:
    return [key for key in infos if key == name or key.startswith(f"{name}.")]


def _dtype(tree: Tree[ResolvedLayer], infos: Infos) -> torch.dtype:
    """What the merged tensors are stored in: the dtype of the layers' kernels.

    A norm or a bias kept in float32 beside half kernels does not widen them.
    """
    weights = [leaf.parameters["weight"] for leaf in leaves(tree) if leaf.layer.mixes_channels]
    every = [parameter for leaf in leaves(tree) for parameter in leaf.parameters.values()]
    dtypes = [infos[key].dtype for parameter in weights or every for key in parameter.keys]
    return reduce(torch.promote_types, dtypes, dtypes[0])
