"""What version 0.1.0 wrote is verified, loaded, run and merged again alike by every later version.

Nothing here asks for more of the program than its command line and its public functions.
"""

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import convsqueeze
from tests.command_line import SAMPLES, run_here
from tests.files_of_0_1 import (
    CASES,
    FIXTURES,
    INDEX_SUFFIX,
    UNIT_ROUNDOFF,
    Case,
    assert_equal,
    stored,
)
from tests.fixtures.squeezed_by_0_1.models import MODELS, Stem
from tests.squeezed_files import moved_by_ulps

pytestmark = pytest.mark.quick

NARROW = (torch.float32, torch.float16, torch.bfloat16)
WITH_ONNX = ("corrected_2d", "sums")

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def loaded(case: Case, dtype: torch.dtype | None = None) -> dict[str, Any]:
    return convsqueeze.load_layers(case.squeezed, key=case.key, dtype=dtype)


# The files are what they are meant to be.


def test_every_folder_is_a_case() -> None:
    assert set(CASES) == {
        path.name for path in FIXTURES.iterdir() if (path / "pairs.yaml").exists()
    } | {
        "sesr_pt",
        "sesr_safetensors",
    }
    assert all(case.original.exists() and case.squeezed.exists() for case in CASES.values())


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file()) < 2_000_000


def _layers() -> list[dict[str, Any]]:
    return [x for case in CASES.values() for x in stored(case.squeezed, case.key).recipe["layers"]]


def test_there_is_a_layer_of_every_kind() -> None:
    layers = _layers()
    seen = {(layer["kind"], len(layer["kernel_size"]), layer["border"]) for layer in layers}
    ranks = {(kind, rank) for kind, rank, _ in seen}
    assert ranks >= {("linear", 0), *(("conv", n) for n in (1, 2, 3)), ("conv_transpose", 1)}
    assert {border for *_, border in seen} == {"exact", "corrected", "interior"}
    corrected = [layer["corrections"] for layer in layers if layer.get("corrections")]
    taps = {any(axis["taps"] for axis in one["axes"]) for one in corrected}
    assert taps == {True, False}, "by strips, and by biases alone"
    assert any(one["absent"] for one in corrected)
    assert any(axis["period"] > 1 for one in corrected for axis in one["axes"])
    assert any(layer.get("output_stride") for layer in layers)
    modes = [layer["padding_mode"] for layer in layers]
    assert {mode for mode in modes if isinstance(mode, str)} == {
        "zeros",
        "reflect",
        "replicate",
        "circular",
    }
    assert ["circular", "reflect"] in modes
    widened = {kind for layer in layers for kind in (layer.get("widened") or {}).items()}
    assert widened >= {("weight", "float32"), ("weight", "float64"), ("border.0.weight", "float32")}
    assert any(layer["groups"] > 1 for layer in layers)
    assert any(max(layer["dilation"], default=1) > 1 for layer in layers)
    recipes = [stored(case.squeezed, case.key).recipe for case in CASES.values()]
    assert {recipe["version"] for recipe in recipes} == {1}
    assert {recipe["growth"] for recipe in recipes} == {"refuse", "skip", "allow"}
    assert {recipe.get("border") for recipe in recipes} == {None, "interior"}


def test_there_is_a_file_of_every_kind() -> None:
    heads = {case.original.read_bytes()[:2] for case in CASES.values()}
    assert b"PK" in heads
    assert b"\x80\x02" in heads, "a legacy pickle"
    pairs = {
        tuple(path.name.partition(".")[2] for path in (c.original, c.squeezed))
        for c in CASES.values()
    }
    shards = f"safetensors{INDEX_SUFFIX}"
    assert pairs >= {
        ("pt", "pt"),
        ("pt", "safetensors"),
        ("safetensors", "pt"),
        ("safetensors", "safetensors"),
        (shards, shards),
        (shards, "pt"),
        ("safetensors", shards),
        ("pth", "pth"),
        ("ckpt", "ckpt"),
    }
    dtypes = {t.dtype for c in CASES.values() for t in stored(c.squeezed, c.key).tensors.values()}
    assert dtypes >= {torch.float64, *NARROW, torch.int64, torch.bool}
    (shard_count,) = {len(list(CASES["file_split"].squeezed.parent.glob("squeezed-*")))}
    assert shard_count > 1


# They are verified.


@pytest.mark.stress
@every_case
def test_verified(case: Case) -> None:
    report = convsqueeze.verify_files(case.original, case.squeezed, key=case.key)
    assert report.failures == ()
    recipe = stored(case.squeezed, case.key).recipe
    assert [one.name for one in report.layers] == [layer["name"] for layer in recipe["layers"]]


@pytest.mark.parametrize(
    "name",
    [
        "sums",
        "corrected_2d",
        "interior",
        "file_sharded",
        "file_wrapped",
        "widened_weight",
        "sesr_pt",
    ],
)
def test_verified_by_the_command_line(name: str) -> None:
    case = CASES[name]
    outcome = run_here("verify", case.original, case.squeezed, *case.key_options)
    assert (outcome.status, outcome.errors) == (0, [])
    outcome = run_here(
        "verify", case.original, case.squeezed, "--pairs", case.pairs, *case.key_options
    )
    assert (outcome.status, outcome.errors) == (0, [])


