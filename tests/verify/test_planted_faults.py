"""Faults planted in squeezed files, each of which `verify` must name, and in merging itself.

"One merged weight changed by four ulps" stands for the smallest fault that a program can be asked
to see: rounding accounts for half an ulp.
"""

import copy
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from convsqueeze import merge_file
from convsqueeze.algebra import Conv, conv
from convsqueeze.kinds import batch_norm
from convsqueeze.manifest import manifest_from_data
from convsqueeze.plan import Merge
from convsqueeze.squeezing import Squeezed, recipe_layer, squeeze_one
from tests.command_line import BLOCKS, SESR, SESR_PAIRS, run_here, run_process
from tests.fault_tables import (
    GEOMETRY_FAULTS,
    MANIFEST_FAULTS,
    SPOTS,
    TENSOR_FAULTS,
    edited_manifest,
    index_of,
)
from tests.mixed_checkpoint import MANIFEST, MERGED, UNTOUCHED, manifest_of, mixed_state_dict
from tests.planted import DTYPES, NARROW, Squeezing, assert_told, saved
from tests.squeezed_files import moved_by_ulps, put_together, taken_apart, with_bit_flipped

pytestmark = pytest.mark.stress

SUFFIXES = (".pt", ".safetensors")
TRAINED = ("head", *(f"body.{i}" for i in range(5)), "tail")


@pytest.fixture(scope="session")
def squeezing(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Squeezing]:
    """The mixed checkpoint merged, once for each dtype and suffix; of all entries or `only` one."""

    @cache
    def make(dtype: str = "float32", suffix: str = ".pt", only: str | None = None) -> Squeezing:
        folder = tmp_path_factory.mktemp(dtype)
        original = saved(mixed_state_dict(DTYPES[dtype]), folder / f"model{suffix}")
        pairs = folder / "pairs.yaml"
        manifest = MANIFEST if only is None else manifest_of(only)
        pairs.write_text(json.dumps(manifest))
        squeezed = folder / f"model.squeezed{suffix}"
        merge_file(original, manifest_from_data(manifest), squeezed)
        return Squeezing(original, squeezed, pairs)

    return make


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_honest_file_is_verified(squeezing: Any, dtype: str, suffix: str) -> None:
    made = squeezing(dtype, suffix)
    outcome = run_here("verify", made.original, made.squeezed, "--json")
    assert outcome.status == 0, outcome
    assert outcome.errors == []
    assert outcome.data["ok"] is True
    assert outcome.data["problems"] == []
    assert outcome.data["untouched"] == len(UNTOUCHED)
    assert [layer["name"] for layer in outcome.data["layers"]] == list(MERGED)
    for layer in outcome.data["layers"]:
        for part in (layer["interior"], layer["border"]):
            assert 0 <= part["error"] <= part["bound"]
    again = run_here("verify", made.original, made.squeezed, "--pairs", made.pairs, "--seed", 7)
    assert again.status == 0, again


def test_stored_weights_use_most_of_the_bound(squeezing: Any) -> None:
    """A bound that honest files stay far below could not tell a fault from rounding."""
    for dtype in NARROW:
        made = squeezing(dtype)
        outcome = run_here("verify", made.original, made.squeezed, "--json")
        shares = [max(x["interior"]["share"], x["border"]["share"]) for x in outcome.data["layers"]]
        assert all(0.8 < share <= 1.0 for share in shares), (dtype, shares)


@pytest.mark.parametrize("dtype", DTYPES)
def test_honest_file_is_verified_exhaustively(tmp_path: Path, dtype: str) -> None:
    original = saved(mixed_state_dict(DTYPES[dtype]), tmp_path / "model.pt")
    merge_file(original, manifest_from_data(manifest_of("stem", "up")), tmp_path / "out.pt")
    outcome = run_here("verify", original, tmp_path / "out.pt", "--exhaustive", "--json")
    assert outcome.status == 0, outcome
    assert outcome.data["exhaustive"] is True
    plain = run_here("verify", original, tmp_path / "out.pt", "--json")
    inputs = [[layer["inputs"] for layer in x.data["layers"]] for x in (outcome, plain)]
    assert all(more > fewer for more, fewer in zip(*inputs, strict=True))


