"""Telling how far a run is."""

from collections.abc import Callable
from typing import Protocol


class Track(Protocol):
    """Told what is being done, how much is done and of how many (0: unknown), layers or bytes."""

    def __call__(self, what: str, done: int, total: int, *, unit: str = "") -> None: ...


def untracked(what: str, done: int, total: int, *, unit: str = "") -> None:
    pass


def byte_progress(what: str, total: int, track: Track) -> Callable[[int], None]:
    """To be called with the number of bytes done since the last call."""
    done = 0

    def progress(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        track(what, done, total, unit="bytes")

    return progress
