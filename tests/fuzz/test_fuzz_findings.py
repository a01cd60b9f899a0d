"""What fuzzing found: the smallest file of each kind, and that it is refused in words.

`tests.fuzz` is the fuzzer; a case here is what was left of one of its examples.
"""

import io
import json
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import onnx
import pytest
import torch

from tests.fuzz.isolation import Case, Isolated, Verdict
from tests.fuzz.opcodes import (
    DICT,
    FALSE,
    NONE,
    built,
    called,
    filled,
    found,
    list_of,
    number,
    ordered,
    text,
    tuple_of,
)
from tests.fuzz.samples import PAIRS, exported, framed, parts, pickled, squeezed, stored, tensors
from tests.fuzz.targets import TARGETS

pytestmark = pytest.mark.stress


@pytest.fixture(autouse=True, scope="module")
def _what_torch_does_once() -> None:
    """Seconds of imports at the first merge, which each forked process would repeat."""
    squeezed(".safetensors")


def answered(target: str, files: Mapping[str, bytes], **options: Any) -> str:
    """What the program says of the files: refused, within the limits of time and memory."""
    verdict = ran(target, files, **options)
    assert verdict.kind == "refused", f"{verdict.key} {verdict.trace[-1500:]}"
    return " ".join(verdict.words)


def ran(target: str, files: Mapping[str, bytes], **options: Any) -> Verdict:
    chosen = TARGETS[target]
    with Isolated(chosen.run, Case({}, {"name": "none"})) as isolated:
        return isolated(Case(dict(files), options))


def is_done(target: str, files: Mapping[str, bytes], **options: Any) -> None:
    verdict = ran(target, files, **options)
    assert verdict.kind == "done", f"{verdict.words} {verdict.key} {verdict.trace[-1500:]}"


# Safetensors.


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ([1 << 63, 0], "z has a shape that no tensor can have"),
        ([1 << 62, 0, 1 << 62], "z has a shape that no tensor can have"),
        ([0, 10**30], "expected usize"),
        ([1 << 40, 1 << 62, 0], "overflow computing buffer size"),
    ],
)
def test_shape_that_no_tensor_can_have(shape: list[int], says: str) -> None:
    header, data = parts(stored(tensors()))
    header["z"] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data)] * 2}
    content = framed(json.dumps(header).encode(), data)
    said = answered("safetensors", {"m.safetensors": content}, name="m.safetensors")
    assert says in said


# Indexes.


@pytest.mark.parametrize("value", ["1e999", "-1e999", "9" * 5000])
@pytest.mark.parametrize("inside", ["{", '"metadata": {'])
def test_number_that_cannot_be_written_again(inside: str, value: str) -> None:
    state = tensors()
    index = {"metadata": {"total_size": 4}, "weight_map": dict.fromkeys(state, "a.safetensors")}
    content = json.dumps(index).replace(inside, f'{inside}"x": {value}, ', 1)
    name = "m.safetensors.index.json"
    files = {name: content.encode(), "a.safetensors": stored(state)}
    verdict = ran("index", files, name=name, suffix=".safetensors.index.json")
    assert verdict.kind in ("refused", "done"), verdict
    assert "merged" not in " ".join(verdict.words), verdict


# Manifests.


def planned(manifest: str | bytes, model: Mapping[str, torch.Tensor] | None = None) -> str:
    content = manifest if isinstance(manifest, bytes) else manifest.encode()
    files = {"model.safetensors": stored(model or tensors()), "pairs.yaml": content}
    return answered("manifest", files)


def pair(first: str, second: str, more: str = "") -> str:
    return f"version: 1\n{more}pairs:\n- first: {{{first}}}\n  second: {{{second}}}\n"


@pytest.mark.parametrize("value", ["2001-99-99", "9" * 5000, "-" + "9" * 5000, "0x" + "f" * 5000])
@pytest.mark.parametrize("key", ["version", "x"])
def test_yaml_values_that_cannot_be_read(key: str, value: str) -> None:
    said = planned(f"{key}: {value}\npairs: []\n")
    assert "pairs.yaml" in said
    assert "f" * 100 not in said
    assert "9" * 100 not in said


