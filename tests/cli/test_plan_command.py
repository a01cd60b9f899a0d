"""`plan`: the table of a merge, better partitions, and manifests that can be pasted."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from convsqueeze.checkpoint import from_state_dict
from convsqueeze.manifest import manifest_from_data, manifest_yaml, parse_manifest
from convsqueeze.plan import review
from tests.command_line import BLOCKS, SESR, SESR_PAIRS, run_here

pytestmark = pytest.mark.quick

STEM = BLOCKS / "convnext_ols_stem.safetensors"
STEM_PAIRS = BLOCKS / "convnext_ols_stem.yaml"
BETTER = "A better manifest, by "


def weights(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{name.replace('_', '.')}.weight": torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


BLOCK = {"a": (64, 16, 3, 3), "b": (16, 64, 3, 3), "c": (64, 16, 1, 1), "d": (16, 64, 1, 1)}
CHAIN = [
    {"name": "b.{i}.a", "padding": 1},
    {"name": "b.{i}.b", "padding": 1},
    {"name": "b.{i}.c"},
    {"name": "b.{i}.d"},
]


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Two blocks whose whole has no plain form, while its last three layers have one."""
    shapes = {f"b_{i}_{name}": shape for i in range(2) for name, shape in BLOCK.items()}
    save_file(weights(**shapes), tmp_path / "model.safetensors")
    manifest = {"version": 1, "pairs": [{"chain": CHAIN}]}
    (tmp_path / "pairs.yaml").write_text(json.dumps(manifest))
    return tmp_path


def plan(folder: Path, *options: object) -> Any:
    model, pairs = folder / "model.safetensors", folder / "pairs.yaml"
    return run_here("plan", model, "--pairs", pairs, *options)


def pasted(told: str, folder: Path) -> Path:
    """The manifest that was printed, in a file."""
    place = folder / "better.yaml"
    place.write_text(told.partition(BETTER)[2].partition("\n")[2])
    return place


def test_the_table_is_that_of_a_dry_run() -> None:
    dry = run_here("merge", SESR, "--pairs", SESR_PAIRS, "--dry-run")
    outcome = run_here("plan", SESR, "--pairs", SESR_PAIRS)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert outcome.stdout == f"{dry.stdout}No other partition has fewer weights.\n"


def test_a_refused_entry_is_told_with_its_best_partition(scene: Path) -> None:
    outcome = plan(scene)
    merged = run_here(
        *("merge", scene / "model.safetensors", "--pairs", scene / "pairs.yaml", "--dry-run")
    )
    assert (outcome.status, outcome.errors) == (2, merged.errors)
    assert len(outcome.errors) == 2
    assert "(i=1): in parts 20,480 weights -> 18,432 weights (refused as given)" in outcome.stdout
    assert "one layer: b.1.b, b.1.c, b.1.d into b.1.b, 11,264 -> 9,216 weights" in outcome.stdout
    assert "apart: b.1.a" in outcome.stdout
    assert "b.1.a, b.1.b, b.1.c, b.1.d: b.1.b pads what it reads" in outcome.stdout
    better = pasted(outcome.stdout, scene)
    assert better.read_text() == (
        "version: 1\npairs:\n  - chain:\n"
        "      - {name: 'b.{i}.b', padding: 1}\n      - {name: 'b.{i}.c'}\n"
        "      - {name: 'b.{i}.d'}\n"
    )
    output = scene / "out.safetensors"
    done = run_here(
        *("merge", scene / "model.safetensors", "--pairs", better, "-o", output, "--json")
    )
    assert (done.status, done.data["verification"]["ok"]) == (0, True)
    assert sum(tensor.numel() for tensor in load_file(output).values()) == 2 * 18_432


def test_a_better_partition_of_what_could_be_merged(scene: Path) -> None:
    """The whole in one is smaller than apart, but not as small as two merges."""
    shapes = {"a": (64, 16, 1, 1), "b": (8, 64, 1, 1), "c": (64, 8, 1, 1), "d": (16, 64, 3, 3)}
    save_file(weights(**shapes), scene / "model.safetensors")
    chain = [{"name": name} for name in shapes]
    data = {"version": 1, "pairs": [{"chain": chain, "into": "a"}]}
    (scene / "pairs.yaml").write_text(json.dumps(data))
    outcome = plan(scene)
    assert (outcome.status, outcome.errors) == (0, [])
    assert "in parts 11,264 weights -> 1,280 weights (as given 2,304 weights)" in outcome.stdout
    assert "would have 2,304 weights as one layer, 1,280 as they are" in outcome.stdout
    better = pasted(outcome.stdout, scene)
    output = scene / "out.safetensors"
    done = run_here("merge", scene / "model.safetensors", "--pairs", better, "-o", output)
    assert done.status == 0
    assert {name: t.numel() for name, t in load_file(output).items()} == {
        "a.weight": 128,
        "c.weight": 1152,
    }


def test_nothing_worth_merging_is_said_and_no_manifest_printed() -> None:
    outcome = run_here("plan", STEM, "--pairs", STEM_PAIRS)
    assert outcome.status == 2
    assert "no layers of it are worth merging" in outcome.stdout
    assert BETTER not in outcome.stdout


