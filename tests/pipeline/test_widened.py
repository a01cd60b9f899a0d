"""`merge --widen`: what a dtype cannot hold is kept in a wider one, told, recorded and verified."""

import json
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import convsqueeze
from convsqueeze.algebra import precision
from convsqueeze.algebra.precision import dtype_name
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.errors import TensorDataError
from convsqueeze.export import graph
from convsqueeze.export.nodes import Nodes, Operator
from convsqueeze.manifest import manifest_from_data
from convsqueeze.module import SqueezedConv
from convsqueeze.plan import make_plan
from convsqueeze.verify.reference import reference
from tests.command_line import SESR, SESR_PAIRS, Outcome, run_here
from tests.planted import Squeezing, assert_told, saved
from tests.squeezed_files import Parts, moved_by_ulps, taken_apart
from tests.widened_cases import CASES, Widening

IMAGES = {"border": (2, 2, 9), "linear": (2, 6)}
NARROW = [name for name, case in CASES.items() if torch.float64 not in case.wider.values()]
"""Cases whose stored values a sum in float64 shows to the last digit."""


def written(case: Widening, folder: Path, suffix: str = ".pt") -> Squeezing:
    """The case as a file with its manifest; nothing is merged yet."""
    (folder / "pairs.yaml").write_text(json.dumps(case.manifest))
    original = saved(case.state_dict(), folder / f"model{suffix}")
    return Squeezing(original, folder / f"model.squeezed{suffix}", folder / "pairs.yaml")


def merged(made: Squeezing, *options: object) -> Outcome:
    return run_here("merge", made.original, "--pairs", made.pairs, *options)


@pytest.fixture(scope="session")
def widened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Squeezing]:
    """Each case merged with `--widen`, once."""

    @cache
    def make(name: str) -> Squeezing:
        made = written(CASES[name], tmp_path_factory.mktemp(name.replace(" ", "_")))
        assert merged(made, "--widen", "-q").status == 0
        return made

    return make


def original_of(case: Widening) -> Callable[[Tensor], Tensor]:
    """The layers of `net` before merging, in float64, by torch's own operators."""
    checkpoint = from_state_dict(case.state_dict())
    plan = make_plan(manifest_from_data(case.manifest), checkpoint)
    return reference(plan.merges[0].tree, checkpoint.load)


