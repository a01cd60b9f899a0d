"""What no merge touches goes from file to file; what merges make waits on disk, one at a time."""

import errno
import gc
import hashlib
import json
import resource
import sys
import weakref
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from convsqueeze import load_layers, merge_file, pipeline
from convsqueeze.checkpoint import (
    Checkpoint,
    Edit,
    ScratchFile,
    TensorOnDisk,
    from_state_dict,
    memory,
    open_checkpoint,
    write_checkpoint,
)
from convsqueeze.checkpoint.disk import BLOCK, FileRange, files_sha256
from convsqueeze.checkpoint.new_files import NewFiles
from convsqueeze.errors import CheckpointError, OutputError
from convsqueeze.manifest import manifest_from_data
from convsqueeze.pipeline import merging
from tests.command_line import run_process

SUFFIXES = (".safetensors", ".pt", ".safetensors.index.json")
PAIRS = 4
MANIFEST = {
    "version": 1,
    "pairs": [{"first": {"name": f"{n}.0"}, "second": {"name": f"{n}.1"}} for n in range(PAIRS)],
}


def tensors() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    named = {"kept": torch.randn(3, 1000, generator=random), "half": torch.ones(7).half()}
    for n in range(PAIRS):
        named[f"{n}.0.weight"] = torch.randn(32, 4, 3, 3, generator=random)
        named[f"{n}.1.weight"] = torch.randn(4, 32, 1, 1, generator=random)
    return named | {"empty": torch.zeros(0, 3), "steps": torch.tensor(7)}


def checkpoint_of(folder: Path, suffix: str, named: dict[str, Tensor] | None = None) -> Path:
    path = folder / f"in{suffix}"
    state_dict = from_state_dict(tensors() if named is None else named)
    write_checkpoint(state_dict, path, [], "")
    return path


def everything(path: Path) -> dict[str, Tensor]:
    checkpoint = open_checkpoint(path)
    return {name: checkpoint.load(name).clone() for name in checkpoint.tensors}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tensors whose values were looked at."""
    seen: list[str] = []
    load, raw_bytes = Checkpoint.load, memory.raw_bytes

    def spy_load(self: Checkpoint, name: str) -> Tensor:
        seen.append(name)
        return load(self, name)

    def spy_bytes(tensor: Tensor) -> memoryview:
        seen.append(f"{tuple(tensor.shape)}")
        return raw_bytes(tensor)

    monkeypatch.setattr(Checkpoint, "load", spy_load)
    monkeypatch.setattr(memory, "raw_bytes", spy_bytes)
    return seen


@pytest.mark.parametrize(("before", "after"), list(product(SUFFIXES, SUFFIXES)))
def test_untouched_values_never_become_tensors(
    tmp_path: Path, before: str, after: str, watched: list[str]
) -> None:
    path, output = checkpoint_of(tmp_path, before), tmp_path / f"out{after}"
    watched.clear()
    merge_file(path, manifest_from_data(MANIFEST), output)
    kept = [name for name in tensors() if "." not in name]
    assert not {"kept", "half", "steps", "(3, 1000)", "(7,)"} & set(watched)
    assert {f"{n}.0.weight" for n in range(PAIRS)} < set(watched), "the spy sees what is loaded"
    found = everything(output)
    assert list(found) == ["kept", "half", *(f"{n}.0.weight" for n in range(PAIRS)), *kept[2:]]
    for name in kept:
        assert found[name].dtype == tensors()[name].dtype
        assert torch.equal(found[name], tensors()[name])


@pytest.mark.parametrize(("before", "after"), list(product(SUFFIXES, SUFFIXES)))
def test_every_format_gives_the_same_tensors_and_recipe(
    tmp_path: Path, before: str, after: str
) -> None:
    path, output = checkpoint_of(tmp_path, before), tmp_path / f"out{after}"
    merge_file(path, manifest_from_data(MANIFEST), output)
    expected = {n: t for n, t in everything(output).items() if n.endswith("weight")}
    direct = tmp_path / "direct.safetensors"
    merge_file(path, manifest_from_data(MANIFEST), direct)
    assert {n: t.tolist() for n, t in load_file(direct).items() if n.endswith("weight")} == {
        n: t.tolist() for n, t in expected.items()
    }
    recipe = open_checkpoint(output).recipe
    assert recipe is not None
    assert json.loads(recipe)["source"]["sha256"] == open_checkpoint(path).sha256()
    assert pipeline.verify_files(path, output).ok
    assert len(load_layers(output)) == PAIRS


@pytest.mark.stress
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_only_one_merge_is_in_memory(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what was loaded nor what was made of it outlives the next merge."""
    assert all(len(alive) <= 1 for alive in _alive(tmp_path, suffix, monkeypatch))


def test_a_result_that_is_held_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScratchFile, "keep", lambda self, tensor: tensor)
    alive = _alive(tmp_path, ".safetensors", monkeypatch)
    assert [len(merges) for merges in alive] == list(range(PAIRS))


