"""A squeezed checkpoint against its original: every layer, every other tensor, every claim.

Trusts nothing that merging computed: the geometry is planned anew from the manifest and the
original's headers, and the recipe is held against it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from convsqueeze.algebra.precision import is_wider
from convsqueeze.checkpoint import Checkpoint, differences_around, kept_difference
from convsqueeze.checkpoint.disk import Progress, no_progress
from convsqueeze.checkpoint.state_dict import IN_MEMORY
from convsqueeze.device import CPU, computing_on
from convsqueeze.errors import CheckpointError, GeometryError, PlanError, VerificationError
from convsqueeze.manifest import Manifest, manifest_from_data
from convsqueeze.module import SqueezedConv, module_of, stored_tensors
from convsqueeze.names import shown
from convsqueeze.plan import Merge, Plan, make_plan
from convsqueeze.recipe import Recipe, RecipeLayer
from convsqueeze.squeezing import is_far_larger, recipe_differences, recipe_layer
from convsqueeze.verify.effort import check_effort
from convsqueeze.verify.layer import check_layer
from convsqueeze.verify.maps import DifferenceMap, difference_map
from convsqueeze.verify.outcome import LayerReport


@dataclass(frozen=True)
class Settings:
    """How hard to look. `trials` random images a size, from `seed`; `maps` to see where."""

    trials: int = 3
    seed: int = 0
    exhaustive: bool = False
    maps: bool = False


@dataclass(frozen=True)
class Report:
    """What verification saw: one report a layer, and what is wrong with the file around them.

    `maps`, if asked for: where each layer differs that failed or may differ at the border.
    `device` is what the layers were run on, `state_dict` the dotted key of what was compared in the
    original, "" at the top level. `files` are those that were compared, where they are files.
    """

    layers: tuple[LayerReport, ...]
    problems: tuple[str, ...] = ()
    untouched: int = 0
    settings: Settings | None = None
    plan: Plan | None = field(default=None, repr=False)
    maps: tuple[DifferenceMap, ...] = field(default=(), repr=False)
    device: str = "cpu"
    state_dict: str = ""
    files: tuple[Path, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        layers = (f"{one.name}: {one.problem}." for one in self.layers if one.problem)
        return (*self.problems, *layers)

    def with_problems(self, problems: Sequence[str]) -> "Report":
        """The same report with more that is wrong."""
        return replace(self, problems=(*self.problems, *problems))

    def raise_if_failed(self) -> None:
        """Raises VerificationError with every failure, if there is any."""
        if not self.ok:
            raise VerificationError(self.failures)


Track = Callable[[str], None]


def verify_plan(
    plan: Plan,
    original: Checkpoint,
    squeezed: Checkpoint,
    layers: Mapping[str, RecipeLayer],
    settings: Settings,
    track: Track = lambda name: None,
    device: torch.device = CPU,
) -> tuple[LayerReport, ...]:
    """Every merge of a plan, run from the two sets of tensors with the recipe's geometry."""
    reports = []
    for merge in plan.merges:
        track(merge.into)
        layer = layers.get(merge.into)
        if layer is not None:
            stored = stored_tensors(layer, squeezed)
            reports.append(verify_merge(merge, layer, original, stored, None, settings, device))
    return tuple(reports)


def verify_merge(
    merge: Merge,
    layer: RecipeLayer,
    original: Checkpoint,
    stored: Mapping[str, Tensor],
    exact: Mapping[str, Tensor] | None,
    settings: Settings,
    device: torch.device = CPU,
) -> LayerReport:
    """One merge, run on the `device` with a recipe's geometry from its `stored` tensors by full
    name.

    `exact` are the values that these were rounded from, where they are known. Raises DeviceError
    where the device's memory is full.
    """
    problem = _dtype_problem(merge, layer, stored)
    if problem is not None:
        return LayerReport(merge.into, merge.border, problem=problem)
    try:
        module = _module_on(device, layer, stored)
    except (GeometryError, CheckpointError, ValueError) as error:
        return LayerReport(merge.into, merge.border, problem=str(error).rstrip("."))
    with computing_on(device):
        return check_layer(
            merge,
            module,
            lambda name: original.load(name).to(device),
            trials=settings.trials,
            seed=settings.seed,
            exhaustive=settings.exhaustive,
            exact=None if exact is None else {n: one.to(device) for n, one in exact.items()},
        )


def _module_on(
    device: torch.device, layer: RecipeLayer, stored: Mapping[str, Tensor]
) -> SqueezedConv:
    with computing_on(device):
        return module_of(layer, {name: tensor.to(device) for name, tensor in stored.items()})


def _dtype_problem(merge: Merge, layer: RecipeLayer, stored: Mapping[str, Tensor]) -> str | None:
    """Every tensor has the layers' dtype, or the wider one that the recipe says."""
    claims = {f"{layer.name}.{name}": dtype for name, dtype in (layer.widened or {}).items()}
    for name, tensor in stored.items():
        wanted = getattr(torch, claims[name]) if name in claims else merge.dtype
        if name in claims and not is_wider(wanted, merge.dtype):
            return (
                f"its recipe says {wanted} of {name}, a wider dtype than {merge.dtype} was needed"
            )
        if tensor.dtype != wanted:
            return f"{name} is stored as {tensor.dtype}, {wanted} was needed"
    return None


