"""A manifest and a checkpoint -> the plan of merging them, and a better one. Writes nothing."""

from dataclasses import dataclass
from pathlib import Path

from convsqueeze.checkpoint import open_checkpoint
from convsqueeze.errors import PlanError
from convsqueeze.manifest import Border, Manifest, load_manifest
from convsqueeze.pipeline.files import MergedFile
from convsqueeze.pipeline.merging import planned
from convsqueeze.pipeline.tracking import Track, untracked
from convsqueeze.plan import Growth, make_plan
from convsqueeze.plan.pricing import Latency, Minimize
from convsqueeze.plan.review import Review, review


@dataclass(frozen=True)
class ReviewedFile:
    """What `plan` found: the merge as it would be done, or the error that refuses it, and the
    review of each entry under the given policies. `problems` stand against the better manifest.
    """

    planned: MergedFile | None
    refused: PlanError | None
    review: Review
    problems: tuple[str, ...] = ()
    border: Border | None = None
    growth: Growth = "refuse"


def review_file(
    path: Path,
    manifest: Manifest | Path,
    *,
    key: str | None = None,
    border: Border | None = None,
    growth: Growth = "refuse",
    minimize: Minimize = "weights",
    latency: Latency | None = None,
    track: Track = untracked,
) -> ReviewedFile:
    """Plan the merge of the file at `path` by `manifest`, and look for better partitions.

    Raises CheckpointError or ManifestError; a plan that is refused is told in the result.
    """
    track(f"opening {path.name}", 0, 0)
    checkpoint = open_checkpoint(path, key=key)
    read = manifest if isinstance(manifest, Manifest) else load_manifest(manifest)
    done: MergedFile | None = None
    refused: PlanError | None = None
    size, wrapper = checkpoint.nbytes, checkpoint.wrapper
    try:
        plan = planned(read, checkpoint, border, growth)
        done = MergedFile(plan, None, plan.notes, path, None, size, wrapper=wrapper)
    except PlanError as error:
        refused = error
    track(f"looking for better partitions of {path.name}", 0, 0)
    found = review(
        read, checkpoint, border=border, growth=growth, minimize=minimize, latency=latency
    )
    problems: tuple[str, ...] = ()
    if found.better is not None:
        better = Manifest(found.better, "the better manifest")
        try:
            make_plan(better, checkpoint, border=border, growth=growth)
        except PlanError as error:
            problems = error.problems
    return ReviewedFile(done, refused, found, problems, border, growth)
