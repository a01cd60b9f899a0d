"""The border as a picture: where squeezed layers differ from the original ones, and by how much.

Knows what verification measured and how to draw it, nothing of the terminal. matplotlib is an extra
that is imported when something is drawn; pyplot, with its state, never.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from math import ceil, sqrt
from pathlib import Path
from textwrap import fill, shorten
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from convsqueeze.checkpoint.new_files import NewFiles
from convsqueeze.errors import OutputError
from convsqueeze.names import listed, shown
from convsqueeze.paths import anchored, check_outputs
from convsqueeze.plan.wording import rows_text
from convsqueeze.verify import DifferenceMap, Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

MOST_PANELS = 48
"""More are too small to read on any sheet."""
COLUMNS = 6
PANEL_INCHES = (3.8, 3.1)
"""Without the lines of text."""
LINE_INCHES = 0.155
LINE = 46
"""Characters across a panel."""
EXACT, NO_NUMBER, FRAME, FAILED = "0.88", "#00c8d7", "#1f5fbf", "firebrick"
PERCENT = "%\u00a0of the largest output"
METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None},
    ".svg": {"Date": None},
}
"""For each suffix, what would make two files of the same figure differ."""


@dataclass(frozen=True)
class Plot:
    """The figure that was written, None where there was nothing to draw, and what is not in it."""

    output: Path | None
    drawn: tuple[str, ...]
    notes: tuple[str, ...]


def check_plot(place: Path, *, overwrite: bool, inputs: Sequence[Path] = ()) -> None:
    """Raises OutputError where a figure cannot be drawn or must not be written; touches nothing."""
    if place.suffix.lower() not in METADATA:
        raise OutputError(
            f"{place}: does not end in {', '.join(METADATA)}, one of which was needed. "
            "Name the figure so."
        )
    check_outputs([place], overwrite=overwrite, inputs=inputs)
    try:
        import matplotlib
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise OutputError(
            f"{place}: cannot be drawn ({error}), matplotlib was needed. "
            "Install it with `pip install matplotlib`, or leave --plot out."
        ) from error


def write_plot(
    report: Report, place: Path, *, overwrite: bool, inputs: Sequence[Path] = ()
) -> Plot:
    """Draw the maps of a report and write them, whole or not at all; no file if there are none.

    It replaces none of the files that were compared, nor of the `inputs`. Raises OutputError as
    `check_plot` does, and where the disk refuses.
    """
    place, inputs = anchored(place), (*report.files, *inputs)
    check_plot(place, overwrite=overwrite, inputs=inputs)
    if not report.maps:
        return Plot(None, (), (f"nothing to draw: {_why_nothing(report)}",))
    content = rendered(report, place.suffix.lower())
    with NewFiles(overwrite=overwrite, inputs=inputs) as files:
        files.add(place, lambda file: file.write(content))
        files.commit()
    names = tuple(one.name for one in panels(report))
    return Plot(place, names, tuple(_not_drawn(report)))


def _why_nothing(report: Report) -> str:
    if report.plan is None:
        return "no layer was run"
    silent = _without_map(report)
    return f"{listed(silent)} could not be run" if silent else "every layer is exact at every pixel"


def _not_drawn(report: Report) -> Iterator[str]:
    if silent := _without_map(report):
        yield f"not drawn, as they could not be run: {listed(silent)}"
    kept = {one.name for one in panels(report)}
    if left := [one.name for one in report.maps if one.name not in kept]:
        yield (
            f"{len(left)} of {len(report.maps)} layers are not drawn, {MOST_PANELS} panels being "
            f"the most that can be read: {listed(left)}; those that failed or differ most are"
        )


def _without_map(report: Report) -> list[str]:
    """Layers that belong in the figure and that nothing is known of."""
    exact = {one.name for one in report.layers if one.ok and one.policy != "interior"}
    known = exact | {one.name for one in report.maps}
    merges = report.plan.merges if report.plan is not None else ()
    return [merge.into for merge in merges if merge.into not in known]


def panels(report: Report) -> list[DifferenceMap]:
    """The maps that are drawn, in the report's order: of too many those that failed and those with
    the largest share.
    """
    failed = _problems(report)
    ranked = sorted(
        report.maps, key=lambda one: (one.name in failed, float(one.share.max())), reverse=True
    )
    first = {id(one) for one in ranked[:MOST_PANELS]}
    return [one for one in report.maps if id(one) in first]


def _problems(report: Report) -> dict[str, str]:
    return {one.name: one.problem for one in report.layers if one.problem}


def rendered(report: Report, suffix: str) -> bytes:
    """The figure as a file of this kind; equal reports give equal bytes, whatever style is set."""
    import matplotlib

    content = BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["svg.hashsalt"] = "convsqueeze"
        figure_of(report).savefig(
            content, format=suffix.removeprefix("."), metadata=METADATA[suffix]
        )
    return content.getvalue()


def figure_of(report: Report) -> "Figure":
    """One panel a map, in a grid, and what all have in common below."""
    from matplotlib.figure import Figure

    maps, problems = panels(report), _problems(report)
    columns = len(maps) if len(maps) <= 3 else min(ceil(sqrt(len(maps))), COLUMNS)
    rows = ceil(len(maps) / columns)
    headings = [_heading(one, problems.get(one.name)) for one in maps]
    most = max(heading.count("\n") for heading in headings)
    legend = fill(_legend(report, maps), (LINE + 8) * columns)
    lines = rows * (most + 1) + legend.count("\n") + 1
    size = (columns * PANEL_INCHES[0], rows * PANEL_INCHES[1] + lines * LINE_INCHES)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    places = figure.subfigures(rows, columns, squeeze=False).flat
    for place, one, heading in zip(places, maps, headings, strict=False):
        _draw(place, one)
        place.suptitle(
            heading + "\n" * (most - heading.count("\n")),  # so that all panels are of one size
            x=0.04,
            ha="left",
            fontsize=8,
            color=FAILED if one.name in problems else "black",
            parse_math=False,
        )
    figure.supxlabel(legend, x=0.04 / columns, ha="left", fontsize=8, parse_math=False)
    return figure


def _legend(report: Report, maps: Sequence[DifferenceMap]) -> str:
    settings = report.settings
    inputs = f"{settings.trials} random inputs (seed {settings.seed})" if settings else "the inputs"
    lines = [
        f"Largest difference over {inputs} of one size and all channels.",
        "Grey: equal within the rounding of the stored weights.",
        "Blue dashes: around what the plan says is exact.",
        "Inputs of other sizes may differ by more or less.",
    ]
    if any(one.difference.isinf().any() for one in maps):
        lines.append("Cyan: no finite number.")
    lines += [f"{note[0].upper()}{note[1:]}." for note in _not_drawn(report)]
    return " ".join(lines)


def _heading(one: DifferenceMap, problem: str | None) -> str:
    size = "x".join(map(str, one.size)) or "one vector"
    if one.meant is not None and one.meant != one.size:
        size = f"{size} (meets the border as {'x'.join(map(str, one.meant))})"
    lines = [shown(one.name), f"from {', '.join(map(shown, one.sources))}"]
    lines.append(f"kernel {one.kernel}, input {size}")
    if one.difference.ndim == 3:
        count, clear = one.difference.shape[0], len(_clear_slices(one))
        others = ": the others may differ everywhere" if clear < count else ""
        of = f"{clear} of {count}" if others else f"all {count}"
        lines.append(f"largest over {of} slices of the first axis{others}")
    if problem is not None:
        lines.append(f"FAILED: {problem}")
    else:
        worst = 100 * float(one.share.max())
        rows = rows_text(one.mismatches, len(one.size)) or "no row"
        lines.append(f"{rows}: differs by up to {worst:.3g}\u00a0{PERCENT}")
    return "\n".join(fill(shorten(line, 3 * LINE, placeholder=" ..."), LINE) for line in lines)


def _clear_slices(one: DifferenceMap) -> list[int]:
    """The slices of a volume that are looked through: those that the border does not spoil whole,
    which would hide every other; all of them where it spoils all.
    """
    every = range(one.difference.shape[0])
    return [index for index in every if index not in one.predicted[0]] or list(every)


def _as_image(one: DifferenceMap) -> tuple[Tensor, Tensor]:
    """Shares, and where they are more than rounding, both (rows, columns).

    One axis is a single row, a number a single pixel, and a volume the largest along its first
    axis.
    """
    share, differs = one.share, one.differs
    if share.ndim == 3:
        through = _clear_slices(one)
        differs = differs[through]
        share, differs = (share[through] * differs).amax(0), differs.any(0)
    columns = share.shape[-1] if share.ndim else 1
    return share.reshape(-1, columns), differs.reshape(-1, columns)


def _draw(figure: "SubFigure", one: DifferenceMap) -> None:
    """Percent of the largest output in colours, grey where the difference is only rounding."""
    import matplotlib
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots()
    share, differs = _as_image(one)
    percent = np.ma.masked_array((100 * share).numpy(), mask=~differs.numpy())
    finite = percent.compressed()[np.isfinite(percent.compressed())]
    # not from the pale end, which could be taken for grey
    colors = matplotlib.colormaps["magma_r"](np.linspace(0.2, 1.0, 256))
    image = axes.imshow(
        percent,
        cmap=ListedColormap(colors).with_extremes(bad=EXACT, over=NO_NUMBER),
        vmin=0.0,
        vmax=float(finite.max(initial=0.0)) or 1.0,
        interpolation="nearest",
        aspect="equal" if max(share.shape) <= 3 * min(share.shape) else "auto",
    )
    rows, columns = (frozenset[int](), frozenset[int](), *one.predicted)[-2:]
    height, width = share.shape
    for down, across in product(_runs(height, rows), _runs(width, columns)):
        corner, spans = (across[0] - 0.5, down[0] - 0.5), (np.ptp(across), np.ptp(down))
        axes.add_patch(Rectangle(corner, *spans, fill=False, ec=FRAME, lw=0.9, ls="--"))
    axes.tick_params(labelsize=7)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, integer=True))
    if share.shape[0] == 1:
        axes.set_yticks([])
    if percent.count():
        bar = figure.colorbar(image, ax=axes, shrink=0.8)
        bar.ax.tick_params(labelsize=7)
        bar.set_label(PERCENT, fontsize=7)


def _runs(count: int, spoiled: frozenset[int]) -> np.ndarray:
    """Where each run of unspoiled indices below `count` begins, and the end behind it."""
    clear = [False, *(index not in spoiled for index in range(count)), False]
    return np.flatnonzero(np.diff(clear)).reshape(-1, 2)
