"""What commands print for people: a table, and a few lines. `data` tells the same as JSON.

`inspect` has a file of its own, since it needs no plan.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from convsqueeze.cli.output import print_files, print_line, print_notes, print_table, words
from convsqueeze.formatting import (
    Row,
    Table,
    format_bytes,
    format_change,
    format_count,
    format_ratio,
    format_size,
)
from convsqueeze.manifest import manifest_yaml, request_of
from convsqueeze.names import shown
from convsqueeze.plan.wording import kernel
from convsqueeze.summary import forms_table, layers_are, merge_table, totals, verdict

if TYPE_CHECKING:  # each takes a moment to import, and no command needs them all
    from convsqueeze.export import ExportResult
    from convsqueeze.models import WholeReport
    from convsqueeze.models.onnx import WholeExport
    from convsqueeze.pipeline import MergedFile
    from convsqueeze.pipeline.reviewing import ReviewedFile
    from convsqueeze.plan import Merge
    from convsqueeze.plan.pricing import Cost, Partition
    from convsqueeze.plan.review import Reviewed
    from convsqueeze.plot import Plot
    from convsqueeze.scan import ScannedEntry
    from convsqueeze.verify import Report

MEASURES = {"weights": "weights", "macs": "multiplications", "latency": "time"}
KEYWORDS = {"verified": "bold green", "not verified": "bold red", "border": "yellow"}


def print_merge(console: Console, done: "MergedFile") -> None:
    """The table of a merge, its totals, the files and the verdict."""
    print_table(console, merge_table(done.title, done.plan, done.verification))
    if table := forms_table(done.plan.merges):
        print_table(console, table)
    print_notes(console, done.notes)
    if done.verification is not None:
        _print_verdict(console, done.verification)
    source, before = words(done.source), format_bytes(done.bytes_before)
    if done.output is None:
        console.print(f"{source}: {before}. Dry run: nothing written.")
    else:
        output = f"[bold]{words(done.output)}[/] {format_bytes(done.bytes_after)}"
        print_line(console, f"{source} {before} -> {output}")


def print_verify(console: Console, report: "Report") -> None:
    """The table of a verification and the verdict."""
    rows = []
    for one in report.layers:
        interior = format_ratio(one.interior.error, one.interior.bound)
        border = format_ratio(one.border.error, one.border.bound)
        if one.policy == "interior":
            border = f"{one.border_error:.2e}\naccepted"
        cells = (one.name, f"{one.inputs:,}", interior, border)
        rows.append(Row(cells, is_wrong=not one.ok))
    columns = ("layer", "inputs", "interior error\n/ bound", "border error")
    title = ", ".join(filter(None, ("verification", shown(report.state_dict))))
    print_table(console, Table(title, columns, tuple(rows)))
    for one in report.layers:
        if one.worst.place:
            line = f"{one.name}: largest share {one.worst.share:.3f}, {one.worst.place}"
            console.print(words(line), style="dim")
    if report.untouched:
        console.print(f"{report.untouched} other tensors compared bit for bit")
    _print_verdict(console, report)


def _print_verdict(console: Console, report: "Report") -> None:
    for keyword, text in verdict(report):
        detail = f": {words(text)}" if report.ok else ""  # else it is printed as an error
        console.print(f"[{KEYWORDS[keyword]}]{keyword}[/]{detail}")


def print_plot(console: Console, plot: "Plot") -> None:
    """Where the figure is, and what is not in it."""
    print_notes(console, plot.notes)
    if plot.output is not None:
        layers = "1 layer" if len(plot.drawn) == 1 else f"{len(plot.drawn)} layers"
        print_line(console, f"drawn: {layers}, [bold]{words(plot.output)}[/]")


def print_export(console: Console, result: "ExportResult") -> None:
    """The layers of an ONNX model, the verdict and the files."""
    _print_exported(console, result)
    console.print(
        f"[bold green]checked[/]: {layers_are(result.layers)} equal to torch within rounding "
        f"in onnxruntime (opset {result.opset}, seed {result.seed})"
    )
    print_files(console, result.files)


def _print_exported(console: Console, result: "ExportResult") -> None:
    """The layers of an ONNX model, and how near onnxruntime came to torch."""
    rows = []
    for one in result.layers:
        sizes = ", ".join(format_size(size) or "vector" for size in one.sizes)
        error = format_ratio(one.worst.error, one.worst.bound)
        rows.append(Row((shown(one.name), one.dtype, sizes, error)))
    columns = ("layer", "dtype", "input sizes", "error\n/ bound")
    title = ", ".join(filter(None, (result.destination.name, shown(result.state_dict))))
    print_table(console, Table(title, columns, tuple(rows)))
    print_notes(console, result.notes)


def print_whole_export(console: Console, result: "WholeExport") -> None:
    """The squeezed layers of a whole ONNX model, its sizes, and what the checks saw."""
    _print_exported(console, result.written)
    if result.whole is not None:
        print_whole(console, result.whole)
    checked = result.checked
    for name, sizes in checked.inputs:
        console.print(f"input {words(name)}: {words(' x '.join(map(str, sizes)))}")
    print_notes(console, (*checked.notes, *result.notes))
    shapes = ", ".join(" ".join(map(format_size, one)) for one in checked.shapes)
    print_line(
        console,
        f"[bold green]checked[/]: onnxruntime ({checked.dtype}) gives what {result.against} gives, "
        f"on {words(shapes)}: {checked.worst.error:.2e} / {checked.worst.bound:.2e} (opset "
        f"{result.written.opset}, seed {result.written.seed})",
    )
    print_files(console, result.written.files)


def print_whole(console: Console, report: "WholeReport") -> None:
    """What the whole model gave before and after."""
    print_notes(console, report.notes)
    if report.ok:
        print_line(console, f"[bold green]whole model[/]: {words(report.describe())}")
    else:
        console.print("[bold red]the whole model differs[/]")


def print_review(console: Console, found: "ReviewedFile") -> None:
    """The table of `merge --dry-run`, then each entry that could be better, then that manifest."""
    if found.planned is not None:
        print_merge(console, found.planned)
    for one in found.review.entries:
        if one.is_better or one.is_refused:
            _print_reviewed(console, one)
    measure = MEASURES[found.review.minimize]
    if found.review.better is None:
        if found.planned is not None and not any(one.is_better for one in found.review.entries):
            less = "takes less" if found.review.minimize == "latency" else "has fewer"
            console.print(f"No other partition {less} {measure}.")
        return
    given = {"--border": found.border, "--growth": found.growth}
    options = [f"{name} {value}" for name, value in given.items() if value not in (None, "refuse")]
    needs = f", for merge with {' '.join(options)}" if options else ""
    console.print(f"A better manifest, by {measure}{needs}:", style="bold")
    text = manifest_yaml(found.review.better)
    console.print(text, markup=False, highlight=False, soft_wrap=True, end="")
    print_notes(console, [f"it is refused as well: {problem}" for problem in found.problems])


def _print_reviewed(console: Console, one: "Reviewed") -> None:
    """The best partition of an entry, and why what stays apart does."""
    best, place = one.partition, f"[bold]{words(one.place)}[/]"
    if not best.merged:
        print_line(console, f"{place}: no layers of it are worth merging.")
    elif one.is_better:
        given = f"as given {_measured(best, one.given)}" if one.given else "refused as given"
        change = f"{_measured(best, best.before)} -> {_measured(best, best.after)}"
        print_line(console, f"{place}: in parts {change} ({given})")
        for part in best.merged:
            print_line(console, f"  one layer: {words(_part_line(part))}")
        if best.apart:
            print_line(console, f"  apart: {words(', '.join(best.apart))}")
    for rejected in best.kept_apart:
        line = f"  {', '.join(rejected.request.labels)}: {rejected.reason}"
        print_line(console, words(line), style="dim")
    print_notes(console, best.notes)


def _measured(best: "Partition", cost: "Cost") -> str:
    if best.minimize == "latency":
        return f"{-cost.nanoseconds / 1e6:.3g} ms less" if cost.nanoseconds else "all the time"
    count = cost.weights if best.minimize == "weights" else cost.macs
    return f"{format_count(count)} {MEASURES[best.minimize]}"


def _part_line(merge: "Merge") -> str:
    timing = merge.timing
    line = (
        f"{', '.join(merge.request.labels)} into {merge.into}, "
        f"{merge.weights_before:,} -> {merge.weights_after:,} weights, "
        f"{format_count(merge.macs_before)} -> {format_count(merge.macs_after)} MACs"
    )
    if timing is None:
        return line
    return f"{line}, {timing.before / 1e6:.3g} -> {timing.after / 1e6:.3g} ms"


def print_entries(console: Console, title: str, entries: "Sequence[ScannedEntry]") -> None:
    """The table of a scan: for each entry what all of its merges do together."""
    rows = []
    for one in entries:
        merges = one.merged
        before, after, macs_before, macs_after = totals(merges)
        times = [f"{len(merges)} times"] if len(merges) > 1 else []
        labels = request_of(one.entry).labels
        cells = (
            "\n".join([one.entry.into or merges[0].into, *times, *labels]),
            "\n".join(dict.fromkeys(kernel(merge.geometry) for merge in merges)),
            format_change(before, after),
            format_change(macs_before, macs_after),
            "\n".join(dict.fromkeys(merge.border for merge in merges)),
        )
        rows.append(Row(cells))
    columns = ("layer", "kernel", "weights", "MACs", "border")
    print_table(console, Table(title, columns, tuple(rows)))