def _maps(
    plan: Plan,
    original: Checkpoint,
    squeezed: Checkpoint,
    layers: Mapping[str, RecipeLayer],
    reports: Sequence[LayerReport],
    settings: Settings,
    device: torch.device,
) -> Iterator[DifferenceMap]:
    """Of every layer that is not exact at every pixel, by policy or by failing, and was run: one
    that could not be has no sizes.
    """
    merges = {merge.into: merge for merge in plan.merges}
    for report in reports:
        if not report.sizes or (report.ok and report.policy != "interior"):
            continue
        layer = layers[report.name]
        with computing_on(device):
            found = difference_map(
                merges[report.name],
                _module_on(device, layer, stored_tensors(layer, squeezed)),
                lambda name: original.load(name).to(device),
                trials=settings.trials,
                seed=settings.seed,
            )
        if found is not None:
            yield found


def verify_checkpoints(
    original: Checkpoint,
    squeezed: Checkpoint,
    recipe: Recipe,
    settings: Settings,
    *,
    manifest: Manifest | None = None,
    sha256: Callable[[], str] | None = None,
    track: Track = lambda name: None,
    advance: Progress = no_progress,
    device: torch.device = CPU,
) -> Report:
    """A squeezed checkpoint against its original, by the recipe's manifest or the one given.

    A layer that its recipe makes far larger than planned is a problem as it is, and not run.
    `sha256` gives the original's hash where it is computed already; it is asked for last. `track`
    is told of each layer, `advance` of the bytes of untouched tensors. Layers run on the `device`.

    Raises PlanError where the given manifest does not fit the original, or a merge takes more to
    verify than may be, CheckpointError where the
    recipe's cannot be read.
    """
    hashed = cache(original.sha256 if sha256 is None else sha256)
    problems: list[str] = []
    carried = manifest_from_data(recipe.manifest, f"{squeezed.path} recipe")
    if manifest is not None and manifest.to_data() != carried.to_data():
        problems.append(
            f"{squeezed.path}: its recipe holds another manifest than {manifest.source}."
        )
    try:
        border = recipe.border if manifest is None else None  # the given one says what it accepts
        plan = make_plan(manifest or carried, original, border=border, growth=recipe.growth)
    except PlanError as error:
        problems = [*_source_problems(original, recipe, hashed()), *problems]
        if manifest is None or problems:  # the recipe's own manifest once fitted this original
            return Report((), (*problems, *error.problems))
        raise
    check_effort(plan, exhaustive=settings.exhaustive)
    problems += recipe_differences(plan, recipe, f"{squeezed.path}")
    wrong, untouched = _around_merges(plan, original, squeezed, advance)
    problems += wrong
    planned = {merge.into: recipe_layer(merge) for merge in plan.merges}
    layers = {
        layer.name: layer
        for layer in recipe.layers
        if layer.name in planned and not is_far_larger(layer, planned[layer.name])
    }
    reports = verify_plan(plan, original, squeezed, layers, settings, track, device)
    maps: tuple[DifferenceMap, ...] = ()
    if settings.maps:
        maps = tuple(_maps(plan, original, squeezed, layers, reports, settings, device))
        strays = {one.name: one.stray for one in maps}  # more than rounding, on another size
        reports = tuple(replace(r, problem=r.problem or strays.get(r.name)) for r in reports)
    problems = [*_source_problems(original, recipe, hashed()), *problems]
    return Report(reports, tuple(problems), untouched, settings, plan, maps, str(device))


def _source_problems(original: Checkpoint, recipe: Recipe, sha256: str) -> Iterator[str]:
    file, known = recipe.source.file, recipe.source.sha256
    if sha256 != known and (file != IN_MEMORY or original.tensors_sha256() != known):
        yield (
            f"{original.path}: is not the file that was squeezed ({file}, sha256 {known[:12]}...)."
        )


def _around_merges(
    plan: Plan, original: Checkpoint, squeezed: Checkpoint, advance: Progress
) -> tuple[list[str], int]:
    """What is wrong with the names of a checkpoint and with the tensors that no merge touches,
    which keep dtype, shape and every bit, and how many of these were compared.
    """
    gone = {key for merge in plan.merges for key in merge.consumed}
    kept = [name for name in original.tensors if name not in gone]
    wanted = set(kept).union(*(merge.tensors for merge in plan.merges))
    found, place = set(squeezed.tensors), squeezed.path
    problems = [f"{place}: {shown(name)} is missing." for name in sorted(wanted - found)]
    for name in sorted(found - wanted):
        problems.append(f"{place}: {shown(name)} is in neither the original nor the merge.")
    untouched = [name for name in kept if name in found]
    for name in untouched:
        difference = kept_difference(name, original, squeezed, advance)
        if difference is not None:
            problems.append(f"{shown(name)}: was not merged, but {difference}.")
    return [*problems, *differences_around(original, squeezed)], len(untouched)
