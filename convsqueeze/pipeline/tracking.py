"""Telling how far a run is."""

from collections.abc import Callable
from typing import Protocol

from convsqueeze.checkpoint import Checkpoint


class Track(Protocol):
    """Told what is being done, how much is done and of how many (0: unknown), layers or bytes."""

    def __call__(self, what: str, done: int, total: int, *, unit: str = "") -> None: ...


def untracked(what: str, done: int, total: int, *, unit: str = "") -> None:
    pass


def hashed(checkpoint: Checkpoint, track: Track) -> Callable[[int], None]:
    """Tells how far the hash of a checkpoint's files is."""
    what, total = f"hashing {checkpoint.path.name}", checkpoint.nbytes
    return lambda done: track(what, done, total, unit="bytes")


def in_bytes(what: str, total: int, track: Track) -> Callable[[int], None]:
    """Tells how far something is that goes byte by byte."""
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        track(what, done, total, unit="bytes")

    return advance
