"""One entry -> one merge, or why there is none: geometry, border policy and cost of it alone.

Knows no other entries, no conflicts between them and no growth: those are for the plan.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import torch

from convsqueeze.algebra.border.mismatches import mismatches
from convsqueeze.algebra.border.taps import corrections
from convsqueeze.algebra.geometry import Geometry
from convsqueeze.algebra.sizes import smallest_size
from convsqueeze.algebra.tree import Tree, at, leaves
from convsqueeze.errors import GeometryError
from convsqueeze.graph import LayerOp
from convsqueeze.manifest import Border, Request
from convsqueeze.plan.model import Merge, geometry_tree
from convsqueeze.plan.parameters import Infos, Problem, dropped_keys
from convsqueeze.plan.resolve import ResolvedLayer, resolve
from convsqueeze.plan.wording import border_refusal

NOMINAL_SIZE = 64
"""Samples on each axis that costs are told for, where the manifest fixes no input size."""


def candidate(
    place: str, request: Request[LayerOp], infos: Infos, policy: Border
) -> Merge | list[Problem]:
    """The merge that is asked for, else what is wrong with it; `place` names it in messages."""
    resolved, geometry, problems = resolve(request, infos)
    if resolved is None or geometry is None or problems:
        return problems
    found = candidate_of(place, resolved, geometry, infos, policy)
    return found if isinstance(found, Merge) else [found]


def candidate_of(
    place: str, request: Request[ResolvedLayer], geometry: Geometry, infos: Infos, policy: Border
) -> Merge | Problem:
    """As `candidate`, for a request whose layers are resolved, merged to `geometry`."""
    try:
        merge = _plain(place, request, geometry, infos)
    except GeometryError as error:
        return Problem((), str(error))
    try:
        found = corrections(merge.geometry_tree, merge.input_size) if merge.mismatches else None
    except GeometryError as error:
        if policy == "corrected":
            return Problem((), str(error))
    else:
        merge = replace(merge, exact_by=found)
    if merge.mismatches and policy == "exact":
        blamed = next(iter(leaves(at(merge.tree, merge.mismatches[0].link))))
        return Problem(blamed.path, border_refusal(merge), "border")
    return replace(merge, corrected=policy == "corrected" and merge.exact_by is not None)


def _plain(place: str, request: Request[ResolvedLayer], geometry: Geometry, infos: Infos) -> Merge:
    layers, shapes = request.region.layers, geometry_tree(request.region.expression)
    dropped = [key for name in request.drop for key in dropped_keys(name, infos)]
    consumed = tuple(dict.fromkeys([*(key for op in layers for key in op.keys), *dropped]))
    counters = {key for op in layers for key in op.counters}
    size = size_entering(shapes, request.input_size)
    return Merge(
        place=place,
        into=request.into or next((op.layer.name for op in layers if op.layer.name), ""),
        request=request,
        geometry=geometry,
        mismatches=mismatches(shapes, request.input_size),
        dtype=_dtype(layers, infos),
        consumed=consumed,
        weights_before=sum(infos[key].numel for key in consumed if key not in counters),
        size=size,
    )


def size_entering(tree: Tree[Geometry], given: Sequence[int] | None) -> tuple[int, ...]:
    """The size of the image that enters: the one given, else the nominal one.

    Raises GeometryError for one that the layers do not take, or where they take none.
    """
    rank = len(next(iter(leaves(tree))).axes)
    if given is not None and len(given) != rank:
        raise GeometryError(f"input has {len(given)} numbers for {rank} axes")
    smallest = [smallest_size(tree, axis) for axis in range(rank)]
    if given is None:
        return tuple(max(n, NOMINAL_SIZE) for n in smallest)
    if any(n < s for n, s in zip(given, smallest, strict=True)):
        raise GeometryError(
            f"input {list(given)} is smaller than the smallest the layers take, {smallest}"
        )
    return tuple(given)


def _dtype(layers: Sequence[ResolvedLayer], infos: Infos) -> torch.dtype:
    """What the merged tensors are stored in: the dtype of the layers' kernels.

    A norm or a bias kept in float32 beside half kernels does not widen them.
    """
    kernels = [op.parameters["weight"] for op in layers if op.layer.mixes_channels]
    every = kernels or [parameter for op in layers for parameter in op.parameters.values()]
    dtypes = (infos[key].dtype for parameter in every for key in parameter.keys)
    return reduce(torch.promote_types, dtypes)