@pytest.mark.parametrize("spot", SPOTS)
@pytest.mark.parametrize("name", MERGED)
@pytest.mark.parametrize("dtype", NARROW)
def test_weight_changed_by_four_ulps(
    squeezing: Any, tmp_path: Path, dtype: str, name: str, spot: str
) -> None:
    made = squeezing(dtype, only=name)
    parts = made.parts()
    weight = parts.tensors[f"{name}.weight"]
    place = index_of(SPOTS[spot](weight), weight)
    ulps = -4 if spot == "largest" else 4
    parts.tensors[f"{name}.weight"] = moved_by_ulps(weight, place, ulps)
    channel = place[1] if parts.layer(name)["kind"] == "conv_transpose" else place[0]
    assert_told(
        made.verified(parts, tmp_path), f"{name}: ", "differs by", f"output channel {channel}, at ["
    )


@pytest.mark.parametrize("name", MERGED)
@pytest.mark.parametrize("dtype", NARROW)
def test_bias_changed_by_four_ulps(squeezing: Any, tmp_path: Path, dtype: str, name: str) -> None:
    made = squeezing(dtype, only=name)
    parts = made.parts()
    bias = parts.tensors[f"{name}.bias"]
    parts.tensors[f"{name}.bias"] = moved_by_ulps(bias, (2,), 4)
    assert_told(made.verified(parts, tmp_path), f"{name}: ", f"{name}.bias, output channel 2.")


@pytest.mark.parametrize("dtype", NARROW)
def test_weight_that_nothing_leads_to_changed_by_four_ulps(tmp_path: Path, dtype: str) -> None:
    """Such a weight is zero without any rounding, so the smallest numbers there are a fault."""
    tensors = mixed_state_dict(DTYPES[dtype])
    tensors["around.0.weight"][:, 1] = 0.0
    made = squeezed_around(tensors, tmp_path)
    parts = made.parts()
    weight = parts.tensors["around.weight"]
    assert (weight[:, 1] == 0).all()
    parts.tensors["around.weight"] = moved_by_ulps(weight, (3, 1, 4, 4), 4)
    assert_told(made.verified(parts, tmp_path), "around: ", "output channel 3, at [")


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e-25])
def test_small_weight_beside_large_biases_changed_by_four_ulps(
    tmp_path: Path, scale: float
) -> None:
    """What float64 can lose in summing biases excuses nothing where no bias takes part."""
    tensors = mixed_state_dict()
    tensors["around.0.weight"] *= scale
    tensors["around.0.bias"] *= 1000
    made = squeezed_around(tensors, tmp_path)
    parts = made.parts()
    weight = parts.tensors["around.weight"]
    small = index_of(SPOTS["nearest zero"](weight), weight)
    parts.tensors["around.weight"] = moved_by_ulps(weight, small, 4)
    assert_told(made.verified(parts, tmp_path), "around: ", f"output channel {small[0]}, at [")


def squeezed_around(tensors: "OrderedDict[str, Tensor]", folder: Path) -> Squeezing:
    original = saved(tensors, folder / "model.pt")
    made = Squeezing(original, folder / "model.squeezed.pt", folder)
    merge_file(original, manifest_from_data(manifest_of("around")), made.squeezed)
    assert made.verified(made.parts(), folder).status == 0
    return made


def test_weight_of_a_float64_file_changed_in_the_eleventh_digit(
    squeezing: Any, tmp_path: Path
) -> None:
    """Float64 sums lose some units themselves, so four ulps are no fault that any sum can show."""
    for name in MERGED:
        made = squeezing("float64", only=name)
        parts = made.parts()
        weight = parts.tensors[f"{name}.weight"]
        weight[index_of(SPOTS["largest"](weight), weight)] *= 1 + 1e-11
        assert_told(made.verified(parts, tmp_path), f"{name}: ", "output channel")


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (39, 2, 6, 6), (17, 1, 3, 3), (8, 0, 0, 6)])
def test_weight_under_the_interior_policy_changed_by_four_ulps(tmp_path: Path, place: Any) -> None:
    """What the border may differ by excuses no weight: every tap shows away from it."""
    original = BLOCKS / "convnext_ols_stem.safetensors"
    squeezed = tmp_path / "stem.safetensors"
    pairs = BLOCKS / "convnext_ols_stem.yaml"
    merge = run_here("merge", original, "--pairs", pairs, "-o", squeezed, "--border", "interior")
    assert merge.status == 0, merge
    assert run_here("verify", original, squeezed).status == 0
    parts = taken_apart(squeezed)
    (name,) = (layer["name"] for layer in parts.recipe["layers"])  # type: ignore[index]
    weight = parts.tensors[f"{name}.weight"]
    assert weight.shape == (40, 3, 7, 7)
    parts.tensors[f"{name}.weight"] = moved_by_ulps(weight, place, 4)
    faulty = put_together(parts, tmp_path / "faulty.safetensors")
    assert_told(run_here("verify", original, faulty), f"{name}: ", f"output channel {place[0]}, at")


