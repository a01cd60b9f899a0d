"""Squeezed files -> ONNX files: whole or not at all, checked first, refused with a reason."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper
from torch import nn

from convsqueeze.checkpoint import new_files, open_checkpoint, write_checkpoint
from convsqueeze.errors import CheckpointError, OutputError, VerificationError
from convsqueeze.export import (
    DEFAULT_OPSET,
    check_onnx_file,
    checked_onnx,
    default_onnx_destination,
    export,
    newest_opset,
    open_onnx,
)
from convsqueeze.export import check as check_module
from convsqueeze.export import files as files_module
from convsqueeze.manifest import manifest_from_data
from convsqueeze.module import SqueezedConv, load_layers
from convsqueeze.plan import make_plan
from convsqueeze.squeezing import edit_of, recipe_of, squeeze_one
from tests.command_line import run_here

LAYERS = ("body.0", "body.2", "head.up")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network() -> nn.Module:
    torch.manual_seed(4)
    body = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.Conv2d(16, 4, 1),
        nn.Conv2d(4, 16, 1),
        nn.Conv2d(16, 4, 3, padding=1, padding_mode="circular"),
    )
    head = nn.ModuleDict({"up": nn.ConvTranspose2d(4, 8, 3, stride=2), "out": nn.Conv2d(8, 3, 1)})
    return nn.ModuleDict({"body": body, "head": head})


MANIFEST: dict[str, Any] = {
    "version": 1,
    "pairs": [
        {"first": {"name": "body.0", "padding": 1}, "second": {"name": "body.1"}},
        {
            "first": {"name": "body.2"},
            "second": {"name": "body.3", "padding": 1, "padding_mode": "circular"},
        },
        {
            "first": {"name": "head.up", "type": "conv_transpose", "stride": 2},
            "second": {"name": "head.out"},
        },
    ],
}


def squeezed_file(folder: Path, suffix: str = ".pt") -> Path:
    original = folder / "model.pt"
    torch.save(network().state_dict(), original)
    checkpoint = open_checkpoint(original)
    plan = make_plan(manifest_from_data(MANIFEST), checkpoint, growth="allow")
    made = (squeeze_one(merge, checkpoint.load) for merge in plan.merges)
    edits = [edit_of(one, list(checkpoint.tensors)) for one in made]
    path = folder / f"model.squeezed{suffix}"
    write_checkpoint(checkpoint, path, edits, recipe_of(plan, checkpoint).to_json())
    return path


@pytest.fixture
def squeezed(tmp_path: Path) -> Path:
    return squeezed_file(tmp_path)


def modules(path: Path) -> dict[str, SqueezedConv]:
    layers = load_layers(path)
    assert all(isinstance(layer, SqueezedConv) for layer in layers.values())
    return layers  # type: ignore[return-value]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_is_exported_beside_itself(tmp_path: Path, suffix: str) -> None:
    squeezed = squeezed_file(tmp_path, suffix)
    result = export(squeezed)
    assert result.destination == tmp_path / "model.squeezed.onnx"
    assert result.bytes_written == result.destination.stat().st_size
    assert result.opset == DEFAULT_OPSET
    assert [layer.name for layer in result.layers] == list(LAYERS)
    assert 0 < result.worst.worst.share < 0.6
    assert all(len(layer.sizes) == 3 for layer in result.layers)
    session = onnxruntime.InferenceSession(result.destination, providers=["CPUExecutionProvider"])
    inputs = {f"{name}.input": torch.randn(2, 4, 6, 7) for name in LAYERS[1:]}
    inputs["body.0.input"] = torch.randn(1, 3, 9, 5)
    names = [f"{name}.output" for name in LAYERS]
    found = session.run(names, {name: x.numpy() for name, x in inputs.items()})
    model = network()
    pairs = zip(LAYERS, ("body.1", "body.3", "head.out"), found, strict=True)
    for first, second, y in pairs:
        with torch.no_grad():
            x = inputs[f"{first}.input"]
            expected = model.get_submodule(second)(model.get_submodule(first)(x))
        assert torch.allclose(torch.from_numpy(y), expected, atol=2e-5)


def test_the_model_carries_the_recipe_and_the_producer(squeezed: Path) -> None:
    model = onnx.load(export(squeezed).destination)
    (entry,) = model.metadata_props
    assert entry.key == "convsqueeze"
    assert entry.value == open_checkpoint(squeezed).recipe
    assert [layer["name"] for layer in json.loads(entry.value)["layers"]] == list(LAYERS)
    assert model.producer_name == "convsqueeze"
    assert all(node.doc_string for node in model.graph.node if node.op_type.startswith("Conv"))


def test_chosen_layers_in_the_files_order_and_another_opset(squeezed: Path) -> None:
    result = export(squeezed, names=["head.up", "body.0", "head.up"], opset=newest_opset())
    model = onnx.load(result.destination)
    assert [value.name for value in model.graph.input] == ["body.0.input", "head.up.input"]
    assert model.opset_import[0].version == result.opset == newest_opset()
    assert result.to_data()["layers"][1]["name"] == "head.up"
    assert json.loads(json.dumps(result.to_data()))["opset"] == newest_opset()


def test_default_destinations() -> None:
    for name, wanted in (
        ("a/model.squeezed.pt", "a/model.squeezed.onnx"),
        ("a/model.squeezed.pth.tar", "a/model.squeezed.onnx"),
        ("m.squeezed.safetensors.index.json", "m.squeezed.onnx"),
        ("archive.2024", "archive.onnx"),
        ("model", "model.onnx"),
    ):
        assert default_onnx_destination(Path(name)) == Path(wanted)


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_refusals_come_before_anything_is_written(tmp_path: Path, squeezed: Path) -> None:
    (tmp_path / "taken.onnx").write_bytes(b"precious")
    (tmp_path / "folder.onnx").mkdir()
    original = tmp_path / "model.pt"
    before = listing(tmp_path)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"names": ["body.1"]}, CheckpointError, r"squeezed layer body.1, .* Did you mean body"),
        ({"names": ["zzz"]}, CheckpointError, r"zzz, .* It has body.0, body.2, head.up\."),
        ({"opset": 12}, OutputError, rf"opset 12: .* 13 to {newest_opset()} was"),
        ({"opset": 99}, OutputError, rf"opset 99: .* 13 to {newest_opset()} was"),
        ({"destination": tmp_path / "taken.onnx"}, OutputError, r"exists already"),
        ({"destination": tmp_path / "folder.onnx"}, OutputError, r"no regular file"),
        ({"destination": tmp_path / "none/a.onnx"}, OutputError, r"directory .*none does not"),
        ({"destination": original / "a.onnx"}, OutputError, r"is not a directory"),
        ({"destination": tmp_path / "a.pt"}, OutputError, r"does not end in .onnx"),
        ({"destination": tmp_path / ("a" * 300 + ".onnx")}, OutputError, r"cannot be used"),
        ({"path": original}, CheckpointError, r"model.pt: holds no recipe"),
        ({"path": tmp_path / "gone.pt"}, CheckpointError, r"gone.pt"),
        ({"key": "nowhere"}, CheckpointError, r"nowhere"),
    ]
    for fields, kind, said in cases:
        arguments = {"path": squeezed, "destination": tmp_path / "new.onnx", **fields}
        with pytest.raises(kind, match=said):
            export(arguments.pop("path"), arguments.pop("destination"), **arguments)
        assert listing(tmp_path) == before


def test_the_input_is_never_replaced(tmp_path: Path, squeezed: Path) -> None:
    disguised = squeezed.rename(tmp_path / "model.onnx")
    before = listing(tmp_path)
    with pytest.raises(OutputError, match="is an input"):
        export(disguised, disguised, overwrite=True)
    assert listing(tmp_path) == before


def test_an_output_is_replaced_only_when_asked(tmp_path: Path, squeezed: Path) -> None:
    place = tmp_path / "model.squeezed.onnx"
    place.write_bytes(b"older")
    with pytest.raises(OutputError, match="--overwrite"):
        export(squeezed)
    assert place.read_bytes() == b"older"
    export(squeezed, overwrite=True)
    assert check_onnx_file(place, modules(squeezed))[0].worst.share < 0.6


def test_a_model_that_onnxruntime_disagrees_with_is_not_written(
    tmp_path: Path, squeezed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*args: Any, **fields: Any) -> ModelProto:
        model = build(*args, **fields)
        pads = next(a for a in model.graph.node[0].attribute if a.name == "pads").ints
        pads[0], pads[2] = pads[0] + 1, pads[2] - 1
        return model

    build = files_module.build_model
    monkeypatch.setattr(files_module, "build_model", faulty)
    (tmp_path / "out.onnx").write_bytes(b"older")
    before = listing(tmp_path)
    with pytest.raises(VerificationError, match=r"out.onnx: body.0: .* differ by .* at most"):
        export(squeezed, tmp_path / "out.onnx", overwrite=True)
    assert listing(tmp_path) == before


@pytest.fixture
def _small_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a protobuf message could hold no more than the rest of a model without its values."""
    monkeypatch.setattr(check_module, "LARGEST_MESSAGE", check_module._MESSAGE_MARGIN)


