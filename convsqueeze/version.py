"""Versions of the formats that this program reads, in words. Knows none of the formats."""

from importlib.metadata import version
from typing import Any

LARGEST_VERSION = 1_000_000
"""A number beyond is no version, and may have more digits than a message holds."""


def newer_version(found: Any, known: int) -> str | None:
    """`2, this program (convsqueeze 0.1.0) reads version 1. Update convsqueeze`, where the version
    `found` in a file is later than the `known` one; None for anything else.
    """
    if not isinstance(found, int) or not known < found <= LARGEST_VERSION:
        return None
    program = f"convsqueeze {version('convsqueeze')}"
    return f"{found}, this program ({program}) reads version {known}. Update convsqueeze"
