"""Where a command's output goes: the two consoles, and JSON on stdout."""

import json
import sys
from math import isfinite
from typing import Any

from rich.console import Console


def consoles(as_json: bool) -> tuple[Console, Console]:
    """For the report and for everything else; with --json stdout is for data alone."""
    errors = Console(stderr=True, emoji=False)  # names may hold what looks like one: `:ok:`
    return errors if as_json else Console(emoji=False), errors


def print_json(data: Any) -> None:
    """JSON has no infinity or NaN: such a number is printed as null."""
    json.dump(_finite(data), sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not isfinite(data) else data
