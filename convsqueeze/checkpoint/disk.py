"""Files as files: which version was read, its hash, and replacing several whole or not at all.

Knows nothing of what the files hold.
"""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from convsqueeze.errors import CheckpointError, OutputError

Writer = Callable[[BinaryIO], None]


@dataclass(frozen=True)
class FileVersion:
    """A file as it was when it was opened: replaced or rewritten, it compares unequal."""

    path: Path
    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> "FileVersion":
        try:
            stat = path.stat()
        except OSError as error:
            raise unreadable(path, error) from error
        return cls(path, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)

    def check_unchanged(self) -> None:
        if FileVersion.of(self.path) != self:
            raise CheckpointError(
                f"{self.path}: changed while it was being read, and what was read so far may be a "
                "mixture. Wait until nothing writes to it and try again."
            )


def unreadable(path: Path, error: OSError) -> CheckpointError:
    reason = error.strerror or str(error)
    return CheckpointError(
        f"{path}: cannot be read ({reason}). Check the path and its permissions."
    )


def sha256(paths: Iterable[Path]) -> str:
    """Of the bytes of all files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise unreadable(path, error) from error
    return digest.hexdigest()


def check_place(place: Path, *, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Raises OutputError where a file cannot or must not be written at `place`; touches nothing.

    One of the `inputs`, under whatever name, is never replaced.
    """
    try:
        _check_directory(place)
        _check_taken(place, inputs)
    except OSError as error:
        raise OutputError(
            f"{place}: cannot be used ({error.strerror}). Choose another place."
        ) from error
    if (place.exists() or place.is_symlink()) and not overwrite:
        raise OutputError(
            f"{place}: exists already. Choose another name, or replace it with --overwrite."
        )


def _check_directory(place: Path) -> None:
    directory = place.parent
    if not directory.is_dir():
        what = "is not a directory" if directory.exists() else "does not exist"
        raise OutputError(f"{place}: the directory {directory} {what}. Create it first.")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise OutputError(
            f"{place}: the directory {directory} cannot be written. "
            "Choose another, or change its permissions."
        )


def _check_taken(place: Path, inputs: Iterable[Path]) -> None:
    if not place.exists():
        return
    if not place.is_file():
        raise OutputError(f"{place}: is no regular file, which was needed. Choose another name.")
    if any(one.exists() and place.samefile(one) for one in inputs):
        raise OutputError(f"{place}: is an input, which is never replaced. Choose another name.")


def replace_files(outputs: Sequence[tuple[Path, Writer]], ready: Callable[[], None]) -> None:
    """Write every output beside its place, flush all to disk, call `ready`, then rename in order.

    Whatever fails before the renames (which take no space and no time) leaves each place as it
    was. The mode of the new files is what the umask makes of 0666. `ready` may still raise.
    """
    temporaries: list[tuple[Path, Path]] = []
    try:
        for place, write in outputs:
            temporary = place.with_name(f".convsqueeze-{secrets.token_hex(8)}.tmp")
            temporaries.append((temporary, place))
            _write_new(temporary, place, write)
        ready()
        for temporary, place in temporaries:
            _rename(temporary, place)
    finally:
        for temporary, _ in temporaries:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _write_new(temporary: Path, place: Path, write: Writer) -> None:
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _unwritable(place, error) from error


def _rename(temporary: Path, place: Path) -> None:
    try:
        temporary.replace(place)
        if os.name == "posix":
            _sync_directory(place.parent)
    except OSError as error:
        raise _unwritable(place, error) from error


def _sync_directory(directory: Path) -> None:
    """So that the new name, too, survives a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(place: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(
        f"{place}: cannot be written ({reason}), and what stood there is untouched. "
        "Check the room on the disk and the permissions, or choose another place."
    )
