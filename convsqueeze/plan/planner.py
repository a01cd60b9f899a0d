"""Manifest + headers -> Plan: geometry, cost and every refusal at once, without tensor data.

Everything that can be refused from names, shapes and geometry is refused here. Knows no tensor
values, no arithmetic on them and no output.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import reduce
from math import prod
from typing import Literal

import torch

from convsqueeze.algebra.border import Leak, leaks
from convsqueeze.algebra.geometry import Geometry
from convsqueeze.algebra.sizes import smallest_size
from convsqueeze.algebra.tree import Chain, Sum, Tree, leaves
from convsqueeze.checkpoint import Checkpoint
from convsqueeze.errors import GeometryError, PlanError
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
from convsqueeze.plan.parameters import Infos, Problem
from convsqueeze.plan.resolve import ResolvedLayer, resolve
from convsqueeze.plan.wording import border_refusal

Growth = Literal["refuse", "skip", "allow"]
NOMINAL_SIZE = 64


@dataclass(frozen=True)
class Merge:
    """One merge that will be done: layers, result, cost.

    `macs_*` count multiplications for one image of `size`; `leaks` is empty where the plain
    convolution is exact at every pixel.
    """

    place: str
    into: str
    tree: Tree[ResolvedLayer]
    geometry: Geometry
    leaks: tuple[Leak, ...]
    input_size: tuple[int, ...] | None
    dtype: torch.dtype
    consumed: tuple[str, ...]
    weights_before: int
    size: tuple[int, ...]

    @property
    def layers(self) -> tuple[ResolvedLayer, ...]:
        return tuple(leaves(self.tree))

    @property
    def geometry_tree(self) -> Tree[Geometry]:
        return geometry_tree(self.tree)

    @property
    def border(self) -> Border:
        return "interior" if self.leaks else "exact"

    @property
    def weights_after(self) -> int:
        return self.geometry.weights

    @property
    def macs_before(self) -> int:
        return _macs(self.tree, self.size)[0]

    @property
    def macs_after(self) -> int:
        return self.geometry.macs(self.size)


@dataclass(frozen=True)
class Plan:
    """What merging a checkpoint by a manifest will do."""

    manifest: Manifest
    merges: tuple[Merge, ...]
    notes: tuple[str, ...] = ()

    @property
    def weights_before(self) -> int:
        return sum(merge.weights_before for merge in self.merges)

    @property
    def weights_after(self) -> int:
        return sum(merge.weights_after for merge in self.merges)


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
        expansion = expand(entry, list(infos))
        if not expansion.entries:
            problems.append(f"{where}: {_unmatched(expansion, infos)}")
        notes += [
            f"{where}: {name} matches in part and is left alone" for name in expansion.partial
        ]
        for binding, bound in expansion.entries:
            suffix = " (" + ", ".join(f"{k}={v}" for k, v in binding) + ")" if binding else ""
            policy = border or bound.border or manifest.document.border
            candidates.append(_candidate(manifest, index, suffix, bound, policy, infos))
    merges = [c.merge for c in candidates if c.merge is not None]
    problems += [problem for candidate in candidates for problem in candidate.problems]
    problems += _conflicts(merges, infos)
    kept, refused, skipped = _sorted_by_growth(merges, growth)
    if problems or refused:
        raise PlanError([*problems, *refused])
    notes += [*skipped, *_tie_notes(kept, checkpoint.ties()), *_small_input_notes(kept)]
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
        merge = _merge(place, entry, tree, geometry, infos)
    except GeometryError as error:
        return _Candidate(place, entry, None, told([Problem((), str(error))]))
    if merge.leaks and policy == "exact":
        reason = border_refusal(tree, merge.leaks, len(geometry.axes))
        return _Candidate(place, entry, None, told([Problem(_blamed(entry, merge), reason)]))
    return _Candidate(place, entry, merge, ())


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


def geometry_tree(tree: Tree[ResolvedLayer]) -> Tree[Geometry]:
    """The same tree with only the geometry of each layer."""
    if isinstance(tree, Chain):
        return Chain(tuple(geometry_tree(link) for link in tree.links))
    if isinstance(tree, Sum):
        return Sum(tuple(geometry_tree(branch) for branch in tree.branches))
    return tree.geometry


def _into(entry: Entry, tree: Tree[ResolvedLayer]) -> str:
    if entry.into is not None:
        return entry.into
    return next((leaf.layer.name for leaf in leaves(tree) if leaf.layer.name), "")


def _blamed(entry: Entry, merge: Merge) -> tuple[str | int, ...]:
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
    """What the merged tensors are stored in: the dtype of the layers with kernels.

    A norm kept in float32 beside half convolutions does not widen them.
    """
    kernels = (ConvLayer, ConvTransposeLayer, LinearLayer)
    chosen = [leaf for leaf in leaves(tree) if isinstance(leaf.layer, kernels)]
    dtypes = [
        infos[key].dtype
        for leaf in chosen or leaves(tree)
        for parameter in leaf.parameters.values()
        for key in parameter.keys
    ]
    return reduce(torch.promote_types, dtypes, dtypes[0])


def _macs(tree: Tree[ResolvedLayer], size: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Multiplications of the original layers on one image of `size`, and the output size."""
    if isinstance(tree, Chain):
        total = 0
        for link in tree.links:
            macs, size = _macs(link, size)
            total += macs
        return total, size
    if isinstance(tree, Sum):
        parts = [_macs(branch, size) for branch in tree.branches]
        return sum(macs for macs, _ in parts), parts[0][1]
    return tree.geometry.macs(size) if tree.parameters else 0, tree.geometry.output_size(size)


