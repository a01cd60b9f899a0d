"""What `merge`, `verify` and `export-onnx` print for people: one table and a few lines."""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from convsqueeze.cli.data import totals
from convsqueeze.cli.layout import (
    bytes_told,
    change_told,
    count_told,
    file_told,
    new_table,
    print_notes,
    ratio_told,
)
from convsqueeze.names import shown
from convsqueeze.plan.wording import FORMS, common_stem, kernel, part_name, rows_told

if TYPE_CHECKING:  # each takes a moment to import, and no command needs them all
    from convsqueeze.export import ExportResult
    from convsqueeze.models import WholeReport
    from convsqueeze.models.onnx import WholeExport
    from convsqueeze.pipeline import MergedFile
    from convsqueeze.plan import Merge
    from convsqueeze.plot import Plot
    from convsqueeze.verify import LayerReport, Report


def print_merge(console: Console, done: "MergedFile") -> None:
    """The table of a merge, its totals, the files and the verdict."""
    reports = {one.name: one for one in done.verification.layers} if done.verification else {}
    table = new_table(done.title, "layer", "kernel", "weights", "MACs", "border")
    if reports:
        table.add_column("largest error\n/ bound", justify="right")
    for merge in done.plan.merges:
        cells = _merge_cells(merge)
        if reports:
            cells.append(_error(reports[merge.into]))
        table.add_row(*cells)
    sizes = {"x".join(map(str, merge.size)) for merge in done.plan.merges if merge.size}
    if sizes:
        table.caption = f"MACs for an input of {', '.join(sorted(sizes))}"
    table.add_section()
    before, after, macs_before, macs_after = totals(done.plan.merges)
    cells = ["total", "", change_told(before, after), change_told(macs_before, macs_after)]
    table.add_row(*cells, *([""] * (len(table.columns) - len(cells))), style="bold")
    console.print(table)
    _print_forms(console, done.plan.merges)
    print_notes(console, done.notes)
    if done.verification is not None:
        _print_verdict(console, done.verification)
    if done.output is None:
        console.print(
            f"{file_told(done.source)}: {bytes_told(done.bytes_before)}. Dry run: nothing written."
        )
        return
    console.print(
        f"{file_told(done.source)} {bytes_told(done.bytes_before)} -> "
        f"[bold]{file_told(done.output)}[/] {bytes_told(done.bytes_after)}",
        soft_wrap=True,
    )


def _merge_cells(merge: "Merge") -> list[Text | str]:
    labels = [leaf.label for leaf in merge.layers if leaf.parameters]
    stem = f"{merge.into}."
    if not all(label.startswith(stem) for label in labels):
        stem = common_stem([merge.into, *labels])
    parts = [part_name(leaf, stem) for leaf in merge.layers]
    name = Text(merge.into, style="bold")
    name.append("\n" + "\n".join(parts), style="not bold dim")
    border: str = merge.border
    if border == "interior":
        border += f": {rows_told(merge.leaks, len(merge.geometry.axes))} differ"
    return [
        name,
        kernel(merge.geometry),
        change_told(merge.weights_before, merge.weights_after),
        change_told(merge.macs_before, merge.macs_after),
        border,
    ]


def _print_forms(console: Console, merges: "Sequence[Merge]") -> None:
    """What exactness costs, where a plain convolution is not exact."""
    leaking = [merge for merge in merges if merge.leaks]
    if not leaking:
        return
    table = new_table("what exactness at the border costs", "layer", "form", "weights", "MACs", "")
    for merge in leaking:
        for form in merge.forms:
            told = rows_told(merge.leaks, len(merge.geometry.axes))
            table.add_row(
                Text(merge.into if form is merge.forms[0] else "", style="bold"),
                FORMS[form.name] + ("" if form.name == "apart" or form is not merge.form else " *"),
                f"{form.weights:,}",
                count_told(form.macs),
                "exact" if form.exact else f"{told} differ",
                style="bold" if form is merge.form else "",
            )
        table.add_section()
    table.caption = "* chosen by the border policy"
    console.print(table)


def print_verify(console: Console, report: "Report") -> None:
    """The table of a verification and the verdict."""
    table = new_table("verification", "layer", "inputs", "interior error\n/ bound", "border error")
    for one in report.layers:
        table.add_row(
            Text(one.name, style="bold" if one.ok else "bold red"),
            f"{one.inputs:,}",
            ratio_told(one.interior.error, one.interior.bound),
            _border_error(one),
        )
    console.print(table)
    for one in report.layers:
        if one.worst.place:
            console.print(
                f"{escape(one.name)}: largest share {one.worst.share:.3f}, {one.worst.place}",
                style="dim",
            )
    if report.untouched:
        console.print(f"{report.untouched} other tensors compared bit for bit")
    _print_verdict(console, report)


