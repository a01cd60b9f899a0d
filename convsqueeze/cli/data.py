"""Reports as plain data, for --json. The tables print the same facts."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from convsqueeze.algebra.precision import dtype_name
from convsqueeze.cli.output import picked
from convsqueeze.manifest import data_of

if TYPE_CHECKING:  # each takes a moment to import, and no command needs them all
    from convsqueeze.pipeline import MergedFile
    from convsqueeze.pipeline.reviewing import ReviewedFile
    from convsqueeze.plan import Merge
    from convsqueeze.plan.pricing import Cost
    from convsqueeze.plan.review import Reviewed
    from convsqueeze.scan import Scan
    from convsqueeze.verify import LayerReport, Report


def merge_data(done: "MergedFile") -> dict[str, Any]:
    """What `merge` did."""
    return {
        **picked(done, "source output bytes_before weights_before weights_after device notes"),
        "state_dict": done.wrapper,
        "bytes_after": done.bytes_after if done.output else None,
        "layers": [_merge_layer(merge, done) for merge in done.plan.merges],
        "verification": None if done.verification is None else report_data(done.verification),
    }


def _merge_layer(merge: "Merge", done: "MergedFile") -> dict[str, Any]:
    reports = done.verification.layers if done.verification else ()
    verified = [layer_data(one) for one in reports if one.name == merge.into]
    return {
        "name": merge.into,
        "from": [leaf.label for leaf in merge.layers],
        "kernel_sizes": [leaf.geometry.kernel_size for leaf in merge.layers],
        "kernel_size": merge.geometry.kernel_size,
        **_costs(merge),
        "dtype": dtype_name(merge.dtype),
        "widened": [
            {
                **picked(one, "name value at"),
                "dtype": dtype_name(one.dtype),
                "why": "overflow" if one.overflows else "underflow",
            }
            for one in done.widened.get(merge.into, ())
        ],
        "form": merge.form.name,
        "forms": [asdict(form) for form in merge.forms],
        "pays": merge.pays,
        "leaks": [picked(leak, "axis side rows cause") for leak in merge.mismatches],
        **({"verification": verified[0]} if verified else {}),
    }


def _costs(merge: "Merge") -> dict[str, Any]:
    costs = picked(merge, "weights_before weights_after macs_before macs_after border")
    return {**costs, "macs_input_size": merge.size}


def report_data(report: "Report") -> dict[str, Any]:
    """What `verify` saw."""
    settings = dict.fromkeys(("trials", "seed", "exhaustive"))
    if report.settings is not None:
        settings = picked(report.settings, "trials seed exhaustive")
    return {
        **picked(report, "ok untouched device"),
        **settings,
        "problems": report.failures,
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
        "problems": [] if found.refused is None else found.refused.problems,
        "minimize": found.review.minimize,
        "entries": [_reviewed(one) for one in found.review.entries],
        "better": None if better is None else data_of(better),
        "better_problems": found.problems,
    }


def _reviewed(one: "Reviewed") -> dict[str, Any]:
    best = one.partition
    return {
        **picked(one, "place is_better"),
        **picked(best, "apart notes"),
        "input_size": best.size,
        "before": _cost(best.before),
        "given": None if one.given is None else _cost(one.given),
        "after": _cost(best.after),
        "merged": [_part(merged) for merged in best.merged],
        "kept_apart": [
            {"layers": rejected.request.labels, **picked(rejected, "cause reason")}
            for rejected in best.kept_apart
        ],
    }


def _cost(cost: "Cost") -> dict[str, Any]:
    return {name: value for name, value in asdict(cost).items() if name != "links"}


def _part(merge: "Merge") -> dict[str, Any]:
    """A part of an entry that becomes one layer."""
    return {
        "into": merge.into,
        "layers": merge.request.labels,
        **_costs(merge),
        "timing": None if merge.timing is None else asdict(merge.timing),
    }


def scan_data(found: "Scan", place: str, notes: Sequence[str]) -> dict[str, Any]:
    """What `scan` found in the model at `place`; `notes` are on how it was read."""
    return {
        "model": place,
        **picked(found, "border minimize"),
        "manifest": None if found.document is None else data_of(found.document),
        "merges": [
            {"entry": index, **_part(merged)}
            for index, one in enumerate(found.entries)
            for merged in one.merged
        ],
        "left": [
            {"layers": one.layers, "kind": one.reason.kind, "reason": one.reason.text}
            for one in found.left
        ],
        "notes": [*notes, *found.notes],
    }