def _conflicts(merges: Sequence[Merge], infos: Infos) -> list[str]:
    """Tensors that two layers use, and results that would overwrite something that stays."""
    return [*_used_twice(merges), *_overwritten(merges, infos), *_same_into(merges)]


def _used_twice(merges: Sequence[Merge]) -> Iterator[str]:
    users: dict[str, list[str]] = {}
    for merge in merges:
        of_layers = [key for leaf in merge.layers for key in leaf.keys]
        for key in [*of_layers, *(key for key in merge.consumed if key not in of_layers)]:
            users.setdefault(key, []).append(merge.place)
    for key, places in users.items():
        if len(places) > 1:
            by = " and ".join(dict.fromkeys(places))
            yield f"{places[-1]}: {key} is used {len(places)} times (by {by}). Use it once."


def _overwritten(merges: Sequence[Merge], infos: Infos) -> Iterator[str]:
    gone = {key for merge in merges for key in merge.consumed}
    for merge in merges:
        if not merge.into:
            yield f"{merge.place}: no layer here has a name to merge into. Give into: NAME."
        for key in (f"{merge.into}.weight", f"{merge.into}.bias"):
            if key in infos and key not in gone:
                yield (
                    f"{merge.place}: {key} is in the checkpoint and is not merged, so into: "
                    f"{merge.into} would overwrite it. Give another into, or list it under drop."
                )


def _same_into(merges: Sequence[Merge]) -> Iterator[str]:
    places: dict[str, list[str]] = {}
    for merge in merges:
        places.setdefault(merge.into, []).append(merge.place)
    for into, used in places.items():
        if len(used) > 1 and into:
            where = " and ".join(used)
            yield f"{where}: into {into} is given {len(used)} times. Give each its own."


def _sorted_by_growth(
    merges: Sequence[Merge], growth: Growth
) -> tuple[list[Merge], list[str], list[str]]:
    """Merges to do, refusals of merges that grow, notes on those that are skipped."""
    kept, refused, skipped = [], [], []
    for merge in merges:
        if merge.weights_after <= merge.weights_before or growth == "allow":
            kept.append(merge)
            continue
        times = merge.weights_after / merge.weights_before
        grows = (
            f"{merge.place}: {merge.into} would grow from {merge.weights_before:,} to "
            f"{merge.weights_after:,} weights ({times:.1f} times)"
        )
        if growth == "skip":
            skipped.append(f"{grows} and is left as it is")
        else:
            refused.append(
                f"{grows}, a merge must not grow the checkpoint. "
                "Remove the entry, or use --growth skip or --growth allow."
            )
    return kept, refused, skipped


def _tie_notes(merges: Sequence[Merge], ties: Sequence[Sequence[str]]) -> list[str]:
    consumed = {key for merge in merges for key in merge.consumed}
    notes = []
    for group in ties:
        gone = [key for key in group if key in consumed]
        stays = [key for key in group if key not in consumed]
        if gone and stays:
            notes.append(
                f"{', '.join(gone)} shares its memory with {', '.join(stays)}, which stays"
            )
    return notes


def _small_input_notes(merges: Sequence[Merge]) -> Iterator[str]:
    """Merges whose padding is wider than images that the layers apart take, as circular adds up."""
    for merge in merges:
        for number, axis in enumerate(merge.geometry.axes):
            smallest = smallest_size(merge.geometry_tree, number)
            if not axis.accepts(smallest):
                yield (
                    f"{merge.into} pads by {max(axis.before, axis.after)} ({axis.padding_mode}): "
                    "torch's own layer refuses smaller images, SqueezedConv and ONNX take them"
                )
                break


def _sentence(reason: str) -> str:
    return reason if reason.endswith((".", "?")) else f"{reason}."
