"""Writing: the place is checked first, and the output appears whole or not at all."""

import errno
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from convsqueeze.checkpoint import (
    KNOWN_SUFFIXES,
    Checkpoint,
    Edit,
    check_destination,
    default_destination,
    edited_names,
    from_state_dict,
    open_checkpoint,
    write_checkpoint,
)
from convsqueeze.checkpoint.new_files import NewFiles
from convsqueeze.errors import CheckpointError, OutputError

FORMATS = ["out.pt", "out.safetensors", "out.safetensors.index.json"]
BIG = {"a": torch.arange(100_000.0), "b": torch.ones(3)}


@pytest.fixture(params=["in.pt", "in.safetensors"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    path = tmp_path / request.param
    torch.save(BIG, path) if path.suffix == ".pt" else save_file(BIG, path)
    return open_checkpoint(path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("given", "default"),
    [
        ("model.pt", "model.squeezed.pt"),
        ("model.PTH", "model.squeezed.PTH"),
        ("m.safetensors.index.json", "m.squeezed.safetensors.index.json"),
        ("v1.2.safetensors", "v1.2.squeezed.safetensors"),
        ("best.pth.tar", "best.squeezed.pth.tar"),
        ("model.weights", "model.squeezed.weights"),
        ("model", "model.squeezed"),
    ],
)
def test_default_destination(given: str, default: str) -> None:
    assert default_destination(Path("some.where") / given) == Path("some.where") / default


@pytest.mark.parametrize("suffix", KNOWN_SUFFIXES)
def test_every_known_suffix_is_written_and_read(
    source: Checkpoint, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"out{suffix}"
    check_destination(source, out, overwrite=False)
    write_checkpoint(source, out, [], "recipe")
    after = open_checkpoint(out)
    assert (list(after.tensors), after.recipe) == (["a", "b"], "recipe")
    assert all(torch.equal(after.load(name), BIG[name]) for name in BIG)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("out.onnx", r"no suffix of a known format, one of \.pt, \.pth,"),
        ("out", "no suffix of a known format"),
        (".pt", "no suffix of a known format"),
        ("folder.pt", "a directory, the name of a file was needed"),
        ("nowhere/out.pt", "nowhere does not exist"),
        ("taken.pt/out.pt", r"taken\.pt is not a directory"),
        ("taken.pt", "exists already.*--overwrite"),
        ("dangling.pt", "exists already"),
        ("x" * 300 + ".pt", "File name too long"),
    ],
)
def test_place_that_cannot_be_used(
    source: Checkpoint, tmp_path: Path, name: str, says: str
) -> None:
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "taken.pt").write_bytes(b"old")
    (tmp_path / "dangling.pt").symlink_to("gone.pt")
    before = names(tmp_path)
    with pytest.raises(OutputError, match=says) as caught:
        check_destination(source, tmp_path / name, overwrite=False)
    assert "\n" not in str(caught.value)
    with pytest.raises(OutputError, match=says):
        write_checkpoint(source, tmp_path / name, [], "")
    assert names(tmp_path) == before
    assert (tmp_path / "taken.pt").read_bytes() == b"old"


