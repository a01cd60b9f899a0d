"""What a run reads and what it may write: paths that stay where they point, and the one answer to
whether a file may be written over.

Knows the file system, nothing of what files hold. Imports nothing that takes a moment.
"""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

from convsqueeze.errors import OutputError


def anchored(path: str | Path) -> Path:
    """The same path from the root on, so that no code which changes the working directory moves
    it, nor what is named beside it. `f"{path}"` gives it as it was given, for people; `str(path)`
    gives all of it, for the system.
    """
    if Path(path).is_absolute():
        return path if isinstance(path, Path) else Path(path)
    try:
        return _beneath(os.getcwd())(os.getcwd(), path)
    except FileNotFoundError:  # the working directory was removed
        return Path(path)


@cache
def _beneath(base: str) -> type[Path]:
    """Of paths that were given relative to `base`, and of paths that are made of them."""

    class Anchored(type(Path())):  # type: ignore[misc]
        def __format__(self, spec: str) -> str:
            given = str(self).removeprefix(os.path.join(base, "")) if str(self) != base else "."
            return format(given, spec)

    return Anchored


def check_outputs(outputs: Sequence[Path], *, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Raises OutputError where one of the files cannot or must not be written; touches nothing.

    No output is a file that the run reads, under whatever name, nor another output. What else
    exists is replaced only with `overwrite`.
    """
    for place in outputs:
        with usable(place):
            _check_place(place)
    check_not_read(outputs, inputs)
    for place in outputs:
        if os.path.lexists(place) and not overwrite:
            raise OutputError(
                f"{place}: exists already. Choose another name, or replace it with --overwrite."
            )


def check_not_read(outputs: Sequence[Path], inputs: Iterable[Path]) -> None:
    """Raises OutputError where one of the `outputs` is one of the `inputs`, code that has been
    imported, or another output, by whatever name.
    """
    known = tuple(inputs)
    for index, place in enumerate(outputs):
        with usable(place):
            if is_read(place, known):
                raise OutputError(
                    f"{place}: is an input, which is never replaced. Choose another name."
                )
            if any(_same(place, other) for other in outputs[:index]):
                raise OutputError(f"{place}: is another output of this run. Choose another name.")


def is_read(place: Path, inputs: Iterable[Path]) -> bool:
    """Whether a file is one of the `inputs`, or code that has been imported, by whatever name."""
    if any(_same(place, one) for one in inputs):
        return True
    return place.exists() and any(_same(place, one) for one in _imported_code())


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # where one is not there, they are one file if they would be written as one
        with contextlib.suppress(OSError):
            return one.name == other.name and one.parent.samefile(other.parent)
    return False


def _imported_code() -> Iterator[Path]:
    for module in [*sys.modules.values()]:
        file = vars(module).get("__file__") if isinstance(module, ModuleType) else None
        if isinstance(file, str):
            yield Path(file)


def _check_place(place: Path) -> None:
    directory = place.parent
    if not directory.is_dir():
        what = "is not a directory" if directory.exists() else "does not exist"
        raise OutputError(f"{place}: the directory {directory} {what}. Create it first.")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise OutputError(
            f"{place}: the directory {directory} cannot be written. "
            "Choose another, or change its permissions."
        )
    if place.exists() and not place.is_file():
        raise OutputError(f"{place}: no regular file, which was needed. Choose another name.")


@contextlib.contextmanager
def usable(place: Path) -> Iterator[None]:
    """Around questions about a place: raises OutputError where the system does not answer them."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{place}: cannot be used ({error.strerror}). Choose another place."
        ) from error
