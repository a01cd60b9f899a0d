"""A manifest held against the best partition of each of its entries.

Knows what is better and how to write it; what becomes of a manifest that cannot be merged as it is
given is for the plan.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from convsqueeze.checkpoint import Checkpoint
from convsqueeze.errors import ManifestError, PlanError
from convsqueeze.graph import LayerOp
from convsqueeze.manifest import (
    Border,
    Document,
    Entry,
    Manifest,
    Request,
    entry_of,
    expand,
    request_of,
    unbound,
)
from convsqueeze.manifest.contract import contract
from convsqueeze.manifest.expand import Binding
from convsqueeze.plan.model import Growth, Merge
from convsqueeze.plan.partition import best_partition
from convsqueeze.plan.pricing import Cost, Latency, Minimize, Partition

NOISE = 0.05
"""Share of the time of the layers apart by which a partition has to be faster than another."""


@dataclass(frozen=True)
class Reviewed:
    """One entry without placeholders, at `place`, and its best partition."""

    place: str
    binding: Binding
    partition: Partition

    @property
    def given(self) -> Cost | None:
        """What the entry costs as it is given; None where it is not merged so."""
        whole = self.partition.given
        return Cost.of(whole) if isinstance(whole, Merge) else None

    @property
    def is_better(self) -> bool:
        """Whether the partition is less than what is given, or all that there is."""
        best, whole = self.partition, self.partition.given
        if not isinstance(whole, Merge):
            return bool(best.merged) or not self.is_refused
        noise = 0.0 if whole.timing is None else NOISE * whole.timing.before
        return best.after.under(best.minimize) < Cost.of(whole).under(best.minimize) - noise

    @property
    def is_refused(self) -> bool:
        """Whether the whole is no merge; one that only takes no less time is one."""
        whole = self.partition.given
        return not isinstance(whole, Merge) and whole.cause != "time"


@dataclass(frozen=True)
class Review:
    """What is better than a manifest, entry by entry.

    `better` is the manifest with those entries replaced, None where none is better or where nothing
    is worth merging at all.
    """

    minimize: Minimize
    entries: tuple[Reviewed, ...]
    better: Document | None


def review(
    manifest: Manifest,
    checkpoint: Checkpoint,
    *,
    border: Border | None = None,
    growth: Growth = "refuse",
    minimize: Minimize = "weights",
    latency: Latency | None = None,
) -> Review:
    """The best partition of every entry, those left out whose layers are not sound.

    Policies as for `make_plan`, the rest as for `best_partition`.
    """
    names = list(checkpoint.tensors)
    found: list[Reviewed] = []
    replaced: list[Entry] = []
    for index, entry in enumerate(manifest.document.pairs):
        reviewed = []
        with suppress(ManifestError):
            for binding, bound in expand(entry, names).entries:
                if unbound(bound):
                    continue
                place = manifest.where(index, binding=binding)
                with suppress(PlanError):
                    partition = best_partition(
                        request_of(bound),
                        checkpoint.tensors,
                        place=place,
                        border=border or bound.border or manifest.document.border,
                        growth=growth,
                        minimize=minimize,
                        latency=latency,
                    )
                    reviewed.append(Reviewed(place, binding, partition))
        found += reviewed
        replaced += _replaced(entry, reviewed, names)
    better = None
    if replaced and any(one.is_better for one in found):
        better = manifest.document.model_copy(update={"pairs": tuple(replaced)})
    return Review(minimize, tuple(found), better)


def _replaced(entry: Entry, reviewed: Sequence[Reviewed], names: Sequence[str]) -> list[Entry]:
    """The entries in place of one: itself, its parts with its own placeholders, or the parts of all
    blocks, alike ones with new ones.
    """
    if not any(one.is_better for one in reviewed):
        return [] if all(one.is_refused for one in reviewed) else [entry]
    parts = [one.partition.entries for one in reviewed]
    template, first = request_of(entry), reviewed[0].partition
    templates = [_at(template, merge, whole=first.is_given) for merge in first.merged]
    if all(_stands_for(t, n, reviewed, names) for n, t in enumerate(templates)) and (
        len({len(p) for p in parts}) == 1
    ):
        return templates
    written_out = [part for entries in parts for part in entries]
    return [one.entry for one in contract(written_out, names)]


def _stands_for(
    template: Entry, number: int, reviewed: Sequence[Reviewed], names: Sequence[str]
) -> bool:
    """Whether a part with placeholders is that part of every one, and of nothing else."""
    wanted = [
        (one.binding, entry)
        for one in reviewed
        for entry in one.partition.entries[number : number + 1]
    ]
    return list(expand(template, names).entries) == wanted


def _at(template: Request[LayerOp], merge: Merge, *, whole: bool) -> Entry:
    """The same part of an entry with placeholders: operations are named after their keys in it."""
    reviewed = {op.name: op for op in template.region.layers}
    given = merge.request
    terms = template if whole else given
    region = given.region.with_layers(reviewed)
    return entry_of(Request(region, terms.into, given.border, given.input_size, terms.drop))
