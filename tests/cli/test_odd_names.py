"""Files whose names are no UTF-8, or hold what names seldom hold, go in and out like any other."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from convsqueeze.export import files as export_files
from convsqueeze.names import plain_file_name
from tests.attacks.files import PAIRS, tensors
from tests.command_line import Outcome, installed_command, plain_environment, run_here

NAMES = {
    "no UTF-8": os.fsdecode(b"lat\xe9\xff"),
    "two lines": "new\nline",
    "quotes": "a'b\"c`d $e",
    "a dash": "-o",
    "colours": "\x1b[31mred",
    "a colon": "c:d\\e",
    "markup": "[bold]x:ok:",
    "long": "n" * 210,
}


def told_plainly(done: Outcome) -> Outcome:
    """Exit 0, no error, and nothing that moves a cursor."""
    assert (done.status, done.errors) == (0, []), done
    assert "\x1b" not in done.stdout + done.stderr
    return done


@pytest.fixture(params=NAMES)
def stem(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A name, in whose folder of that name the run begins."""
    name = NAMES[request.param]
    folder = tmp_path / (name if len(name) < 100 else "short")
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    Path(f"{name}.yaml").write_text(PAIRS)
    return name


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_from_file_to_file(stem: str, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_files, "fits_one_message", lambda model: False)
    names = (f"./{stem}{suffix}", f"./{stem}.2{suffix}", f"./{stem}.onnx")
    source, output, onnx = names
    if suffix == ".pt":
        with Path(source).open("wb") as file:
            torch.save(tensors(), file)
    else:
        save_file(tensors(), source)
    pairs = ("--pairs", f"./{stem}.yaml", "--growth", "allow")
    done = told_plainly(run_here("merge", source, *pairs, "-o", output, "--onnx", onnx, "--json"))
    assert (done.data["source"], done.data["output"]) == (source[2:], output[2:])
    assert Path(plain_file_name(onnx[2:]) + ".data").is_file()
    told_plainly(run_here("verify", source, output, "--onnx", onnx))
    read = json.loads(told_plainly(run_here("inspect", output, "--json")).data["recipe"])
    assert read["source"]["file"] == Path(source).name.encode(errors="replace").decode()
    told_plainly(run_here("inspect", source))
    told_plainly(run_here("plan", source, *pairs))
    told_plainly(run_here("export-onnx", output, "--overwrite"))


def test_shards(stem: str) -> None:
    save_file(tensors(), f"{stem}.safetensors")
    pairs = ("--pairs", f"./{stem}.yaml", "--growth", "allow")
    index = f"./{stem[:190]}.safetensors.index.json"
    told_plainly(run_here("merge", f"./{stem}.safetensors", *pairs, "-o", index))
    told_plainly(run_here("verify", f"./{stem}.safetensors", index))
    shards = list(Path().glob("*-00001-of-00001.safetensors"))
    assert [shard.name for shard in shards] == [
        f"{plain_file_name(stem[:190])}-00001-of-00001.safetensors"
    ]
    told_plainly(run_here("merge", f"./{stem}.safetensors", *pairs, "-o", index, "--overwrite"))
    assert list(Path().glob("*.safetensors")) != []
    assert "body.0.weight" in load_file(shards[0])


def test_a_plot_and_a_scan(stem: str) -> None:
    scaled = {name: tensor * 2 for name, tensor in tensors().items()}
    save_file(tensors(), f"{stem}.safetensors")
    save_file(scaled, "scaled.safetensors")
    pairs = ("--pairs", f"./{stem}.yaml", "--growth", "allow")
    told_plainly(run_here("merge", "scaled.safetensors", *pairs, "-o", "squeezed.safetensors"))
    plot = f"./{stem}.png"
    done = run_here("verify", f"./{stem}.safetensors", "squeezed.safetensors", "--plot", plot)
    assert done.status == 1
    assert Path(plot).stat().st_size > 1000
    (net,) = (Path(f"./{stem}.py"),)
    net.write_text(
        "from torch import nn\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(4, 64, 1, bias=False), nn.Conv2d(64, 2, 3))\n"
    )
    told_plainly(run_here("scan", f"./{stem}.py:build", "-o", f"./{stem}.found.yaml"))
    assert "version: 1" in Path(f"{stem}.found.yaml").read_text()


def test_a_name_that_is_no_utf8_as_the_system_gives_it(tmp_path: Path) -> None:
    """Through a process: what it prints can be read, and it ends with 0."""
    torch.save(tensors(), tmp_path / "model.pt")
    source = os.fsencode(tmp_path) + b"/lat\xff.pt"
    os.rename(tmp_path / "model.pt", source)
    (tmp_path / "pairs.yaml").write_text(PAIRS)
    output = source + b".out.pt"
    given = [source, "--pairs", tmp_path / "pairs.yaml", "--growth", "allow", "-o", output]
    done = subprocess.run(
        [installed_command(), "merge", *given],
        capture_output=True,
        check=False,
        env=plain_environment(),
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert os.path.exists(output)
    assert b"lat\\udcff.pt.out.pt" in done.stdout


def test_a_name_that_is_too_long_is_told_in_part(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "model.pt")
    (tmp_path / "pairs.yaml").write_text(PAIRS)
    long = "x" * 1_000_000
    merged = ("merge", tmp_path / "model.pt", "--pairs", tmp_path / "pairs.yaml")
    for arguments in (
        ("inspect", f"{long}.pt"),
        (*merged[:-1], f"{long}.yaml"),
        (*merged, "-o", f"{long}.pt"),
        (*merged, "-o", f"{long}/out.pt"),
        (*merged, "--onnx", f"{long}.onnx"),
        (*merged, "--key", long),
        (*merged, "--device", long),
        (*merged, "--border", long),
        ("scan", f"{long}:build"),
        ("scan", f"{long}.py:build"),
        ("merge", tmp_path / "model.pt", "--model", f"os:{long}"),
        ("merge", tmp_path / "model.pt", "--model", "os:path", "--input", long),
        (long,),
        ("merge", f"--{long}"),
        ("plan", tmp_path / "model.pt", "--pairs", tmp_path / "pairs.yaml", "--minimize", long),
    ):
        done = run_here(*arguments)
        assert (done.status, done.stdout) == (2, ""), str(arguments)[:100]
        assert 20 < len(done.stderr) < 8_000, (str(arguments)[:100], len(done.stderr))


def test_names_of_tensors_are_told_in_part(tmp_path: Path) -> None:
    long = "y" * 300_000
    held = {name.replace("body", long): tensor for name, tensor in tensors().items()}
    torch.save(held, tmp_path / "model.pt")
    (tmp_path / "pairs.yaml").write_text(PAIRS)
    (tmp_path / "long.yaml").write_text(PAIRS.replace("body", long))
    for command, pairs, status in (
        ("merge", "pairs.yaml", 2),
        ("merge", "long.yaml", 0),
        ("plan", "long.yaml", 0),
    ):
        grown = ("--growth", "allow")
        done = run_here(command, tmp_path / "model.pt", "--pairs", tmp_path / pairs, *grown)
        assert done.status == status
        assert len(done.stdout) + len(done.stderr) < 20_000
    done = run_here("verify", tmp_path / "model.pt", tmp_path / "model.squeezed.pt")
    assert done.status == 0
    assert len(done.stdout) + len(done.stderr) < 20_000
    assert len(run_here("inspect", tmp_path / "model.pt").stdout) < 20_000
