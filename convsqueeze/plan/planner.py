"""Manifest + headers -> Plan: geometry, cost and every refusal at once, without tensor data.

Everything that can be refused from names, shapes and geometry is refused here. Knows no tensor
values, no arithmetic on them and no output.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import reduce
from math import prod

import torch

from convsqueeze.algebra.border.leaks import leaks
from convsqueeze.algebra.border.taps import corrections
from convsqueeze.algebra.geometry import Geometry
from convsqueeze.algebra.sizes import smallest_size
from convsqueeze.algebra.tree import Chain, Tree, leaves
from convsqueeze.checkpoint import Checkpoint
from convsqueeze.errors import GeometryError, ManifestError, PlanError
from convsqueeze.manifest import (
    Border,
    ConvLayer,
    ConvTransposeLayer,
    Entry,
    Expansion,
    LinearLayer,
    Manifest,
    expand,
    unbound,
)
from convsqueeze.plan.checks import conflicts, small_input_notes, sorted_by_growth, tie_notes
from convsqueeze.plan.model import Growth, Merge, Plan, geometry_tree
from convsqueeze.plan.parameters import Infos, Problem
from convsqueeze.plan.resolve import ResolvedLayer, resolve
from convsqueeze.plan.wording import border_refusal, speed_note

NOMINAL_SIZE = 64
"""Samples on each axis that costs are told for, where the manifest fixes no input size."""


@dataclass(frozen=True)
class _Candidate:
    place: str
    entry: Entry
    merge: Merge | None
    problems: tuple[str, ...]


def make_plan(
    manifest: Manifest,
    checkpoint: Checkpoint,
    *,
    border: Border | None = None,
    growth: Growth = "refuse",
) -> Plan:
    """The plan for merging `checkpoint` as `manifest` says.

    `border` overrides the manifest's policy for every entry; `growth` says what becomes of a merge
    that would store more numbers than it replaces.

    Raises PlanError with every problem and refusal there is.
    """
    infos = checkpoint.tensors
    candidates: list[_Candidate] = []
    notes: list[str] = []
    problems: list[str] = []
    for index, entry in enumerate(manifest.document.pairs):
        where = manifest.where(index)
        try:
            expansion = expand(entry, list(infos))
        except ManifestError as error:
            problems.append(f"{where}: {_sentence(str(error))}")
            continue
        if not expansion.entries:
            problems.append(f"{where}: {_sentence(_unmatched(expansion, infos))}")
        notes += [
            f"{where}: {name} matches in part and is left alone" for name in expansion.partial
        ]
        for binding, bound in expansion.entries:
            suffix = " (" + ", ".join(f"{k}={v}" for k, v in binding) + ")" if binding else ""
            policy = border or bound.border or manifest.document.border
            candidates.append(_candidate(manifest, index, suffix, bound, policy, infos))
    merges = [c.merge for c in candidates if c.merge is not None]
    problems += [problem for candidate in candidates for problem in candidate.problems]
    problems += conflicts(merges, infos)
    kept, refused, skipped = sorted_by_growth(merges, growth)
    if problems or refused:
        raise PlanError([*problems, *refused])
    notes += [*skipped, *tie_notes(kept, checkpoint.ties()), *small_input_notes(kept)]
    notes += filter(None, map(speed_note, kept))
    return Plan(manifest, tuple(kept), tuple(notes))


def _candidate(
    manifest: Manifest, index: int, suffix: str, entry: Entry, policy: Border, infos: Infos
) -> _Candidate:
    place = manifest.where(index) + suffix

    def told(problems: Sequence[Problem]) -> tuple[str, ...]:
        return tuple(
            f"{manifest.where(index, p.path)}{suffix}: {_sentence(p.reason)}" for p in problems
        )

    tree, geometry, problems = resolve(entry, infos)
    problems += _entry_problems(entry, infos)
    if tree is None or geometry is None or problems:
        return _Candidate(place, entry, None, told(problems))
    try:
        plain = _merge(place, entry, tree, geometry, infos)
    except GeometryError as error:
        return _Candidate(place, entry, None, told([Problem((), str(error))]))
    try:
        merge = _closer_look(plain)
    except GeometryError as error:
        if policy == "corrected":
            return _Candidate(place, entry, None, told([Problem((), str(error))]))
        merge = plain
    if merge.leaks and policy == "exact":
        reason = border_refusal(merge)
        return _Candidate(place, entry, None, told([Problem(_blamed(merge), reason)]))
    corrected = policy == "corrected" and merge.exact_by is not None
    return _Candidate(place, entry, replace(merge, corrected=corrected), ())


def _closer_look(merge: Merge) -> Merge:
    """The merge with what makes it exact; without leaks where a closer look than that of `leaks`
    finds nothing wrong.
    """
    if not merge.leaks:
        return merge
    found = corrections(merge.geometry_tree, merge.input_size)
    return replace(merge, exact_by=found, leaks=merge.leaks if found else ())


def _unmatched(expansion: Expansion, infos: Infos) -> str:
    """Why an entry with placeholders stands for nothing."""
    if not expansion.unmatched:
        names = " and ".join(expansion.templates)
        return f"no layers match {names} at once. See `convsqueeze inspect`."
    names = " and ".join(expansion.unmatched)
    stems = sorted({name.rpartition(".")[0] for name in infos} - {""})
    close = get_close_matches(expansion.unmatched[0], stems, n=3, cutoff=0.5)
    hint = (
        f"The nearest names are {' and '.join(close)}." if close else "See `convsqueeze inspect`."
    )
    return f"no layer matches {names}. {hint}"


def _merge(
    place: str, entry: Entry, tree: Tree[ResolvedLayer], geometry: Geometry, infos: Infos
) -> Merge:
    dropped = [name for given in entry.drop for name in _dropped(given, infos)]
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
    tree = merge.tree
    for index in merge.leaks[0].link:
        tree = tree.links[index] if isinstance(tree, Chain) else tree.branches[index]  # type: ignore[union-attr]
    return next(leaves(tree)).path


def _entry_problems(entry: Entry, infos: Infos) -> list[Problem]:
    problems = [
        Problem(("drop",), f"{name} is neither a layer nor a tensor of the checkpoint")
        for name in entry.drop
        if not _dropped(name, infos)
    ]
    if unbound(entry):
        names = ", ".join(f"{{{name}}}" for name in unbound(entry))
        problems.append(Problem((), f"{names} stands in no layer's name, so nothing fills it in"))
    return problems


def _dropped(name: str, infos: Infos) -> list[str]:
    return [key for key in infos if key == name or key.startswith(f"{name}.")]


def _dtype(tree: Tree[ResolvedLayer], infos: Infos) -> torch.dtype:
    """What the merged tensors are stored in: the dtype of the layers' kernels.

    A norm or a bias kept in float32 beside half kernels does not widen them.
    """
    kernels = (ConvLayer, ConvTransposeLayer, LinearLayer)
    weights = [
        leaf.parameters["weight"] for leaf in leaves(tree) if isinstance(leaf.layer, kernels)
    ]
    every = [parameter for leaf in leaves(tree) for parameter in leaf.parameters.values()]
    dtypes = [infos[key].dtype for parameter in weights or every for key in parameter.keys]
    return reduce(torch.promote_types, dtypes, dtypes[0])


def _sentence(reason: str) -> str:
    return reason if reason.endswith((".", "?")) else f"{reason}."