@pytest.mark.parametrize("name", ["blk.{i²}.a", "{aª²}", "{i①}"])
def test_placeholder_that_is_no_word(name: str) -> None:
    assert "pairs.yaml" in planned(pair(f'name: "{name}"', "name: body.1"))


@pytest.mark.parametrize(
    "name", ["{a}{b}{c}{d}{e}{f}{g}{h}{k}{l}x", "{a}y{b}y{c}y{d}y{e}y{f}y{g}y{h}x"]
)
def test_placeholders_that_match_in_too_many_ways(name: str) -> None:
    model = {**tensors(), "y" * 80 + ".weight": torch.ones(2, 2, 1, 1)}
    assert "pairs.yaml" in planned(pair(f'name: "{name}"', "name: body.1"), model)


def test_placeholders_that_have_nothing_in_common() -> None:
    blocks = {f"blk.{n}.a.weight": torch.ones(2, 2, 1, 1) for n in range(8)}
    chain = ", ".join(f'{{name: "blk.{{p{n}}}.a"}}' for n in range(12))
    assert "pairs.yaml" in planned(f"version: 1\npairs:\n- chain: [{chain}]\n", blocks)


@pytest.mark.parametrize("border", ["", "border: corrected\n", "border: interior\n"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("padding: 1000000000", "padding: 0"),
        ("padding: 100000", "padding: 100000"),
        ("padding: 5000", "padding: 5000"),
        ("padding: 0", "dilation: 100000"),
        ("padding: 0", "dilation: 1000000000000000000000"),
        ("stride: 100000", "stride: 100000"),
        ("padding: 0", "padding: [[-1000000000, 1000000000], [0, 0]]"),
    ],
)
def test_layers_that_reach_further_than_any(first: str, second: str, border: str) -> None:
    """Refused, or merged in time."""
    manifest = pair(f"name: body.0, {first}", f"name: body.1, {second}", border)
    files = {"model.safetensors": stored(tensors()), "pairs.yaml": manifest.encode()}
    verdict = ran("manifest", files)
    assert not verdict.is_finding, f"{verdict.words} {verdict.key}"


@pytest.mark.parametrize(
    "second",
    [
        "type: pad, padding: 1000000000",
        "type: avg_pool, kernel_size: [30000, 30000]",
        "type: avg_pool, kernel_size: 3, stride: 1000000000000",
    ],
)
def test_layers_without_tensors_that_are_too_large(second: str) -> None:
    assert "pairs[0]" in planned(pair("name: body.0", second))


@pytest.mark.parametrize("key", ["\ufeffx", '"\\e[2J"', '"\\u00a0"'])
def test_keys_that_cannot_be_printed(key: str) -> None:
    assert "pairs.yaml" in planned(pair(f"name: body.0, {key}: 1", "name: body.1"))
    assert "pairs.yaml" in planned(f"version: 1\n{key}: 1\npairs: []\n")


@pytest.mark.parametrize("levels", [5, 7, 11])
def test_aliases_that_stand_for_millions(levels: int) -> None:
    lines = ["a0: &a0 [x, x]"]
    for n in range(1, levels + 1):
        lines.append(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]")
    said = planned("\n".join([*lines, "version: 1", f"pairs: *a{levels}", ""]))
    assert "pairs.yaml" in said


# Pickles.


