"""The commands as a user meets them: output, files, exit status.

What depends on a process (standard streams, umask, terminal, completion) runs in one; the rest
goes through the same `main` without the two seconds that a process takes to start.
"""

import json
import os
import shutil
import stat
import sys
from collections import OrderedDict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from convsqueeze import load_layers
from convsqueeze.cli.app import app
from convsqueeze.cli.options import byte_count
from tests.command_line import (
    BLOCKS,
    SESR,
    SESR_PAIRS,
    Outcome,
    installed_command,
    run_here,
    run_process,
)
from tests.mixed_checkpoint import MANIFEST, MERGED, UNTOUCHED, mixed_state_dict

SESR_FLAT = SESR.with_suffix(".safetensors")
STEM = BLOCKS / "convnext_ols_stem.safetensors"
STEM_PAIRS = BLOCKS / "convnext_ols_stem.yaml"
COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the trained sample in a folder of its own."""
    return Path(shutil.copy(SESR, tmp_path / "model.pt"))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """The mixed checkpoint, with `pairs.yaml` beside it."""
    torch.save(mixed_state_dict(), tmp_path / "mixed.pt")
    (tmp_path / "pairs.yaml").write_text(json.dumps(MANIFEST))
    return tmp_path / "mixed.pt"


def merged(path: Path, *options: object) -> Outcome:
    return run_here("merge", path, "--pairs", path.with_name("pairs.yaml"), *options)


def written(outcome: Outcome, output: Path) -> Path:
    """Exit 0 and an output that is there: the one never without the other."""
    assert outcome.status == 0, outcome
    assert outcome.errors == []
    assert output.stat().st_size > 0
    return output


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def as_rows(table: str) -> str:
    """The table without its frame, in one line."""
    return " ".join("".join(c if c not in "│┃|" else " " for c in table).split())


# Through real processes.


def test_merge_and_verify_the_trained_sample(model: Path) -> None:
    """The two commands of the README, from the folder of the checkpoint."""
    folder = model.parent
    outcome = run_process("merge", "model.pt", "--pairs", SESR_PAIRS, cwd=folder, umask=0o027)
    output = written(outcome, folder / "model.squeezed.pt")
    assert outcome.stderr == ""
    assert files(folder) == ["model.pt", "model.squeezed.pt"]
    assert stat.S_IMODE(output.stat().st_mode) == 0o640
    told = as_rows(outcome.stdout)
    assert "verified" in told
    assert "model.squeezed.pt" in told
    for name in ("head", "tail", *(f"body.{i}" for i in range(5))):
        assert name in told
    for numbers in ("5x5", "3x3", "10,512", "416", "40,976", "2,320", "318,820", "13,620"):
        assert numbers in told
    assert all(len(line) <= 80 for line in outcome.stdout.splitlines())
    before, after = (torch.load(path, weights_only=True) for path in (model, output))
    assert list(after) == ["params_ema", "iter"]
    assert after["iter"] == before["iter"]
    assert len(after["params_ema"]) == 20

    outcome = run_process("verify", "model.pt", "model.squeezed.pt", "--json", cwd=folder)
    assert outcome.status == 0
    assert outcome.data["ok"] is True
    assert "verified" in as_rows(outcome.stderr)


def test_json_has_stdout_for_itself_and_the_format_follows_the_suffix(model: Path) -> None:
    output = model.with_name("out.safetensors")
    outcome = run_process(
        "merge", model, "--pairs", SESR_PAIRS, "-o", output, "--json", umask=0o022
    )
    written(outcome, output)
    assert stat.S_IMODE(output.stat().st_mode) == 0o644
    data = outcome.data
    assert (data["source"], data["output"]) == (str(model), str(output))
    assert (data["weights_before"], data["weights_after"]) == (318_820, 13_620)
    assert data["bytes_before"] == model.stat().st_size
    assert data["bytes_after"] == output.stat().st_size
    assert data["verification"]["ok"] is True
    head = data["layers"][0]
    assert (head["name"], head["from"]) == ("head", ["head.expand", "head.project"])
    assert (head["kernel_sizes"], head["kernel_size"]) == ([[5, 5], [1, 1]], [5, 5])
    assert (head["weights_before"], head["weights_after"]) == (10_512, 416)
    assert (head["border"], head["leaks"], head["dtype"]) == ("exact", [], "float32")
    assert head["verification"]["interior"]["error"] <= head["verification"]["interior"]["bound"]
    fields = "name ok problem policy largest interior border border_error border_range inputs sizes"
    assert set(head["verification"]) == set(fields.split())
    assert any("iter" in note for note in data["notes"])
    told = as_rows(outcome.stderr)
    assert "verified" in told
    assert "head" in told
    assert "iter" in told
    with safe_open(output, framework="pt") as file:
        assert "convsqueeze" in file.metadata()


def test_refusal_as_a_user_sees_it(tmp_path: Path) -> None:
    outcome = run_process("merge", STEM, "--pairs", STEM_PAIRS, "-o", tmp_path / "out.safetensors")
    assert (outcome.status, outcome.stdout) == (2, "")
    assert len(outcome.stderr.splitlines()) == len(outcome.errors) == 1
    assert outcome.errors[0].startswith(f"{STEM_PAIRS}:")
    assert files(tmp_path) == []


def test_shell_completion() -> None:
    asked = {"_CONVSQUEEZE_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    outcome = run_process(environment={**asked, "COMP_WORDS": "convsqueeze "})
    assert outcome.status == 0
    assert sorted(outcome.stdout.split()) == COMMANDS
    bash = shutil.which("bash")
    if bash is not None:
        script = f'"{installed_command()}" --show-completion; exit $?'
        outcome = run_process("-c", script, command=[bash])
        assert outcome.status == 0
        assert "_CONVSQUEEZE_COMPLETE=complete_bash" in outcome.stdout
        assert outcome.stderr == ""


@pytest.mark.stress
def test_reader_that_goes_away(tmp_path: Path) -> None:
    """`convsqueeze inspect model.pt | head -1` ends without a traceback."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    many = OrderedDict((f"layers.{i}.weight", torch.ones(1, 1, 1, 1)) for i in range(3000))
    save_file(many, tmp_path / "many.safetensors")
    script = f'"{installed_command()}" inspect "{tmp_path}/many.safetensors" | head -1'
    outcome = run_process("-c", script, command=[bash])
    assert "many.safetensors" in outcome.stdout
    assert outcome.stderr == ""


