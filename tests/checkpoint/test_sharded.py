"""Sharded checkpoints: tensors stay in their shards, and the index stays true."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from convsqueeze.checkpoint import Edit, new_files, open_checkpoint, write_checkpoint
from convsqueeze.errors import CheckpointError, OutputError

ONE, TWO = "m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"
TENSORS = {name: torch.full((4,), float(i)) for i, name in enumerate("abcdef")}
WEIGHT_MAP = {"d": TWO, "a": ONE, "e": TWO, "b": ONE, "c": ONE, "f": TWO}
RECIPE = '{"version": 1}'


def index_text(**changes: Any) -> str:
    metadata = {"total_size": 96, "total_parameters": 24, "author": "me"}
    return json.dumps({"metadata": metadata, "weight_map": WEIGHT_MAP, "extra": [1], **changes})


def sharded(folder: Path, prefix: str = "") -> Path:
    for shard in (ONE, TWO):
        inside = {prefix + n: TENSORS[n] for n, home in WEIGHT_MAP.items() if home == shard}
        save_file(inside, folder / shard, {"format": "pt", "shard": shard})
    index = folder / "m.safetensors.index.json"
    index.write_text(index_text(weight_map={prefix + n: s for n, s in WEIGHT_MAP.items()}))
    return index


def everything(index: Path) -> dict[str, torch.Tensor]:
    """All tensors as the library reads them, shard by shard, in the index's order."""
    weight_map = json.loads(index.read_text())["weight_map"]
    shards = {name: load_file(index.parent / name) for name in set(weight_map.values())}
    assert sorted(weight_map) == sorted(name for shard in shards.values() for name in shard)
    return {name: shards[home][name] for name, home in weight_map.items()}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_edited_shards(tmp_path: Path, prefix: str) -> None:
    checkpoint = open_checkpoint(sharded(tmp_path, prefix))
    assert (checkpoint.format, checkpoint.prefix, checkpoint.recipe) == ("sharded", prefix, None)
    assert list(checkpoint.tensors) == list(WEIGHT_MAP)
    assert all(torch.equal(checkpoint.load(name), TENSORS[name]) for name in WEIGHT_MAP)
    new = {"new.weight": torch.ones(2, 3), "new.bias": torch.ones(3)}
    edits = [Edit("e", frozenset({"e", "b"}), new)]
    out = tmp_path / "out.safetensors.index.json"
    assert write_checkpoint(checkpoint, out, edits, RECIPE) == ()

    one, two = "out-00001-of-00002.safetensors", "out-00002-of-00002.safetensors"
    index = json.loads(out.read_text())
    homes = {"d": two, "a": one, "new.weight": two, "new.bias": two, "c": one, "f": two}
    assert index["weight_map"] == {prefix + name: home for name, home in homes.items()}
    assert list(index["weight_map"]) == [prefix + name for name in homes]
    assert index["metadata"] == {
        "total_size": 16 * 4 + 24 + 12,
        "total_parameters": 25,
        "author": "me",
        "convsqueeze": RECIPE,
    }
    assert index["extra"] == [1]
    after = everything(out)
    expected = {prefix + name: value for name, value in {**TENSORS, **new}.items() if name in homes}
    assert all(torch.equal(after[name], value) for name, value in expected.items())
    assert len(after) == len(expected)
    for ours, source in ((one, ONE), (two, TWO)):
        with safe_open(tmp_path / ours, "pt") as shard:
            assert shard.metadata() == {"format": "pt", "shard": source}
    again = open_checkpoint(out)
    assert (again.recipe, list(again.tensors)) == (RECIPE, list(homes))