def zipped(pickle: bytes, records: Mapping[str, bytes] | None = None) -> bytes:
    """The archive around a hand-made pickle, with its storages."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m/data.pkl", pickle)
        archive.writestr("m/byteorder", b"little")
        for key, data in (records or {"0": struct.pack("<6f", *range(6))}).items():
            archive.writestr(f"m/data/{key}", data)
        archive.writestr("m/version", b"3\n")
    return buffer.getvalue()


def held(
    sizes: tuple[int, ...] = (6,), count: int = 6, *, key: str = "0", legacy: bool = False
) -> bytes:
    """A float32 tensor of a storage of so many elements."""
    view = [NONE] if legacy else []
    storage = [text("storage"), found("torch.FloatStorage"), text(key), text("cpu"), number(count)]
    places = tuple_of(map(number, sizes)), tuple_of(number(1) for _ in sizes)
    built = [tuple_of([*storage, *view]) + b"Q", number(0), *places, FALSE, DICT]
    return called("torch._utils._rebuild_tensor_v2", *built)


def pickle_of(*items: tuple[bytes, bytes]) -> bytes:
    return b"\x80\x02" + filled(DICT, dict(items)) + b"."


def repacked(saved: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """What torch.save wrote, with another pickle in it."""
    archive = zipfile.ZipFile(io.BytesIO(saved))
    records = {n.rpartition("/")[2]: archive.read(n) for n in archive.namelist() if "/data/" in n}
    return zipped(change(archive.read("archive/data.pkl")), records)


def is_answered(content: bytes, **options: Any) -> None:
    """Either it does, or it is refused in words."""
    verdict = ran("zip", {"model.pt": content}, name="model.pt", **options)
    assert not verdict.is_finding, f"{verdict.words} {verdict.key} {verdict.trace[-1500:]}"


def opened(content: bytes, **options: Any) -> str:
    return answered("zip", {"model.pt": content}, name="model.pt", **options)


@pytest.mark.parametrize("inside", [True, False], ids=["tensor", "beside"])
def test_name_with_half_a_character(inside: bool) -> None:
    state: dict[str, Any] = {**tensors()}
    if inside:
        state["x\ud800"] = torch.ones(1)
        is_done("zip", {"model.pt": pickled(state)}, name="model.pt")
        return
    verdict = ran(
        "zip", {"model.pt": pickled({"state_dict": state, "x\ud800": 1})}, name="model.pt"
    )
    assert not verdict.is_finding, verdict


def test_state_dict_whose_items_are_hidden() -> None:
    """By hand: the pickler itself asks an OrderedDict for its items."""
    state = built(ordered({text("w"): held()}), filled(DICT, {text("items"): number(3)}))
    assert "items" in opened(zipped(b"\x80\x02" + state + b"."))


METHODS = ("items", "keys", "values", "get", "clear", "update", "copy", "pop")


@pytest.mark.parametrize("name", METHODS)
def test_state_dict_whose_methods_are_hidden(name: str) -> None:
    state = OrderedDict(tensors())
    other = "x" + name[1:]
    state.__dict__[other] = 3
    is_answered(
        repacked(pickled(state), lambda pickle: pickle.replace(other.encode(), name.encode()))
    )


@pytest.mark.parametrize("name", ["numel", "shape", "detach", "untyped_storage", "data_ptr", "cpu"])
def test_parameter_whose_methods_are_hidden(name: str) -> None:
    state: dict[str, Any] = {**tensors()}
    state["z"] = torch.nn.Parameter(torch.ones(2))
    state["z"].__dict__[name] = 3
    is_answered(pickled(state))


@pytest.mark.parametrize(
    "asked",
    [
        called("__builtin__.bytearray", number(1 << 30)),
        called("builtins.bytearray", number(1 << 30)),
        called("torch.Tensor", number(1 << 28)),
        called("torch.FloatStorage", number(1 << 28)),
    ],
    ids=["bytearray", "bytearray of Python 3", "Tensor", "FloatStorage"],
)
def test_gigabytes_out_of_a_few_bytes(asked: bytes) -> None:
    content = zipped(pickle_of((text("w"), held()), (text("x"), asked)))
    assert "model.pt" in opened(content)


def test_keys_that_are_nested_too_deeply() -> None:
    """A tuple's hash goes as deep as the tuple, on the stack of C."""
    for depth in (100_000, 300_000):
        key = b")" + b"\x85" * depth
        assert "model.pt" in opened(zipped(pickle_of((text("w"), held()), (key, number(1)))))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_keys_whose_names_are_long_to_tell(suffix: str) -> None:
    def beside(pickle: bytes) -> bytes:
        key = b")" + b"\x85" * 5000
        return pickle_of((text("state_dict"), pickle[2:-1]), (key, number(1)))

    content = repacked(pickled(tensors()), beside)
    is_answered(content, suffix=suffix)


