"""No output of any command is a file that the run reads, by whatever name."""

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from convsqueeze.checkpoint import open_checkpoint, write_checkpoint
from convsqueeze.errors import OutputError
from convsqueeze.export import checked_onnx, export
from convsqueeze.export import files as export_files
from convsqueeze.models import inputs_of, load_model
from convsqueeze.models.onnx import export_whole
from convsqueeze.module import load_layers
from convsqueeze.pipeline import merge_file, verify_files
from convsqueeze.plot import write_plot
from convsqueeze.verify import Settings
from tests.attacks.files import PAIRS, tensors
from tests.command_line import Outcome, run_here

NET = """
import parts_of_net
import torch

def build():
    return parts_of_net.Body()
"""
PARTS = """
from torch import nn

class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.Conv2d(8, 2, 3, bias=False))

    def forward(self, x):
        return self.body(x)
"""
INDEX = "in.safetensors.index.json"
SHARDS = ("in-00001-of-00002.safetensors", "in-00002-of-00002.safetensors")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that a run may read."""
    folder = tmp_path_factory.mktemp("scene")
    save_file(tensors(), folder / "model.safetensors")
    (folder / "pairs.yaml").write_text(PAIRS)
    (folder / "net.py").write_text(NET)
    (folder / "parts_of_net.py").write_text(PARTS)
    package = folder / "package_of_net"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text("from parts_of_net import Body as build\n")
    whole, pairs = folder / "model.safetensors", folder / "pairs.yaml"
    merge_file(whole, pairs, folder / INDEX, largest_shard=300, growth="allow")
    for shard in folder.glob("in-*"):
        shard.unlink()
    for shard, (name, tensor) in zip(SHARDS, tensors().items(), strict=True):
        save_file({name: tensor}, folder / shard)
    names = dict(zip(tensors(), SHARDS, strict=True))
    (folder / INDEX).write_text(f'{{"weight_map": {names}}}'.replace("'", '"'))
    merge_file(folder / INDEX, pairs, folder / "sharded.safetensors", growth="allow")
    merge_file(whole, pairs, folder / "squeezed.safetensors", growth="allow")
    values = load_file(folder / "sharded.safetensors")
    values["body.0.weight"][0, 0, 0, 0] += 1  # so that there is something to plot
    kept = open_checkpoint(folder / "sharded.safetensors").metadata
    save_file(values, folder / "damaged.safetensors", metadata=dict(kept))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_files, "fits_one_message", lambda model: False)
        export(folder / "squeezed.safetensors", folder / "layers.onnx")
    return folder


@pytest.fixture
def folder(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    place = tmp_path / "a" / "b"
    shutil.copytree(scene, place)
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield place
    for name in set(sys.modules) - before:
        if "_net" in name:
            del sys.modules[name]


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if "__pycache__" not in path.parts
    }


def symlink(target: Path, suffix: str) -> str:
    Path(f"link{suffix}").symlink_to(target)
    return f"link{suffix}"


def hardlink(target: Path, suffix: str) -> str:
    Path(f"link{suffix}").hardlink_to(target)
    return f"link{suffix}"


def other_directory(target: Path, suffix: str) -> str:
    Path("elsewhere").symlink_to(target.parent)
    return f"elsewhere/{target.name}"


NAMES: dict[str, Callable[[Path, str], str]] = {
    "as given": lambda target, suffix: os.path.relpath(target),
    "dotted": lambda target, suffix: f"./{os.path.relpath(target)}",
    "up and down": lambda target, suffix: f"../b/{os.path.relpath(target)}",
    "absolute": lambda target, suffix: str(target),
    "symlink": symlink,
    "hard link": hardlink,
    "directory that is a link": other_directory,
}

MERGE = f"merge {INDEX} --pairs pairs.yaml --growth allow"
VERIFY = f"verify {INDEX} damaged.safetensors"
CASES: list[tuple[str, str, tuple[str, ...]]] = [
    (f"{MERGE} -o", ".safetensors", (INDEX, *SHARDS, "pairs.yaml")),
    (f"{MERGE} -o", ".safetensors.index.json", (INDEX, *SHARDS)),
    (f"{MERGE} -o spare.safetensors --onnx", ".onnx", (INDEX, *SHARDS, "pairs.yaml")),
    (
        "merge model.safetensors --model net.py:build --growth allow -o",
        ".safetensors",
        ("model.safetensors", "net.py", "parts_of_net.py"),
    ),
    (
        "merge model.safetensors --model package_of_net.model:build --growth allow "
        "-o spare.pt --onnx",
        ".onnx",
        ("model.safetensors", "package_of_net/model.py", "package_of_net/__init__.py"),
    ),
    (
        f"scan net.py:build --checkpoint {INDEX} --growth allow -o",
        ".yaml",
        (INDEX, *SHARDS, "net.py", "parts_of_net.py"),
    ),
    (
        "scan package_of_net.model:build --growth allow -o",
        ".yaml",
        ("package_of_net/model.py", "package_of_net/__init__.py", "parts_of_net.py"),
    ),
    (
        f"{VERIFY} --pairs pairs.yaml --plot",
        ".png",
        (INDEX, *SHARDS, "damaged.safetensors", "pairs.yaml"),
    ),
    (
        f"{VERIFY} --onnx layers.onnx --plot",
        ".svg",
        ("layers.onnx", "layers.onnx.data"),
    ),
    ("export-onnx squeezed.safetensors -o", ".onnx", ("squeezed.safetensors",)),
    (
        "export-onnx squeezed.safetensors --model net.py:build --checkpoint model.safetensors -o",
        ".onnx",
        ("squeezed.safetensors", "model.safetensors", "net.py", "parts_of_net.py"),
    ),
]


def run_onto(command: str, place: str) -> Outcome:
    return run_here(*command.split(), place, "--overwrite")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("as given", "symlink") else pytest.mark.stress)
        for name in NAMES
    ],
)
@pytest.mark.parametrize(
    ("command", "suffix", "read"),
    [
        pytest.param(command, suffix, read, id=f"{command.split()[0]} {number} {read}")
        for number, (command, suffix, every) in enumerate(CASES)
        for read in every
    ],
)
def test_no_output_is_what_the_run_reads(
    folder: Path, command: str, suffix: str, read: str, name: str
) -> None:
    place = NAMES[name](folder / read, suffix)
    before = hashes(folder)
    done = run_onto(command, place)
    assert (done.status, len(done.errors)) == (2, 1), done
    assert done.errors[0].startswith(f"{Path(place)}: ")
    if name in ("symlink", "hard link"):  # else the name may be refused for what it ends in
        assert "is an input, which is never replaced" in done.errors[0]
    assert hashes(folder) == before


@pytest.mark.parametrize("link", ["symlink", "hard link"])
def test_one_output_is_not_another(folder: Path, link: str) -> None:
    (folder / "old.safetensors").write_bytes(b"an earlier output")
    place = NAMES[link](folder / "old.safetensors", ".onnx")
    before = hashes(folder)
    done = run_onto(f"{MERGE} -o old.safetensors --onnx", place)
    assert done.status == 2
    assert done.errors == [f"{place}: is another output of this run. Choose another name."]
    assert hashes(folder) == before


def test_what_outputs_imply_takes_no_place_of_an_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards, and the values of an ONNX model, take another name where theirs is taken."""
    monkeypatch.setattr(export_files, "fits_one_message", lambda model: False)
    for name in ("out-00001-of-00001.safetensors", "out.onnx.data"):
        Path(name).symlink_to(folder / SHARDS[0])
    before = hashes(folder)
    command = f"{MERGE} --max-shard-size 1GB --onnx out.onnx -o"
    refused = run_onto(command, "out.safetensors.index.json")
    assert (refused.status, hashes(folder)) == (2, before)
    Path("out-00001-of-00001.safetensors").unlink()
    del before["out-00001-of-00001.safetensors"]
    done = run_onto(command, "out.safetensors.index.json")
    assert done.status == 0, done
    assert before.items() <= hashes(folder).items()
    assert Path("out.onnx.data").is_symlink()