def _print_verdict(console: Console, report: "Report") -> None:
    if not report.ok:
        console.print("[bold red]not verified[/]")
        return
    settings = report.settings
    how = "random inputs and every single weight"
    if settings is not None and settings.exhaustive:
        how = "random inputs and impulses at every position"
    excused = [one for one in report.layers if one.policy == "interior"]
    count = _layers_are(len(report.layers))
    inside = " away from the border" if excused else ""
    console.print(
        f"[bold green]verified[/]: {count} equal within the rounding of the stored weights"
        f"{inside} ({how}, seed {settings.seed if settings else 0}{_computed_on(report.device)})"
    )
    for one in excused:
        share = one.border_error / one.border_range if one.border_range else 0.0
        console.print(
            f"[yellow]border[/]: {escape(one.name)} differs there by up to {one.border_error:.3g} "
            f"({share:.0%} of the largest output there) on {_shown(max(one.sizes, key=prod))}"
        )


def print_plot(console: Console, plot: "Plot") -> None:
    """Where the figure is, and what is not in it."""
    print_notes(console, plot.notes)
    if plot.output is not None:
        count = len(plot.drawn)
        layers = "1 layer" if count == 1 else f"{count} layers"
        console.print(f"drawn: {layers}, [bold]{file_told(plot.output)}[/]", soft_wrap=True)


def print_layers(console: Console, result: "ExportResult") -> None:
    """The layers of an ONNX model and how near onnxruntime came to torch."""
    table = new_table(result.destination.name, "layer", "dtype", "input sizes", "error\n/ bound")
    for one in result.layers:
        sizes = ", ".join("x".join(map(str, size)) or "vector" for size in one.sizes)
        error = ratio_told(one.worst.error, one.worst.bound)
        table.add_row(Text(shown(one.name), style="bold"), one.dtype, sizes, error)
    console.print(table)
    print_notes(console, result.notes)


def print_export(console: Console, result: "ExportResult") -> None:
    """The layers of an ONNX model, the verdict and the files."""
    print_layers(console, result)
    console.print(
        f"[bold green]checked[/]: {_layers_are(len(result.layers))} equal to torch within rounding "
        f"in onnxruntime (opset {result.opset}, seed {result.seed})"
    )
    for path in result.files:
        console.print(f"[bold]{file_told(path)}[/]", soft_wrap=True)


def print_whole_export(console: Console, result: "WholeExport") -> None:
    """The squeezed layers of a whole ONNX model, its sizes, and what the checks saw."""
    print_layers(console, result.written)
    if result.whole is not None:
        print_whole(console, result.whole)
    checked = result.checked
    for name, sizes in checked.inputs:
        console.print(f"input {escape(name)}: {escape(' x '.join(map(str, sizes)))}")
    print_notes(console, (*checked.notes, *result.notes))
    shapes = ", ".join(" ".join("x".join(map(str, s)) for s in one) for one in checked.shapes)
    console.print(
        f"[bold green]checked[/]: onnxruntime ({checked.dtype}) gives what {result.against} gives, "
        f"on {escape(shapes)}: {checked.worst.error:.2e} / {checked.worst.bound:.2e} (opset "
        f"{result.written.opset}, seed {result.written.seed})",
        soft_wrap=True,
    )
    for path in result.written.files:
        console.print(f"[bold]{file_told(path)}[/]", soft_wrap=True)


def print_whole(console: Console, report: "WholeReport") -> None:
    """What the whole model gave before and after."""
    print_notes(console, report.notes)
    if not report.ok:
        console.print("[bold red]the whole model differs[/]")
        return
    worst = report.before_rounding or report.worst
    how = "" if report.before_rounding is None else ", merged weights before rounding"
    console.print(
        f"[bold green]whole model[/]: same output before and after on {report.runs} random inputs "
        f"of {escape(report.inputs)} (largest error {report.worst.error:.2e} of "
        f"{report.largest:.3g}; in {report.dtype}{how}: {worst.error:.2e} / {worst.bound:.2e}, "
        f"seed {report.seed})",
        soft_wrap=True,
    )


def _computed_on(device: str) -> str:
    return "" if device == "cpu" else f", computed on {device}"


def _layers_are(count: int) -> str:
    return "1 layer is" if count == 1 else f"{count} layers are"


def _error(report: "LayerReport") -> str:
    return ratio_told(report.largest.error, report.largest.bound)


def _shown(size: Sequence[int]) -> str:
    return "x".join(map(str, size)) + " samples"


def _border_error(report: "LayerReport") -> str:
    if report.policy == "interior":
        return f"{report.border_error:.2e}\naccepted"
    return ratio_told(report.border.error, report.border.bound)