def test_pipe_is_no_place(source: Checkpoint, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(OutputError, match="no regular file"):
        check_destination(source, tmp_path / "pipe.pt", overwrite=True)


def test_directory_that_cannot_be_written(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="cannot be written"):
        check_destination(source, tmp_path / "out.pt", overwrite=False)


def test_input_is_never_replaced(source: Checkpoint, tmp_path: Path) -> None:
    before = source.path.read_bytes()
    (tmp_path / "link.pt").symlink_to(source.path.name)
    os.link(source.path, tmp_path / "hard.safetensors")
    (tmp_path / "around").symlink_to(tmp_path)
    for place in ("link.pt", "hard.safetensors", source.path.name, f"around/{source.path.name}"):
        with pytest.raises(OutputError, match="is an input"):
            write_checkpoint(source, tmp_path / place, [], "", overwrite=True)
    assert source.path.read_bytes() == before


@pytest.mark.parametrize("name", FORMATS)
def test_overwrite_replaces_a_link_and_not_its_target(
    source: Checkpoint, tmp_path: Path, name: str
) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / name).symlink_to("target")
    write_checkpoint(source, tmp_path / name, [], "", overwrite=True)
    assert not (tmp_path / name).is_symlink()
    assert (tmp_path / "target").read_bytes() == b"precious"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_mode_is_as_the_umask_says(
    source: Checkpoint, tmp_path: Path, name: str, umask: int, mode: int
) -> None:
    old = os.umask(umask)
    try:
        write_checkpoint(source, tmp_path / name, [], "")
    finally:
        os.umask(old)
    written = [path for path in tmp_path.iterdir() if path.name.startswith("out")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {mode}


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 50 kB: a write beyond it fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("existing", [True, False])
def test_full_disk_leaves_what_was_there(
    source: Checkpoint, tmp_path: Path, name: str, existing: bool, request: pytest.FixtureRequest
) -> None:
    if existing:
        write_checkpoint(source, tmp_path / name, [], "old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    request.getfixturevalue("full_disk")
    with pytest.raises(OutputError, match=r"cannot be written \(File too large\)"):
        write_checkpoint(source, tmp_path / name, [], "new", overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("failure", [OSError(errno.EIO, "I/O error"), KeyboardInterrupt()])
def test_failure_before_the_renames_leaves_what_was_there(
    source: Checkpoint,
    tmp_path: Path,
    name: str,
    failure: BaseException,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_checkpoint(source, tmp_path / name, [], "old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(_: int) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        write_checkpoint(source, tmp_path / name, [], "new", overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", FORMATS)
def test_everything_is_flushed_before_it_is_renamed(
    source: Checkpoint, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sizes: dict[int, int] = {}
    before = len(os.listdir("/proc/self/fd"))
    fsync, link = os.fsync, Path.hardlink_to

    def spy_fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        kind = "directory" if stat.S_ISDIR(found.st_mode) else "file"
        events.append(f"flush {kind}")
        sizes.update({found.st_ino: found.st_size} if kind == "file" else {})
        fsync(descriptor)

    def spy_link(path: Path, target: Any) -> None:
        events.append(f"rename {path.name}")
        link(path, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "hardlink_to", spy_link)
    write_checkpoint(source, tmp_path / name, [], "")
    written = sorted(n for n in names(tmp_path) if n.startswith("out"))
    renames = [f"rename {n}" for n in written]
    flushes = ["flush file"] * len(written)
    assert [event for event in events if event != "flush directory"] == flushes + renames
    assert events[-1] == "flush directory"
    found = [path.stat() for path in tmp_path.iterdir() if path.name.startswith("out")]
    assert sizes == {f.st_ino: f.st_size for f in found}, "flushed before all was written"
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", FORMATS)
def test_input_that_changes_meanwhile(source: Checkpoint, tmp_path: Path, name: str) -> None:
    data = source.path.read_bytes()
    source.path.unlink()
    source.path.write_bytes(data)
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        write_checkpoint(source, tmp_path / name, [], "")
    assert names(tmp_path) == [source.path.name]


def test_input_that_is_cut_meanwhile(tmp_path: Path) -> None:
    save_file(BIG, tmp_path / "in.safetensors")
    source = open_checkpoint(tmp_path / "in.safetensors")
    os.truncate(source.path, 1000)
    with pytest.raises(CheckpointError, match="ends within its tensors"):
        source.load("a")
    with pytest.raises(CheckpointError, match="ends within its tensors"):
        write_checkpoint(source, tmp_path / "out.safetensors", [], "")
    source.path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        write_checkpoint(source, tmp_path / "out.safetensors", [], "")
    with pytest.raises(CheckpointError, match="cannot be read"):
        source.sha256()
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("edits", "says"),
    [
        ([Edit("zz", frozenset({"a"}), {})], "no tensor zz to edit"),
        ([Edit("a", frozenset({"zz"}), {})], "no tensor zz to edit"),
        ([Edit("a", frozenset("a"), {}), Edit("b", frozenset("a"), {})], "a edited twice"),
        ([Edit("a", frozenset(), {}), Edit("a", frozenset(), {})], "a edited twice"),
        ([Edit("a", frozenset("a"), {"b": torch.ones(1)})], "the new name b is taken"),
        ([Edit("a", frozenset(), {"a": torch.ones(1)})], "the new name a is taken"),
        (
            [Edit(n, frozenset(n), {"n": torch.ones(1)}) for n in "ab"],
            "the new name n is taken",
        ),
    ],
)
def test_edit_that_does_not_fit(tmp_path: Path, edits: list[Edit], says: str) -> None:
    source = from_state_dict(BIG)
    with pytest.raises(OutputError, match=says):
        edited_names(source, edits)
    with pytest.raises(OutputError, match=says):
        write_checkpoint(source, tmp_path / "out.pt", edits, "")
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", FORMATS)
def test_state_dict_from_memory_is_written(tmp_path: Path, name: str) -> None:
    flat = torch.arange(10.0)
    source = from_state_dict({"m.a": flat[:5], "m.b": flat[5:], "m._extra_state": 7})
    edits = [Edit("m.a", frozenset({"m.a"}), {"m.c": torch.ones(2)})]
    notes = write_checkpoint(source, tmp_path / name, edits, "recipe")
    lost = "m._extra_state: not kept, a .safetensors file holds tensors only"
    assert notes == (() if name.endswith(".pt") else (lost,))
    after = open_checkpoint(tmp_path / name)
    assert (list(after.tensors), after.recipe) == (["m.c", "m.b"], "recipe")
    assert torch.equal(after.load("m.b"), flat[5:])
    if name.endswith(".pt"):
        whole = torch.load(tmp_path / name, weights_only=True)
        assert whole["m._extra_state"] == 7
        assert whole["m.b"].untyped_storage().nbytes() == 20


def test_state_dict_that_cannot_be_pickled(tmp_path: Path) -> None:
    source = from_state_dict({"a": torch.ones(1), "f": lambda: None})
    with pytest.raises(OutputError, match="holds what cannot be pickled"):
        write_checkpoint(source, tmp_path / "out.pt", [], "")
    assert names(tmp_path) == []
    write_checkpoint(source, tmp_path / "out.safetensors", [], "")


def test_empty_state_dict() -> None:
    with pytest.raises(CheckpointError, match="holds no tensor"):
        from_state_dict({"a": 1})


def test_edits_are_meant_literally() -> None:
    source = from_state_dict({name: torch.ones(1) for name in "abcdef"})
    new = {name: torch.ones(1) for name in ("x", "a")}
    edits = [
        Edit("c", frozenset("ac"), new),
        Edit("e", frozenset("f"), {"y": torch.ones(1)}),
    ]
    assert edited_names(source, edits) == ["b", "x", "a", "d", "y", "e"]


def test_temporary_names_say_whose_they_are(tmp_path: Path) -> None:
    seen: list[str] = []

    def look(file: Any) -> None:
        seen.extend(names(tmp_path))
        file.write(b"x")

    with NewFiles(overwrite=False) as files:
        files.add(tmp_path / ("long" * 60 + ".pt"), look)
        files.commit()
    assert len(seen) == 1
    assert seen[0].startswith(".convsqueeze-")
    assert seen[0].endswith(".tmp")
    assert names(tmp_path) == ["long" * 60 + ".pt"]
