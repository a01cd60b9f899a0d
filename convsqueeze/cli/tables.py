"""What a run prints for people: one table and a few lines."""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from convsqueeze.checkpoint import Checkpoint
from convsqueeze.checkpoint.names import shown
from convsqueeze.cli.data import plan_totals
from convsqueeze.inspection import FoundLayer
from convsqueeze.pipeline import MergedFile
from convsqueeze.plan import Merge
from convsqueeze.plan.wording import FORMS, common_stem, kernel, part_name, rows_told
from convsqueeze.plot import Plot
from convsqueeze.recipe import Recipe, read_recipe
from convsqueeze.verify import LayerReport, Report

if TYPE_CHECKING:  # onnx and onnxruntime take a moment to import, and most runs need neither
    from convsqueeze.export import ExportResult


NUMBERS = ("kernel", "weights", "MACs", "inputs", "interior error\n/ bound", "border error")


def print_merge(console: Console, done: MergedFile) -> None:
    """The table of a merge, its totals, the files and the verdict."""
    reports = {one.name: one for one in done.verification.layers} if done.verification else {}
    table = _table(done.source.name, "layer", "kernel", "weights", "MACs", "border")
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
    before, after, macs_before, macs_after = plan_totals(done.plan)
    totals = ["total", "", _change(before, after), _change(macs_before, macs_after)]
    table.add_row(*totals, *([""] * (len(table.columns) - len(totals))), style="bold")
    console.print(table)
    _print_forms(console, done.plan.merges)
    print_notes(console, done.notes)
    if done.verification is not None:
        _print_verdict(console, done.verification)
    if done.output is None:
        console.print(
            f"{_file(done.source)}: {_size(done.bytes_before)}. Dry run: nothing written."
        )
        return
    console.print(
        f"{_file(done.source)} {_size(done.bytes_before)} -> "
        f"[bold]{_file(done.output)}[/] {_size(done.bytes_after)}",
        soft_wrap=True,
    )


def _merge_cells(merge: Merge) -> list[Text | str]:
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
        _change(merge.weights_before, merge.weights_after),
        _change(merge.macs_before, merge.macs_after),
        border,
    ]


def _print_forms(console: Console, merges: Sequence[Merge]) -> None:
    """What exactness costs, where a plain convolution is not exact."""
    leaking = [merge for merge in merges if merge.leaks]
    if not leaking:
        return
    table = _table("what exactness at the border costs", "layer", "form", "weights", "MACs", "")
    for merge in leaking:
        for form in merge.forms:
            told = rows_told(merge.leaks, len(merge.geometry.axes))
            table.add_row(
                Text(merge.into if form is merge.forms[0] else "", style="bold"),
                FORMS[form.name] + ("" if form.name == "apart" or form is not merge.form else " *"),
                f"{form.weights:,}",
                _count(form.macs),
                "exact" if form.exact else f"{told} differ",
                style="bold" if form is merge.form else "",
            )
        table.add_section()
    table.caption = "* chosen by the border policy"
    console.print(table)


def print_verify(console: Console, report: Report) -> None:
    """The table of a verification and the verdict."""
    table = _table("verification", "layer", "inputs", "interior error\n/ bound", "border error")
    for one in report.layers:
        table.add_row(
            Text(one.name, style="bold" if one.ok else "bold red"),
            f"{one.inputs:,}",
            _ratio(one.interior.error, one.interior.bound),
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


def _print_verdict(console: Console, report: Report) -> None:
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
        f"{inside} ({how}, seed {settings.seed if settings else 0})"
    )
    for one in excused:
        share = one.border_error / one.border_range if one.border_range else 0.0
        console.print(
            f"[yellow]border[/]: {escape(one.name)} differs there by up to {one.border_error:.3g} "
            f"({share:.0%} of the largest output there) on {_shown(max(one.sizes, key=prod))}"
        )


def print_plot(console: Console, plot: Plot) -> None:
    """Where the figure is, and what is not in it."""
    print_notes(console, plot.notes)
    if plot.output is not None:
        count = len(plot.drawn)
        layers = "1 layer" if count == 1 else f"{count} layers"
        console.print(f"drawn: {layers}, [bold]{_file(plot.output)}[/]", soft_wrap=True)