# In this process.


def test_version_and_the_commands_that_there_are() -> None:
    outcome = run_here("--version")
    assert (outcome.status, outcome.stdout) == (0, f"convsqueeze {version('convsqueeze')}\n")
    assert {"merge", "verify", "inspect", "schema"} <= set(COMMANDS)


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_help_fits_eighty_columns(command: list[str]) -> None:
    outcome = run_here(*command, "--help")
    assert (outcome.status, outcome.stderr) == (0, "")
    assert run_here(*command, "-h") == outcome
    lines = outcome.stdout.splitlines()
    assert len(lines) > 5
    assert [line for line in lines if len(line) > 80] == []
    assert "…" not in outcome.stdout
    if not command:
        assert all(name in outcome.stdout for name in COMMANDS)


def test_help_names_every_option_of_merge() -> None:
    told = run_here("merge", "--help").stdout
    given = "pairs output border growth key dry-run overwrite trials seed json quiet"
    for option in ["-o", "-q", *(f"--{name}" for name in given.split())]:
        assert option in told
    for choice in ("exact", "interior", "refuse", "skip", "allow"):
        assert choice in told


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["merge"],
        ["merge", SESR],
        ["merge", SESR, "--pairs", SESR_PAIRS, "--border", "sloppy"],
        ["merge", SESR, "--pairs", SESR_PAIRS, "--growth", "yes"],
        ["merge", SESR, "--pairs", SESR_PAIRS, "--trials", "0"],
        ["merge", SESR, "--pairs", SESR_PAIRS, "--seed", "-1"],
        ["merge", SESR, "--pairs", SESR_PAIRS, "--trials", "some"],
        ["merge", SESR, "--pairs", SESR_PAIRS, "--no-such-option"],
        ["merge", SESR, SESR, "--pairs", SESR_PAIRS],
        ["verify", SESR],
        ["inspect"],
        ["schema", "extra"],
    ],
    ids=lambda arguments: " ".join(str(a) for a in arguments if not isinstance(a, Path)),
)
def test_usage_errors(arguments: list[object]) -> None:
    outcome = run_here(*arguments)
    assert (outcome.status, outcome.stdout) == (2, "")
    assert outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_schema() -> None:
    outcome = run_here("schema")
    assert (outcome.status, outcome.stderr) == (0, "")
    assert outcome.data["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(outcome.data["properties"]) == {"version", "border", "pairs"}


def test_inspect_before_and_after(mixed: Path) -> None:
    outcome = run_here("inspect", mixed)
    assert (outcome.status, outcome.stderr) == (0, "")
    told = as_rows(outcome.stdout)
    for words in (
        "stem.conv conv 12x3x3x3 3x3, 3 to 12",
        "stem.bn batch_norm 12 12 channels, eps is not",
        "head.0 linear 24x6 6 to 24, bias",
        "no recipe",
    ):
        assert words in told
    written(merged(mixed, "-q"), mixed.with_name("mixed.squeezed.pt"))
    outcome = run_here("inspect", mixed.with_name("mixed.squeezed.pt"), "--json")
    assert (outcome.status, outcome.stderr) == (0, "")
    names = [layer["name"] for layer in outcome.data["layers"]]
    assert set(MERGED) <= set(names)
    assert "stem.conv" not in names
    recipe = outcome.data["recipe"]
    recipe = json.loads(recipe) if isinstance(recipe, str) else recipe
    assert [layer["name"] for layer in recipe["layers"]] == list(MERGED)
    up = next(layer for layer in outcome.data["layers"] if layer["name"] == "up")
    assert up["tensors"]["weight"] == {"shape": [6, 4, 4], "dtype": "float32"}
    wrapped = run_here("inspect", SESR, "--json")
    assert (wrapped.data["format"], wrapped.data["wrapper"]) == ("pt", "params_ema")


def test_formats_there_and_back(mixed: Path) -> None:
    """Whatever the format, the same tensors: bit for bit, in the same order."""
    folder = mixed.parent
    pickled = written(merged(mixed, "-o", folder / "a.pth"), folder / "a.pth")
    flat = written(merged(mixed, "-o", folder / "b.safetensors"), folder / "b.safetensors")
    save_file(mixed_state_dict(), folder / "mixed.safetensors")
    source = folder / "mixed.safetensors"
    assert written(merged(source), folder / "mixed.squeezed.safetensors")
    back = written(merged(source, "-o", folder / "c.bin"), folder / "c.bin")
    assert run_here("verify", mixed, flat).status == 0
    assert run_here("verify", source, back).status == 0
    expected = torch.load(pickled, weights_only=True)
    for path in (flat, folder / "mixed.squeezed.safetensors", back):
        found = torch.load(path, weights_only=True) if path is back else load_file(path)
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert list(load_layers(flat)) == list(MERGED)


def test_quiet_prints_nothing_and_writes_the_same(mixed: Path) -> None:
    quiet = merged(mixed, "-q")
    output = written(quiet, mixed.with_name("mixed.squeezed.pt"))
    assert (quiet.stdout, quiet.stderr) == ("", "")
    written(merged(mixed, "-o", mixed.with_name("loud.pt")), mixed.with_name("loud.pt"))
    assert output.read_bytes() == mixed.with_name("loud.pt").read_bytes()
    both = merged(mixed, "-q", "--json", "-o", mixed.with_name("both.pt"))
    assert both.status == 0
    assert both.stderr == ""
    assert both.data["verification"]["ok"] is True


def test_dry_run_writes_nothing(mixed: Path) -> None:
    before = files(mixed.parent)
    outcome = merged(mixed, "--dry-run")
    assert (outcome.status, outcome.stderr) == (0, "")
    told = as_rows(outcome.stdout)
    assert "nothing written" in told
    assert "verified" not in told
    assert all(name in told for name in MERGED)
    data = merged(mixed, "--dry-run", "--json").data
    assert data["output"] is None
    assert data["verification"] is None
    assert data["bytes_before"] == mixed.stat().st_size
    assert [layer["name"] for layer in data["layers"]] == list(MERGED)
    assert files(mixed.parent) == before
    refused = run_here("merge", STEM, "--pairs", STEM_PAIRS, "--dry-run")
    assert (refused.status, refused.stdout) == (2, "")
    assert files(mixed.parent) == before


def test_overwrite(mixed: Path) -> None:
    output = mixed.with_name("mixed.squeezed.pt")
    output.write_bytes(b"an earlier result")
    refused = merged(mixed)
    assert (refused.status, len(refused.errors)) == (2, 1)
    assert str(output) in refused.errors[0]
    assert "--overwrite" in refused.errors[0]
    assert output.read_bytes() == b"an earlier result"
    written(merged(mixed, "--overwrite"), output)
    assert run_here("verify", mixed, output).status == 0
    assert files(mixed.parent) == ["mixed.pt", "mixed.squeezed.pt", "pairs.yaml"]


def test_mode_of_an_overwritten_output_is_what_the_umask_says(mixed: Path) -> None:
    output = mixed.with_name("mixed.squeezed.pt")
    output.touch(mode=0o600)
    before = os.umask(0o002)
    try:
        written(merged(mixed, "--overwrite"), output)
    finally:
        os.umask(before)
    assert stat.S_IMODE(output.stat().st_mode) == 0o664


def test_border_exact_refuses_with_the_reason_and_the_choice(tmp_path: Path) -> None:
    for options in ([], ["--border", "exact"]):
        outcome = run_here("merge", STEM, "--pairs", STEM_PAIRS, "-o", tmp_path / "x.pt", *options)
        assert (outcome.status, outcome.stdout, len(outcome.errors)) == (2, "", 1)
        (error,) = outcome.errors
        assert error.startswith(f"{STEM_PAIRS}:6 pairs[0].second: ")
        for words in ("stem.1 pads", "stem.0 (3x3, bias)", "1 row at the top", "border: interior"):
            assert words in error
        assert files(tmp_path) == []


def test_border_interior_reports_rows_and_error(tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    arguments = ("merge", STEM, "--pairs", STEM_PAIRS, "-o", output, "--border", "interior")
    outcome = run_here(*arguments)
    written(outcome, output)
    told = as_rows(outcome.stdout)
    assert "interior" in told
    assert "verified" in told
    data = run_here(*arguments, "--overwrite", "--json").data
    (layer,) = data["layers"]
    assert layer["border"] == "interior"
    assert {(leak["axis"], leak["side"], leak["rows"]) for leak in layer["leaks"]} >= {
        (0, "low", 1),
        (1, "low", 1),
    }
    seen = layer["verification"]
    assert 0.01 < seen["border_error"] / seen["border_range"] < 1
    assert f"{seen['border_error']:.3g}" in told
    assert seen["interior"]["error"] <= seen["interior"]["bound"]
    again = run_here("verify", STEM, output)
    assert again.status == 0
    assert f"{seen['border_error']:.2e}" in as_rows(again.stdout)


def test_growth(tmp_path: Path) -> None:
    """1 -> 2 -> 64 channels, 5x5 after 5x5: 9x9 kernels hold more than the two layers do."""
    tensors = OrderedDict(
        {
            "first.weight": torch.randn(2, 1, 5, 5),
            "second.weight": torch.randn(64, 2, 5, 5),
            "third.weight": torch.randn(64, 64, 1, 1),
            "fourth.weight": torch.randn(2, 64, 1, 1),
        }
    )
    torch.save(tensors, tmp_path / "model.pt")
    (tmp_path / "pairs.yaml").write_text(
        "version: 1\n"
        "pairs:\n"
        "  - {first: {name: first}, second: {name: second}}\n"
        "  - {first: {name: third}, second: {name: fourth}}\n"
    )
    model, output = tmp_path / "model.pt", tmp_path / "model.squeezed.pt"
    for options in ([], ["--growth", "refuse"]):
        refused = merged(model, *options)
        assert (refused.status, len(refused.errors)) == (2, 1)
        for words in ("pairs.yaml:3 pairs[0]", "3,250", "5,184", "--growth"):
            assert words in refused.errors[0]
        assert not output.exists()
    skipped = merged(model, "--growth", "skip", "--json")
    written(skipped, output)
    assert [layer["name"] for layer in skipped.data["layers"]] == ["third"]
    assert any("first" in note and "5,184" in note for note in skipped.data["notes"])
    after = torch.load(output, weights_only=True)
    assert list(after) == ["first.weight", "second.weight", "third.weight"]
    assert torch.equal(after["second.weight"], tensors["second.weight"])
    assert run_here("verify", model, output).status == 0
    allowed = merged(model, "--growth", "allow", "--overwrite")
    written(allowed, output)
    assert torch.load(output, weights_only=True)["first.weight"].shape == (64, 1, 9, 9)
    assert run_here("verify", model, output).status == 0


def test_growth_skip_that_skips_everything(tmp_path: Path) -> None:
    """Nothing to merge is no success with an output, and no output is no success."""
    torch.save(
        {"first.weight": torch.randn(2, 1, 5, 5), "second.weight": torch.randn(64, 2, 5, 5)},
        tmp_path / "model.pt",
    )
    (tmp_path / "pairs.yaml").write_text(
        "version: 1\npairs:\n  - {first: {name: first}, second: {name: second}}\n"
    )
    outcome = merged(tmp_path / "model.pt", "--growth", "skip")
    assert (outcome.status == 0) == (tmp_path / "model.squeezed.pt").exists(), outcome
    assert "Traceback" not in outcome.stderr


def test_key_chooses_one_of_two_state_dicts(tmp_path: Path) -> None:
    plain, averaged = mixed_state_dict(seed=0), mixed_state_dict(seed=1)
    torch.save({"params": plain, "params_ema": averaged, "epoch": 3}, tmp_path / "two.pt")
    (tmp_path / "pairs.yaml").write_text(json.dumps(MANIFEST))
    model, output = tmp_path / "two.pt", tmp_path / "two.squeezed.pt"
    for command in (
        ["merge", model, "--pairs", tmp_path / "pairs.yaml"],
        ["inspect", model],
    ):
        refused = run_here(*command)
        assert (refused.status, len(refused.errors)) == (2, 1)
        for words in (str(model), "params_ema", "params", "--key"):
            assert words in refused.errors[0]
    assert not output.exists()
    chosen = ("--key", "params_ema")
    written(merged(model, *chosen), output)
    after = torch.load(output, weights_only=True)
    assert list(after) == ["params", "params_ema", "epoch"]
    assert list(after["params"]) == list(plain)
    assert "stem.weight" in after["params_ema"]
    assert "verification, params_ema" in run_here("verify", model, output, *chosen).stdout
    assert run_here("verify", model, output, *chosen, "--json").data["state_dict"] == "params_ema"
    onnx = tmp_path / "two.onnx"
    assert "two.onnx, params_ema" in run_here("export-onnx", output, "-o", onnx, *chosen).stdout
    exported = run_here("export-onnx", output, "-o", onnx, *chosen, "--overwrite", "--json")
    assert exported.data["state_dict"] == "params_ema"
    assert run_here("verify", model, output, "--key", "params").status in (1, 2)
    assert run_here("inspect", output, "--key", "params_ema", "--json").data["recipe"]


def test_seed_and_trials(mixed: Path) -> None:
    def shares(*options: object) -> list[Any]:
        data = merged(mixed, "--json", "--overwrite", *options).data["verification"]
        return [data["seed"], data["trials"], [layer["inputs"] for layer in data["layers"]], data]

    first, again, other, more = (
        shares(*options)
        for options in (["--seed", 3], ["--seed", 3], ["--seed", 4], ["--seed", 3, "--trials", 9])
    )
    assert first == again
    assert (first[:2], other[:2], more[:2]) == ([3, 3], [4, 3], [3, 9])
    assert first[3] != other[3]
    assert all(a < b for a, b in zip(first[2], more[2], strict=True))


def test_merging_is_repeatable(mixed: Path) -> None:
    """Equal inputs give equal bytes, whatever the seed of the verification."""
    one, two = mixed.with_name("one.safetensors"), mixed.with_name("two.safetensors")
    written(merged(mixed, "-o", one, "--seed", 1), one)
    written(merged(mixed, "-o", two, "--seed", 2), two)
    assert one.read_bytes() == two.read_bytes()


def test_samples_merge_and_verify(tmp_path: Path) -> None:
    for source in (BLOCKS / "repvgg.pt", BLOCKS / "locon.safetensors"):
        output = tmp_path / source.name
        pairs = source.with_suffix(".yaml")
        outcome = run_here("merge", source, "--pairs", pairs, "-o", output, "--json")
        written(outcome, output)
        assert outcome.data["weights_after"] < outcome.data["weights_before"]
        assert run_here("verify", source, output).status == 0
    outcome = run_here(
        "merge", SESR_FLAT, "--pairs", SESR_PAIRS, "-o", tmp_path / "flat.safetensors", "--json"
    )
    written(outcome, tmp_path / "flat.safetensors")
    assert outcome.data["weights_before"] >= 8 * outcome.data["weights_after"]


def test_verify_tells_what_it_compared(mixed: Path) -> None:
    output = written(merged(mixed), mixed.with_name("mixed.squeezed.pt"))
    outcome = run_here("verify", mixed, output)
    assert outcome.status == 0
    told = as_rows(outcome.stdout)
    assert f"{len(UNTOUCHED)} other tensors" in told
    for name in MERGED:
        assert f"{name}: largest share" in told
    assert "at [" in told


def test_names_that_look_like_markup_come_out_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "[bold]run[red] größe"
    folder.mkdir()
    torch.save(
        {"a[red]:ok:.weight": torch.randn(4, 4, 1, 1), "b.weight": torch.randn(2, 4, 1, 1)},
        folder / "[link]:ok:.pt",
    )
    (folder / "pairs.yaml").write_text(
        "version: 1\npairs:\n  - {first: {name: 'a[red]:ok:'}, second: {name: b}}\n"
    )
    outcome = merged(folder / "[link]:ok:.pt")
    written(outcome, folder / "[link]:ok:.squeezed.pt")
    assert "a[red]:ok:" in outcome.stdout
    assert "[bold]run[red] größe/[link]:ok:.squeezed.pt" in outcome.stdout
    assert "a[red]:ok:" in run_here("inspect", folder / "[link]:ok:.pt").stdout
    verify = run_here("verify", folder / "[link]:ok:.pt", folder / "[link]:ok:.squeezed.pt")
    assert verify.status == 0
    assert "a[red]:ok:" in verify.stdout


def test_nothing_but_the_installed_command_is_needed() -> None:
    assert installed_command().exists(), "install the package: pip install -e ."
    assert installed_command().parent == Path(sys.executable).parent


def test_shards_of_at_most_a_size(tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors.index.json"
    done = run_here(
        "merge", SESR, "--pairs", SESR_PAIRS, "-o", output, "--max-shard-size", "20kB", "-q"
    )
    assert (done.status, done.stderr) == (0, "")
    shards = sorted(tmp_path.glob("out-*.safetensors"))
    assert len(shards) == 4
    assert all(path.stat().st_size < 22_000 for path in shards)
    assert run_here("verify", SESR, output).status == 0


@pytest.mark.parametrize(
    ("text", "count"),
    [("500", 500), ("5GB", 5 * 10**9), ("5G", 5 * 10**9), ("1GiB", 2**30), ("1.5 MB", 1_500_000)],
)
def test_sizes_as_people_write_them(text: str, count: int) -> None:
    assert byte_count(text) == count


@pytest.mark.parametrize("text", ["", "five", "-1GB", "0", "0.2", "1e999", "nan", "5 parsecs"])
def test_what_is_no_size(text: str, tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors.index.json"
    arguments = ["-o", output, f"--max-shard-size={text}"]
    done = run_here("merge", SESR, "--pairs", SESR_PAIRS, *arguments)
    assert done.status == 2
    assert "Invalid value for" in done.stderr
    assert list(tmp_path.iterdir()) == []


LOOKS = """
from torch import nn

class Looks(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 3)

    def forward(self, x):
        y = self.b(self.a(x))
        return y if x.shape[-1] > 12 else 2 * y
"""


def test_what_a_scan_notes_is_told_by_every_command_that_scans(tmp_path: Path) -> None:
    """A model whose code looks at sizes is squeezed for those it was run on: that is told."""
    (tmp_path / "looks.py").write_text(LOOKS)
    place, told = f"{tmp_path / 'looks.py'}:Looks", "looks at the size of its input"
    namespace: dict[str, Any] = {}
    exec(LOOKS, namespace)
    torch.save(namespace["Looks"]().state_dict(), tmp_path / "model.pt")
    merge = ("merge", tmp_path / "model.pt", "--model", place, "--input", "1,3,16,16")
    assert told in run_here(*merge, "-o", tmp_path / "one.pt").stdout
    asked = run_here(*merge, "-o", tmp_path / "two.pt", "--json")
    assert any(told in note for note in json.loads(asked.stdout)["notes"])
    scan = ("scan", place, "--input", "1,3,16,16")
    shown = run_here(*scan)
    assert told in shown.stderr
    assert told not in shown.stdout
    assert told in run_here(*scan, "-o", tmp_path / "pairs.yaml").stdout
