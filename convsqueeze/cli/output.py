"""Where a command's output goes: the two consoles, and JSON on stdout."""

import json
import sys
from math import isfinite
from pathlib import Path
from typing import Any

from rich.console import Console


def consoles(as_json: bool) -> tuple[Console, Console]:
    """For the report and for everything else; with --json stdout is for data alone."""
    errors = Console(stderr=True, emoji=False)  # names may hold what looks like one: `:ok:`
    return errors if as_json else Console(emoji=False), errors


def print_json(data: Any) -> None:
    """JSON has no infinity or NaN: such a number is printed as null. Paths are strings."""
    json.dump(_plain(data), sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def picked(one: object, names: str) -> dict[str, Any]:
    """Fields of a report, by the names that they have there."""
    return {name: getattr(one, name) for name in names.split()}


def _plain(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    if isinstance(data, Path):
        return str(data)
    return None if isinstance(data, float) and not isfinite(data) else data
