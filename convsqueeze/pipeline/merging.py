"""Plan, squeeze, verify: a checkpoint as a value, from wherever it comes. Writes nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from convsqueeze.checkpoint import Checkpoint, Edit, New
from convsqueeze.device import CPU, computing_on
from convsqueeze.errors import ManifestError, PlanError
from convsqueeze.manifest import Border, Manifest, load_manifest
from convsqueeze.module import SqueezedConv, module_of
from convsqueeze.paths import anchored
from convsqueeze.pipeline.tracking import Track, untracked
from convsqueeze.plan import Growth, Plan, make_plan
from convsqueeze.recipe import Recipe, RecipeLayer
from convsqueeze.squeezing import edit_of, recipe_layer, recipe_of, squeeze_one
from convsqueeze.storage import Widened
from convsqueeze.summary import summary
from convsqueeze.verify import LayerReport, Report, Settings, check_effort, verify_merge

Keep = Callable[[Tensor], New]
"""Puts a new tensor where it is to wait."""


@dataclass(frozen=True, repr=False)
class MergeReport:
    """What merging did: the plan, what verification saw, and what is good to know. As a string it
    is the table that the command prints.

    `verification` is None where none was asked for (or only a plan was). `widened` are, by layer,
    the tensors that are stored in a wider dtype than their layers were, if that was allowed;
    `device` is what they were computed on.
    """

    plan: Plan
    verification: Report | None
    notes: tuple[str, ...] = ()
    widened: Mapping[str, tuple[Widened, ...]] = field(default_factory=dict, kw_only=True)
    device: str = field(default="cpu", kw_only=True)

    def __str__(self) -> str:
        return "\n".join(summary(self.plan, self.verification, self.notes))

    __repr__ = __str__

    @property
    def weights_before(self) -> int:
        """Numbers stored in the layers that are merged."""
        return self.plan.weights_before

    @property
    def weights_after(self) -> int:
        """Numbers stored in what they became."""
        return self.plan.weights_after


@dataclass(frozen=True, eq=False)
class Result:
    """Squeezed tensors before they are written: the edits, the recipe, what verification saw.

    `exact` are, by layer, the values in float64 that were rounded, if they were to be kept.
    `layers` are the entries of the recipe, which `make_recipe` hashes the source for.
    """

    plan: Plan
    edits: tuple[Edit, ...]
    layers: tuple[RecipeLayer, ...]
    make_recipe: Callable[[], Recipe]
    verification: Report | None
    widened: Mapping[str, tuple[Widened, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    exact: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @cached_property
    def recipe(self) -> Recipe:
        return self.make_recipe()

    def modules(self) -> dict[str, SqueezedConv]:
        """Each squeezed layer by name, ready to call."""
        tensors = {name: new for edit in self.edits for name, new in edit.tensors().items()}
        return {layer.name: module_of(layer, tensors) for layer in self.layers}


def squeeze_checkpoint(
    plan: Plan,
    checkpoint: Checkpoint,
    *,
    border: Border | None = None,
    growth: Growth = "refuse",
    widen: bool = False,
    settings: Settings | None = None,
    keep: Keep = lambda tensor: tensor,
    sha256: Callable[[], str] | None = None,
    track: Track = untracked,
    device: torch.device = CPU,
    keep_exact: bool = False,
) -> Result:
    """Do what a plan says, merge by merge, each verified at once unless `settings` is None.

    With `widen` a tensor whose values its layers' dtype does not hold is stored in a wider one.
    Beside what `keep` keeps, only one merge's tensors are in memory at a time, unless `keep_exact`
    keeps the float64 values of all. `sha256` gives the hash of the source where it is computed
    already. The `device` composes and verifies; what is kept is on the CPU.
    Raises VerificationError where a squeezed layer is not what it should be, TensorDataError for
    values that cannot be merged, DeviceError where the device's memory is full.
    """
    names = list(checkpoint.tensors)
    edits: list[Edit] = []
    widened: dict[str, tuple[Widened, ...]] = {}
    notes: list[str] = []
    reports: list[LayerReport] = []
    layers: list[RecipeLayer] = []
    exact: dict[str, Mapping[str, Tensor]] = {}
    for done, merge in enumerate(plan.merges):
        track(f"merging {merge.into}", done, len(plan.merges))
        with computing_on(device):
            squeezed = squeeze_one(merge, checkpoint.load, widen=widen, device=device)
        layer = recipe_layer(merge, squeezed.widened)
        layers.append(layer)
        if settings is not None:
            track(f"verifying {merge.into}", done, len(plan.merges))
            reports.append(
                verify_merge(
                    merge, layer, checkpoint, squeezed.tensors(), squeezed.exact, settings, device
                )
            )
        edits.append(edit_of(squeezed, names, keep))
        notes += squeezed.notes
        if squeezed.widened:
            widened[merge.into] = squeezed.widened
        if keep_exact:
            exact[merge.into] = squeezed.exact
        del squeezed  # before the next merge takes its memory
    report = None
    if settings is not None:
        report = Report(tuple(reports), settings=settings, device=str(device))
        report.raise_if_failed()

    def make_recipe() -> Recipe:
        source = (sha256 or checkpoint.sha256)()
        return recipe_of(
            plan, checkpoint, border=border, growth=growth, layers=layers, sha256=source
        )

    return Result(
        plan=plan,
        edits=tuple(edits),
        layers=tuple(layers),
        make_recipe=make_recipe,
        verification=report,
        widened=widened,
        notes=tuple(notes),
        exact=exact,
    )


Planner = Callable[[Checkpoint], Plan]
"""Gives the plan for a checkpoint, as a scan of the model's code does."""


def planned(
    manifest: Manifest | str | Path | Planner,
    checkpoint: Checkpoint,
    border: Border | None,
    growth: Growth,
) -> Plan:
    """The plan, if there is memory and time for it; the problems of a manifest's wording and of its
    sound entries are told together.
    """
    try:
        read = load_manifest(anchored(manifest)) if isinstance(manifest, str | Path) else manifest
        if isinstance(read, Manifest):
            plan = make_plan(read, checkpoint, border=border, growth=growth)
        else:
            plan = read(checkpoint)
        check_effort(plan)
        return plan
    except ManifestError as error:
        if error.sound is None:
            raise
        try:
            make_plan(error.sound, checkpoint, border=border, growth=growth)
        except PlanError as more:
            raise ManifestError([*error.problems, *more.problems]) from error
        raise
