"""New files appear whole or not at all, whatever happens before, between and after."""

import errno
import fcntl
import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from convsqueeze.checkpoint import new_files
from convsqueeze.checkpoint.new_files import NewFiles, Writer
from convsqueeze.errors import OutputError

pytestmark = pytest.mark.quick


def content(text: str) -> Callable[[BinaryIO], object]:
    return lambda file: file.write(text.encode())


def write(folder: Path, *retired: str, overwrite: bool = False, **outputs: Writer) -> NewFiles:
    """All outputs by name, put in place together."""
    with NewFiles(overwrite=overwrite) as files:
        for name, writer in outputs.items():
            files.add(folder / name, writer)
        for name in retired:
            files.retire(folder / name)
        files.commit()
    return files


def state_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def numbered(folder: Path) -> Callable[[str], Path]:
    return lambda digits: folder / f"part{digits}"


def test_nothing_stands_before_the_commit_and_nothing_is_left_without_one(tmp_path: Path) -> None:
    with NewFiles(overwrite=False) as files:
        files.add(tmp_path / "a", content("new"))
        assert [name[:13] for name in state_of(tmp_path)] == [".convsqueeze-"]
    assert state_of(tmp_path) == {}


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with NewFiles(overwrite=False) as files:
        files.add(tmp_path / "a", content("new a"))
        files.add(tmp_path / "b", content("new b"))
        (tmp_path / "b").write_text("theirs")
        with pytest.raises(OutputError, match="b: has come to exist while this run was working"):
            files.commit()
    assert state_of(tmp_path) == {"b": "theirs"}
    write(tmp_path, overwrite=True, b=content("new b"))
    assert state_of(tmp_path) == {"b": "new b"}


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_a_file_system_without_hard_links(
    tmp_path: Path, refusal: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, target: Any) -> None:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    write(tmp_path, a=content("first"))
    with pytest.raises(OutputError, match="has come to exist"):
        write(tmp_path, a=content("second"))
    assert state_of(tmp_path) == {"a": "first"}


def test_a_part_never_takes_the_name_of_a_different_file(tmp_path: Path) -> None:
    def written(text: str) -> str:
        with NewFiles(overwrite=True) as files:
            place = files.add_part(numbered(tmp_path), content(text))
            files.commit()
        assert place.read_text() == text
        return place.name

    digest = hashlib.sha256(b"two").hexdigest()
    assert written("one") == "part"
    assert written("one") == "part"
    named = written("two")
    assert named == f"part{digest[:8]}"
    assert written("two") == named
    (tmp_path / named).write_text("altered")
    assert written("two") == f"part{digest}"
    (tmp_path / f"part{digest}").write_text("altered as well")
    with pytest.raises(OutputError, match="exists already, and is not what its name says"):
        written("two")
    assert len(state_of(tmp_path)) == 3


def test_what_an_output_replaces_goes_once_the_new_one_stands(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")

    def fail() -> None:
        raise OutputError("not ready")

    for ready, left in [(fail, {"old": "old"}), (lambda: None, {"new": "new"})]:
        with NewFiles(overwrite=True) as files:
            files.add(tmp_path / "new", content("new"))
            files.retire(tmp_path / "old")
            if ready is fail:
                with pytest.raises(OutputError):
                    files.commit(ready)
            else:
                files.commit(ready)
        assert state_of(tmp_path) == left


def test_a_rename_that_fails_takes_back_what_stood_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = new_files._put

    def fail_at_b(staged: Any) -> None:
        if staged.place.name == "b":
            raise OSError(errno.EIO, "I/O error")
        put(staged)

    monkeypatch.setattr(new_files, "_put", fail_at_b)
    with NewFiles(overwrite=True) as files:
        files.add(tmp_path / "a", content("new"))
        files.add(tmp_path / "b", content("new"))
        with pytest.raises(OutputError, match=r"b: cannot be written \(I/O error\)"):
            files.commit()
    assert state_of(tmp_path) == {}


TEMPORARY = ".convsqueeze-0123456789abcdef.tmp"


def written_anew(folder: Path) -> list[Path]:
    return write(folder, overwrite=True, out=content("new")).removed


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / TEMPORARY).write_text("half")
    assert written_anew(tmp_path) == [tmp_path / TEMPORARY]
    assert state_of(tmp_path) == {"out": "new"}


def test_what_a_living_run_writes_is_not(tmp_path: Path) -> None:
    with (tmp_path / TEMPORARY).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert written_anew(tmp_path) == []
    assert set(state_of(tmp_path)) == {"out", TEMPORARY}
    with NewFiles(overwrite=False) as files:
        files.add(tmp_path / "other", content("mine"))
        written_anew(tmp_path)
        files.commit()
    assert state_of(tmp_path)["other"] == "mine"


@pytest.mark.parametrize(
    "name", [".convsqueeze-0123.tmp", TEMPORARY + ".pt", "convsqueeze-0123456789abcdef.tmp"]
)
def test_nothing_else_is_taken_for_a_leftover(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    assert written_anew(tmp_path) == []
    assert state_of(tmp_path) == {"out": "new", name: "precious"}


def test_a_link_in_the_place_of_a_leftover_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / TEMPORARY).symlink_to("precious")
    assert written_anew(tmp_path) == []
    assert state_of(tmp_path)["precious"] == "precious"


def test_a_temporary_file_that_is_swept_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    flock = fcntl.flock

    def sweep_first(file: Any, how: int) -> None:
        if not seen:
            seen.append(file.name)
            Path(file.name).unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    assert written_anew(tmp_path) == []
    assert state_of(tmp_path) == {"out": "new"}


class Signalled(Exception):
    """What the test's own handler raises."""


@pytest.fixture
def raising_handler() -> Iterator[None]:
    def handle(number: int, frame: object) -> None:
        raise Signalled(number)

    before = signal.signal(signal.SIGTERM, handle)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("raising_handler")
def test_a_signal_among_the_renames_waits_for_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = new_files._put

    def signalled(staged: Any) -> None:
        put(staged)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(new_files, "_put", signalled)
    (tmp_path / "old").write_text("old")
    with pytest.raises(Signalled) as caught:
        write(tmp_path, "old", **dict.fromkeys("abc", content("new")))
    assert state_of(tmp_path) == dict.fromkeys("abc", "new")
    assert caught.value.__notes__ == ["with a, b, c complete"]


@pytest.mark.usefixtures("raising_handler")
def test_a_signal_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def signalled(file: BinaryIO) -> None:
        file.write(b"half")
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Signalled) as caught:
        write(tmp_path, a=content("whole"), b=signalled)
    assert state_of(tmp_path) == {}
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.usefixtures("raising_handler")
def test_a_second_signal_does_not_disturb_the_tidying_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def signalled(path: Path, missing_ok: bool = False) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        unlink(path, missing_ok)

    def fail(file: BinaryIO) -> None:
        monkeypatch.setattr(Path, "unlink", signalled)
        raise ValueError("the first reason to stop")

    with pytest.raises(Signalled):
        write(tmp_path, a=content("whole"), b=content("whole"), c=fail)
    monkeypatch.undo()
    assert state_of(tmp_path) == {}
