"""From file to file: nothing is written until verification has held."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from convsqueeze.checkpoint import (
    ScratchFile,
    bytes_to_write,
    check_destination,
    default_destination,
    open_checkpoint,
    open_like,
    write_checkpoint,
)
from convsqueeze.checkpoint.new_files import NewFiles
from convsqueeze.device import Device, device_named
from convsqueeze.errors import ConvsqueezeError, ManifestError, OutputError, PlanError
from convsqueeze.manifest import Border, Manifest
from convsqueeze.names import shown
from convsqueeze.paths import anchored
from convsqueeze.pipeline.merging import MergeReport, Planner, Result, planned, squeeze_checkpoint
from convsqueeze.pipeline.tracking import Track, byte_progress, untracked
from convsqueeze.plan import Growth, Plan
from convsqueeze.recipe import read_recipe
from convsqueeze.verify import Report, Settings, verify_checkpoints

PostVerify = Callable[[Result, NewFiles], None]
"""Called with a verified result and the files that will appear together; may raise."""


def compose(*hooks: PostVerify | None) -> PostVerify:
    """One hook that calls every given one, in order."""

    def call(result: Result, files: NewFiles) -> None:
        for hook in filter(None, hooks):
            hook(result, files)

    return call


@dataclass(frozen=True)
class MergedFile(MergeReport):
    """A merge of a file: where it went and how large both are; no output on a dry run.

    `wrapper` is the dotted key of the state dict that was taken, "" at the top level.
    """

    source: Path = Path()
    output: Path | None = None
    bytes_before: int = 0
    bytes_after: int = 0
    wrapper: str = field(default="", kw_only=True)

    @property
    def title(self) -> str:
        """The source's name and, inside it, the state dict that was taken."""
        return f"{self.source.name}, {shown(self.wrapper)}" if self.wrapper else self.source.name


def merge_file(
    path: str | Path,
    manifest: Manifest | str | Path | Planner,
    destination: str | Path | None = None,
    *,
    key: str | None = None,
    border: Border | None = None,
    growth: Growth = "refuse",
    widen: bool = False,
    settings: Settings | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    largest_shard: int | None = None,
    post_verify: PostVerify = lambda result, files: None,
    track: Track = untracked,
    device: Device = "cpu",
    keep_exact: bool = False,
) -> MergedFile:
    """Merge the file at `path` as `manifest` (or the file it is in) says and write the result.

    `largest_shard` are the bytes of values that a shard of an output in shards may hold.
    `post_verify` may write more files of the verified result: all appear together or, where it
    raises, none. With `keep_exact` it is given the values before they were rounded. The `device`
    (cpu, cuda or cuda:N) merges and verifies.

    Raises CheckpointError for the file, ManifestError and PlanError with every problem of the
    manifest, TensorDataError for values that no exact merge can be made of, VerificationError where
    the layers differ, OutputError for the place of an output, and DeviceError where the device does
    not compute.
    """
    path, place = anchored(path), device_named(device)
    if isinstance(manifest, str | Path):
        manifest = anchored(manifest)
    track(f"opening {path.name}", 0, 0)
    checkpoint = open_checkpoint(path, key=key)
    split = largest_shard is not None
    output = anchored(
        default_destination(path, split=split) if destination is None else destination
    )
    inputs = (*checkpoint.paths, *([manifest] if isinstance(manifest, Path) else []))
    plan_now = partial(planned, manifest, checkpoint, border, growth)
    try:
        if not dry_run:
            check_destination(checkpoint, output, overwrite, largest_shard, inputs)
    except OutputError as error:
        if callable(manifest):  # which runs the model's code
            raise
        raise _with_problems(error, plan_now) from error
    plan = plan_now()
    where: dict[str, Any] = {"wrapper": checkpoint.wrapper, "device": str(place)}
    report = MergedFile(plan, None, plan.notes, path, None, checkpoint.nbytes, **where)
    if dry_run:
        return report
    hash_progress = byte_progress(f"hashing {path.name}", checkpoint.nbytes, track)
    with NewFiles(overwrite=overwrite, inputs=inputs) as files:
        result = squeeze_checkpoint(
            plan,
            checkpoint,
            border=border,
            growth=growth,
            widen=widen,
            settings=settings or Settings(),
            keep=ScratchFile(files, output).keep,
            sha256=lambda: checkpoint.sha256(hash_progress),
            track=track,
            device=place,
            keep_exact=keep_exact,
        )
        post_verify(result, files)
        total = bytes_to_write(checkpoint, result.edits)
        recipe = result.recipe.to_json()
        track(f"writing {output.name}", 0, total, unit="bytes")
        notes = write_checkpoint(
            checkpoint,
            output,
            result.edits,
            recipe,
            overwrite=overwrite,
            files=files,
            largest_shard=largest_shard,
            progress=byte_progress(f"writing {output.name}", total, track),
        )
    track(f"reporting on {output.name}, which is complete", 0, 0)
    return replace(
        report,
        verification=result.verification,
        notes=(*plan.notes, *result.notes, *notes),
        output=output,
        bytes_after=open_like(checkpoint, output).nbytes,
        widened=result.widened,
    )


def _with_problems(error: OutputError, plan: Callable[[], Plan]) -> ConvsqueezeError:
    """The error together with what is wrong with the manifest, if there is anything."""
    try:
        plan()
    except (ManifestError, PlanError) as more:
        return type(more)([f"{error}", *more.problems])
    return error


def verify_files(
    original: str | Path,
    squeezed: str | Path,
    *,
    manifest: Manifest | None = None,
    key: str | None = None,
    settings: Settings | None = None,
    track: Track = untracked,
    device: Device = "cpu",
) -> Report:
    """The squeezed file against the original, by the manifest in its recipe or the one given.

    `key` names the state dict inside both, where they are pickles. The `device` (cpu, cuda or
    cuda:N) runs the layers. What fails is in the report; raises CheckpointError, ManifestError or
    PlanError where there is nothing to compare, DeviceError where the device does not compute.
    """
    original, squeezed, place = anchored(original), anchored(squeezed), device_named(device)
    track(f"opening {original.name}", 0, 0)
    before = open_checkpoint(original, key=key)
    after = open_like(before, squeezed)
    recipe = read_recipe(after.recipe, f"{squeezed}")
    done = count()
    kept = sum(info.nbytes for name, info in before.tensors.items() if name in after.tensors)
    hash_progress = byte_progress(f"hashing {original.name}", before.nbytes, track)
    report = verify_checkpoints(
        before,
        after,
        recipe,
        settings or Settings(),
        manifest=manifest,
        sha256=lambda: before.sha256(hash_progress),
        track=lambda name: track(f"verifying {name}", next(done), len(recipe.layers)),
        advance=byte_progress(f"comparing {squeezed.name}", kept, track),
        device=place,
    )
    for checkpoint in (before, after):
        checkpoint.check_unchanged()
    return replace(report, state_dict=before.wrapper, files=(*before.paths, *after.paths))
