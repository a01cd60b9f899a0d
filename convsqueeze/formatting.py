"""How numbers and tables are written. Knows text alone, and no terminal."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

NUMBERS = (
    *("kernel", "weights", "MACs", "inputs"),
    *("interior error\n/ bound", "border error", "largest error\n/ bound"),
)
"""Columns that are aligned on the right."""


@dataclass(frozen=True)
class Row:
    """A row of cells, each of some lines; the first cell is a name, and lines about it below."""

    cells: tuple[str, ...]
    is_bold: bool = False
    ends_section: bool = False
    is_wrong: bool = False


@dataclass(frozen=True)
class Table:
    """A table as data: every row has a cell for each column. As a string it is plain text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    caption: str = ""

    def __str__(self) -> str:
        rows = [[cell.split("\n") for cell in self.columns]]
        for row in self.rows:
            name, *others = (cell.split("\n") for cell in row.cells)
            rows.append([[*name[:1], *(f"  {line}" for line in name[1:])], *others])
        widths = [max(len(line) for row in rows for line in row[i]) for i in range(len(rows[0]))]
        lines = [self.title]
        for line in (line for row in rows for line in zip_longest(*row, fillvalue="")):
            aligned = (
                text.rjust(width) if column in NUMBERS else text.ljust(width)
                for text, width, column in zip(line, widths, self.columns, strict=True)
            )
            lines.append("  ".join(aligned).rstrip())
        return "\n".join([*lines, *filter(None, [self.caption])])


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
