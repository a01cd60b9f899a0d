"""One entry -> one merge, or why there is none: geometry, border policy and cost of it alone.

Knows no other entries, no conflicts between them and no growth: those are for the plan.
"""

from dataclasses import dataclass, replace
from functools import reduce
from math import prod
from typing import TypeVar

import torch

from convsqueeze.algebra.border.mismatches import mismatches
from convsqueeze.algebra.border.taps import corrections
from convsqueeze.algebra.geometry import Geometry
from convsqueeze.algebra.sizes import smallest_size
from convsqueeze.algebra.tree import at, leaves
from convsqueeze.errors import GeometryError
from convsqueeze.graph import LayerOp, Region
from convsqueeze.manifest import Border, Request
from convsqueeze.plan.model import Merge, geometry_tree
from convsqueeze.plan.parameters import Infos, Problem
from convsqueeze.plan.resolve import ResolvedLayer, resolve
from convsqueeze.plan.wording import border_refusal

L = TypeVar("L", bound=LayerOp)

NOMINAL_SIZE = 64
"""Samples on each axis that costs are told for, where the manifest fixes no input size."""


@dataclass(frozen=True)
class Candidate:
    """The merge of an entry, or its problems. `leaking`: the border policy is what refuses it."""

    merge: Merge | None
    problems: tuple[Problem, ...] = ()
    leaking: bool = False


def candidate(place: str, request: Request[LayerOp], infos: Infos, policy: Border) -> Candidate:
    """The merge that is asked for; `place` names it in messages."""
    region, geometry, problems = resolve(request.region, infos, request.input_size)
    problems += drop_problems(request, infos)
    if region is None or geometry is None or problems:
        return Candidate(None, tuple(problems))
    return candidate_of(place, replace(request, region=region), geometry, infos, policy)  # type: ignore[arg-type]


def candidate_of(
    place: str, request: Request[ResolvedLayer], geometry: Geometry, infos: Infos, policy: Border
) -> Candidate:
    """As `candidate`, for a region whose layers are resolved, merged to `geometry`."""
    try:
        merge = _merge(place, request, geometry, infos)
        merge = _with_corrections(merge, needed=policy == "corrected")
    except GeometryError as error:
        return Candidate(None, (Problem((), str(error)),))
    if merge.mismatches and policy == "exact":
        problem = Problem(_blamed(merge), border_refusal(merge))
        return Candidate(None, (problem,), leaking=True)
    corrected = policy == "corrected" and merge.exact_by is not None
    return Candidate(replace(merge, corrected=corrected))


def _with_corrections(merge: Merge, *, needed: bool) -> Merge:
    """The merge with what makes it exact, where the plain one is not.

    Raises GeometryError where that is too much, if it is `needed`.
    """
    if not merge.mismatches:
        return merge
    try:
        return replace(merge, exact_by=corrections(merge.geometry_tree, merge.input_size))
    except GeometryError:
        if needed:
            raise
        return merge


def _merge(place: str, request: Request[ResolvedLayer], geometry: Geometry, infos: Infos) -> Merge:
    region, fixed = request.region, request.input_size
    dropped = [name for given in request.drop for name in dropped_keys(given, infos)]
    consumed = tuple(dict.fromkeys([*(key for op in region.layers for key in op.keys), *dropped]))
    counters = {key for op in region.layers for key in op.counters}
    shapes = geometry_tree(region.expression)
    rank = len(geometry.axes)
    if fixed is not None and len(fixed) != rank:
        raise GeometryError(f"input has {len(fixed)} numbers for {rank} axes")
    smallest = [smallest_size(shapes, axis) for axis in range(rank)]
    if fixed is not None and any(n < s for n, s in zip(fixed, smallest, strict=True)):
        raise GeometryError(
            f"input {list(fixed)} is smaller than the smallest the layers take, {smallest}"
        )
    into = request.into or next((op.layer.name for op in region.layers if op.layer.name), "")
    return Merge(
        place=place,
        into=into,
        region=region,
        geometry=geometry,
        mismatches=mismatches(shapes, fixed),
        input_size=fixed,
        dtype=_dtype(region, infos),
        consumed=consumed,
        weights_before=sum(prod(infos[key].shape) for key in consumed if key not in counters),
        size=fixed or tuple(max(n, NOMINAL_SIZE) for n in smallest),
    )


def _blamed(merge: Merge) -> tuple[str | int, ...]:
    """The key of the layer whose padding the plain merge gets wrong."""
    return leaves(at(merge.tree, merge.mismatches[0].link))[0].path


def drop_problems(request: Request[L], infos: Infos) -> list[Problem]:
    return [
        Problem(("drop",), f"{name} is neither a layer nor a tensor of the checkpoint")
        for name in request.drop
        if not dropped_keys(name, infos)
    ]


def dropped_keys(name: str, infos: Infos) -> list[str]:
    return [key for key in infos if key == name or key.startswith(f"{name}.")]


def _dtype(region: Region[ResolvedLayer], infos: Infos) -> torch.dtype:
    """What the merged tensors are stored in: the dtype of the layers' kernels.

    A norm or a bias kept in float32 beside half kernels does not widen them.
    """
    weights = [op.parameters["weight"] for op in region.layers if op.layer.mixes_channels]
    every = [parameter for op in region.layers for parameter in op.parameters.values()]
    dtypes = [infos[key].dtype for parameter in weights or every for key in parameter.keys]
    return reduce(torch.promote_types, dtypes, dtypes[0])
