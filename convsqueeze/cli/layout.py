"""The frame of every table, and how numbers, files and notes are written."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

NUMBERS = (
    *("kernel", "weights", "MACs", "inputs"),
    *("interior error\n/ bound", "border error", "largest error\n/ bound"),
)
"""Columns that are aligned on the right."""


def new_table(title: str, *columns: str) -> Table:
    """An empty table; numbers stand on the right."""
    table = Table(title=escape(title), title_justify="left", title_style="bold", expand=False)
    for column in columns:
        justify: Any = "right" if column in NUMBERS else "left"
        table.add_column(column, justify=justify, overflow="fold", min_width=6)
    return table


def print_line(console: Console, markup: str, style: str | None = None) -> None:
    """One line, however wide the terminal is, so that paths and manifests can be copied."""
    console.print(markup, style=style, soft_wrap=True)


def print_notes(console: Console, notes: Iterable[str]) -> None:
    """Notes, one a line."""
    for note in notes:
        print_line(console, f"[yellow]note[/]: {escape(note)}")


def print_files(console: Console, files: Iterable[object]) -> None:
    """What was written, one a line."""
    for path in files:
        print_line(console, f"[bold]{escape(str(path))}[/]")


def print_dim(console: Console, lines: Iterable[str]) -> None:
    """What matters less, one a line."""
    for line in lines:
        console.print(escape(line), style="dim", soft_wrap=True, highlight=False)


def titled(name: str, lines: Sequence[str]) -> Text:
    """A cell: a name, and lines about it below."""
    cell = Text(name, style="bold")
    return cell.append("\n" + "\n".join(lines), style="not bold dim")


def format_ratio(error: float, bound: float) -> str:
    """`2.63e-07` above `/ 4.96e-07`."""
    return f"{error:.2e}\n/ {bound:.2e}"


def format_change(before: int, after: int) -> str:
    """`10,512` above `-> 416`."""
    return f"{format_count(before)}\n-> {format_count(after)}"


def format_count(number: int) -> str:
    """`318,820`, or from a million on `1.3 G`."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:,}"


def format_bytes(count: int) -> str:
    """`62.95 kB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def format_size(size: Iterable[int]) -> str:
    """`64x64`."""
    return "x".join(map(str, size))
