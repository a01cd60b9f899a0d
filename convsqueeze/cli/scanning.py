"""`scan`, and the scan in `merge --model`: the user's code is run, and its layers are read off."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from convsqueeze.checkpoint import Checkpoint
from convsqueeze.checkpoint.disk import check_place
from convsqueeze.checkpoint.new_files import NewFiles
from convsqueeze.cli.data import part_data, totals
from convsqueeze.cli.layout import change_told, file_told, new_table, print_notes
from convsqueeze.errors import PlanError
from convsqueeze.manifest import document_data, layer_labels
from convsqueeze.models import Code, WholeJob, scan_model, scan_plan
from convsqueeze.plan import Plan
from convsqueeze.plan.wording import kernel
from convsqueeze.scan import Scan, ScannedEntry
from convsqueeze.scan.writing import left_lines, scan_yaml

if TYPE_CHECKING:
    from convsqueeze.cli.options import MinimizeChoice, RuntimeChoice
    from convsqueeze.pipeline.merging import Planner
    from convsqueeze.pipeline.tracking import Track
    from convsqueeze.plan.parts import Latency


def latency_of(minimize: "MinimizeChoice", runtime: "RuntimeChoice") -> "Latency | None":
    """What measures, where time is minimised."""
    if minimize.value != "latency":
        return None
    from convsqueeze.latency import measuring

    return measuring(runtime.value)


def planner_from_code(
    code: Code, place: str, track: "Track", *, border: Any, growth: Any
) -> "Planner":
    """What plans the merges that a scan of the model finds. It raises PlanError where nothing is
    worth merging.
    """

    def plan(checkpoint: Checkpoint) -> Plan:
        track(f"scanning {place}", 0, 0)
        found = scan_model(
            code.model,
            code.inputs,
            border=border or "exact",
            growth=growth,
            stored=checkpoint.tensors,
            sandbox=code.sandbox,
        )
        made = scan_plan(found, checkpoint, place, growth)
        if made is None:
            why = f"`convsqueeze scan {place}` says why"
            raise PlanError([f"{place}: no layers of it are worth merging. {why}."])
        return made

    return plan


def whole_job(code: Code, seed: int, track: "Track") -> WholeJob:
    """The comparison of the whole model, beside a merge."""
    return WholeJob(code.model, code.inputs, seed=seed, track=track, sandbox=code.sandbox)


def check_output(output: Path | None, checkpoint: Path | None, *, overwrite: bool) -> None:
    """Raises OutputError where the manifest cannot be written, before the user's code is run."""
    if output is not None:
        inputs = [] if checkpoint is None else [checkpoint]
        check_place(output, overwrite=overwrite, inputs=inputs)


def write_scan(found: Scan, place: str, output: Path, *, overwrite: bool) -> None:
    """The manifest in its place, if there is anything to merge."""
    if found.document is None:
        return
    with NewFiles(overwrite=overwrite) as files:
        files.add(output, lambda file: file.write(scan_yaml(found, place).encode()))
        files.commit()


def print_scan(console: Console, found: Scan, place: str, output: Path) -> None:
    """The entries of the manifest in a table, what was left alone, and where the manifest is."""
    if found.entries:
        table = new_table(place, "layer", "kernel", "weights", "MACs", "border")
        for one in found.entries:
            table.add_row(*_entry_cells(one))
        console.print(table)
    for line in left_lines(found.left):
        console.print(escape(line), style="dim", soft_wrap=True, highlight=False)
    print_notes(console, found.notes)
    if found.document is None:
        console.print("Nothing to merge, nothing written.")
    else:
        console.print(f"[bold]{file_told(output)}[/]", soft_wrap=True)


def _entry_cells(one: ScannedEntry) -> list[Text | str]:
    """A row of the table: what all merges of an entry do together."""
    merges = [merged.merge for merged in one.merged]
    before, after, macs_before, macs_after = totals(merges)
    name = Text(one.entry.into or merges[0].into, style="bold")
    times = [f"{len(merges)} times"] if len(merges) > 1 else []
    name.append("\n" + "\n".join([*times, *layer_labels(one.entry)]), style="not bold dim")
    return [
        name,
        "\n".join(dict.fromkeys(kernel(merge.geometry) for merge in merges)),
        change_told(before, after),
        change_told(macs_before, macs_after),
        "\n".join(dict.fromkeys(merge.border for merge in merges)),
    ]


def scan_data(found: Scan, place: str, notes: tuple[str, ...]) -> dict[str, Any]:
    """A scan, for --json."""
    document = found.document
    return {
        "model": place,
        "border": found.border,
        "minimize": found.minimize,
        "manifest": None if document is None else document_data(document),
        "merges": [
            {"entry": index, **part_data(merged)}
            for index, one in enumerate(found.entries)
            for merged in one.merged
        ],
        "left": [
            {"layers": list(one.layers), "kind": one.reason.kind, "reason": one.reason.text}
            for one in found.left
        ],
        "notes": [*notes, *found.notes],
    }
