"""The two questions that started this project, asked of the program.

Two 3x3 convolutions with padding 1: what does a plain merge cost at the border, and what does being
exact there? And 1 -> 100 -> 2 channels with full padding: how small does the pair become?
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from convsqueeze import load_layers
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.errors import PlanError
from convsqueeze.manifest import Manifest, manifest_from_data
from convsqueeze.module import SqueezedConv, module_of
from convsqueeze.plan import Plan, make_plan
from convsqueeze.squeezing import recipe_layer, recipe_of, squeeze
from convsqueeze.verify import Settings, verify_plan
from tests.command_line import Outcome, run_here

pytestmark = pytest.mark.quick

State = dict[str, Tensor]


def pair(first: dict[str, Any], second: dict[str, Any]) -> Manifest:
    return manifest_from_data({"version": 1, "pairs": [{"first": first, "second": second}]})


def drawn(*layers: nn.Module) -> State:
    """The layers' state dict in float64, the same every time."""
    generator = torch.Generator().manual_seed(5)
    state = nn.Sequential(*layers).double().state_dict()
    return {name: torch.randn(t.shape, generator=generator).double() for name, t in state.items()}


def squeezed_layer(plan: Plan, state: State) -> SqueezedConv:
    squeezed = next(squeeze(plan, from_state_dict(state).load))
    module = module_of(recipe_layer(plan.merges[0]), squeezed.tensors())
    return module.requires_grad_(False)


# Two 3x3 convolutions, 5 -> 3 -> 1 channels, padding 1 each, on 6x6 pixels

TWICE = pair({"name": "0", "padding": 1}, {"name": "1", "padding": 1})


@pytest.fixture
def twice() -> State:
    return drawn(nn.Conv2d(5, 3, 3, padding=1), nn.Conv2d(3, 1, 3, padding=1))


def apart(state: State, x: Tensor) -> Tensor:
    y = F.conv2d(x, state["0.weight"], state["0.bias"], padding=1)
    return F.conv2d(y, state["1.weight"], state["1.bias"], padding=1)


def test_exact_is_refused_with_the_reason(twice: State) -> None:
    with pytest.raises(PlanError) as refusal:
        make_plan(TWICE, from_state_dict(twice))
    (told,) = refusal.value.problems
    assert "pairs[0].second" in told
    assert "1 pads what it reads, but 0 (3x3, bias) is not zero outside the image" in told
    assert "no plain convolution is exact" in told
    assert "1 output row on every side would differ" in told
    assert "border: corrected (exact" in told
    assert "border: interior to accept that" in told


def test_the_window_alone_is_reason_enough(twice: State) -> None:
    del twice["0.bias"]
    with pytest.raises(PlanError, match=r"but 0 \(3x3\) sees the image from outside it"):
        make_plan(TWICE, from_state_dict(twice))


