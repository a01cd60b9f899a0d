"""A file past the system's cache holds what any other would, whatever is written to it and how."""

import errno
import fcntl
import gc
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convsqueeze.checkpoint import direct_file
from convsqueeze.checkpoint.direct_file import BUFFER, DIRECT, PAGE, DirectFile
from convsqueeze.checkpoint.new_files import NewFiles
from convsqueeze.errors import OutputError

REASON = "no way past the cache here"
pytestmark = pytest.mark.skipif(not DIRECT, reason=REASON)

PRIME = 251
"""After so many bytes they repeat, so that a page in the place of another is seen."""


def data(count: int, first: int = 0) -> bytes:
    return (bytes(range(PRIME)) * (count // PRIME + 2))[first % PRIME :][:count]


class System:
    """What is between the file and the disk: notes each write and does as it is told.

    At most `most` bytes are taken at a time; from the write number `after` on, of those that go
    past the cache or not, those of a kind that is in `refused` raise that.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most, self.after = 1 << 40, 0
        self.refused: dict[bool, int] = {}
        self.written: dict[bool, list[int]] = {True: [], False: []}
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, descriptor: int, part: memoryview) -> int:
        direct = bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & DIRECT)
        known = self.written[direct]
        if direct in self.refused and len(known) >= self.after:
            raise OSError(self.refused[direct], os.strerror(self.refused[direct]))
        done = self._write(descriptor, part[: self.most])
        known.append(done)
        return done


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    return System(monkeypatch)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A directory on a disk that can be written past the cache."""
    try:
        os.close(os.open(tmp_path / "probe", os.O_WRONLY | os.O_CREAT | DIRECT))
    except OSError:
        pytest.skip(REASON)
    (tmp_path / "probe").unlink()
    return tmp_path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers of four pages, of which one is enough to be written past the cache."""
    monkeypatch.setattr(direct_file, "BUFFER", 4 * PAGE)
    monkeypatch.setattr(direct_file, "LEAST", PAGE)


COUNTS = st.sampled_from([0, 1, 7, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, 9 * PAGE + 5])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), COUNTS),
        st.tuples(st.just("back"), COUNTS),
        st.tuples(st.just("end"), st.just(0)),
        st.tuples(st.just("flush"), st.just(0)),
    ),
    max_size=12,
)


def take(steps: list[tuple[str, int]], file: BinaryIO) -> list[int]:
    """Do as the steps say; returns where the file stood after each."""
    stood = []
    for number, (step, count) in enumerate(steps):
        if step == "write":
            assert file.write(data(count, number)) == count
        elif step == "back":
            file.seek(max(file.tell() - count, 0))
        elif step == "end":
            file.seek(0, os.SEEK_END)
        else:
            file.flush()
        stood.append(file.tell())
    return stood


@pytest.mark.usefixtures("small")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    steps=STEPS,
    most=st.sampled_from([1 << 40, 2 * PAGE, 1000]),
    refused=st.sampled_from([None, errno.EINVAL, errno.EIO]),
    after=st.integers(0, 2),
)
def test_the_bytes_are_those_of_any_other_file(
    tmp_path: Path,
    system: System,
    steps: list[tuple[str, int]],
    most: int,
    refused: int | None,
    after: int,
) -> None:
    """Where writes are cut short, and where those past the cache are refused sooner or later."""
    one, other = tmp_path / "one", tmp_path / "other"
    system.most, system.after = most, after
    system.refused = {} if refused is None else {True: refused}
    system.written[True].clear()
    with other.open("wb") as file:
        expected = take(steps, file)
    with DirectFile(one) as file:
        assert take(steps, file) == expected
        file.complete()
    same = one.read_bytes() == other.read_bytes()
    one.unlink()
    assert same


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("refuse", [None, "setting", "writing"])
def test_whole_pages_go_past_the_cache_where_that_is_possible(
    disk: Path, system: System, refuse: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if refuse == "setting":
        monkeypatch.setattr(direct_file, "DIRECT", 0)
    if refuse == "writing":
        system.refused = {True: errno.EINVAL}
    with DirectFile(disk / "out") as file:
        file.write(data(10))
        file.seek(10)
        file.write(data(9 * PAGE, 10))
        file.complete()
    assert (disk / "out").read_bytes() == data(9 * PAGE + 10)
    head, tail = PAGE - 10, 10
    if refuse is None:
        assert system.written == {True: [3 * PAGE, 4 * PAGE, PAGE], False: [10, head, tail]}
    else:
        assert system.written[True] == []


def test_little_is_left_to_the_cache(tmp_path: Path, system: System) -> None:
    with DirectFile(tmp_path / "out") as file:
        file.write(data(100_000))
        file.complete()
    assert system.written == {True: [], False: [100_000]}


def test_no_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("theirs")
    with pytest.raises(FileExistsError):
        DirectFile(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "theirs"


def test_what_waits_is_dropped_and_never_written_later(tmp_path: Path, system: System) -> None:
    """Its descriptor may be another file's by then."""
    file = DirectFile(tmp_path / "out")
    file.write(data(100))
    file.close()
    file = DirectFile(tmp_path / "another")
    file.write(data(100))
    del file
    gc.collect()
    assert system.written == {True: [], False: []}


def test_memory_is_given_back_when_a_file_is_complete(tmp_path: Path) -> None:
    """Shards are many, and all stay open."""
    with DirectFile(tmp_path / "out") as file:
        file.write(data(100))
        assert len(file._buffer) == BUFFER
        file.complete()
        assert len(file._buffer) == 0


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 6,000,000 bytes: a write beyond that fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def add(folder: Path, write: Callable[[BinaryIO], object]) -> None:
    with NewFiles(overwrite=False) as files:
        files.add(folder / "out", write)
        files.commit()


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_told(disk: Path, system: System) -> None:
    with pytest.raises(OutputError, match=r"out: cannot be written \(File too large\)"):
        add(disk, lambda file: file.write(data(3 * BUFFER)))
    assert system.written[True][0] == BUFFER, "it was past the cache that there was no more room"
    assert list(disk.iterdir()) == []
    add(disk, lambda file: file.write(data(5_000_000)))
    assert (disk / "out").read_bytes() == data(5_000_000)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_refuses_both_ways_is_told(tmp_path: Path, system: System, error: int) -> None:
    system.refused, system.after = {True: error, False: error}, 1
    with pytest.raises(OutputError, match=f"cannot be written .{os.strerror(error)}"):
        add(tmp_path, lambda file: [file.write(data(1)), file.write(data(3 * BUFFER))])
    assert list(tmp_path.iterdir()) == []


def test_a_signal_in_the_midst_of_a_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(descriptor: int, part: memoryview) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        add(tmp_path, lambda file: file.write(data(3 * BUFFER)))
    assert list(tmp_path.iterdir()) == []
