"""The main job from end to end: open, plan, squeeze, verify, write. The same for a file and for a
state dict in memory; nothing is written until verification has held.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from convsqueeze.checkpoint import (
    PICKLED_SUFFIXES,
    Checkpoint,
    Edit,
    Late,
    New,
    Spool,
    Spooled,
    bytes_to_write,
    check_destination,
    default_destination,
    edited_state_dict,
    from_state_dict,
    open_checkpoint,
    suffix_of,
    write_checkpoint,
)
from convsqueeze.checkpoint.hashing import Hashing
from convsqueeze.checkpoint.new_files import NewFiles
from convsqueeze.errors import ManifestError, PlanError
from convsqueeze.manifest import Border, Manifest, load_manifest, manifest_from_data
from convsqueeze.module import SqueezedConv, module_of
from convsqueeze.plan import Growth, Plan, check_memory, make_plan
from convsqueeze.recipe import NOT_YET, Recipe, RecipeLayer, read_recipe
from convsqueeze.squeeze import Squeezed, edit_of, recipe_layer, recipe_of, squeeze_one
from convsqueeze.storage import Widened
from convsqueeze.verify import LayerReport, Report, Settings, verify_checkpoints, verify_merge


class Track(Protocol):
    """Told what is being done, how much is done and of how many (0: unknown), layers or bytes."""

    def __call__(self, what: str, done: int, total: int, *, unit: str = "") -> None: ...


def _untracked(what: str, done: int, total: int, *, unit: str = "") -> None:
    pass


Keep = Callable[[Tensor], New]
"""Puts a new tensor where it is to wait."""


def _in_memory(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class MergeReport:
    """What merging did: the plan, what verification saw, and what is good to know.

    `verification` is None where none was asked for (or only a plan was). `widened` are, by layer,
    the tensors that are stored in a wider dtype than their layers were, if that was allowed.
    """

    plan: Plan
    verification: Report | None
    notes: tuple[str, ...] = ()
    widened: Mapping[str, tuple[Widened, ...]] = field(default_factory=dict, kw_only=True)

    @property
    def weights_before(self) -> int:
        return self.plan.weights_before

    @property
    def weights_after(self) -> int:
        return self.plan.weights_after


@dataclass(frozen=True)
class MergedFile(MergeReport):
    """A merge of a file: where it went and how large both are; no output on a dry run."""

    source: Path = Path()
    output: Path | None = None
    bytes_before: int = 0
    bytes_after: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """Squeezed tensors before they are written: the edits, the recipe, what verification saw.

    The recipe is a draft until the hash of the source, which `sha256` gives, is filled in.
    """

    edits: tuple[Edit, ...]
    draft: Recipe
    sha256: Callable[[], str]
    verification: Report | None
    widened: Mapping[str, tuple[Widened, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @cached_property
    def recipe(self) -> Recipe:
        return self.draft.of_source(self.sha256())

    def modules(self) -> dict[str, SqueezedConv]:
        """Each squeezed layer by name, ready to call."""
        tensors = {
            name: new.load() if isinstance(new, Spooled) else new
            for edit in self.edits
            for name, new in edit.insert.items()
        }
        return {layer.name: module_of(layer, tensors) for layer in self.draft.layers}


def squeeze_checkpoint(
    plan: Plan,
    checkpoint: Checkpoint,
    *,
    border: Border | None = None,
    growth: Growth = "refuse",
    widen: bool = False,
    settings: Settings | None = None,
    keep: Keep = _in_memory,
    sha256: Callable[[], str] | None = None,
    track: Track = _untracked,
) -> Result:
    """Do what a plan says, merge by merge, each verified at once unless `settings` is None.

    With `widen` a tensor whose values its layers' dtype does not hold is stored in a wider one.
    Beside what `keep` keeps, only one merge's tensors are in memory at a time. `sha256` gives the
    hash of the source where it is computed already.
    Raises VerificationError where a squeezed layer is not what it should be, TensorDataError for
    values that cannot be merged.
    """
    names = list(checkpoint.tensors)
    edits: list[Edit] = []
    widened: dict[str, tuple[Widened, ...]] = {}
    notes: list[str] = []
    reports: list[LayerReport] = []
    layers: list[RecipeLayer] = []
    for done, merge in enumerate(plan.merges):
        track(f"merging {merge.into}", done, len(plan.merges))
        squeezed = squeeze_one(merge, checkpoint.load, widen=widen)
        layers.append(recipe_layer(merge, squeezed.widened))
        if settings is not None:
            track(f"verifying {merge.into}", done, len(plan.merges))
            reports.append(_verified(squeezed, layers[-1], checkpoint, settings))
        edits.append(edit_of(squeezed, names, keep))
        notes += squeezed.notes
        if squeezed.widened:
            widened[merge.into] = squeezed.widened
        del squeezed  # before the next merge takes its memory
    report = None
    if settings is not None:
        report = Report(tuple(reports), settings=settings)
        report.raise_if_failed()
    draft = recipe_of(plan, checkpoint, border=border, growth=growth, layers=layers, sha256=NOT_YET)
    given = checkpoint.sha256 if sha256 is None else sha256
    return Result(tuple(edits), draft, given, report, widened, tuple(notes))


def _verified(
    squeezed: Squeezed, layer: RecipeLayer, checkpoint: Checkpoint, settings: Settings
) -> LayerReport:
    stored, exact = squeezed.tensors(), squeezed.exact
    return verify_merge(squeezed.merge, layer, checkpoint, stored, exact, settings)


def merge_file(
    path: Path,
    manifest: Manifest | Path,
    destination: Path | None = None,
    *,
    key: str | None = None,
    border: Border | None = None,
    growth: Growth = "refuse",
    widen: bool = False,
    settings: Settings | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    largest_shard: int | None = None,
    beside: Callable[[Result, NewFiles], None] = lambda result, files: None,
    track: Track = _untracked,
) -> MergedFile:
    """Merge the file at `path` as `manifest` (or the file it is in) says and write the result.

    `largest_shard` are the bytes of values that a shard of an output in shards may hold. `beside`
    may write more files of the verified result, which then appear with it or, where it raises, not
    at all.
    Raises ConvsqueezeError of the kind that tells what was wrong.
    """
    track(f"opening {path.name}", 0, 0)
    checkpoint = open_checkpoint(path, key=key)
    output = destination or default_destination(path, split=largest_shard is not None)
    if not dry_run:
        check_destination(checkpoint, output, overwrite=overwrite, largest_shard=largest_shard)
    plan = _planned(manifest, checkpoint, border, growth)
    if dry_run:
        return MergedFile(plan, None, plan.notes, path, None, checkpoint.nbytes, 0)
    with Hashing(checkpoint) as hashing, NewFiles(overwrite=overwrite) as files:
        result = squeeze_checkpoint(
            plan,
            checkpoint,
            border=border,
            growth=growth,
            widen=widen,
            settings=settings or Settings(),
            keep=Spool(files, output).keep,
            sha256=lambda: hashing.result(_hashing(checkpoint, track)),
            track=track,
        )
        beside(result, files)
        total = bytes_to_write(checkpoint, result.edits)
        track(f"writing {output.name}", 0, total, unit="bytes")
        notes = write_checkpoint(
            checkpoint,
            output,
            result.edits,
            Late(result.draft.to_json(), lambda: result.recipe.to_json()),
            overwrite=overwrite,
            files=files,
            largest_shard=largest_shard,
            advance=_in_bytes(f"writing {output.name}", total, track),
        )
    track(f"reporting on {output.name}, which is complete", 0, 0)
    written = _open_like(checkpoint, output).nbytes
    notes = (*plan.notes, *result.notes, *notes)
    return MergedFile(
        plan,
        result.verification,
        notes,
        path,
        output,
        checkpoint.nbytes,
        written,
        widened=result.widened,
    )


def _hashing(checkpoint: Checkpoint, track: Track) -> Callable[[int], None]:
    """Tells how far the hash of a checkpoint's files is."""
    what, total = f"hashing {checkpoint.path.name}", checkpoint.nbytes
    return lambda done: track(what, done, total, unit="bytes")