def test_json_holds_a_manifest_that_can_be_used(scene: Path) -> None:
    outcome = plan(scene, "--json", "--minimize", "macs")
    assert (outcome.status, outcome.data["plan"]) == (2, None)
    data = outcome.data
    assert (data["minimize"], len(data["problems"]), data["better_problems"]) == ("macs", 2, [])
    first = data["entries"][0]
    assert (first["is_better"], first["given"], first["apart"]) == (True, None, ["b.0.a"])
    assert (first["before"]["weights"], first["after"]["weights"]) == (20_480, 18_432)
    assert first["merged"][0]["layers"] == ["b.0.b", "b.0.c", "b.0.d"]
    assert first["kept_apart"][0]["cause"] == "border"
    assert manifest_from_data(data["better"]).document.pairs[0].chain[0].name == "b.{i}.b"  # type: ignore[union-attr]


def test_policies_are_named_with_the_manifest_that_needs_them(scene: Path) -> None:
    outcome = plan(scene, "--border", "corrected", "--json")
    assert (outcome.status, outcome.data["better"]) == (0, None)
    shapes = {"a": (64, 16, 3, 3), "b": (16, 64, 3, 3), "c": (90, 16, 1, 1)}
    save_file(weights(**shapes), scene / "model.safetensors")
    chain = [{"name": "a", "padding": 1}, {"name": "b", "padding": 1}, {"name": "c"}]
    (scene / "pairs.yaml").write_text(json.dumps({"version": 1, "pairs": [{"chain": chain}]}))
    outcome = plan(scene, "--border", "corrected", "--growth", "allow")
    assert outcome.status == 0
    assert f"{BETTER}weights, for merge with --border corrected --growth allow:" in outcome.stdout


def test_a_manifest_that_does_not_read_is_told_as_by_merge(scene: Path) -> None:
    (scene / "pairs.yaml").write_text("version: 1\npairs: [{chain: [{nam: a}]}]")
    outcome = plan(scene)
    assert (outcome.status, outcome.stdout) == (2, "")
    assert any("unknown key" in error for error in outcome.errors)


def test_layers_that_are_missing_have_no_partition(scene: Path) -> None:
    manifest = {"version": 1, "pairs": [{"first": {"name": "x"}, "second": {"name": "y"}}]}
    (scene / "pairs.yaml").write_text(json.dumps(manifest))
    outcome = plan(scene, "--json")
    assert (outcome.status, outcome.data["entries"], outcome.data["better"]) == (2, [], None)


def test_blocks_that_differ_are_written_out() -> None:
    """A part with placeholders would say something else of one of the blocks, or match more."""
    shapes = {f"b_{i}_{name}": shape for i in range(2) for name, shape in BLOCK.items()}
    shapes |= {"b_2_b": BLOCK["b"], "b_2_c": BLOCK["c"], "b_2_d": BLOCK["d"]}
    checkpoint = from_state_dict(weights(**shapes))
    found = review(manifest_from_data({"version": 1, "pairs": [{"chain": CHAIN}]}), checkpoint)
    assert found.better is not None
    assert "{i}" not in manifest_yaml(found.better)
    assert len(found.better.pairs) == 2


def test_of_stages_that_differ_each_is_one_entry() -> None:
    """In one the first layer has a single tap, so that all of a block is one layer."""
    shapes = {
        f"b_{i}_{j}_{name}": (64, 16, 1, 1) if (i, name) == (1, "a") else shape
        for i, j, (name, shape) in product(range(2), range(3), BLOCK.items())
    }
    chain = [{**layer, "name": layer["name"].replace("{i}", "{i}.{j}")} for layer in CHAIN]
    chain[0]["padding"] = 0
    manifest = manifest_from_data({"version": 1, "pairs": [{"chain": chain}]})
    found = review(manifest, from_state_dict(weights(**shapes)))
    assert found.better is not None
    names = [[layer.name for layer in entry.chain] for entry in found.better.pairs]  # type: ignore[union-attr]
    assert names == [[f"b.0.{{i}}.{x}" for x in "bcd"], [f"b.1.{{i}}.{x}" for x in "abcd"]]


def test_entries_that_are_best_as_they_are_stay_as_they_are_written() -> None:
    shapes = {"x_0_a": (64, 16, 1, 1), "x_0_b": (16, 64, 1, 1)}
    shapes |= {f"b_0_{name}": shape for name, shape in BLOCK.items()}
    fine = {"first": {"name": "x.{n}.a"}, "second": {"name": "x.{n}.b"}, "into": "x.{n}.whole"}
    data = {"version": 1, "border": "exact", "pairs": [fine, {"chain": CHAIN}]}
    manifest = manifest_from_data(data)
    found = review(manifest, from_state_dict(weights(**shapes)))
    assert [one.is_better for one in found.entries] == [False, True]
    assert found.better is not None
    assert found.better.pairs[0] == manifest.document.pairs[0]
    again = parse_manifest(manifest_yaml(found.better), "again").document
    assert again == found.better
