"""Reports as plain data, for --json. The tables print the same facts."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from convsqueeze.algebra.precision import dtype_name

if TYPE_CHECKING:  # each takes a moment to import, and no command needs them all
    from convsqueeze.checkpoint import Checkpoint
    from convsqueeze.inspection import FoundLayer
    from convsqueeze.pipeline import MergedFile
    from convsqueeze.plan import Merge, Merged
    from convsqueeze.plot import Plot
    from convsqueeze.storage import Widened
    from convsqueeze.verify import LayerReport, Report, Worst


def merge_data(done: "MergedFile") -> dict[str, Any]:
    """What `merge` did."""
    return {
        "source": str(done.source),
        "state_dict": done.wrapper,
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


def part_data(merged: "Merged") -> dict[str, Any]:
    """A part of an entry that becomes one layer."""
    merge = merged.merge
    return {
        "into": merge.into,
        "layers": list(merged.part.labels),
        "weights_before": merge.weights_before,
        "weights_after": merge.weights_after,
        "macs_before": merge.macs_before,
        "macs_after": merge.macs_after,
        "macs_input_size": list(merge.size),
        "border": merge.border,
        "timing": None if merged.timing is None else asdict(merged.timing),
    }


def _merge_layer(merge: "Merge", done: "MergedFile") -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": merge.into,
        "from": [leaf.label for leaf in merge.layers],
        "kernel_sizes": [list(leaf.geometry.kernel_size) for leaf in merge.layers],
        "kernel_size": list(merge.geometry.kernel_size),
        "weights_before": merge.weights_before,
        "weights_after": merge.weights_after,
        "macs_before": merge.macs_before,
        "macs_after": merge.macs_after,
        "macs_input_size": list(merge.size),
        "dtype": dtype_name(merge.dtype),
        "widened": [_widened(one) for one in done.widened.get(merge.into, ())],
        "border": merge.border,
        "form": merge.form.name,
        "forms": [asdict(form) for form in merge.forms],
        "pays": merge.pays,
        "leaks": [
            {"axis": leak.axis, "side": leak.side, "rows": leak.rows, "cause": leak.cause}
            for leak in merge.leaks
        ],
    }
    report = done.verification
    seen = [one for one in report.layers if one.name == merge.into] if report else []
    return {**data, **({"verification": layer_data(seen[0])} if seen else {})}


def _widened(one: "Widened") -> dict[str, Any]:
    return {
        "name": one.name,
        "dtype": dtype_name(one.dtype),
        "value": one.value,
        "at": list(one.at),
        "why": "overflow" if one.overflows else "underflow",
    }


def layer_data(report: "LayerReport") -> dict[str, Any]:
    """What verification saw of one layer."""
    return {
        "name": report.name,
        "ok": report.ok,
        "problem": report.problem,
        "policy": report.policy,
        "largest": _worst(report.largest),
        "interior": _worst(report.interior),
        "border": _worst(report.border),
        "border_error": report.border_error,
        "border_range": report.border_range,
        "inputs": report.inputs,
        "sizes": [list(size) for size in report.sizes],
    }


def _worst(worst: "Worst") -> dict[str, Any]:
    return {
        "error": worst.error,
        "bound": worst.bound,
        "share": worst.share,
        "place": worst.place,
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


def plot_data(plot: "Plot") -> dict[str, Any]:
    """The figure of `verify --plot`, null where there was nothing to draw."""
    return {"plot": None if plot.output is None else str(plot.output)}


def inspect_data(checkpoint: "Checkpoint", layers: "list[FoundLayer]") -> dict[str, Any]:
    """What `inspect` found."""
    return {
        "file": str(checkpoint.path),
        "format": checkpoint.format,
        "wrapper": checkpoint.wrapper,
        "prefix": checkpoint.prefix,
        "metadata": dict(checkpoint.metadata),
        "recipe": checkpoint.recipe,
        "layers": [
            {
                "name": layer.name,
                "kind": layer.kind,
                "detail": layer.detail,
                "weights": layer.weights,
                "tensors": {
                    role: {
                        "shape": list(info.shape),
                        "dtype": str(info.dtype).removeprefix("torch."),
                    }
                    for role, info in layer.tensors.items()
                },
            }
            for layer in layers
        ],
    }


def totals(merges: "Sequence[Merge]") -> tuple[int, int, int, int]:
    """Weights before and after, multiplications before and after."""
    return (
        sum(merge.weights_before for merge in merges),
        sum(merge.weights_after for merge in merges),
        sum(merge.macs_before for merge in merges),
        sum(merge.macs_after for merge in merges),
    )