@pytest.mark.parametrize(("name", "key", "value"), GEOMETRY_FAULTS)
def test_wrong_geometry_in_the_recipe(
    squeezing: Any, tmp_path: Path, name: str, key: str, value: Any
) -> None:
    """Told twice: the recipe does not say what the manifest asks for, and the layer is wrong."""
    made = squeezing(only=name)
    parts = made.parts()
    assert parts.layer(name)[key] != value
    parts.layer(name)[key] = value
    outcome = made.verified(parts, tmp_path)
    assert_told(outcome, "its recipe says", key, name)
    assert_told(outcome, f"{name}: ")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("stem", "border", "interior"),
        ("stem", "from", ["stem.conv"]),
        ("stem", "weights_before", 1),
        ("stem", "weights_after", 1),
    ],
)
def test_wrong_account_in_the_recipe(
    squeezing: Any, tmp_path: Path, name: str, key: str, value: Any
) -> None:
    made = squeezing(only=name)
    parts = made.parts()
    parts.layer(name)[key] = value
    assert_told(made.verified(parts, tmp_path), "its recipe says", name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stride", [2]),
        ("padding", [[1, 0]]),
        ("dilation", []),
        ("padding_mode", "wrap"),
        ("stride", [0, 1]),
        ("dilation", [-1, 1]),
        ("output_stride", [2]),
    ],
)
def test_geometry_in_the_recipe_that_is_no_layer(
    squeezing: Any, tmp_path: Path, key: str, value: Any
) -> None:
    made = squeezing(only="stem")
    parts = made.parts()
    parts.layer("stem")[key] = value
    assert_told(made.verified(parts, tmp_path), "stem")


def test_layer_missing_from_the_recipe(squeezing: Any, tmp_path: Path) -> None:
    made = squeezing()
    parts = made.parts()
    assert parts.recipe is not None
    parts.recipe["layers"].remove(parts.layer("around"))
    assert_told(made.verified(parts, tmp_path), "recipe lacks", "around")


def test_layer_too_many_in_the_recipe(squeezing: Any, tmp_path: Path) -> None:
    made = squeezing()
    parts = made.parts()
    assert parts.recipe is not None
    parts.recipe["layers"].append({**parts.layer("around"), "name": "embed"})
    assert_told(made.verified(parts, tmp_path), "recipe", "embed")


def test_layer_twice_in_the_recipe(squeezing: Any, tmp_path: Path) -> None:
    """Whoever reads the recipe may take the first of the two, which is the wrong one."""
    made = squeezing()
    parts = made.parts()
    assert parts.recipe is not None
    parts.recipe["layers"].insert(0, {**parts.layer("around"), "padding_mode": "zeros"})
    assert_told(made.verified(parts, tmp_path), "around")


@pytest.mark.parametrize("fault", MANIFEST_FAULTS)
def test_manifest_in_the_recipe_altered(squeezing: Any, tmp_path: Path, fault: str) -> None:
    made = squeezing()
    parts = made.parts()
    change, name = MANIFEST_FAULTS[fault]
    edited_manifest(parts, change)
    assert_told(made.verified(parts, tmp_path), name)
    given = made.verified(parts, tmp_path, "--pairs", made.pairs)
    assert_told(given, "another manifest", str(made.pairs))


