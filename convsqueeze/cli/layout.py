"""The frame of every table, and how numbers, files and notes are written."""

from collections.abc import Sequence

from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table

NUMBERS = ("kernel", "weights", "MACs", "inputs", "interior error\n/ bound", "border error")


def new_table(title: str, *columns: str) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="bold", expand=False)
    for column in columns:
        justify: JustifyMethod = "right" if column in NUMBERS else "left"
        table.add_column(column, justify=justify, overflow="fold", min_width=6)
    return table


def print_notes(console: Console, notes: Sequence[str]) -> None:
    for note in notes:
        console.print(f"[yellow]note[/]: {escape(note)}", soft_wrap=True)


def ratio_told(error: float, bound: float) -> str:
    return f"{error:.2e}\n/ {bound:.2e}"


def change_told(before: int, after: int) -> str:
    return f"{count_told(before)}\n-> {count_told(after)}"


def count_told(number: int) -> str:
    if number < 1_000_000:
        return f"{number:,}"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)


def file_told(path: object) -> str:
    return escape(str(path))


def bytes_told(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
