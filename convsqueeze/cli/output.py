"""Where output goes and how it looks: two consoles, JSON on stdout, tables and lines."""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from convsqueeze import formatting
from convsqueeze.errors import OutputError, printable
from convsqueeze.formatting import NUMBERS

MOST_ROWS = 2000
"""Of a table with lines around its cells."""


def consoles(as_json: bool) -> tuple[Console, Console]:
    """For the report and for everything else; with --json stdout is for data alone."""
    errors = Console(stderr=True, emoji=False)  # names may hold what looks like one: `:ok:`
    return errors if as_json else Console(emoji=False), errors


def words(value: object) -> str:
    """Anything from outside as markup of one line."""
    return escape(printable(f"{value}"))


@contextmanager
def reporting(files: Iterable[Path | None] = ()) -> Iterator[None]:
    """Around the report on files that are complete: they stay so where it cannot be printed, and
    that is told.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        done = " and ".join(f"{file}" for file in files if file is not None)
        raise OutputError(
            f"standard output: the report cannot be written ({error.strerror})"
            f"{f', but the work is done: {done}' if done else ''}. Make room for it, or let it go "
            "elsewhere."
        ) from error


def print_json(data: Any) -> None:
    """JSON has no infinity or NaN: such a number is printed as null. Paths are strings."""
    json.dump(_plain(data), sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def _plain(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    if isinstance(data, Path):
        return f"{data}"
    return None if isinstance(data, float) and not isfinite(data) else data


def picked(one: object, names: str) -> dict[str, Any]:
    """Fields of a report, by the names that they have there."""
    return {name: getattr(one, name) for name in names.split()}


def print_table(console: Console, table: formatting.Table) -> None:
    """A table that is there as data; numbers stand on the right, names are bold. One of very many
    rows is plain text, which takes no time.
    """
    if len(table.rows) > MOST_ROWS:
        console.file.write(f"{table}\n")
        return
    made = Table(
        title=words(table.title), title_justify="left", title_style="bold", expand=False,
        caption=table.caption or None,
    )  # fmt: skip
    for column in table.columns:
        justify: Any = "right" if column in NUMBERS else "left"
        made.add_column(column, justify=justify, overflow="fold", min_width=6)
    for row in table.rows:
        cells = ["\n".join(map(printable, cell.split("\n"))) for cell in row.cells]
        name, *lines = cells[0].split("\n")
        cell = Text(name, style="bold red" if row.is_wrong else "bold")
        cell.append("".join(f"\n{line}" for line in lines), style="not bold dim")
        style = "bold" if row.is_bold else ""
        made.add_row(cell, *cells[1:], style=style, end_section=row.ends_section)
    console.print(made)


def print_line(console: Console, markup: str, style: str | None = None) -> None:
    """One line, however wide the terminal is, so that paths and manifests can be copied."""
    console.print(markup, style=style, soft_wrap=True)


def print_notes(console: Console, notes: Iterable[str]) -> None:
    """Notes, one a line."""
    for note in notes:
        print_line(console, f"[yellow]note[/]: {words(note)}")


def print_files(console: Console, files: Iterable[object]) -> None:
    """What was written, one a line."""
    for path in files:
        print_line(console, f"[bold]{words(path)}[/]")
