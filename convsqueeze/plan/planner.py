"""Manifest + headers -> Plan: geometry, cost and every refusal at once, without tensor data.

Everything that can be refused from names, shapes and geometry is refused here. Knows no tensor
values, no arithmetic on them and no output.
"""

from collections.abc import Sequence

from convsqueeze.checkpoint import Checkpoint
from convsqueeze.errors import ManifestError, PlanError
from convsqueeze.manifest import Border, Manifest, expand, request_of, unbound
from convsqueeze.plan.candidates import candidate
from convsqueeze.plan.checks import conflicts, small_input_notes, sorted_by_growth, tie_notes
from convsqueeze.plan.model import Growth, Merge, Plan
from convsqueeze.plan.parameters import Problem
from convsqueeze.plan.wording import speed_note


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
    infos, names = checkpoint.tensors, tuple(checkpoint.tensors)
    merges: list[Merge] = []
    notes: list[str] = []
    problems: list[str] = []
    refused: list[str] = []
    for index, entry in enumerate(manifest.document.pairs):
        where = manifest.where(index)
        try:
            expansion = expand(entry, names)
        except ManifestError as error:
            problems.append(f"{where}: {_sentence(str(error))}")
            continue
        notes += [
            f"{where}: {name} matches in part and is left alone" for name in expansion.partial
        ]
        for binding, bound in expansion.entries:
            policy = border or bound.border or manifest.document.border
            place = manifest.where(index, binding=binding)
            found = candidate(place, request_of(bound), infos, policy)
            against = [] if isinstance(found, Merge) else found
            if reason := unbound(bound):
                against.append(Problem((), reason))
            if isinstance(found, Merge) and not against:
                merges.append(found)
            refused += [
                f"{manifest.where(index, p.path, binding)}: {_sentence(p.reason)}" for p in against
            ]
    return plan_of(
        manifest, merges, checkpoint, growth=growth, notes=notes, problems=[*problems, *refused]
    )


def plan_of(
    manifest: Manifest,
    merges: Sequence[Merge],
    checkpoint: Checkpoint,
    *,
    growth: Growth = "refuse",
    notes: Sequence[str] = (),
    problems: Sequence[str] = (),
) -> Plan:
    """The plan of merges that are each sound, which `manifest` stands for.

    Raises PlanError with the `problems` that are known already, the conflicts between the merges
    and those that grow.
    """
    against = [*problems, *conflicts(merges, checkpoint.tensors)]
    kept, growing, skipped = sorted_by_growth(merges, growth)
    if against or growing:
        raise PlanError([*against, *growing])
    messages = [*notes, *skipped, *tie_notes(kept, checkpoint.ties()), *small_input_notes(kept)]
    messages += filter(None, map(speed_note, kept))
    return Plan(manifest, tuple(kept), tuple(messages))


def _sentence(reason: str) -> str:
    return reason if reason.endswith((".", "?")) else f"{reason}."