def sparse(indices: list[int], size: int) -> torch.Tensor:
    values, places = torch.ones(len(indices)), torch.tensor([indices])
    with torch.sparse.check_sparse_tensor_invariants(False):
        return torch.sparse_coo_tensor(places, values, (size,), is_coalesced=True)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(
    "tensor", [sparse([0, 1 << 40], 4), sparse([-5, 1], 4), sparse([0, 1], 1 << 40)]
)
def test_sparse_tensor_that_is_none(tensor: torch.Tensor, beside: bool) -> None:
    state: dict[str, Any] = {**tensors()}
    saved = {"state_dict": state, "z": tensor} if beside else {**state, "z": tensor}
    is_answered(pickled(saved))


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(1).expand(1 << 24), torch.ones(1).expand(1 << 40), torch.ones(1, device="meta")],
)
@pytest.mark.parametrize("beside", [False, True])
def test_tensor_without_its_values(tensor: torch.Tensor, beside: bool) -> None:
    state: dict[str, Any] = {**tensors()}
    saved = {"state_dict": state, "z": tensor} if beside else {**state, "z": tensor}
    is_answered(pickled(saved))


def legacy(pickle: bytes, listed: list[str], data: bytes) -> bytes:
    head = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."
    return head + pickle + b"\x80\x02" + list_of(map(text, listed)) + b"." + data


def test_legacy_storage_that_the_file_does_not_hold() -> None:
    """Its values would be whatever lay in memory."""
    item = struct.pack("<Q6f", 6, *range(6))
    both = pickle_of((text("w"), held(legacy=True)), (text("z"), held(key="1", legacy=True)))
    is_open = ran("legacy", {"model.pt": legacy(both, ["0", "1"], item * 2)}, name="model.pt")
    assert "body.0" in " ".join(is_open.words), "opened, but not what is to be merged"
    said = answered("legacy", {"model.pt": legacy(both, ["0"], item)}, name="model.pt")
    assert "body.0" not in said
    huge = pickle_of(
        (text("w"), held(legacy=True)), (text("z"), held((3,), 1 << 30, key="1", legacy=True))
    )
    said = answered("legacy", {"model.pt": legacy(huge, ["0"], item)}, name="model.pt")
    assert "body.0" not in said


def test_one_element_that_is_expanded() -> None:
    content = pickled({**tensors(), "z": torch.ones(()).expand(1)})
    is_done("zip", {"model.pt": content}, name="model.pt", suffix=".safetensors")


# Recipes.


def with_recipe(change: Callable[[dict[str, Any]], object], export: bool = True) -> str:
    original, done = squeezed(".safetensors")
    header, data = parts(done)
    recipe = json.loads(header["__metadata__"]["convsqueeze"])
    change(recipe)
    header["__metadata__"]["convsqueeze"] = json.dumps(recipe)
    content = framed(json.dumps(header).encode(), data)
    files = {"original.safetensors": original, "squeezed.safetensors": content}
    options = {"name": "squeezed.safetensors", "original": "original.safetensors"}
    return answered("recipe", files, export=export, **options)


@pytest.mark.parametrize("layer", [0, 1], ids=["conv", "conv_transpose"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stride", [10**6] * 2),
        ("dilation", [10**9] * 2),
        ("padding", [[10**5] * 2] * 2),
        ("padding", [[10**9] * 2] * 2),
        ("padding", [[-(10**9)] * 2] * 2),
        ("padding", [[10**30] * 2] * 2),
        ("output_stride", [10**6] * 2),
        ("padding", [[1, 1]]),
        ("stride", []),
        ("padding_mode", ["zeros"]),
        ("kernel_size", []),
        ("name", "x\x1b[2J\n"),
    ],
)
def test_recipe_of_a_layer_that_is_none(layer: int, key: str, value: object) -> None:
    assert "squeezed.safetensors" in with_recipe(lambda r: r["layers"][layer].update({key: value}))


@pytest.mark.parametrize("name", ["body.0.weight", "body.0.bias", "body.0.border.1.weight"])
def test_squeezed_layer_that_is_stored_sparse(name: str) -> None:
    original, done = squeezed(".pt")
    state = torch.load(io.BytesIO(done), weights_only=True)
    state[name] = state[name].to_sparse()
    files = {"original.pt": original, "squeezed.pt": pickled(state)}
    options = {"name": "squeezed.pt", "original": "original.pt", "export": True}
    assert name in answered("recipe", files, **options)


