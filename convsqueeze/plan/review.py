"""A manifest held against the best partition of each of its entries.

Knows what is better and how to write it; what becomes of a manifest that cannot be merged as it is
given is for the plan.
"""

from collections.abc import Iterator, Sequence
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
    contract,
    entry_of,
    expand,
    request_of,
    unbound,
)
from convsqueeze.manifest.expand import Binding
from convsqueeze.plan.model import Growth
from convsqueeze.plan.partition import best_partition
from convsqueeze.plan.parts import Cost, Latency, Merged, Minimize, Part, Partition
from convsqueeze.plan.pricing import cost_merged

NOISE = 0.05
"""Share of the time of the layers apart by which a partition has to be faster than another."""


@dataclass(frozen=True)
class Reviewed:
    """One entry without placeholders, at `place`, and its best partition."""

    place: str
    index: int
    binding: Binding
    partition: Partition

    @property
    def given(self) -> Cost | None:
        """What the entry costs as it is given; None where it is not merged so."""
        whole = self.partition.given
        return cost_merged(whole) if isinstance(whole, Merged) else None

    @property
    def is_better(self) -> bool:
        """Whether the partition is less than what is given, or all that there is."""
        best, minimize = self.partition, self.partition.minimize
        if self.given is None:
            return bool(best.merged) or not self.is_refused
        noise = 0.0
        if isinstance(best.given, Merged) and best.given.timing is not None:
            noise = NOISE * best.given.timing.before
        return best.after.under(minimize) < self.given.under(minimize) - noise

    @property
    def is_refused(self) -> bool:
        """Whether the whole is no merge; one that only takes no less time is one."""
        whole = self.partition.given
        return not isinstance(whole, Merged) and whole.cause != "time"


@dataclass(frozen=True)
class Review:
    """What is better than a manifest, entry by entry.

    `better` is the manifest with those entries replaced, None where none is better or where nothing
    is worth merging at all.
    """

    minimize: Minimize
    entries: tuple[Reviewed, ...]
    better: Document | None

    @property
    def improved(self) -> tuple[Reviewed, ...]:
        return tuple(one for one in self.entries if one.is_better)


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
    found: list[Reviewed] = []
    replaced: list[Entry] = []
    for index, entry in enumerate(manifest.document.pairs):
        own = []
        for binding, bound in _expanded(entry, checkpoint):
            suffix = " (" + ", ".join(f"{k}={v}" for k, v in binding) + ")" if binding else ""
            place = manifest.where(index) + suffix
            policy = border or bound.border or manifest.document.border
            try:
                partition = best_partition(
                    request_of(bound),
                    checkpoint.tensors,
                    place=place,
                    border=policy,
                    growth=growth,
                    minimize=minimize,
                    latency=latency,
                )
            except PlanError:
                continue
            own.append(Reviewed(place, index, binding, partition))
        found += own
        replaced += _replaced(entry, own, list(checkpoint.tensors))
    better = None
    if replaced and any(one.is_better for one in found):
        better = manifest.document.model_copy(update={"pairs": tuple(replaced)})
    return Review(minimize, tuple(found), better)


def _expanded(entry: Entry, checkpoint: Checkpoint) -> Iterator[tuple[Binding, Entry]]:
    try:
        entries = expand(entry, list(checkpoint.tensors)).entries
    except ManifestError:
        return
    for binding, bound in entries:
        if not unbound(bound):
            yield binding, bound


def _replaced(entry: Entry, own: Sequence[Reviewed], names: Sequence[str]) -> list[Entry]:
    """The entries in place of one: itself, its parts with its own placeholders, or the parts of all
    blocks, alike ones with new ones.
    """
    if not own:
        return []
    if not any(one.is_better for one in own):
        return [] if all(one.is_refused for one in own) else [entry]
    parts = [one.partition.entries for one in own]
    template = request_of(entry)
    templates = [_at(template, merged.part) for merged in own[0].partition.merged]
    if all(_stands_for(t, n, own, names) for n, t in enumerate(templates)) and (
        len({len(p) for p in parts}) == 1
    ):
        return list(templates)
    written_out = [part for entries in parts for part in entries]
    return [one.entry for one in contract(written_out, names)]


def _stands_for(
    template: Entry, number: int, own: Sequence[Reviewed], names: Sequence[str]
) -> bool:
    """Whether a part with placeholders is that part of every one, and of nothing else."""
    wanted = [
        (one.binding, entry) for one in own for entry in one.partition.entries[number : number + 1]
    ]
    return list(expand(template, names).entries) == wanted


def _at(template: Request[LayerOp], part: Part) -> Entry:
    """The same part of an entry with placeholders: operations are named after their keys in it."""
    own = {op.name: op for op in template.region.layers}
    one = template if part.whole else part.request
    region = part.request.region.with_layers(own)
    return entry_of(
        Request(region, one.into, part.request.border, part.request.input_size, one.drop)
    )