def _in_bytes(what: str, total: int, track: Track) -> Callable[[int], None]:
    """Tells how far something is that goes byte by byte."""
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        track(what, done, total, unit="bytes")

    return advance


def _planned(
    manifest: Manifest | Path, checkpoint: Checkpoint, border: Border | None, growth: Growth
) -> Plan:
    """The plan, if there is memory for it; the problems of a manifest's wording and of its sound
    entries are told together.
    """
    try:
        read = manifest if isinstance(manifest, Manifest) else load_manifest(manifest)
        plan = make_plan(read, checkpoint, border=border, growth=growth)
        check_memory(plan)
        return plan
    except ManifestError as error:
        if error.sound is None:
            raise
        try:
            make_plan(error.sound, checkpoint, border=border, growth=growth)
        except PlanError as more:
            raise ManifestError([*error.problems, *more.problems]) from error
        raise


def _open_like(original: Checkpoint, squeezed: Path) -> Checkpoint:
    """The squeezed file, with the original's wrapper where its format has one."""
    wrapper = original.wrapper if suffix_of(squeezed) in PICKLED_SUFFIXES else ""
    return open_checkpoint(squeezed, key=wrapper or None)


def merge_state_dict(
    state_dict: Mapping[str, Any],
    manifest: Manifest | Mapping[str, Any] | str | Path,
    *,
    border: Border | None = None,
    growth: Growth = "refuse",
    widen: bool = False,
    verify: bool = True,
) -> tuple[OrderedDict[str, Any], MergeReport]:
    """A new state dict with the manifest's layers merged, and the report; the given one is kept.

    `manifest` is a Manifest, plain data, or the path of a YAML file. `border` and `growth` override
    what it says; `widen` as for `squeeze_checkpoint`. Raises PlanError with every refusal,
    ManifestError, TensorDataError, and VerificationError unless `verify` is False.
    """
    if isinstance(manifest, str):
        manifest = Path(manifest)
    elif not isinstance(manifest, Manifest | Path):
        manifest = manifest_from_data(manifest)
    checkpoint = from_state_dict(state_dict)
    plan = _planned(manifest, checkpoint, border, growth)
    result = squeeze_checkpoint(
        plan,
        checkpoint,
        border=border,
        growth=growth,
        widen=widen,
        settings=Settings() if verify else None,
    )
    merged = edited_state_dict(checkpoint, result.edits, result.recipe.to_json())
    notes = (*plan.notes, *result.notes)
    return merged, MergeReport(plan, result.verification, notes, widened=result.widened)


def verify_files(
    original: Path,
    squeezed: Path,
    *,
    manifest: Manifest | None = None,
    key: str | None = None,
    settings: Settings | None = None,
    track: Track = _untracked,
) -> Report:
    """The squeezed file against the original, by the manifest in its recipe or the one given.

    `key` names the state dict inside both, where they are pickles. What fails is in the report;
    raises CheckpointError, ManifestError or PlanError where there is nothing to compare.
    """
    track(f"opening {original.name}", 0, 0)
    before = open_checkpoint(original, key=key)
    after = _open_like(before, squeezed)
    recipe = read_recipe(after.recipe, str(squeezed))
    done = 0

    def advance(name: str) -> None:
        nonlocal done
        track(f"verifying {name}", done, len(recipe.layers))
        done += 1

    kept = sum(info.nbytes for name, info in before.tensors.items() if name in after.tensors)
    with Hashing(before) as hashing:
        report = verify_checkpoints(
            before,
            after,
            recipe,
            settings or Settings(),
            manifest=manifest,
            sha256=lambda: hashing.result(_hashing(before, track)),
            track=advance,
            advance=_in_bytes(f"comparing {squeezed.name}", kept, track),
        )
    for checkpoint in (before, after):
        checkpoint.check_unchanged()
    return report