FAULTS = (
    "exact_chain",
    "corrected_biases",
    "corrected_2d",
    "corrected_absent",
    "interior",
    "transposed",
    "linear",
    "weight_norm",
    "widened_border",
    "border_of_the_manifest",  # float64
    "growth_allow",  # float16
    "border_of_the_command",  # bfloat16
)


@pytest.mark.stress
@pytest.mark.parametrize("name", FAULTS)
def test_one_wrong_number_of_each_tensor_is_found(tmp_path: Path, name: str) -> None:
    """Eight units in the last place, in one of the first layer's tensors at a time.

    In float64 it is more: sums in float64 lose some of these units themselves.
    """
    case = CASES[name]
    layer = stored(case.squeezed).recipe["layers"][0]["name"]
    names = [n for n in stored(case.squeezed).tensors if n.startswith(f"{layer}.")]
    assert names
    for tensor in names:
        faulty = with_changed(case.squeezed, tmp_path, tensor)
        outcome = run_here("verify", case.original, faulty)
        assert outcome.status == 1, (tensor, outcome)
        assert any(error.startswith(f"{layer}: ") for error in outcome.errors), outcome.errors


def with_changed(path: Path, folder: Path, name: str) -> Path:
    """A copy with the largest number of one tensor changed."""
    copy = folder / path.name
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        tensors[name] = changed(tensors[name])
        save_file(tensors, copy, metadata)
    else:
        tensors = torch.load(path, weights_only=True)
        tensors[name] = changed(tensors[name])
        torch.save(tensors, copy)
    return copy


def changed(tensor: Tensor) -> Tensor:
    """Off by eight units in the last place; in float64 by what its own noise does not cover."""
    ulps = 2**16 if tensor.dtype == torch.float64 else 8
    flat = int(tensor.abs().argmax())
    place = tuple(int(index) for index in torch.unravel_index(torch.tensor(flat), tensor.shape))
    return moved_by_ulps(tensor, place, ulps)


# They are loaded and run.


@every_case
def test_layers_give_what_they_gave(case: Case) -> None:
    expected = case.expected
    modules = loaded(case, torch.float64)
    assert sorted(modules) == sorted(expected)
    for name, module in modules.items():
        for one in expected[name]:
            assert one.is_met_by(module, torch.float64), (name, one.input.shape)


@pytest.mark.stress
@every_case
def test_layers_give_what_they_gave_in_their_own_dtype(case: Case) -> None:
    for name, module in loaded(case).items():
        for one in case.expected[name]:
            assert one.is_met_by(module, module.dtype), (name, one.input.shape)


@every_case
def test_one_wrong_number_of_a_layer_is_seen(case: Case) -> None:
    """The bound above is not too wide: the largest number of each tensor, off by some units in its
    last place, shows at some size. `every_form` is run at one size, where a border may not be.
    """
    own, expected = loaded(case), case.expected
    unseen = []
    for name, module in loaded(case, torch.float64).items():
        dtypes = {role: parameter.dtype for role, parameter in own[name].named_parameters()}
        for role, parameter in module.named_parameters():
            kept = parameter.data
            parameter.data = changed(kept.to(dtypes[role])).double()
            if all(one.is_met_by(module, torch.float64) for one in expected[name]):
                unseen.append((name, role))
            parameter.data = kept
    if case.name.startswith("every_form"):
        unseen = [(name, role) for name, role in unseen if not role.startswith("border.")]
    assert unseen == []


@every_case
def test_a_layer_that_is_wrong_in_its_own_dtype_is_seen(case: Case) -> None:
    """Nor is the wider bound too wide: the largest weight times minus eight shows at some size."""
    expected = case.expected
    for name, module in loaded(case).items():
        flat = module.weight.data.view(-1)
        flat[flat.abs().argmax()] *= -8.0
        assert not all(one.is_met_by(module, module.dtype) for one in expected[name]), name


@every_case
def test_layers_are_made_of_the_tensors_of_the_file(case: Case) -> None:
    tensors = stored(case.squeezed, case.key).tensors
    prefixes = ("", "module.", "_orig_mod.module.")
    for name, module in loaded(case).items():
        for role, parameter in module.state_dict().items():
            (found,) = (
                tensors[p + f"{name}.{role}"] for p in prefixes if p + f"{name}.{role}" in tensors
            )
            assert found.dtype == parameter.dtype
            assert torch.equal(found, parameter)


# They stand in models.


def original_model(name: str) -> nn.Module:
    model = MODELS[name]()
    model.load_state_dict(torch.load(CASES[name].original, weights_only=True))
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_applied_to_a_model(name: str) -> None:
    case, model = CASES[name], original_model(name)
    (expected,) = case.expected.values()
    example = expected[-1].input.float()
    squeezed = convsqueeze.apply(model, case.squeezed, example=example)
    assert squeezed.state_dict().keys() == stored(case.squeezed).tensors.keys()
    assert_equal(dict(squeezed.state_dict()), stored(case.squeezed).tensors)
    eps = torch.finfo(torch.float32).eps
    for one in expected:
        assert one.is_met_by(squeezed.double(), torch.float64)
        with torch.no_grad():
            before = model.double()(one.input)
        assert bool(((before - one.output).abs() <= eps * one.magnitude).all())