def image(name: str) -> Tensor:
    shape = IMAGES.get(name, (2, 4, 7, 6))
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def assert_close(found: Tensor, wanted: Tensor, share: float) -> None:
    assert found.shape == wanted.shape
    assert (found.double() - wanted).abs().max() <= share * wanted.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_refused_with_the_value_and_the_option(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    made = written(case, tmp_path)
    for options in ([], ["--json"], ["-q"]):
        outcome = merged(made, *options)
        assert (outcome.status, outcome.stdout, len(outcome.errors)) == (2, "", 1), outcome
        (told,) = outcome.errors
        words = [
            "pairs.yaml:1 pairs[0]",
            f"net.{next(iter(case.wider))}",
            "or keep it with --widen.",
        ]
        why = "is no finite" if case.why == "overflow" else "below the range of"
        for word in (*words, why, dtype_name(case.dtype)):
            assert word in told
    assert not made.squeezed.exists()


@pytest.mark.parametrize("name", CASES)
def test_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Large kernels are looked through in blocks of output channels: the same is found."""
    case = CASES[name]
    whole = convsqueeze.merge_state_dict(case.state_dict(), case.manifest, widen=True)
    monkeypatch.setattr(precision, "BLOCK", 1)
    tensors, report = convsqueeze.merge_state_dict(case.state_dict(), case.manifest, widen=True)
    assert report.widened == whole[1].widened
    assert report.widened["net"]
    assert tensors.keys() == whole[0].keys()
    for key, value in whole[0].items():
        assert tensors[key].dtype == value.dtype
        assert torch.equal(tensors[key], value)


@pytest.mark.parametrize("name", CASES)
def test_only_that_tensor_is_wider(widened: Any, name: str) -> None:
    case, made = CASES[name], widened(name)
    parts = made.parts()
    tensors = {k: t for k, t in parts.tensors.items() if k.startswith("net.")}
    found = {k.removeprefix("net."): t.dtype for k, t in tensors.items()}
    assert {k for k, dtype in found.items() if dtype != case.dtype} == set(case.wider)
    assert {k: found[k] for k in case.wider} == case.wider
    assert len(found) > len(case.wider) or name == "both"
    assert parts.tensors["plain.weight"].dtype == parts.tensors["kept"].dtype == case.dtype
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    claims = {key: dtype_name(dtype) for key, dtype in case.wider.items()}
    assert parts.layer("net")["widened"] == claims
    assert "widened" not in parts.layer("plain")


@pytest.mark.stress
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_told_and_verified(tmp_path: Path, name: str, suffix: str) -> None:
    case = CASES[name]
    made = written(case, tmp_path, suffix)
    outcome = merged(made, "--widen", "--json")
    assert outcome.status == 0, outcome
    net, plain = outcome.data["layers"]
    assert plain["widened"] == []
    assert {one["name"]: one["dtype"] for one in net["widened"]} == {
        key: dtype_name(dtype) for key, dtype in case.wider.items()
    }
    notes = outcome.data["notes"]
    for one in net["widened"]:
        stored = made.parts().tensors[f"net.{one['name']}"]
        assert stored[tuple(one["at"])].item() == pytest.approx(one["value"], rel=1e-6)
        assert one["why"] == case.why
        note = f"net.{one['name']} is stored as {one['dtype']}: {one['value']:.4g} at {one['at']}"
        assert any(told.startswith(note) for told in notes), notes
    assert run_here("verify", made.original, made.squeezed, "--pairs", made.pairs).status == 0
    assert run_here("verify", made.original, made.squeezed, "--exhaustive").status == 0


def test_sharded(tmp_path: Path) -> None:
    case, folder = CASES["weight"], tmp_path / "in"
    folder.mkdir()
    tensors = case.state_dict()
    homes = {name: f"m-0000{1 + (name > 'net.1')}-of-00002.safetensors" for name in tensors}
    for home in set(homes.values()):
        save_file({name: tensors[name] for name in tensors if homes[name] == home}, folder / home)
    index = folder / "m.safetensors.index.json"
    size = sum(tensor.nbytes for tensor in tensors.values())
    index.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": homes}))
    (tmp_path / "pairs.yaml").write_text(json.dumps(case.manifest))
    out = tmp_path / "out.safetensors.index.json"
    outcome = run_here(
        "merge", index, "--pairs", tmp_path / "pairs.yaml", "--widen", "-o", out, "--json"
    )
    assert outcome.status == 0, outcome
    written_index = json.loads(out.read_text())
    shards = {home: load_file(tmp_path / home) for home in written_index["weight_map"].values()}
    found = {name: shards[home][name] for name, home in written_index["weight_map"].items()}
    assert found["net.weight"].dtype == torch.float32
    assert found["net.bias"].dtype == torch.float16
    assert written_index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())
    assert run_here("verify", index, out).status == 0


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_file_that_needs_nothing_wider_is_the_same_with_the_option(
    tmp_path: Path, suffix: str
) -> None:
    made = []
    for number, options in enumerate(([], ["--widen"])):
        out = tmp_path / str(number) / f"out{suffix}"
        out.parent.mkdir()
        outcome = run_here("merge", SESR, "--pairs", SESR_PAIRS, "-o", out, *options, "--json")
        assert [layer["widened"] for layer in outcome.data["layers"]] == [[]] * 7
        made.append(out.read_bytes())
    assert made[0] == made[1]
    assert b"widened" not in made[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["net.0.weight", "net.1.bias"])
def test_input_that_is_not_finite_is_refused_all_the_same(
    tmp_path: Path, name: str, value: float
) -> None:
    made = written(CASES["weight"], tmp_path)
    tensors = CASES["weight"].state_dict()
    tensors[name].view(-1)[1] = value
    saved(tensors, made.original)
    place = [0, 1, 0, 0] if name.endswith("weight") else [1]
    outcome = merged(made, "--widen")
    assert (outcome.status, len(outcome.errors)) == (2, 1)
    for word in (name, str(value), str(place), "finite numbers were needed"):
        assert word in outcome.errors[0]
    assert not made.squeezed.exists()


def test_value_beyond_every_dtype_is_refused_without_the_option_s_name(tmp_path: Path) -> None:
    tensors = OrderedDict({"net.0.weight": torch.full((2, 2, 1, 1), 1e200, dtype=torch.float64)})
    tensors["net.1.weight"] = tensors["net.0.weight"].clone()
    manifest = {"version": 1, "pairs": [{"first": {"name": "net.0"}, "second": {"name": "net.1"}}]}
    for widen in (False, True):
        with pytest.raises(TensorDataError, match=r"no finite number in any dtype") as caught:
            convsqueeze.merge_state_dict(tensors, manifest, widen=widen)
        assert "--widen" not in str(caught.value)


def test_from_python(tmp_path: Path) -> None:
    case = CASES["bias"]
    with pytest.raises(TensorDataError, match="--widen"):
        convsqueeze.merge_state_dict(case.state_dict(), case.manifest)
    state_dict, report = convsqueeze.merge_state_dict(case.state_dict(), case.manifest, widen=True)
    assert state_dict["net.bias"].dtype == torch.float32
    assert list(report.widened) == ["net"]
    assert any("net.bias is stored as float32" in note for note in report.notes)
    made = written(case, tmp_path)
    done = convsqueeze.merge_file(made.original, made.pairs, widen=True)
    assert [one.name for one in done.widened["net"]] == ["bias"]


# Faults.


def largest(tensor: Tensor) -> tuple[int, ...]:
    flat = tensor.double().abs().argmax()
    return tuple(int(i) for i in torch.unravel_index(flat, tensor.shape))


def exact(name: str) -> dict[str, Tensor]:
    """The merged values before they are rounded, from the same numbers in float64."""
    doubles = OrderedDict((k, t.double()) for k, t in CASES[name].state_dict().items())
    return convsqueeze.merge_state_dict(doubles, CASES[name].manifest, verify=False)[0]


@pytest.mark.parametrize("name", NARROW)
def test_wider_value_changed_by_one_ulp(widened: Any, tmp_path: Path, name: str) -> None:
    """One of float32: the bound is that of the dtype that the tensor has, not of its layer's.

    Away from the exact value: half way between two numbers, either of them is right.
    """
    made = widened(name)
    for key in CASES[name].wider:
        parts = made.parts()
        tensor = parts.tensors[f"net.{key}"]
        place = largest(tensor)
        outwards = tensor[place].abs() >= exact(name)[f"net.{key}"][place].abs()
        changed = moved_by_ulps(tensor, place, 1 if outwards else -1)
        parts.tensors[f"net.{key}"] = changed
        assert_told(made.verified(parts, tmp_path), "net: differs by", "output channel")


def test_wider_value_of_float64_changed_in_the_eleventh_digit(widened: Any, tmp_path: Path) -> None:
    for name in sorted(CASES.keys() - NARROW):
        made = widened(name)
        parts = made.parts()
        weight = parts.tensors["net.weight"]
        weight[largest(weight)] *= 1 + 1e-11
        assert_told(made.verified(parts, tmp_path), "net: differs by", "output channel")


def recast(key: str, dtype: torch.dtype) -> Callable[[Parts], None]:
    return lambda parts: parts.tensors.update({key: parts.tensors[key].to(dtype)})


def claiming(claims: Any) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        layer = parts.layer("net")
        layer["widened"] = claims
        if claims is None:
            del layer["widened"]

    return change


FAULTS: dict[str, tuple[str, Callable[[Parts], None], tuple[str, ...]]] = {
    "narrowed": (
        "small", recast("net.weight", torch.float16), ("weight", "float16", "float32 was needed")
    ),
    "wider still": (
        "weight", recast("net.weight", torch.float64), ("float64", "float32 was needed")
    ),
    "of another kind": (
        "weight", recast("net.weight", torch.bfloat16), ("bfloat16", "float32 was needed")
    ),
    "another tensor wider too": (
        "weight", recast("net.bias", torch.float32), ("net.bias", "float32", "float16 was needed")
    ),
    "another layer wider": (
        "weight", recast("plain.weight", torch.float32), ("plain", "float32", "float16 was needed")
    ),
    "claim removed": ("weight", claiming(None), ("net.weight", "float32", "float16 was needed")),
    "claim removed from a border tensor": (
        "border", claiming(None), ("net.border.0.weight", "float16 was needed")
    ),
    "claim of nothing": ("bias", claiming({}), ("net.bias", "float32", "float16 was needed")),
    "claim of another tensor": (
        "weight", claiming({"bias": "float32"}), ("net.weight", "float32", "float16 was needed")
    ),
    "claim of one more tensor": (
        "bias",
        claiming({"bias": "float32", "weight": "float32"}),
        ("net.weight", "float16", "float32 was needed"),
    ),
    "claim of a wider dtype": (
        "weight", claiming({"weight": "float64"}), ("net.weight", "float32", "float64 was needed")
    ),
    "claim of no wider dtype": (
        "float32",
        claiming({"weight": "float64", "bias": "float32"}),
        ("says", "float32 of net.bias", "a wider dtype than torch.float32 was needed"),
    ),
    "claim of a tensor that is none": (
        "weight",
        claiming({"weight": "float32", "border.0.weight": "float32"}),
        ("its recipe says that net.border.0.weight", "no tensor of the merged layer"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_in_what_is_wider(widened: Any, tmp_path: Path, fault: str) -> None:
    name, change, words = FAULTS[fault]
    made = widened(name)
    parts = made.parts()
    assert made.verified(parts, tmp_path).status == 0
    change(parts)
    assert_told(made.verified(parts, tmp_path), *words)


@pytest.mark.parametrize("claims", [{"weight": "float16"}, {"weight": 32}, ["weight"]])
def test_recipe_with_a_claim_that_is_none(widened: Any, tmp_path: Path, claims: Any) -> None:
    made = widened("weight")
    parts = made.parts()
    parts.layer("net")["widened"] = claims
    outcome = made.verified(parts, tmp_path)
    assert (outcome.status, len(outcome.errors)) == (2, 1), outcome
    assert "recipe" in outcome.errors[0]


# Running such layers.


@pytest.mark.parametrize("name", CASES)
def test_layer_runs_in_its_widest_dtype(widened: Any, name: str) -> None:
    case = CASES[name]
    layer = convsqueeze.load_layers(widened(name).squeezed)["net"]
    x = image(name)
    wanted = original_of(case)(x.movedim(1, -1) if name == "linear" else x)
    assert layer.dtype == max(case.wider.values(), key=lambda dtype: dtype.itemsize)
    assert_close(layer(x), wanted, 1e-2 if case.dtype == torch.bfloat16 else 1e-3)
    single = x.float()
    assert layer(single).dtype == torch.float32
    x = x.to(case.dtype)
    y = layer(x)
    assert (y.dtype, y.shape) == (case.dtype, wanted.shape)
    assert torch.equal(y, layer(x.double()).to(case.dtype)) or layer.dtype == torch.float32


def test_layer_that_is_not_wider_takes_its_own_dtype_alone(widened: Any) -> None:
    layer = convsqueeze.load_layers(widened("weight").squeezed)["plain"]
    x = torch.randn(1, 3, 5, 5)
    assert layer(x.half()).dtype == torch.float16
    with pytest.raises(RuntimeError, match=r"type"):
        layer(x)


def test_dtype_that_is_asked_for_narrows_no_wider_tensor(widened: Any) -> None:
    """Float16 would turn the weight into infinity."""
    path = widened("weight").squeezed
    halves = convsqueeze.load_layers(path, dtype=torch.float16)["net"]
    assert (halves.weight.dtype, halves.bias.dtype) == (torch.float32, torch.float16)
    singles = convsqueeze.load_layers(path, dtype=torch.float32)["net"]
    assert {tensor.dtype for tensor in singles.parameters()} == {torch.float32}
    doubles = convsqueeze.load_layers(path, dtype=torch.float64)["net"]
    assert {tensor.dtype for tensor in doubles.parameters()} == {torch.float64}
    assert convsqueeze.load_layers(path)["net"].half().weight.isinf().any()


@pytest.mark.parametrize("name", ["weight", "border", "transposed"])
def test_gradients_autocast_and_export(widened: Any, name: str) -> None:
    layer = convsqueeze.load_layers(widened(name).squeezed)["net"]
    x = image(name).half()
    y = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), y)
    layer(x.float()).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in layer.parameters())
    program = torch.export.export(layer, (x,))
    assert torch.equal(program.module()(x), y)


class Small(nn.Module):
    """A model in float16 with a layer before and behind those that are merged."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.Conv2d(8, 2, 3))
        self.plain = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.Conv2d(6, 2, 3, bias=False))
        self.register_buffer("kept", torch.arange(5.0))
        self.half()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x / 64) * 2