def print_export(console: Console, result: "ExportResult") -> None:
    """The layers of an ONNX model and how near onnxruntime came to torch."""
    table = _table(result.destination.name, "layer", "dtype", "input sizes", "error\n/ bound")
    for one in result.layers:
        sizes = ", ".join("x".join(map(str, size)) or "vector" for size in one.sizes)
        error = _ratio(one.worst.error, one.worst.bound)
        table.add_row(Text(shown(one.name), style="bold"), one.dtype, sizes, error)
    console.print(table)
    print_notes(console, result.notes)
    console.print(
        f"[bold green]checked[/]: {_layers_are(len(result.layers))} equal to torch within rounding "
        f"in onnxruntime (opset {result.opset}, seed {result.seed})"
    )
    for path in result.files:
        console.print(f"[bold]{_file(path)}[/]", soft_wrap=True)


def _layers_are(count: int) -> str:
    return "1 layer is" if count == 1 else f"{count} layers are"


def print_notes(console: Console, notes: Sequence[str]) -> None:
    for note in notes:
        console.print(f"[yellow]note[/]: {escape(note)}", soft_wrap=True)


def print_inspection(console: Console, checkpoint: Checkpoint, layers: list[FoundLayer]) -> None:
    """The layers of a checkpoint, one a row."""
    table = _table(checkpoint.path.name, "name", "kind", "shape", "what it tells", "dtype")
    for layer in layers:
        dtypes = {str(info.dtype).removeprefix("torch.") for info in layer.tensors.values()}
        table.add_row(
            Text(shown(layer.name) or "(top)", style="bold"),
            layer.kind,
            "x".join(map(str, layer.shape)) or "one number",
            shown(layer.detail),
            ", ".join(sorted(dtypes - {"int64"}) or sorted(dtypes)),
        )
    console.print(table)
    facts = [f"format {checkpoint.format}", f"{len(checkpoint.tensors)} tensors"]
    if checkpoint.wrapper:
        facts.append(f"state dict under {shown(checkpoint.wrapper)}")
    if checkpoint.prefix:
        facts.append(f"names without their prefix {shown(checkpoint.prefix)}")
    if checkpoint.recipe is None:
        facts.append("no recipe")
    console.print(escape("; ".join(facts)))
    if checkpoint.recipe is not None:
        _print_recipe(console, read_recipe(checkpoint.recipe, str(checkpoint.path)))


def _print_recipe(console: Console, recipe: Recipe) -> None:
    title = f"recipe: squeezed from {shown(recipe.source.file)}"
    table = _table(title, "layer", "from", "kernel", "stride", "padding", "groups", "border")
    for layer in recipe.layers:
        sides = [low if low == high else [low, high] for low, high in layer.padding]
        table.add_row(
            Text(shown(layer.name), style="bold"),
            ", ".join(map(shown, layer.sources)),
            "x".join(map(str, layer.kernel_size)) or layer.kind,
            "x".join(map(str, layer.stride)),
            ", ".join(map(str, sides)),
            str(layer.groups),
            layer.border,
        )
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="bold", expand=False)
    for column in columns:
        justify: JustifyMethod = "right" if column in NUMBERS else "left"
        table.add_column(column, justify=justify, overflow="fold", min_width=6)
    return table


def _error(report: LayerReport) -> str:
    return _ratio(report.largest.error, report.largest.bound)


def _shown(size: Sequence[int]) -> str:
    return "x".join(map(str, size)) + " samples"


def _border_error(report: LayerReport) -> str:
    if report.policy == "interior":
        return f"{report.border_error:.2e}\naccepted"
    return _ratio(report.border.error, report.border.bound)


def _ratio(error: float, bound: float) -> str:
    return f"{error:.2e}\n/ {bound:.2e}"


def _change(before: int, after: int) -> str:
    return f"{_count(before)}\n-> {_count(after)}"


def _count(number: int) -> str:
    if number < 1_000_000:
        return f"{number:,}"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)


def _file(path: object) -> str:
    return escape(str(path))


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