def test_a_model_of_other_weights_is_refused() -> None:
    """The example above is looked at."""
    case, model = CASES["model_stem"], Stem().eval()
    with pytest.raises(convsqueeze.ConvsqueezeError, match="on the example"):
        convsqueeze.apply(model, case.squeezed, example=torch.randn(1, 3, 7, 6))


@pytest.mark.parametrize("name", ["sesr_pt", "sesr_safetensors"])
def test_applied_to_the_sample(name: str) -> None:
    from samples.sesr.network import SESR

    model = SESR()
    model.load_state_dict(
        torch.load(SAMPLES / "sesr" / "sesr_x2.pt", weights_only=True)["params_ema"]
    )
    x = torch.rand(1, 1, 12, 9, generator=torch.Generator().manual_seed(0))
    squeezed = convsqueeze.apply(model.eval(), CASES[name].squeezed, example=x)
    with torch.no_grad():
        before, after = model.double()(x.double()), squeezed.double()(x.double())
    assert float((after - before).abs().max()) <= 1e-6 * float(before.abs().max())


# The same merge gives the same again.


@pytest.mark.stress
@every_case
def test_merged_again_alike(case: Case, tmp_path: Path) -> None:
    """The recipe as data, what is around it and every untouched tensor are equal. What was computed
    is rounded once: two float64 sums lie on both sides of a tie hardly ever.
    """
    output = tmp_path / case.squeezed.name
    merged = run_here("merge", case.original, "--pairs", case.pairs, "-o", output, *case.options)
    assert merged.status == 0, merged
    before, after = stored(case.squeezed, case.key), stored(output, case.key)
    assert after.recipe == before.recipe
    assert_equal(after.around, before.around)
    assert list(after.tensors) == list(before.tensors)
    computed = {f"{layer['name']}." for layer in before.recipe["layers"]}
    for name, tensor in before.tensors.items():
        assert after.tensors[name].dtype == tensor.dtype, name
        if any(layer in name for layer in computed):
            assert_rounded_alike(after.tensors[name], tensor)
        else:
            assert torch.equal(after.tensors[name], tensor), name


def assert_rounded_alike(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    difference = (found.double() - wanted.double()).abs()
    if wanted.dtype == torch.float64:
        assert bool((difference <= 32 * UNIT_ROUNDOFF * wanted.abs().max()).all())
        return
    info = torch.finfo(wanted.dtype)
    ulp = wanted.double().abs().log2().floor().exp2().clamp(min=info.tiny) * info.eps
    assert bool((difference <= ulp).all())
    assert int((difference > 0).sum()) <= 1 + wanted.numel() // 1000


def test_numbers_that_are_rounded_otherwise_are_seen() -> None:
    wanted = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert_rounded_alike(moved_by_ulps(wanted, (3,), 1), wanted)
    for found in (
        moved_by_ulps(wanted, (3,), 2),
        moved_by_ulps(moved_by_ulps(wanted, (3,), 1), (4,), 1),
    ):
        with pytest.raises(AssertionError):
            assert_rounded_alike(found, wanted)
    with pytest.raises(AssertionError):
        assert_rounded_alike(wanted.double() * (1 + 2.0**-40), wanted.double())


# Their graphs.


def run_onnx(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", WITH_ONNX)
def test_the_graph_is_as_it_was(name: str, tmp_path: Path) -> None:
    """What was exported verifies; exported again it has the same ends and gives the same."""
    case = CASES[name]
    old = case.squeezed.with_name("layers.onnx")
    verified = run_here("verify", case.original, case.squeezed, "--onnx", old)
    assert verified.status == 0, verified
    assert run_here("export-onnx", case.squeezed, "-o", tmp_path / "new.onnx").status == 0
    before, after = run_onnx(old), run_onnx(tmp_path / "new.onnx")
    for ends in ("get_inputs", "get_outputs"):
        names = [
            [(one.name, one.type, one.shape) for one in getattr(session, ends)()]
            for session in (before, after)
        ]
        assert names[0] == names[1]
    expected = case.expected
    eps = torch.finfo(torch.float32).eps
    for run in zip(*expected.values(), strict=True):
        if min(size for one in run for size in one.input.shape[2:]) < 2:
            continue  # no room for both ends: no graph takes it
        ends = [session.get_inputs() for session in (before, after)]
        for session, inputs in zip((before, after), ends, strict=True):
            fed = {
                given.name: one.input.float().numpy()
                for given, one in zip(inputs, run, strict=True)
            }
            for y, one in zip(session.run(None, fed), run, strict=True):
                assert bool(
                    (
                        (torch.from_numpy(y).double() - one.output).abs() <= 4 * eps * one.magnitude
                    ).all()
                )
