"""Files of a later version of the formats are refused in words: both versions, and what to do."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

import convsqueeze
from convsqueeze.errors import CheckpointError, ManifestError
from tests.command_line import run_here
from tests.files_of_0_1 import CASES, stored, with_recipe_of
from tests.fixtures.squeezed_by_0_1.models import Twice
from tests.squeezed_files import RECIPE_KEY

PROGRAM = f"this program (convsqueeze {version('convsqueeze')}) reads version 1. Update convsqueeze"
LONG = tuple(pytest.param("9" * n, id=f"{n} digits") for n in (15, 3000, 5000))


@pytest.mark.parametrize("name", ["model_twice", "corrected_1d", "file_sharded"])
@pytest.mark.parametrize("more", [{}, {"graph": {"nodes": []}, "layers": [{"op": "add"}]}])
def test_a_recipe_of_a_later_version(tmp_path: Path, name: str, more: dict[str, Any]) -> None:
    """Refused with both versions, whatever else it says that is not known."""
    case = CASES[name]
    later = with_recipe_of(case.squeezed, tmp_path, {"version": 2, **more})
    told = f"{later}: its recipe is of version 2, {PROGRAM}, or merge again with this version."
    with pytest.raises(CheckpointError) as raised:
        convsqueeze.load_layers(later)
    assert str(raised.value) == told
    for arguments in (("verify", case.original, later), ("export-onnx", later), ("inspect", later)):
        outcome = run_here(*arguments)
        assert (outcome.status, outcome.errors) == (2, [told])
    with pytest.raises(CheckpointError) as raised:
        convsqueeze.apply(Twice(), later)
    assert str(raised.value) == told


@pytest.mark.parametrize("written", ['"2"', "0", "-1", "1.5", "null", "[2]", *LONG])
def test_a_recipe_of_no_version(tmp_path: Path, written: str) -> None:
    """Versions that no later program writes."""
    later = with_recipe_of(CASES["model_twice"].squeezed, tmp_path, {"version": "this"})
    state_dict = torch.load(later, weights_only=True)
    text = state_dict._metadata[RECIPE_KEY]
    state_dict._metadata[RECIPE_KEY] = text.replace('"this"', written)
    torch.save(state_dict, later)
    with pytest.raises(CheckpointError, match="its recipe is not one this version reads") as raised:
        convsqueeze.load_layers(later)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('"groups": 1', '"groups": 1, "groups": 1', "JSON in which the key groups stands twice"),
        ('"kind": "conv"', '"kind": "linear"', "its recipe has 2 axes for a linear layer"),
    ],
)
def test_a_recipe_that_no_version_writes(
    tmp_path: Path, before: str, after: str, says: str
) -> None:
    later = with_recipe_of(CASES["model_twice"].squeezed, tmp_path, {})
    state_dict = torch.load(later, weights_only=True)
    text = state_dict._metadata[RECIPE_KEY]
    assert before in text
    state_dict._metadata[RECIPE_KEY] = text.replace(before, after)
    torch.save(state_dict, later)
    with pytest.raises(CheckpointError, match=says):
        convsqueeze.load_layers(later)
    outcome = run_here("export-onnx", later, "-o", tmp_path / "o.onnx")
    assert outcome.status == 2
    assert says in outcome.errors[0]


def test_a_manifest_of_a_later_version_in_a_recipe(tmp_path: Path) -> None:
    """It is not needed to run the layers, but to verify and place them."""
    case = CASES["model_twice"]
    manifest = {**stored(case.squeezed).recipe["manifest"], "version": 2, "graph": []}
    later = with_recipe_of(case.squeezed, tmp_path, {"manifest": manifest})
    assert sorted(convsqueeze.load_layers(later)) == ["twice"]
    told = f"recipe version: is 2, {PROGRAM}, or write the manifest in version 1."
    outcome = run_here("verify", case.original, later)
    assert (outcome.status, outcome.errors) == (2, [f"{later} {told}"])
    with pytest.raises(ManifestError) as raised:
        convsqueeze.apply(Twice(), later)
    assert str(raised.value) == told