@pytest.mark.usefixtures("_small_messages")
def test_a_model_too_large_for_one_file_has_its_values_beside(
    tmp_path: Path, squeezed: Path
) -> None:
    result = export(squeezed, tmp_path / "big.onnx")
    assert [file.name for file in result.files] == ["big.onnx", "big.onnx.data"]
    assert result.bytes_written == sum(file.stat().st_size for file in result.files)
    bare = onnx.load(result.destination, load_external_data=False)
    for tensor in bare.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        assert tensor.data_location == TensorProto.EXTERNAL
        assert not tensor.raw_data
        assert place["location"] == "big.onnx.data"
        assert int(place["offset"]) % 4096 == 0
    onnx.checker.check_model(str(result.destination), full_check=True)
    reports = check_onnx_file(result.destination, modules(squeezed))
    assert [report.name for report in reports] == list(LAYERS)
    session = onnxruntime.InferenceSession(result.destination, providers=["CPUExecutionProvider"])
    x = torch.randn(1, 4, 5, 6)
    feed = {f"{name}.input": x.numpy() for name in LAYERS[1:]}
    feed["body.0.input"] = x[:, :3].contiguous().numpy()
    (y,) = session.run(["head.up.output"], feed)
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(y), modules(squeezed)["head.up"](x), atol=1e-5)
    data = tmp_path / "big.onnx.data"
    data.write_bytes(data.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"big.onnx: is not a whole ONNX model"):
        open_onnx(result.destination)
    data.unlink()
    with pytest.raises(CheckpointError, match=r"big.onnx: .*big.onnx.data"):
        open_onnx(result.destination)