def test_the_plain_merge_is_wrong_on_the_ring_and_only_there(twice: State) -> None:
    """20 of 36 outputs, 56 %: the pixel around the edge, by far more than rounding."""
    plan = make_plan(TWICE, from_state_dict(twice), border="interior")
    (merge,) = plan.merges
    assert {(leak.axis, leak.side, leak.rows) for leak in merge.mismatches} == {
        (axis, side, 1) for axis in (0, 1) for side in ("low", "high")
    }
    x = torch.randn(4, 5, 6, 6, generator=torch.Generator().manual_seed(1)).double()
    expected, actual = apart(twice, x), squeezed_layer(plan, twice)(x)
    error = (actual - expected).abs().amax((0, 1))
    ring = torch.ones(6, 6, dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    assert int(ring.sum()) == 20
    assert round(100 * ring.double().mean().item()) == 56
    assert torch.equal(error > 1e-3 * expected.abs().max(), ring)
    assert error[~ring].max() <= 1e-13 * expected.abs().max()


def test_verification_measures_the_error_on_the_ring(twice: State) -> None:
    checkpoint = from_state_dict(twice)
    plan = make_plan(TWICE, checkpoint, border="interior")
    recipe = recipe_of(plan, checkpoint, border="interior")
    merged = from_state_dict(next(squeeze(plan, checkpoint.load)).tensors())
    layers = {layer.name: layer for layer in recipe.layers}
    (report,) = verify_plan(plan, checkpoint, merged, layers, Settings())
    assert report.ok
    assert report.policy == "interior"
    assert report.interior.share <= 1.0
    assert report.border_error > 0.05 * report.border_range > 0


def test_a_smaller_image_is_all_ring(twice: State) -> None:
    """On 1x1 and 2x2 pixels no output of the plain merge is right."""
    plan = make_plan(TWICE, from_state_dict(twice), border="interior")
    module = squeezed_layer(plan, twice)
    for size in (1, 2):
        x = torch.randn(2, 5, size, size, generator=torch.Generator().manual_seed(2)).double()
        assert bool(((module(x) - apart(twice, x)).abs() > 1e-3).any(0).all())


# The same pair made exact, by the command line

PAIRS = """
version: 1
pairs:
  - first: {name: "0", padding: 1}
    second: {name: "1", padding: 1}
"""
CORRECTED = ("--border", "corrected", "--growth", "allow")
EVERY_SIZE = [(6, 6), (1, 1), (1, 4), (2, 2), (3, 5), (7, 6)]


@dataclass(frozen=True)
class Files:
    """A checkpoint in float64, its manifest, and where its merge goes."""

    model: Path
    pairs: Path
    squeezed: Path

    def merge(self, *arguments: object) -> Outcome:
        return run_here("merge", self.model, "--pairs", self.pairs, "-o", self.squeezed, *arguments)

    def verify(self, *arguments: object) -> Outcome:
        return run_here("verify", self.model, self.squeezed, *arguments)


def written(folder: Path, state: State, pairs: str = PAIRS) -> Files:
    files = Files(folder / "model.pt", folder / "pairs.yaml", folder / "squeezed.pt")
    torch.save(state, files.model)
    files.pairs.write_text(pairs)
    return files


def share_of_wrong(state: State, files: Files, size: tuple[int, int]) -> float:
    """The share of pixels at which the squeezed layer is off by more than the noise of float64."""
    (layer,) = load_layers(files.squeezed).values()
    channels = state["0.weight"].shape[1]
    x = torch.randn(3, channels, *size, generator=torch.Generator().manual_seed(4)).double()
    with torch.no_grad():
        expected, actual = apart(state, x), layer(x)
    assert actual.shape == expected.shape
    wrong = ((actual - expected).abs() > 1e-13 * expected.abs().max()).any(0).any(0)
    return wrong.double().mean().item()


def test_the_refusal_names_every_choice_and_what_it_costs(twice: State, tmp_path: Path) -> None:
    files = written(tmp_path, twice)
    outcome = files.merge()
    assert (outcome.status, outcome.stdout) == (2, "")
    (told,) = outcome.errors
    exact, _, accepted = told.partition("border: corrected (exact")[2].partition("border: interior")
    assert "254 weights" in exact
    assert "126 weights" in accepted
    assert "leave these layers apart" in accepted
    assert not files.squeezed.exists()


def test_corrections_that_grow_the_checkpoint_ask_for_leave(twice: State, tmp_path: Path) -> None:
    files = written(tmp_path, twice)
    outcome = files.merge("--border", "corrected")
    assert outcome.status == 2
    (told,) = outcome.errors
    assert "from 166 to 254 weights (1.5 times)" in told
    assert "--growth allow" in told
    assert not files.squeezed.exists()


def test_corrected_is_exact_at_every_pixel(twice: State, tmp_path: Path) -> None:
    files = written(tmp_path, twice)
    merged = files.merge(*CORRECTED, "--json")
    assert merged.status == 0
    assert merged.data["layers"][0]["border"] == "corrected"
    assert [share_of_wrong(twice, files, size) for size in EVERY_SIZE] == [0.0] * len(EVERY_SIZE)


def test_interior_is_wrong_by_the_same_measure(twice: State, tmp_path: Path) -> None:
    files = written(tmp_path, twice)
    assert files.merge("--border", "interior").status == 0
    shares = [share_of_wrong(twice, files, size) for size in EVERY_SIZE]
    assert shares == pytest.approx([20 / 36, 1.0, 1.0, 1.0, 12 / 15, 22 / 42])


def test_a_manifest_may_ask_for_it(twice: State, tmp_path: Path) -> None:
    files = written(tmp_path, twice, PAIRS + "    border: corrected\n")
    assert files.merge("--growth", "allow").status == 0
    assert share_of_wrong(twice, files, (6, 6)) == 0.0


@pytest.mark.parametrize("how", [(), ("--exhaustive",)], ids=["usual", "exhaustive"])
def test_verify_says_so_too_and_sees_a_wrong_correction(
    how: tuple[str, ...], twice: State, tmp_path: Path
) -> None:
    files = written(tmp_path, twice)
    assert files.merge(*CORRECTED).status == 0
    verified = files.verify(*how, "--json")
    assert verified.status == 0
    (layer,) = verified.data["layers"]
    assert layer["policy"] == "corrected"
    squeezed = torch.load(files.squeezed, weights_only=True)
    corner = squeezed["0.border.01.weight"]
    corner.view(-1)[int(corner.abs().argmax())] *= 1 + 2.0**-30
    torch.save(squeezed, files.squeezed)
    failed = files.verify(*how, "--json")
    assert failed.status == 1
    (problem,) = failed.data["problems"]
    assert problem.startswith("0: differs by")


def test_with_many_channels_between_it_is_exact_and_smaller(tmp_path: Path) -> None:
    """16 -> 64 -> 16 channels: no leave to grow is needed."""
    state = drawn(nn.Conv2d(16, 64, 3, padding=1), nn.Conv2d(64, 16, 3, padding=1))
    files = written(tmp_path, state)
    merged = files.merge("--border", "corrected", "--json")
    assert merged.status == 0
    assert (merged.data["weights_before"], merged.data["weights_after"]) == (18_512, 12_688)
    assert files.squeezed.stat().st_size < files.model.stat().st_size
    assert [share_of_wrong(state, files, size) for size in EVERY_SIZE] == [0.0] * len(EVERY_SIZE)


# 1 -> 100 -> 2 channels, 3x3 and then 5x5, full padding, no bias

FULL = pair({"name": "0", "padding": 2}, {"name": "1", "padding": 4})


@pytest.fixture
def full() -> State:
    return drawn(nn.Conv2d(1, 100, 3, bias=False), nn.Conv2d(100, 2, 5, bias=False))


def test_full_padding_is_exact_and_sixty_times_smaller(full: State) -> None:
    plan = make_plan(FULL, from_state_dict(full))
    (merge,) = plan.merges
    assert (merge.border, merge.mismatches) == ("exact", ())
    assert (plan.weights_before, plan.weights_after) == (5900, 98)
    assert merge.geometry.weight_shape == (2, 1, 7, 7)
    assert not merge.geometry.bias
    assert [(axis.before, axis.after) for axis in merge.geometry.axes] == [(6, 6), (6, 6)]


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 6), (9, 17)])
def test_full_padding_agrees_at_every_pixel(full: State, size: tuple[int, int]) -> None:
    module = squeezed_layer(make_plan(FULL, from_state_dict(full)), full)
    x = torch.randn(3, 1, *size, generator=torch.Generator().manual_seed(3)).double()
    y = F.conv2d(x, full["0.weight"], padding=2)
    expected = F.conv2d(y, full["1.weight"], padding=4)
    assert module(x).shape == expected.shape
    assert (module(x) - expected).abs().max() <= 1e-13 * expected.abs().max()