def test_manifest_and_recipe_altered_alike_show_against_the_users_own(
    squeezing: Any, tmp_path: Path
) -> None:
    """A file whose every word fits is only as good as its words; `--pairs` brings the user's."""
    made = squeezing()
    parts = made.parts()
    edited_manifest(parts, lambda pairs: pairs[0]["chain"][0].update(padding=1))
    parts.layer("stem")["padding"] = [[1, 1], [1, 1]]
    assert made.verified(parts, tmp_path).status == 0
    outcome = made.verified(parts, tmp_path, "--pairs", made.pairs)
    assert_told(outcome, "another manifest")
    assert_told(outcome, "its recipe says padding", "stem")


def test_file_without_a_recipe(squeezing: Any, tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        made = squeezing("float32", suffix)
        parts = made.parts()
        parts.recipe = None
        outcome = made.verified(parts, tmp_path)
        assert outcome.status == 2, outcome
        assert len(outcome.errors) == 1
        assert f"faulty{suffix}: holds no recipe" in outcome.errors[0]
        assert "convsqueeze merge" in outcome.errors[0]
    turned = run_here("verify", made.squeezed, made.original)
    assert (turned.status, len(turned.errors)) == (2, 1)
    assert "holds no recipe" in turned.errors[0]


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{", '{"version": 2}', '{"version": 1, "layers": 3}']
)
def test_recipe_that_is_none(squeezing: Any, tmp_path: Path, text: str) -> None:
    made = squeezing()
    tensors = made.parts().tensors
    tensors._metadata["convsqueeze"] = text
    torch.save(tensors, tmp_path / "faulty.pt")
    outcome = run_here("verify", made.original, tmp_path / "faulty.pt")
    assert (outcome.status, len(outcome.errors)) == (2, 1), outcome
    assert "faulty.pt" in outcome.errors[0]
    assert "recipe" in outcome.errors[0]


@pytest.mark.parametrize(
    ("name", "place", "bit"),
    [
        ("acts.slope", (5,), 0),
        ("acts.slope", (3,), 31),  # 0.0 becomes -0.0
        ("acts.slope", (0,), 30),
        ("steps", (), 0),
        ("steps", (), 63),
        ("mask", (1,), 0),
        ("embed.weight", (4, 6), 0),
        ("embed.weight", (0, 0), 22),
    ],
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bit_changed_in_an_untouched_tensor(
    squeezing: Any, tmp_path: Path, suffix: str, name: str, place: tuple[int, ...], bit: int
) -> None:
    made = squeezing("float32", suffix, only="head")
    parts = made.parts()
    parts.tensors[name] = with_bit_flipped(parts.tensors[name], place, bit)
    assert_told(made.verified(parts, tmp_path), f"{name}: ", f"at {list(place)}")


@pytest.mark.parametrize("fault", TENSOR_FAULTS)
def test_tensor_fault(squeezing: Any, tmp_path: Path, fault: str) -> None:
    made = squeezing()
    parts = made.parts()
    change, words = TENSOR_FAULTS[fault]
    change(parts)
    outcome = made.verified(parts, tmp_path, "--json")
    assert_told(outcome, *words)
    assert outcome.data["ok"] is False
    assert outcome.data["problems"] == outcome.errors


def test_several_faults_are_told_together(squeezing: Any, tmp_path: Path) -> None:
    made = squeezing()
    parts = made.parts()
    for fault in ("untouched removed", "key added", "merged weight as float64", "infinity"):
        TENSOR_FAULTS[fault][0](parts)
    outcome = made.verified(parts, tmp_path)
    for words in ("steps is missing", "extra is in neither", "float64", "around: "):
        assert_told(outcome, words)


def test_wrong_original(squeezing: Any, tmp_path: Path) -> None:
    made = squeezing()
    other = saved(mixed_state_dict(seed=1), tmp_path / "other.pt")
    outcome = run_here("verify", other, made.squeezed)
    assert_told(outcome, "other.pt", "is not the file that was squeezed", "model.pt")
    for name in MERGED:
        assert_told(outcome, f"{name}: ", "output channel")
    assert_told(outcome, "embed.weight: ", "at [0, 0]")
    twin = saved(mixed_state_dict(), tmp_path / "twin.safetensors")
    outcome = run_here("verify", twin, made.squeezed)
    assert_told(outcome, "twin.safetensors", "is not the file that was squeezed")
    assert len(outcome.errors) == 1
    strange = saved(OrderedDict(a=torch.ones(2, 2)), tmp_path / "strange.pt")
    assert_told(run_here("verify", strange, made.squeezed), "strange.pt", "is not the file")


def test_bit_changed_beside_the_state_dict(tmp_path: Path) -> None:
    """Optimizer state and the like pass through merging, so a change there is a fault as well."""
    whole = {
        "state_dict": mixed_state_dict(),
        "epoch": 7,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
    }
    torch.save(whole, tmp_path / "model.ckpt")
    squeezed = tmp_path / "model.squeezed.ckpt"
    merge_file(tmp_path / "model.ckpt", manifest_from_data(MANIFEST), squeezed)
    assert run_here("verify", tmp_path / "model.ckpt", squeezed).status == 0
    after = torch.load(squeezed, weights_only=True)
    after["optimizer"]["state"][0]["exp_avg"][1] = 1.5
    torch.save(after, tmp_path / "faulty.ckpt")
    assert_told(run_here("verify", tmp_path / "model.ckpt", tmp_path / "faulty.ckpt"), "optimizer")


@pytest.mark.filterwarnings("ignore")
def test_unusual_tensors_beside_the_merged_ones(tmp_path: Path) -> None:
    """Quantized, sparse, complex, empty and tied tensors that no merge touches are compared too."""
    unusual: dict[str, Tensor] = {
        "quantized": torch.quantize_per_tensor(torch.arange(4.0), 0.5, 2, torch.qint8),
        "per_channel": torch.quantize_per_channel(
            torch.ones(2, 3), torch.tensor([0.5, 0.25]), torch.tensor([0, 1]), 0, torch.qint8
        ),
        "sparse": torch.eye(3).to_sparse(),
        "complex": torch.tensor([1 + 2j]),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "empty": torch.empty(0, 3),
        "float8": torch.ones(4).to(torch.float8_e4m3fn),
        "turned": torch.randn(3, 5).t(),
        "expanded": torch.ones(3, 1).expand(3, 4),
    }
    torch.save({**mixed_state_dict(), **unusual}, tmp_path / "model.pt")
    merge_file(tmp_path / "model.pt", manifest_from_data(MANIFEST), tmp_path / "model.squeezed.pt")
    outcome = run_here("verify", tmp_path / "model.pt", tmp_path / "model.squeezed.pt", "--json")
    assert outcome.status == 0, outcome
    assert outcome.data["untouched"] == len(UNTOUCHED) + len(unusual)
    for name, other in {
        "quantized": torch.quantize_per_tensor(torch.arange(4.0) * 2, 1.0, 2, torch.qint8),
        "sparse": (2 * torch.eye(3)).to_sparse(),
        "complex": torch.tensor([1 - 2j]),
        "float8": (-torch.ones(4)).to(torch.float8_e4m3fn),
    }.items():
        parts = taken_apart(tmp_path / "model.squeezed.pt")
        parts.tensors[name] = other
        faulty = put_together(parts, tmp_path / "faulty.pt")
        assert_told(run_here("verify", tmp_path / "model.pt", faulty), f"{name}: ")


# Faults in merging itself.


def off_by_four_ulps(merge: Merge, load: Callable[[str], Tensor], **options: Any) -> Squeezed:
    made = squeeze_one(merge, load, **options)
    if merge.into != "around":
        return made
    wrong = moved_by_ulps(made.stored["weight"], (2, 1, 4, 0), 4)
    return replace(made, stored={**made.stored, "weight": wrong})


def rounded_twice(merge: Merge, load: Callable[[str], Tensor], **options: Any) -> Squeezed:
    made = squeeze_one(merge, load, **options)
    twice = made.stored["weight"].bfloat16().float()
    return replace(made, stored={**made.stored, "weight": twice})


def without_bias(merge: Merge, load: Callable[[str], Tensor], **options: Any) -> Squeezed:
    made = squeeze_one(merge, load, **options)
    return replace(made, stored={n: t for n, t in made.stored.items() if n != "bias"})


@pytest.mark.parametrize(
    ("wrong", "told"),
    [(off_by_four_ulps, "around"), (rounded_twice, "stem"), (without_bias, "stem")],
)
def test_merge_that_squeezes_wrongly_writes_nothing(
    squeezing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Any, told: str
) -> None:
    made = squeezing()  # before the fault is there
    monkeypatch.setattr("convsqueeze.pipeline.merging.squeeze_one", wrong)
    assert_merge_fails(made, tmp_path, f"{told}: ")


def assert_merge_fails(made: Squeezing, folder: Path, *words: str) -> None:
    standing = folder / "standing.pt"
    standing.write_bytes(b"an earlier result")
    before = made.original.read_bytes()
    for options in ([], ["-q"], ["--json"], ["--growth", "allow"]):
        arguments = ("merge", made.original, "--pairs", made.pairs, "-o", folder / "out.pt")
        outcome = run_here(*arguments, *options)
        assert_told(outcome, *words)
        assert outcome.stdout == ""
    arguments = ("merge", made.original, "--pairs", made.pairs, "-o", standing, "--overwrite")
    assert_told(run_here(*arguments), *words)
    assert standing.read_bytes() == b"an earlier result"
    assert [path.name for path in folder.iterdir()] == ["standing.pt"]
    assert made.original.read_bytes() == before


def test_merge_with_an_inner_bias_dropped(
    squeezing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(outer: Conv, inner: Conv) -> torch.Tensor | None:
        if inner.bias is None or outer.bias is not None:
            return outer.bias
        return torch.zeros(outer.weight.shape[0], dtype=torch.float64)

    made = squeezing()  # before the fault is there
    monkeypatch.setattr(conv, "_composed_bias", wrong)
    assert_merge_fails(made, tmp_path, "stem: ", "output channel")


def test_merge_with_another_eps(
    squeezing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold = batch_norm.batch_norm

    def wrong(*tensors: Any, eps: float, **rest: Any) -> Conv:
        return fold(*tensors, eps=1e-5, **rest)

    made = squeezing()  # before the fault is there
    monkeypatch.setattr(batch_norm, "batch_norm", wrong)
    assert_merge_fails(made, tmp_path, "stem: ", "output channel")


def test_merge_with_a_wrong_recipe(
    squeezing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The merged layer is run as the recipe says, so a recipe that says it wrongly shows."""

    def wrong(*arguments: Any, **options: Any) -> Any:
        layer = recipe_layer(*arguments, **options)
        turned = {"padding": ((0, 1), (2, 1))} if layer.name == "stem" else {}
        return layer.model_copy(update=turned)

    made = squeezing()  # before the fault is there
    monkeypatch.setattr("convsqueeze.pipeline.merging.recipe_layer", wrong)
    assert_merge_fails(made, tmp_path, "stem: ")


def test_the_trained_sample_as_a_user_sees_it(tmp_path: Path) -> None:
    """Through real processes: 0 for the honest file, 1 for four ulps, 2 without a recipe."""
    squeezed = tmp_path / "out.pt"
    assert run_here("merge", SESR, "--pairs", SESR_PAIRS, "-o", squeezed, "-q").status == 0
    assert run_process("verify", SESR, squeezed).status == 0
    honest = taken_apart(squeezed, "params_ema")

    faulty = copy.deepcopy(honest)
    assert faulty.around is not None
    weight = faulty.tensors["body.3.weight"]
    weight.copy_(moved_by_ulps(weight, (11, 4, 2, 2), 4))
    put_together(faulty, tmp_path / "faulty.pt")
    outcome = run_process("verify", SESR, tmp_path / "faulty.pt")
    assert_told(outcome, "body.3: ", "output channel 11")
    assert len(outcome.errors) == 1

    bare = copy.deepcopy(honest)
    bare.recipe = None
    put_together(bare, tmp_path / "bare.pt")
    outcome = run_process("verify", SESR, tmp_path / "bare.pt")
    assert (outcome.status, outcome.stdout) == (2, "")
    assert "holds no recipe" in outcome.errors[0]

    every = copy.deepcopy(honest)
    for name in TRAINED:
        weight = every.tensors[f"{name}.weight"]
        weight.copy_(moved_by_ulps(weight, index_of(SPOTS["nearest zero"](weight), weight), 4))
    put_together(every, tmp_path / "every.pt")
    outcome = run_here("verify", SESR, tmp_path / "every.pt")
    for name in TRAINED:
        assert_told(outcome, f"{name}: ", "output channel")
    assert len(outcome.errors) == len(TRAINED)