def test_empty_shard_is_left_out(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(sharded(tmp_path))
    edits = [Edit("d", frozenset("def"), {})]
    write_checkpoint(checkpoint, tmp_path / "out.safetensors.index.json", edits, RECIPE)
    assert sorted(p.name for p in tmp_path.glob("out*")) == [
        "out-00001-of-00001.safetensors",
        "out.safetensors.index.json",
    ]
    assert sorted(everything(tmp_path / "out.safetensors.index.json")) == ["a", "b", "c"]


def test_sha256_is_of_the_index_and_then_the_shards(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    data = b"".join(path.read_bytes() for path in (index, tmp_path / ONE, tmp_path / TWO))
    assert open_checkpoint(index).sha256() == hashlib.sha256(data).hexdigest()


def test_to_single_files_and_back(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(sharded(tmp_path))
    write_checkpoint(checkpoint, tmp_path / "one.safetensors", [], RECIPE)
    single = open_checkpoint(tmp_path / "one.safetensors")
    assert list(single.tensors) == list(WEIGHT_MAP)
    assert single.metadata == {"format": "pt", "shard": ONE, "convsqueeze": RECIPE}
    write_checkpoint(checkpoint, tmp_path / "one.pt", [], RECIPE)
    pickled = torch.load(tmp_path / "one.pt", weights_only=True)
    assert list(pickled) == list(WEIGHT_MAP)
    assert all(torch.equal(pickled[name], TENSORS[name]) for name in TENSORS)
    for source in ("one.safetensors", "one.pt"):
        out = tmp_path / f"from {source}.safetensors.index.json"
        write_checkpoint(open_checkpoint(tmp_path / source), out, [], RECIPE)
        after = everything(out)
        assert list(after) == list(WEIGHT_MAP)
        assert all(torch.equal(after[name], TENSORS[name]) for name in TENSORS)
        metadata = json.loads(out.read_text())["metadata"]
        assert metadata == {"total_size": 96, "convsqueeze": RECIPE}
        assert "convsqueeze" not in open_checkpoint(out).metadata


def test_metadata_of_a_single_file_goes_into_its_shard(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "one.safetensors", {"author": "me"})
    out = tmp_path / "out.safetensors.index.json"
    write_checkpoint(open_checkpoint(tmp_path / "one.safetensors"), out, [], RECIPE)
    with safe_open(tmp_path / "out-00001-of-00001.safetensors", "pt") as shard:
        assert shard.metadata() == {"author": "me"}


def test_index_too_long_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = sharded(tmp_path)
    monkeypatch.setattr("convsqueeze.checkpoint.sharded.LONGEST_INDEX", index.stat().st_size)
    open_checkpoint(index)
    monkeypatch.setattr("convsqueeze.checkpoint.sharded.LONGEST_INDEX", index.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="bytes, at most"):
        open_checkpoint(index)


def test_shards_may_be_links(tmp_path: Path) -> None:
    """As in the cache of the Hugging Face hub, where every file is one."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    sharded(tmp_path / "blobs")
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    index = tmp_path / "snapshot" / "m.safetensors.index.json"
    assert torch.equal(open_checkpoint(index).load("f"), TENSORS["f"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (index_text(weight_map={**WEIGHT_MAP, "z": ONE}), "puts z into m-00001.*not hold it"),
        (index_text(weight_map={**WEIGHT_MAP, "a": TWO}), "puts a into m-00002.*not hold it"),
        (index_text(weight_map={"a": ONE}), "does not list b, c, which m-00001"),
        (index_text(weight_map={**WEIGHT_MAP, "a": "../../x.safetensors"}), "no .safetensors file"),
        (index_text(weight_map={**WEIGHT_MAP, "a": "/etc/x.safetensors"}), "no .safetensors file"),
        (index_text(weight_map={**WEIGHT_MAP, "a": "..\\x.safetensors"}), "no .safetensors file"),
        (index_text(weight_map={**WEIGHT_MAP, "a": "a\0.safetensors"}), "no .safetensors file"),
        (index_text(weight_map={**WEIGHT_MAP, "a": ".."}), "no .safetensors file"),
        (index_text(weight_map={**WEIGHT_MAP, "a": "model.bin"}), "no .safetensors file"),
        (index_text(weight_map={**WEIGHT_MAP, "a": 3}), "puts a into 3"),
        (index_text(weight_map={**WEIGHT_MAP, "a": "x" * 300 + ".safetensors"}), "missing"),
        (
            index_text(weight_map={**WEIGHT_MAP, "a": "m-00003-of-00002.safetensors"}),
            "1 of its 3 shards are missing .m-00003-of-00002.safetensors.*Did you mean m-0000",
        ),
        (index_text(weight_map={}), "no weight_map"),
        (index_text(weight_map=[ONE]), "no weight_map"),
        ("{}", "no weight_map"),
        (index_text(metadata=3), "metadata that is no JSON object"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "the key a stands twice"),
        ("[]", "not a JSON object"),
        ("{", "not JSON"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_index_that_does_not_fit(tmp_path: Path, text: str, says: str) -> None:
    index = sharded(tmp_path)
    index.write_text(text)
    with pytest.raises(CheckpointError, match=says) as caught:
        open_checkpoint(index)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{index}: ")


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    (tmp_path / TWO).write_bytes((tmp_path / TWO).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{TWO}: a damaged safetensors file"):
        open_checkpoint(index)


def test_places_that_are_taken(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(sharded(tmp_path))
    with pytest.raises(OutputError, match="is an input"):
        write_checkpoint(checkpoint, tmp_path / ONE, [], RECIPE, overwrite=True)
    with pytest.raises(OutputError, match="is an input"):
        write_checkpoint(
            checkpoint, tmp_path / "m.safetensors.index.json", [], RECIPE, overwrite=True
        )
    (tmp_path / "out-00007-of-00009.safetensors").write_bytes(b"old")
    out = tmp_path / "out.safetensors.index.json"
    with pytest.raises(OutputError, match=r"out-00007-of-00009\.safetensors: exists already"):
        write_checkpoint(checkpoint, out, [], RECIPE)
    assert not out.exists()
    notes = write_checkpoint(checkpoint, out, [], RECIPE, overwrite=True)
    assert notes == ("out-00007-of-00009.safetensors: left by an earlier output, no longer used",)
    assert (tmp_path / "out-00007-of-00009.safetensors").read_bytes() == b"old"
    assert write_checkpoint(checkpoint, out, [], RECIPE, overwrite=True) == notes


class Killed(BaseException):
    """What SIGKILL is to a run: nothing after it happens, neither tidying up nor taking back."""


@pytest.mark.parametrize("renames", range(4))
def test_a_run_killed_among_the_renames_leaves_the_old_or_the_new(
    tmp_path: Path, renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_checkpoint(sharded(tmp_path))
    out = tmp_path / "out.safetensors.index.json"
    write_checkpoint(source, out, [], RECIPE)
    old = everything(out)
    put, done = new_files._put, []

    def killed_before(staged: Any) -> None:
        if len(done) == renames:
            raise Killed
        put(staged)
        done.append(staged.place.name)

    edits = [
        Edit("e", frozenset({"e"}), {"e": torch.ones(5)}),
        Edit("a", frozenset({"a"}), {"a": torch.ones(7)}),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(new_files, "_put", killed_before)
        if renames < 3:
            with pytest.raises(Killed):
                write_checkpoint(source, out, edits, "new", overwrite=True)
        else:
            write_checkpoint(source, out, edits, "new", overwrite=True)
    found = everything(out)
    assert open_checkpoint(out).recipe == (RECIPE if renames < 3 else "new")
    assert found["e"].numel() == (4 if renames < 3 else 5)
    if renames < 3:
        assert all(torch.equal(found[name], old[name]) for name in old)
    notes = write_checkpoint(source, out, edits, "new", overwrite=True)
    assert everything(out)["e"].numel() == 5
    shards = {path.name for path in tmp_path.glob("out-*.safetensors")}
    assert shards == set(json.loads(out.read_text())["weight_map"].values())
    assert notes == ()


def test_the_same_output_again_has_the_same_names_and_bytes(tmp_path: Path) -> None:
    source = open_checkpoint(sharded(tmp_path))
    out = tmp_path / "out.safetensors.index.json"
    seen = []
    for _ in range(3):
        write_checkpoint(source, out, [], RECIPE, overwrite=True)
        seen.append({path.name: path.read_bytes() for path in tmp_path.glob("out*")})
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == 3


def test_an_index_that_lies_about_its_shards_costs_no_other_file(tmp_path: Path) -> None:
    """What an existing index names is removed only if an output of that name had such shards."""
    source = open_checkpoint(sharded(tmp_path))
    out = tmp_path / "out.safetensors.index.json"
    precious = ["precious.safetensors", "outside-00001-of-00002.safetensors", ONE]
    for name in precious[:2]:
        (tmp_path / name).write_bytes(b"precious")
    names = [*precious, "../out-00001-of-00001.safetensors", "out-00009-of-00009.safetensors"]
    for shard in names:
        out.write_text(json.dumps({"weight_map": {"a": shard}}))
        write_checkpoint(source, out, [], RECIPE, overwrite=True)
        assert all((tmp_path / name).exists() for name in precious), shard


def test_a_shard_that_is_a_link_to_elsewhere(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / ONE).rename(elsewhere / ONE)
    (tmp_path / ONE).symlink_to(elsewhere / ONE)
    with pytest.raises(CheckpointError, match="a link to another directory"):
        open_checkpoint(index)
    (tmp_path / ONE).unlink()
    (elsewhere / ONE).rename(tmp_path / "one")
    (tmp_path / ONE).symlink_to("one")
    assert len(open_checkpoint(index).tensors) == len(WEIGHT_MAP)


def test_a_download_cache_of_links(tmp_path: Path) -> None:
    """Index and shards link to blobs that lie together in another directory."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    index = sharded(tmp_path)
    for number, place in enumerate((index, tmp_path / ONE, tmp_path / TWO)):
        place.rename(blobs / f"blob{number}")
        (snapshot / place.name).symlink_to(f"../../blobs/blob{number}")
    checkpoint = open_checkpoint(snapshot / index.name)
    assert all(torch.equal(checkpoint.load(name), TENSORS[name]) for name in WEIGHT_MAP)
    write_checkpoint(checkpoint, tmp_path / "out.safetensors.index.json", [], RECIPE)
    assert len(everything(tmp_path / "out.safetensors.index.json")) == len(WEIGHT_MAP)
