"""Reports as plain data, for --json. The tables print the same facts."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from convsqueeze.algebra.precision import dtype_name
from convsqueeze.manifest import document_data

if TYPE_CHECKING:  # each takes a moment to import, and no command needs them all
    from convsqueeze.pipeline import MergedFile, ReviewedFile
    from convsqueeze.plan import Cost, Merge, Merged, Reviewed
    from convsqueeze.scan import Scan
    from convsqueeze.storage import Widened
    from convsqueeze.verify import LayerReport, Report


def merge_data(done: "MergedFile") -> dict[str, Any]:
    """What `merge` did."""
    return {
        "source": str(done.source),
        "output": None if done.output is None else str(done.output),
        "bytes_before": done.bytes_before,
        "bytes_after": done.bytes_after if done.output else None,
        "weights_before": done.weights_before,
        "weights_after": done.weights_after,
        "device": done.device,
        "layers": [_merge_layer(merge, done) for merge in done.plan.merges],
        "verification": None if done.verification is None else report_data(done.verification),
        "notes": list(done.notes),
    }


def _merge_layer(merge: "Merge", done: "MergedFile") -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": merge.into,
        "from": [leaf.label for leaf in merge.layers],
        "kernel_sizes": [list(leaf.geometry.kernel_size) for leaf in merge.layers],
        "kernel_size": list(merge.geometry.kernel_size),
        **_costs(merge),
        "dtype": dtype_name(merge.dtype),
        "widened": [_widened(one) for one in done.widened.get(merge.into, ())],
        "form": merge.form.name,
        "forms": [asdict(form) for form in merge.forms],
        "pays": merge.pays,
        "leaks": [
            {"axis": leak.axis, "side": leak.side, "rows": leak.rows, "cause": leak.cause}
            for leak in merge.leaks
        ],
    }
    for report in done.verification.layers if done.verification else ():
        if report.name == merge.into:
            data["verification"] = layer_data(report)
    return data


def _costs(merge: "Merge") -> dict[str, Any]:
    return {
        "weights_before": merge.weights_before,
        "weights_after": merge.weights_after,
        "macs_before": merge.macs_before,
        "macs_after": merge.macs_after,
        "macs_input_size": list(merge.size),
        "border": merge.border,
    }


def _widened(one: "Widened") -> dict[str, Any]:
    return {
        "name": one.name,
        "dtype": dtype_name(one.dtype),
        "value": one.value,
        "at": list(one.at),
        "why": "overflow" if one.overflows else "underflow",
    }


def report_data(report: "Report") -> dict[str, Any]:
    """What `verify` saw."""
    settings = report.settings
    return {
        "ok": report.ok,
        "problems": list(report.failures),
        "untouched": report.untouched,
        "trials": settings.trials if settings else None,
        "seed": settings.seed if settings else None,
        "exhaustive": settings.exhaustive if settings else None,
        "device": report.device,
        "layers": [layer_data(layer) for layer in report.layers],
    }


def layer_data(report: "LayerReport") -> dict[str, Any]:
    """What verification saw of one layer."""
    return {"ok": report.ok, **asdict(report)}


def review_data(found: "ReviewedFile") -> dict[str, Any]:
    """What `plan` found."""
    better = found.review.better
    return {
        "plan": None if found.planned is None else merge_data(found.planned),
        "problems": [] if found.refused is None else list(found.refused.problems),
        "minimize": found.review.minimize,
        "entries": [_reviewed(one) for one in found.review.entries],
        "better": None if better is None else document_data(better),
        "better_problems": list(found.problems),
    }


def _reviewed(one: "Reviewed") -> dict[str, Any]:
    best = one.partition
    return {
        "place": one.place,
        "is_better": one.is_better,
        "input_size": list(best.size),
        "before": _cost(best.before),
        "given": None if one.given is None else _cost(one.given),
        "after": _cost(best.after),
        "merged": [_part(merged) for merged in best.merged],
        "apart": list(best.apart),
        "kept_apart": [
            {"layers": list(r.part.labels), "cause": r.cause, "reason": r.reason}
            for r in best.kept_apart
        ],
        "notes": list(best.notes),
    }


def _cost(cost: "Cost") -> dict[str, Any]:
    return {name: value for name, value in asdict(cost).items() if name != "links"}


def _part(merged: "Merged") -> dict[str, Any]:
    """A part of an entry that becomes one layer."""
    return {
        "into": merged.merge.into,
        "layers": list(merged.part.labels),
        **_costs(merged.merge),
        "timing": None if merged.timing is None else asdict(merged.timing),
    }


def scan_data(found: "Scan", place: str, notes: Sequence[str]) -> dict[str, Any]:
    """What `scan` found in the model at `place`; `notes` are on how it was read."""
    document = found.document
    return {
        "model": place,
        "border": found.border,
        "minimize": found.minimize,
        "manifest": None if document is None else document_data(document),
        "merges": [
            {"entry": index, **_part(merged)}
            for index, one in enumerate(found.entries)
            for merged in one.merged
        ],
        "left": [
            {"layers": list(one.layers), "kind": one.reason.kind, "reason": one.reason.text}
            for one in found.left
        ],
        "notes": [*notes, *found.notes],
    }