def _alive(folder: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """Before each merge, of which earlier ones some tensor is still there."""
    references: list[tuple[int, weakref.ref[Tensor]]] = []
    alive: list[set[int]] = []
    squeeze_one, load = merging.squeeze_one, Checkpoint.load

    def spy(*arguments: Any, **options: Any) -> Any:
        gc.collect()
        alive.append({n for n, reference in references if reference() is not None})
        squeezed = squeeze_one(*arguments, **options)
        references.append((len(alive), weakref.ref(squeezed.stored["weight"])))
        return squeezed

    def spy_load(self: Checkpoint, name: str) -> Tensor:
        tensor = load(self, name)
        references.append((len(alive), weakref.ref(tensor)))
        return tensor

    path = checkpoint_of(folder, suffix)
    monkeypatch.setattr(merging, "squeeze_one", spy)
    monkeypatch.setattr(Checkpoint, "load", spy_load)
    merge_file(path, manifest_from_data(MANIFEST), folder / f"out{suffix}")
    assert len(alive) == PAIRS
    return alive


PEAK = """
import resource, sys, torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from convsqueeze.cli.main import main
sys.argv = ["convsqueeze", *sys.argv[1:]]
try:
    main()
except SystemExit as leaving:
    print("status", leaving.code)
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.stress
@pytest.mark.parametrize(("before", "after"), [(SUFFIXES[0],) * 2, (SUFFIXES[0], ".pt")])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, before: str, after: str) -> None:
    """Resident memory above that of importing torch: the same for 1 MB and for 400 MB."""
    (tmp_path / "pairs.yaml").write_text(json.dumps(MANIFEST))
    peaks = []
    for megabytes in (1, 400):
        large = {"large": torch.zeros(megabytes * 250_000), **tensors()}
        folder = tmp_path / f"{megabytes}"
        folder.mkdir()
        path, output = checkpoint_of(folder, before, large), folder / f"out{after}"
        done = run_process(
            "merge",
            path,
            "--pairs",
            tmp_path / "pairs.yaml",
            "-o",
            output,
            "-q",
            command=[sys.executable, "-c", PEAK],
        )
        assert "status 0" in done.stdout, done
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 40, peaks


# the hash


def test_the_hash_is_that_of_all_bytes(tmp_path: Path) -> None:
    data = [bytes(range(256)) * (BLOCK // 100), b"", b"the end"]
    paths = [tmp_path / f"{number}" for number in range(3)]
    for path, part in zip(paths, data, strict=True):
        path.write_bytes(part)
    told: list[int] = []
    assert files_sha256(paths, told.append) == hashlib.sha256(b"".join(data)).hexdigest()
    assert sum(told) == sum(map(len, data))
    assert max(told) == BLOCK


def test_a_hash_that_fails_is_told(tmp_path: Path) -> None:
    path = checkpoint_of(tmp_path, ".safetensors")
    source = open_checkpoint(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        source.sha256()


# what waits on disk


def test_spooled_tensors(tmp_path: Path) -> None:
    given = [torch.randn(3, 4).half(), torch.zeros(0, 2), torch.randn(2, 3).t(), torch.tensor(1.5)]
    with NewFiles(overwrite=False) as files:
        spool = ScratchFile(files, tmp_path / "out.pt")
        assert list(tmp_path.iterdir()) == [], "made when it is first needed"
        kept = [spool.keep(tensor) for tensor in given]
        assert len(list(tmp_path.iterdir())) == 1
        for tensor, one in zip(given, kept, strict=True):
            assert (one.info.shape, one.info.dtype) == (tuple(tensor.shape), tensor.dtype)
            assert torch.equal(one.load(), tensor)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_while_merges_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: NewFiles, place: Path) -> Any:
        return Full()

    class Full:
        name = "full"

        def tell(self) -> int:
            return 0

        def write(self, data: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    path = checkpoint_of(tmp_path, ".safetensors")
    monkeypatch.setattr(NewFiles, "scratch", full)
    with pytest.raises(OutputError, match=r"out\.safetensors: cannot be written \(No space left"):
        merge_file(path, manifest_from_data(MANIFEST), tmp_path / "out.safetensors")
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_spool_that_is_cut_is_told_of(tmp_path: Path, suffix: str) -> None:
    source = open_checkpoint(checkpoint_of(tmp_path, suffix))
    with NewFiles(overwrite=False) as files:
        spooled = ScratchFile(files, tmp_path / "out").keep(torch.ones(3))
        assert isinstance(spooled, TensorOnDisk)
        edit = Edit("kept", frozenset({"kept"}), {"new": spooled})
        spooled.place.path.write_bytes(b"")
        with pytest.raises(CheckpointError, match=r"ends within|cannot be read"):
            write_checkpoint(source, tmp_path / f"out{suffix}", [edit], "", files=files)
    assert not list(tmp_path.glob("out*"))


# comparing files


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("convsqueeze.checkpoint.disk.BLOCK", 8)
    return


@pytest.mark.parametrize("place", [0, 7, 8, 15, 16, 18, None])
def test_the_first_byte_that_differs(tmp_path: Path, place: int | None, small_blocks: None) -> None:
    data = bytearray(range(30))
    (tmp_path / "one").write_bytes(data)
    if place is not None:
        data[5 + place] ^= 1
        data[29] ^= 1  # outside
    (tmp_path / "two").write_bytes(data[2:])
    one, two = FileRange(tmp_path / "one", 5, 19), FileRange(tmp_path / "two", 3, 19)
    assert one.first_difference(two) == place
    assert one.first_difference(one) is None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_untouched_values_are_compared_in_their_files(
    tmp_path: Path, suffix: str, watched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, output = checkpoint_of(tmp_path, suffix), tmp_path / "out.safetensors"
    merge_file(path, manifest_from_data(MANIFEST), output)
    watched.clear()
    assert pipeline.verify_files(path, output).ok
    assert not {"kept", "half"} & set(watched)
    named = load_file(output)
    named["kept"][2, 345] += 1
    save_file(named, output, dict(open_checkpoint(output).metadata))
    report = pipeline.verify_files(path, output)
    assert report.problems == ("kept: was not merged, but differs from the original at [2, 345].",)
    monkeypatch.setattr(FileRange, "first_difference", lambda *_: None)
    assert pipeline.verify_files(path, output).ok, "by this comparison alone it is found"


# shards of a size


def sizes_of(index: Path) -> dict[str, list[str]]:
    """The tensors of each shard, in its order."""
    weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
    return {
        shard: list(load_file(index.parent / shard)) for shard in sorted({*weight_map.values()})
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        (100, [["a"], ["b", "c", "d"], ["e"]]),
        (36, [["a"], ["b", "c"], ["d"], ["e"]]),
        (16, [["a"], ["b"], ["c"], ["d"], ["e"]]),
        (1, [["a"], ["b"], ["c"], ["d"], ["e"]]),
        (10_000, [["a", "b", "c", "d", "e"]]),
    ],
)
def test_shards_of_a_size(
    tmp_path: Path, suffix: str, largest: int, expected: list[list[str]]
) -> None:
    """Filled in order; a tensor larger than the limit has a shard of its own."""
    counts = {"a": 50, "b": 4, "c": 5, "d": 8, "e": 20}
    named = {name: torch.full((count,), float(count)) for name, count in counts.items()}
    source = open_checkpoint(checkpoint_of(tmp_path, suffix, named))
    output = tmp_path / "out.safetensors.index.json"
    write_checkpoint(source, output, [], "recipe", largest_shard=largest)
    shards = sizes_of(output)
    assert [sorted(names) for names in shards.values()] == expected
    count = len(expected)
    assert list(shards) == [f"out-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    assert list(json.loads(output.read_text())["weight_map"]) == list("abcde")
    assert {name: len(t) for name, t in everything(output).items()} == counts
    assert open_checkpoint(output).recipe == "recipe"


@pytest.mark.parametrize("name", ["out.safetensors", "out.pt"])
def test_one_file_is_not_split(tmp_path: Path, name: str) -> None:
    source = open_checkpoint(checkpoint_of(tmp_path, ".safetensors"))
    with pytest.raises(
        OutputError, match=rf"out\.(safetensors|pt): one file.*-o .*out\{SUFFIXES[2]}"
    ):
        write_checkpoint(source, tmp_path / name, [], "", largest_shard=100)
    assert [one.name for one in tmp_path.iterdir()] == ["in.safetensors"]


def test_split_is_where_the_output_goes_by_default(tmp_path: Path) -> None:
    path = checkpoint_of(tmp_path, ".pt")
    done = merge_file(path, manifest_from_data(MANIFEST), largest_shard=600)
    assert done.output == tmp_path / "in.squeezed.safetensors.index.json"
    assert len(list(tmp_path.glob("in.squeezed-*-of-*.safetensors"))) == PAIRS + 1
    assert pipeline.verify_files(path, done.output).ok


# copying


@pytest.mark.parametrize("nbytes", [0, 100, BLOCK, 3 * BLOCK + 17])
def test_bytes_are_copied_and_told_of(tmp_path: Path, nbytes: int) -> None:
    data = bytes(range(256)) * (nbytes // 256 + 2)
    (tmp_path / "in").write_bytes(data)
    told: list[int] = []
    with (tmp_path / "out").open("wb") as file:
        file.write(b"before")
        for block in FileRange(tmp_path / "in", 7, nbytes).blocks():
            told.append(file.write(block))
        file.write(b"after")
        assert file.tell() == 11 + nbytes
    assert sum(told) == nbytes
    assert max(told, default=0) <= BLOCK
    assert (tmp_path / "out").read_bytes() == b"before" + data[7 : 7 + nbytes] + b"after"


def test_a_source_that_is_cut_is_told_while_it_is_copied(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(bytes(2 * BLOCK))
    with pytest.raises(CheckpointError, match="ends within"):
        list(FileRange(tmp_path / "in", 7, 2 * BLOCK).blocks())


def test_a_disk_that_is_full_is_told_while_a_file_is_copied(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    source = open_checkpoint(checkpoint_of(tmp_path, ".safetensors", {"a": torch.zeros(BLOCK)}))
    resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot be written \(File too large\)"):
            write_checkpoint(source, tmp_path / "out.safetensors", [], "")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [one.name for one in tmp_path.iterdir()] == ["in.safetensors"]
