"""The frame of every table, and how files and notes are written."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from convsqueeze import formatting
from convsqueeze.formatting import NUMBERS


def new_table(title: str, *columns: str) -> Table:
    """An empty table; numbers stand on the right."""
    table = Table(title=escape(title), title_justify="left", title_style="bold", expand=False)
    for column in columns:
        justify: Any = "right" if column in NUMBERS else "left"
        table.add_column(column, justify=justify, overflow="fold", min_width=6)
    return table


def print_table(console: Console, table: formatting.Table) -> None:
    """A table that is there as data."""
    made = new_table(table.title, *table.columns)
    made.caption = table.caption or None
    for row in table.rows:
        name, *lines = row.cells[0].split("\n")
        style = "bold" if row.is_bold else ""
        made.add_row(titled(name, lines), *row.cells[1:], style=style, end_section=row.ends_section)
    console.print(made)


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
    return cell.append("".join(f"\n{line}" for line in lines), style="not bold dim")