def test_full_padding_leaves_no_room_for_a_bias(full: State) -> None:
    full["0.bias"] = torch.ones(100, dtype=torch.float64)
    with pytest.raises(PlanError, match="is not zero outside the image"):
        make_plan(FULL, from_state_dict(full))


def test_the_users_manifest_is_what_a_file_is_held_to(tmp_path: Path) -> None:
    """Not the recipe's own, which says what was merged and not what should have been."""
    weights = {"a.weight": torch.ones(4, 2, 1, 1), "b.weight": torch.ones(2, 4, 3, 3)}
    save_file(weights, tmp_path / "model.safetensors")
    for name, padding in (("merged", 0), ("meant", 1)):
        second = f"{{name: b, padding: {padding}}}"
        text = f"version: 1\npairs:\n  - first: {{name: a}}\n    second: {second}\n"
        (tmp_path / f"{name}.yaml").write_text(text)
    model, output = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    done = run_here("merge", model, "--pairs", tmp_path / "merged.yaml", "-o", output)
    assert done.status == 0
    assert run_here("verify", model, output).status == 0
    held = run_here("verify", model, output, "--pairs", tmp_path / "meant.yaml")
    assert held.status == 1
    assert any(
        "its recipe says padding [[0, 0], [0, 0]] of a, [[1, 1], [1, 1]] was needed" in e
        for e in held.errors
    )
    assert any("its recipe holds another manifest than" in e for e in held.errors)