@pytest.mark.parametrize("name", ["weight", "small"])
def test_applied_to_a_model_in_half_precision(widened: Any, name: str) -> None:
    model = Small()
    model.load_state_dict(CASES[name].state_dict())
    x = image(name).half() / 64
    changed = convsqueeze.apply(model, widened(name).squeezed, example=x)
    assert isinstance(changed.net, SqueezedConv)
    assert changed.net.weight.dtype == torch.float32
    assert changed.net.bias is not None
    assert changed.net.bias.dtype == torch.float16
    y = changed(x)
    assert y.dtype == torch.float16
    wanted = model.double()(x.double())
    assert_close(y, wanted, 2e-3)


@pytest.mark.parametrize("name", CASES)
def test_exported_to_onnx(widened: Any, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    wide = max(case.wider.values(), key=lambda dtype: dtype.itemsize)
    path = tmp_path / "net.onnx"
    outcome = run_here(
        "export-onnx", widened(name).squeezed, "-o", path, "--layer", "net", "--json"
    )
    assert outcome.status == 0, outcome
    (layer,) = outcome.data["layers"]
    assert layer["dtype"] == dtype_name(wide)
    assert 0 <= layer["worst"]["share"] <= 1
    mixed = name != "both"
    assert mixed == any("so are its input and output" in note for note in layer["notes"])
    if wide == torch.float64:
        return  # onnxruntime has no such kernels: the export itself runs a scaled copy
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = image(name)
    (y,) = session.run(None, {"net.input": x.float().numpy()})
    wanted = original_of(case)(x)
    assert_close(torch.from_numpy(y), wanted, 1e-2 if case.dtype == torch.bfloat16 else 1e-3)


def test_onnx_values_beyond_float32_that_are_wrong_are_caught(
    widened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scaled copy that is run for them shows a wrong node as any other model does."""
    operator = graph.operator

    def wrong(nodes: Nodes, x: str, own: Operator) -> str:
        return nodes.add("Neg", operator(nodes, x, own))

    monkeypatch.setattr(graph, "operator", wrong)
    outcome = run_here("export-onnx", widened("float32").squeezed, "-o", tmp_path / "net.onnx")
    assert_told(outcome, "net: onnxruntime and torch differ by")
    assert not (tmp_path / "net.onnx").exists()


def test_merge_writes_onnx_of_what_it_widened(tmp_path: Path) -> None:
    made = written(CASES["border"], tmp_path)
    outcome = merged(made, "--widen", "--onnx", tmp_path / "net.onnx", "--json")
    assert outcome.status == 0, outcome
    verified = run_here("verify", made.original, made.squeezed, "--onnx", tmp_path / "net.onnx")
    assert verified.status == 0, verified
    assert taken_apart(made.squeezed).layer("net")["border"] == "corrected"
