"""What a merge did, in the rows and sentences that the command prints and `print(report)` gives."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING

from convsqueeze.formatting import (
    Row,
    Table,
    format_change,
    format_count,
    format_ratio,
    format_size,
)
from convsqueeze.plan import Merge, Plan
from convsqueeze.plan.wording import FORMS, common_stem, kernel, part_name, rows_text

if TYPE_CHECKING:  # it takes a moment to import, and a plan alone has none
    from convsqueeze.verify import Report


def merge_table(title: str, plan: Plan, verification: "Report | None") -> Table:
    """A row for each merge, and one for all of them."""
    reports = {one.name: one for one in verification.layers} if verification else {}
    errors = ["largest error\n/ bound"] if reports else []
    rows = []
    for merge in plan.merges:
        cells = _merge_cells(merge)
        if reports:
            largest = reports[merge.into].largest
            cells.append(format_ratio(largest.error, largest.bound))
        rows.append(Row(tuple(cells), ends_section=merge is plan.merges[-1]))
    before, after, macs_before, macs_after = totals(plan.merges)
    changes = (format_change(before, after), format_change(macs_before, macs_after))
    rows.append(Row(("total", "", *changes, "", *("" for _ in errors)), is_bold=True))
    columns = ("layer", "kernel", "weights", "MACs", "border", *errors)
    sizes = sorted({format_size(merge.size) for merge in plan.merges if merge.size})
    caption = f"MACs for an input of {', '.join(sizes)}" if sizes else ""
    return Table(title, columns, tuple(rows), caption)


def totals(merges: Sequence[Merge]) -> tuple[int, int, int, int]:
    """Weights before and after, multiplications before and after."""
    return (
        sum(merge.weights_before for merge in merges),
        sum(merge.weights_after for merge in merges),
        sum(merge.macs_before for merge in merges),
        sum(merge.macs_after for merge in merges),
    )


def _merge_cells(merge: Merge) -> list[str]:
    labels = [leaf.label for leaf in merge.layers if leaf.parameters]
    stem = f"{merge.into}."
    if not all(label.startswith(stem) for label in labels):
        stem = common_stem([merge.into, *labels])
    border: str = merge.border
    if border == "interior":
        border += f": {rows_text(merge.mismatches, len(merge.geometry.axes))} differ"
    return [
        "\n".join([merge.into, *(part_name(leaf, stem) for leaf in merge.layers)]),
        kernel(merge.geometry),
        format_change(merge.weights_before, merge.weights_after),
        format_change(merge.macs_before, merge.macs_after),
        border,
    ]


def forms_table(merges: Sequence[Merge]) -> Table | None:
    """What exactness costs, where a plain convolution is not exact."""
    rows = []
    for merge in (one for one in merges if one.mismatches):
        rows_wrong = rows_text(merge.mismatches, len(merge.geometry.axes))
        for form in merge.forms:
            is_chosen = form is merge.form
            cells = (
                merge.into if form is merge.forms[0] else "",
                FORMS[form.name] + (" *" if is_chosen and form.name != "apart" else ""),
                f"{form.weights:,}",
                format_count(form.macs),
                "exact" if form.exact else f"{rows_wrong} differ",
            )
            rows.append(Row(cells, is_chosen, form is merge.forms[-1]))
    columns = ("layer", "form", "weights", "MACs", "")
    title, caption = "what exactness at the border costs", "* chosen by the border policy"
    return Table(title, columns, tuple(rows), caption) if rows else None


def verdict(report: "Report") -> Iterator[tuple[str, str]]:
    """What verification says: a keyword and a sentence each."""
    if not report.ok:
        yield "not verified", "; ".join(report.failures)
        return
    settings = report.settings
    how = "random inputs and every single weight"
    if settings is not None and settings.exhaustive:
        how = "random inputs and impulses at every position"
    accepted = [one for one in report.layers if one.policy == "interior"]
    inside = " away from the border" if accepted else ""
    device = "" if report.device == "cpu" else f", computed on {report.device}"
    yield (
        "verified",
        f"{layers_are(report.layers)} equal within the rounding of the stored weights{inside} "
        f"({how}, seed {settings.seed if settings else 0}{device})",
    )
    for one in accepted:
        share = one.border_error / one.border_range if one.border_range else 0.0
        size = format_size(max(one.sizes, key=prod))
        yield (
            "border",
            f"{one.name} differs there by up to {one.border_error:.3g} ({share:.0%} of the largest "
            f"output there) on {size} samples",
        )


def layers_are(layers: Sequence[object]) -> str:
    """`1 layer is`, `7 layers are`."""
    return "1 layer is" if len(layers) == 1 else f"{len(layers)} layers are"


def summary(plan: Plan, verification: "Report | None", notes: Sequence[str]) -> Iterator[str]:
    """The tables of a merge, its notes and the verdict, in plain text."""
    yield str(merge_table("merged", plan, verification))
    if table := forms_table(plan.merges):
        yield str(table)
    yield from (f"note: {note}" for note in notes)
    if verification is not None:
        yield from (f"{keyword}: {text}" for keyword, text in verdict(verification))