def test_corrections_for_no_size() -> None:
    def change(recipe: dict[str, Any]) -> None:
        recipe["layers"][0]["corrections"]["axes"][1]["classes"] = []

    assert "body.0" in with_recipe(change)


@pytest.mark.parametrize(
    "name", ["body.0.weight", "body.0.bias", "up.weight", "body.0.border.0.weight"]
)
def test_squeezed_layer_of_whole_numbers(name: str) -> None:
    original, done = squeezed(".safetensors")
    header, data = parts(done)
    header[name]["dtype"] = "I32"
    files = {
        "original.safetensors": original,
        "squeezed.safetensors": framed(json.dumps(header).encode(), data),
    }
    options = {"name": "squeezed.safetensors", "original": "original.safetensors"}
    assert "int32" in answered("recipe", files, export=True, **options)


# ONNX.


def checked(change: Callable[[onnx.ModelProto], object]) -> str:
    model = onnx.load_model_from_string(exported())
    change(model)
    return checked_bytes(model.SerializeToString())


def checked_bytes(content: bytes) -> str:
    files = {"squeezed.safetensors": squeezed(".safetensors")[1], "layers.onnx": content}
    return answered("onnx", files)


def first_dim(model: onnx.ModelProto) -> Any:
    return model.graph.input[0].type.tensor_type.shape.dim[2]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.graph.initializer[0], "data_type", 0),
        lambda m: setattr(m.graph.initializer[0], "data_type", 99),
        lambda m: m.graph.initializer[0].dims.append(5),
        lambda m: m.graph.initializer[0].dims.append(-5),
        lambda m: setattr(first_dim(m), "dim_value", -(1 << 63)),
        lambda m: setattr(first_dim(m), "dim_value", -1),
        lambda m: setattr(m.graph.input[0], "name", "\x1b[2J.input"),
        lambda m: setattr(m.graph.node[0], "op_type", "\x1b[2J"),
    ],
)
def test_onnx_model_that_says_what_is_not_so(change: Callable[[onnx.ModelProto], object]) -> None:
    assert "layers.onnx" in checked(change)


def test_onnx_names_that_are_no_text() -> None:
    content = exported()
    assert b"body.0.weight" in content
    assert "layers.onnx" in checked_bytes(content.replace(b"body.0.weight", b"body.0.weigh\xbd"))


def test_the_sound_files_these_are_made_from() -> None:
    original, done = squeezed(".safetensors")
    files = {"original.safetensors": original, "squeezed.safetensors": done}
    is_done("recipe", files, name="squeezed.safetensors", original="original.safetensors")
    is_done("onnx", {"squeezed.safetensors": done, "layers.onnx": exported()})
    is_done("zip", {"model.pt": pickled(tensors())}, name="model.pt")
    is_done("safetensors", {"m.safetensors": stored(tensors())}, name="m.safetensors")
    sound = {"model.safetensors": stored(tensors()), "pairs.yaml": json.dumps(PAIRS).encode()}
    is_done("manifest", sound)


def test_names_of_foreign_files_are_told_on_one_printable_line() -> None:
    said = planned(
        '{"version": 1, "pairs": [{"first": {"name": "a\\u0000"}, "second": {"name": "b"}}]}'
    )
    assert "a\\x00" in said


def test_a_tensor_that_one_entry_uses_twice_and_another_once() -> None:
    chain = '{chain: [{chain: [{name: "body.0"}, {name: "body.1"}]}, {name: "body.0"}]}'
    one = '{first: {name: "body.0"}, second: {name: "body.1"}}'
    assert "is used 3 times" in planned(f"version: 1\npairs: [{one}, {chain}]\n")


@pytest.mark.parametrize("text", ["[" * 20_000, "[{a: " * 150, "x" * 2_000_001])
def test_manifests_that_take_long_to_read(text: str) -> None:
    said = planned(f"version: 1\npairs: {text}")
    assert "nested too deeply" in said or "..., a list was needed" in said
