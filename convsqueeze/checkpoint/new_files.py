"""New files that appear whole or not at all, several of them together.

Each is written under a temporary name in the directory where it is to stand, flushed to disk, and
renamed once all are complete. Whatever fails or stops the run before that leaves every place as it
was. A killed run leaves `.convsqueeze-*.tmp` behind; such a file is locked as long as its run
lives, so the next run that writes into the directory can tell, and removes it.

Knows nothing of what the files hold.
"""

import contextlib
import errno
import os
import re
import secrets
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from filecmp import cmp
from pathlib import Path
from typing import BinaryIO

from convsqueeze.checkpoint.disk import files_sha256
from convsqueeze.errors import OutputError
from convsqueeze.paths import check_not_read, is_read

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing is locked, and nothing swept
    fcntl = None  # type: ignore[assignment]

Writer = Callable[[BinaryIO], object]

TEMPORARY = re.compile(r"\.convsqueeze-[0-9a-f]{16}\.tmp")
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


@dataclass(frozen=True)
class _Staged:
    """A complete file under its temporary name."""

    temporary: Path
    place: Path
    replaces: bool
    """Whether a file that stands at the place by then gives way."""


class NewFiles:
    """A context in which files are written; they stand in their places after `commit`.

    Leaving it without, by an exception or not, removes them. Their mode is what the umask makes of
    0666. An existing file is replaced only with `overwrite`, even one that appeared meanwhile; one
    of the `inputs`, the files that the run reads, never.
    """

    def __init__(self, *, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
        self._overwrite, self._inputs = overwrite, tuple(inputs)
        self._staged: list[_Staged] = []
        self._open: list[BinaryIO] = []
        self._retired: list[Path] = []
        self._swept: set[Path] = set()
        self.removed: list[Path] = []
        """Unfinished files of killed runs that were found and removed."""

    @property
    def places(self) -> list[Path]:
        """Where the files are to stand, in the order in which they were added."""
        return [staged.place for staged in self._staged]

    def __enter__(self) -> "NewFiles":
        return self

    def __exit__(self, *_: object) -> None:
        with _signals_waiting():
            for file in self._open:
                _unlink(Path(file.name))
                with contextlib.suppress(OSError):  # what could not be written is tried once more
                    file.close()

    def add(self, place: Path, write: Writer) -> None:
        """Write a file that is to stand at `place`. Raises OutputError where the disk refuses."""
        self._staged.append(_Staged(self._written(place, write), place, self._overwrite))

    def add_part(self, named: Callable[[str], Path], write: Writer) -> Path:
        """Write a file that another one, added later, names; returns where it is to stand.

        That is `named("")`, unless a different file stands there: an earlier output may need it
        until the new one is complete, so the name then holds digits of the new file's own sha256.
        """
        temporary = self._written(named(""), write)
        digest = "" if _free(named(""), temporary) else files_sha256([temporary])
        for place in (named(digest[:8]), named(digest)):
            if _free(place, temporary):
                self._staged.append(_Staged(temporary, place, replaces=not _vacant(place)))
                return place
        raise OutputError(
            f"{place}: exists already, and is not what its name says. Move it, or choose another "
            "name for the output."
        )

    def scratch(self, place: Path) -> BinaryIO:
        """An empty file beside `place`, open, and so locked, until the context is left, with which
        it goes unless it was put in its place. Raises OutputError where the disk refuses.
        """
        try:
            self._sweep(place.parent)
            file = _new_temporary(place.parent)
        except OSError as error:
            raise unwritable(place, error) from error
        self._open.append(file)
        return file

    def retire(self, path: Path) -> None:
        """Remove a part of an earlier output once the new one is in its place; an input stays."""
        if not is_read(path, self._inputs):
            self._retired.append(path)

    def commit(self, ready: Callable[[], None] = lambda: None) -> None:
        """Call `ready`, which may still raise, then put all files in their places in the order in
        which they were added.

        A signal that arrives meanwhile waits until all is done. Raises OutputError where a place is
        that of an input, and where a rename fails; files in places that were vacant are taken back
        then.
        """
        ready()
        check_not_read(self.places, self._inputs)
        complete = False
        try:
            with _signals_waiting():
                self._place_all()
                complete = True
                for old in self._retired:
                    _unlink(old)
        except BaseException as error:
            if complete:
                error.add_note(f"with {', '.join(place.name for place in self.places)} complete")
            raise

    def _place_all(self) -> None:
        placed: list[Path] = []
        try:
            for staged in self._staged:
                vacant = _vacant(staged.place)
                _put(staged)
                if vacant:
                    placed.append(staged.place)
                _sync_directory(staged.place.parent)
        except OSError as error:
            for place in placed:
                _unlink(place)
            if isinstance(error, FileExistsError):
                raise OutputError(
                    f"{staged.place}: has come to exist while this run was working. Choose another "
                    "name, or replace it with --overwrite."
                ) from error
            raise unwritable(staged.place, error) from error

    def _written(self, place: Path, write: Writer) -> Path:
        """The path of a complete temporary file beside `place`."""
        file = self.scratch(place)
        try:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:  # other systems do not rename a file that is open
                file.close()
        except OSError as error:
            raise unwritable(place, error) from error
        return Path(file.name)

    def _sweep(self, directory: Path) -> None:
        """Remove what killed runs left in the directory."""
        if directory in self._swept or fcntl is None:
            return
        self._swept.add(directory)
        with contextlib.suppress(OSError):  # a directory that does not tell what it holds
            for path in sorted(directory.iterdir()):
                if TEMPORARY.fullmatch(path.name) and _abandoned(path):
                    path.unlink()
                    self.removed.append(path)


def unwritable(place: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(
        f"{place}: cannot be written ({reason}), and what stood there is untouched. "
        "Check the room on the disk and the permissions, or choose another place."
    )


def _new_temporary(directory: Path) -> BinaryIO:
    """A new file, locked, that no sweep took for an abandoned one before it was locked."""
    while True:
        file = (directory / f".convsqueeze-{secrets.token_hex(8)}.tmp").open("xb")
        if fcntl is None:
            return file
        with contextlib.suppress(OSError):  # a file system without locks, on which none is swept
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


def _abandoned(path: Path) -> bool:
    """Whether no living run holds the lock of a temporary file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _put(staged: _Staged) -> None:
    """Rename; where nothing may be replaced by a link, which fails if something stands there."""
    if staged.replaces:
        staged.temporary.replace(staged.place)
        return
    try:
        staged.place.hardlink_to(staged.temporary)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if not _vacant(staged.place):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
        staged.temporary.replace(staged.place)
    else:
        staged.temporary.unlink()


def _vacant(place: Path) -> bool:
    return not os.path.lexists(place)


def _free(place: Path, new: Path) -> bool:
    """Whether putting the new file there changes nothing for who reads what stands there."""
    if _vacant(place):
        return True
    return place.is_file() and not place.is_symlink() and cmp(new, place, shallow=False)


def _sync_directory(directory: Path) -> None:
    """So that a new name, too, survives a loss of power."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _signals_waiting() -> Iterator[None]:
    """Signals that would stop the run are seen to when the block is left."""
    waiting: list[int] = []
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    try:
        for number, handler in handlers.items():
            if handler is not None:  # None: Python did not set it, and could not set it again
                signal.signal(number, lambda number, frame: waiting.append(number))
    except ValueError:  # not the main thread, in which alone handlers run
        handlers = {}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        for number in dict.fromkeys(waiting):
            signal.raise_signal(number)