@pytest.mark.usefixtures("_small_messages")
def test_a_values_file_of_something_else_is_not_replaced(tmp_path: Path, squeezed: Path) -> None:
    (tmp_path / "big.onnx.data").write_bytes(b"precious")
    before = listing(tmp_path)
    with pytest.raises(OutputError, match=r"big.onnx.data: exists already"):
        export(squeezed, tmp_path / "big.onnx")
    assert listing(tmp_path) == before


def test_values_in_a_place_that_is_no_number_are_no_mistake_of_this_program(
    tmp_path: Path, squeezed: Path
) -> None:
    """A damaged model that stands where one is to be written, found by fuzzing."""
    tensor = TensorProto(name="w", dims=[1], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "there.bin"), ("offset", "no number")):
        tensor.external_data.add(key=key, value=value)
    graph = helper.make_graph([], "damaged", [], [], [tensor])
    place = tmp_path / "model.onnx"
    place.write_bytes(helper.make_model(graph).SerializeToString())
    assert files_module.onnx_files(place) == [place, tmp_path / "there.bin"]
    done = run_here("export-onnx", squeezed, "-o", place, "--overwrite")
    assert done.status == 0, done


@pytest.mark.usefixtures("_small_messages")
@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_run_killed_among_the_renames_leaves_the_old_model_or_the_new(
    tmp_path: Path, squeezed: Path, renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "big.onnx"
    export(squeezed, place, names=["body.0"])
    put, done = new_files._put, []

    def killed_before(staged: Any) -> None:
        if len(done) == renames:
            raise KeyboardInterrupt  # nothing is taken back then, as after SIGKILL
        put(staged)
        done.append(staged.place.name)

    with monkeypatch.context() as patch:
        patch.setattr(new_files, "_put", killed_before)
        if renames < 2:
            with pytest.raises(KeyboardInterrupt):
                export(squeezed, place, names=["body.2"], overwrite=True)
        else:
            export(squeezed, place, names=["body.2"], overwrite=True)
    held = open_onnx(place)
    assert held.names == (("body.2",) if renames == 2 else ("body.0",))
    check_onnx_file(place, modules(squeezed))
    export(squeezed, place, names=["body.2"], overwrite=True)
    external = onnx.load(place, load_external_data=False).graph.initializer[0].external_data
    (location,) = [entry.value for entry in external if entry.key == "location"]
    assert [path.name for path in sorted(tmp_path.glob("big*"))] == ["big.onnx", location]
    check_onnx_file(place, modules(squeezed))


@pytest.mark.usefixtures("_small_messages")
def test_faults_are_seen_in_a_model_too_large_for_one_message(squeezed: Path) -> None:
    layers = modules(squeezed)
    model = files_module.build_model(layers)
    model.graph.node[0].attribute[0].name = "unheard_of"
    with pytest.raises(VerificationError, match=r"not well-formed: Unrecognized attribute"):
        check_module.check_model(model, layers)


def test_layers_in_memory_are_written_with_their_recipe(tmp_path: Path, squeezed: Path) -> None:
    layers = modules(squeezed)
    result = checked_onnx(layers, tmp_path / "a.onnx", recipe_json='{"version":1}').write()
    assert onnx.load(result.destination).metadata_props[0].value == '{"version":1}'
    with pytest.raises(OutputError, match="exists already"):
        checked_onnx(layers, tmp_path / "a.onnx").write()


def test_a_written_file_gives_its_layers(squeezed: Path) -> None:
    held = open_onnx(export(squeezed).destination)
    assert held.names == LAYERS
    x = torch.randn(2, 4, 7, 5)
    with torch.no_grad():
        expected = modules(squeezed)["body.2"](x)
    assert torch.allclose(held["body.2"](x), expected, atol=1e-5)
    with pytest.raises(VerificationError, match=r"no layer body.3, .* Did you mean body.2"):
        held["body.3"]


def test_an_onnx_file_of_other_layers_fails(tmp_path: Path, squeezed: Path) -> None:
    place = export(squeezed).destination
    layers = modules(squeezed)
    (first, *_) = check_onnx_file(place, layers)
    assert first.worst.bound > 0
    with torch.no_grad():
        layers["head.up"].weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(VerificationError, match=r"head.up.weight holds"):
        check_onnx_file(place, layers)
    del layers["head.up"]
    with pytest.raises(VerificationError, match=r"has a layer head.up, which the squeezed file"):
        check_onnx_file(place, layers)


def foreign_model() -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    return helper.make_model(graph).SerializeToString()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"cannot be read \(No such file"),
        (b"", r"has no layer of a squeezed file"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"is not a whole ONNX model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), r"is not a whole ONNX model"),
        (foreign_model(), r"has no layer of a squeezed file"),
    ],
)
def test_what_is_no_exported_file_is_refused(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "a.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=said) as caught:
        open_onnx(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_a_truncated_file_is_refused(squeezed: Path) -> None:
    place = export(squeezed).destination
    whole = place.read_bytes()
    for length in (len(whole) // 2, len(whole) - 1):
        place.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="is not a whole ONNX model"):
            open_onnx(place)
