"""What `plan` prints: the table of the merge, and where another partition is better."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from convsqueeze.cli.data import merge_data, part_data
from convsqueeze.cli.layout import count_told, print_notes
from convsqueeze.cli.tables import print_merge
from convsqueeze.manifest import document_data, manifest_yaml

if TYPE_CHECKING:
    from convsqueeze.pipeline import ReviewedFile
    from convsqueeze.plan import Cost, Merged, Partition, Rejected, Reviewed

MEASURES = {"weights": "weights", "macs": "multiplications", "latency": "time"}


FEWER = {
    "weights": "has fewer weights",
    "macs": "has fewer multiplications",
    "latency": "takes less time",
}


def print_review(console: Console, found: "ReviewedFile") -> None:
    """The table of `merge --dry-run`, then each entry that could be better, then that manifest."""
    if found.planned is not None:
        print_merge(console, found.planned)
    for one in found.review.entries:
        _print_entry(console, one)
    if found.review.better is None:
        if found.planned is not None and not found.review.improved:
            console.print(f"No other partition {FEWER[found.review.minimize]}.")
        return
    measure = MEASURES[found.review.minimize]
    console.print(f"A better manifest, by {measure}{_options(found)}:", style="bold")
    text = manifest_yaml(found.review.better)
    console.print(text, markup=False, highlight=False, soft_wrap=True, end="")
    print_notes(console, [f"it is refused as well: {problem}" for problem in found.problems])


def _options(found: "ReviewedFile") -> str:
    """What `merge` has to be told beside it."""
    given = {"--border": found.border, "--growth": found.growth}
    told = [f"{name} {value}" for name, value in given.items() if value not in (None, "refuse")]
    return f", for merge with {' '.join(told)}" if told else ""


def _print_entry(console: Console, one: "Reviewed") -> None:
    best = one.partition
    if not (one.is_better or one.is_refused):
        return
    place = f"[bold]{escape(one.place)}[/]"
    if not best.merged:
        console.print(f"{place}: no layers of it are worth merging.", soft_wrap=True)
    elif one.is_better:
        given = "refused as given" if one.given is None else f"as given {_told(best, one.given)}"
        told = f"{_told(best, best.before)} -> {_told(best, best.after)}"
        console.print(f"{place}: in parts {told} ({given})", soft_wrap=True)
        for part in best.merged:
            console.print(f"  one layer: {escape(_part_told(part))}", soft_wrap=True)
        if best.apart:
            console.print(f"  apart: {escape(', '.join(best.apart))}", soft_wrap=True)
    for reason in best.kept_apart:
        labels = ", ".join(reason.part.labels)
        console.print(f"  {escape(labels)}: {escape(reason.reason)}", style="dim", soft_wrap=True)
    print_notes(console, best.notes)


def _told(best: "Partition", cost: "Cost") -> str:
    if best.minimize == "latency":
        return f"{-cost.nanoseconds / 1e6:.3g} ms less" if cost.nanoseconds else "all the time"
    count = cost.weights if best.minimize == "weights" else cost.macs
    return f"{count_told(count)} {MEASURES[best.minimize]}"


def _part_told(one: "Merged") -> str:
    merge = one.merge
    told = (
        f"{', '.join(one.part.labels)} into {merge.into}, "
        f"{merge.weights_before:,} -> {merge.weights_after:,} weights, "
        f"{count_told(merge.macs_before)} -> {count_told(merge.macs_after)} MACs"
    )
    if one.timing is None:
        return told
    return f"{told}, {one.timing.before / 1e6:.3g} -> {one.timing.after / 1e6:.3g} ms"


def review_data(found: "ReviewedFile") -> dict[str, Any]:
    """What `plan` found, for --json."""
    better = found.review.better
    return {
        "plan": None if found.planned is None else merge_data(found.planned),
        "problems": [] if found.refused is None else list(found.refused.problems),
        "minimize": found.review.minimize,
        "entries": [_entry_data(one) for one in found.review.entries],
        "better": None if better is None else document_data(better),
        "better_problems": list(found.problems),
    }


def _entry_data(one: "Reviewed") -> dict[str, Any]:
    best = one.partition
    return {
        "place": one.place,
        "is_better": one.is_better,
        "input_size": list(best.size),
        "before": _cost_data(best.before),
        "given": None if one.given is None else _cost_data(one.given),
        "after": _cost_data(best.after),
        "merged": [part_data(merged) for merged in best.merged],
        "apart": list(best.apart),
        "kept_apart": [_rejected_data(reason) for reason in best.kept_apart],
        "notes": list(best.notes),
    }


def _cost_data(cost: "Cost") -> dict[str, Any]:
    return {name: value for name, value in asdict(cost).items() if name != "links"}


def _rejected_data(one: "Rejected") -> dict[str, Any]:
    return {"layers": list(one.part.labels), "cause": one.cause, "reason": one.reason}