def test_a_part_of_an_earlier_output_that_is_read_is_not_removed(folder: Path) -> None:
    """The index that is replaced names shards of the one that is read."""
    for shard in SHARDS:
        Path(shard).rename(shard.replace("in-", "out-"))
    text = Path(INDEX).read_text().replace("in-0", "out-0")
    for index in (INDEX, "out.safetensors.index.json"):
        Path(index).write_text(text)
    before = hashes(folder)
    done = run_onto(f"{MERGE} -o", "out.safetensors.index.json")
    assert (done.status, len(done.errors)) == (2, 1)
    assert "out-00001-of-00002.safetensors: is an input" in done.errors[0]
    assert hashes(folder) == before


def by_merge(folder: Path, place: Path) -> None:
    merge_file(folder / INDEX, folder / "pairs.yaml", place, growth="allow", overwrite=True)


def by_writing(folder: Path, place: Path) -> None:
    write_checkpoint(open_checkpoint(folder / INDEX), place, [], "{}", overwrite=True)


def by_export(folder: Path, place: Path) -> None:
    export(folder / "sharded.safetensors", place, overwrite=True)


def by_layers(folder: Path, place: Path) -> None:
    layers = load_layers(folder / "squeezed.safetensors")
    inputs = [folder / "squeezed.safetensors"]
    checked_onnx(layers, place, overwrite=True, inputs=inputs).write()


def by_whole(folder: Path, place: Path) -> None:
    model = load_model(f"{folder / 'net.py'}:build").eval()
    squeezed, original = folder / "squeezed.safetensors", folder / "model.safetensors"
    inputs = inputs_of(torch.zeros(1, 4, 8, 8))
    export_whole(model, squeezed, place, inputs, checkpoint=original, overwrite=True)


def by_plot(folder: Path, place: Path) -> None:
    settings = Settings(maps=True)
    report = verify_files(folder / INDEX, folder / "damaged.safetensors", settings=settings)
    write_plot(report, place, overwrite=True)


@pytest.mark.parametrize("link", ["symlink", "hard link"])
@pytest.mark.parametrize(
    ("function", "suffix", "read"),
    [
        *((by_merge, ".safetensors", one) for one in (INDEX, *SHARDS, "pairs.yaml")),
        *((by_writing, ".safetensors", one) for one in (INDEX, *SHARDS)),
        (by_export, ".onnx", "sharded.safetensors"),
        (by_layers, ".onnx", "squeezed.safetensors"),
        *((by_whole, ".onnx", f"{one}.safetensors") for one in ("squeezed", "model")),
        *((by_whole, ".onnx", one) for one in ("net.py", "parts_of_net.py")),
        *((by_plot, ".png", one) for one in (INDEX, *SHARDS, "damaged.safetensors")),
    ],
)
def test_no_function_replaces_what_it_reads(
    folder: Path, function: Callable[[Path, Path], None], suffix: str, read: str, link: str
) -> None:
    place = folder / NAMES[link](folder / read, suffix)
    before = hashes(folder)
    with pytest.raises(OutputError, match="is an input, which is never replaced"):
        function(folder, place)
    assert hashes(folder) == before
