"""A whole squeezed model as ONNX: what onnxruntime makes of the written file at any size, and that
a model which is not the squeezed one is never written.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

import convsqueeze
from convsqueeze.errors import OutputError, VerificationError
from convsqueeze.manifest import manifest_from_data
from convsqueeze.models import parsed_inputs
from tests.command_line import SAMPLES, SESR, SESR_PAIRS, Outcome, run_here
from tests.whole_models import Scene, network, scene

pytest.importorskip("onnxscript")

from convsqueeze.models.distances import FACTOR
from convsqueeze.models.exporting import exports
from convsqueeze.models.onnx import check_exporter, export_whole
from convsqueeze.models.onnx_check import OnnxCheck
from convsqueeze.models.whole import verified

pytestmark = pytest.mark.stress

CODE = """
import sys
sys.path.insert(0, {tests!r})
import torch
from torch import nn
from tests.whole_models import Network, network

def with_activation():
    model = network()
    model.stem.insert(1, nn.ReLU())
    return model
"""


def outputs(path: Path, *given: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    fed = {name: x.numpy() for name, x in zip(names, given, strict=True)}
    return [torch.from_numpy(y) for y in session.run(None, fed)]


def near(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "user_code.py").write_text(CODE.format(tests=str(Path(__file__).parents[1])))
    return tmp_path / "user_code.py"


def exported(one: Scene, code: Path, output: Path, *options: object, name: str = "network") -> Any:
    return run_here(
        *("export-onnx", one.squeezed_file, "--model", f"{code}:{name}"),
        *("-o", output, "--input", "1,3,20,23", *options),
    )


def test_the_command_writes_a_model_for_every_size(
    shared: Scene, code: Path, tmp_path: Path
) -> None:
    output = tmp_path / "whole.onnx"
    outcome = exported(shared, code, output, "--checkpoint", shared.original, "--json")
    assert outcome.status == 0, outcome.stderr
    data = outcome.data
    assert data["against"] == "the original in torch"
    assert data["whole"]["ok"]
    assert [layer["name"] for layer in data["layers"]] == ["stem.0", "block.expand"]
    assert data["model"]["inputs"] == [["x", ["batch", 3, "height", "width"]]]
    assert "checked: onnxruntime (float32) gives what the original in torch gives" in outcome.stderr
    model = network().eval()
    for shape in ((1, 3, 20, 23), (2, 3, 7, 30), (3, 3, 64, 64), (1, 3, 8, 9)):
        x = torch.randn(shape)
        with torch.no_grad():
            wanted = model(x)
        logits, y = outputs(output, x)
        assert near(logits, wanted["logits"])
        assert near(y, wanted["all"][0])


def test_what_is_in_the_file(shared: Scene, code: Path, tmp_path: Path) -> None:
    output = tmp_path / "whole.onnx"
    assert exported(shared, code, output).status == 0
    model = onnx.load(output)
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]
    held = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    for name, tensor in torch.load(shared.squeezed_file).items():
        if name.startswith(("stem", "block")):
            assert np.array_equal(held[name], tensor.numpy())
    assert len(held) == len({*held})
    text = output.read_bytes()
    for origin in (str(Path(__file__).parents[1]), "site-packages", "stack_trace", "whole_models"):
        assert origin.encode() not in text
    recipe = {one.key: one.value for one in model.metadata_props}["convsqueeze"]
    assert json.loads(recipe)["source"]["file"] == "model.pt"
    again = tmp_path / "again.onnx"
    assert exported(shared, code, again).status == 0
    assert again.read_bytes() == text


def test_without_the_original_the_report_says_so(shared: Scene, code: Path, tmp_path: Path) -> None:
    outcome = exported(shared, code, tmp_path / "whole.onnx")
    assert outcome.status == 0
    assert "gives what the squeezed model in torch gives" in outcome.stdout
    assert "checked against the squeezed model in torch alone" in outcome.stdout


def test_the_sample_network_from_its_code(tmp_path: Path) -> None:
    squeezed, output = tmp_path / "s.pt", tmp_path / "s.onnx"
    assert run_here("merge", SESR, "--pairs", SESR_PAIRS, "-o", squeezed).status == 0
    outcome = run_here(
        *("export-onnx", squeezed, "--model", f"{SAMPLES}/sesr/network.py:SESR"),
        *("--checkpoint", SESR),
    )
    assert outcome.status == 0, outcome.stderr
    assert "guessed from head.expand (Conv2d)" in outcome.stderr
    assert len(onnx.load(output).graph.node) < 25
    (y,) = outputs(output, torch.rand(1, 1, 33, 50))
    assert y.shape == (1, 1, 66, 100)


def test_a_model_whose_code_has_something_in_between_is_not_written(
    shared: Scene, code: Path, tmp_path: Path
) -> None:
    """`apply` sees it in an `nn.Sequential`."""
    output = tmp_path / "whole.onnx"
    outcome = exported(shared, code, output, name="with_activation")
    assert outcome.status == 2
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (("--opset", 17), 2, ["opset 17", "18 and newer"]),
        (("--opset", 99), 2, ["opset 99"]),
        (("--layer", "stem.0"), 2, ["--layer"]),
        (("--input", "1x3"), 2, ["--input 1x3: is no shape"]),
        (("--checkpoint", SESR), 2, ["is not the file that", "was squeezed from"]),
    ],
)
def test_refusals(
    shared: Scene,
    code: Path,
    tmp_path: Path,
    options: tuple[object, ...],
    status: int,
    words: list[str],
) -> None:
    outcome = exported(shared, code, tmp_path / "whole.onnx", *options)
    assert outcome.status == status
    for word in words:
        assert word in outcome.stderr, outcome.stderr
    assert not (tmp_path / "whole.onnx").exists()


@pytest.mark.parametrize("option", [("--checkpoint", "m.pt"), ("--input", "1,3,8,8")])
def test_options_of_a_whole_model_need_one(shared: Scene, option: tuple[str, str]) -> None:
    outcome = run_here("export-onnx", shared.squeezed_file, *option)
    assert outcome.status == 2
    assert "give --model" in outcome.stderr


def test_an_input_that_the_model_does_not_take(shared: Scene, code: Path, tmp_path: Path) -> None:
    output = tmp_path / "whole.onnx"
    outcome = run_here(
        *("export-onnx", shared.squeezed_file, "--model", f"{code}:network", "-o", output),
        *("--input", "1,4,20,20"),
    )
    assert (outcome.status, output.exists()) == (2, False), outcome.stderr


def test_a_missing_exporter_is_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convsqueeze.models.onnx.find_spec", lambda name: None)
    with pytest.raises(OutputError, match=r"needs onnxscript.*pip install"):
        check_exporter(None)


# Models of other kinds: what is merged, an input, and sizes to try beside those of the check.


class Chain(nn.Sequential):
    """Layers of a Sequential, the first two merged."""


class Strided(nn.Module):
    """A corrected layer whose border depends on the size modulo its stride, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(2, 2, 1)
        self.a = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.b = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.b(self.a(F.silu(self.before(x))))
        return y, self.b(self.a(y.tanh()))


class Numbers(nn.Module):
    """Writes its sizes down."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4 * 36, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(F.relu(self.b(self.a(x))).view(1, 4 * 36))
        return y


class Tokens(nn.Module):
    """Linear layers after an embedding, and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.a, self.b = nn.Linear(6, 20), nn.Linear(20, 6)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        y = self.b(self.a(self.table(tokens))) * mask.unsqueeze(-1)
        return y.softmax(-1)


def pair(**first: Any) -> dict[str, Any]:
    names = {key: first.pop(key) for key in ("first", "second") if key in first}
    return {
        "version": 1,
        "border": "corrected",
        "pairs": [
            {
                "first": {"name": names.get("first", "0"), **first.pop("one", {})},
                "second": {"name": names.get("second", "1"), **first.pop("other", {})},
            }
        ],
    }


NAMED = {"first": "a", "second": "b"}
KINDS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], list[str], list[Any]]] = {
    "strided and twice": (
        Strided,
        pair(**NAMED, one={"stride": 2, "padding": 1}, other={"padding": 1}),
        ["1,2,20,20"],
        [(1, 2, 21, 20), (2, 2, 20, 23), (1, 2, 17, 19), (1, 2, 40, 11)],
    ),
    "1-d, circular": (
        lambda: Chain(
            nn.Conv1d(2, 6, 3, padding=1, padding_mode="circular"),
            nn.Conv1d(6, 2, 5, padding=2, padding_mode="circular"),
            nn.ReLU(),
        ),
        pair(
            one={"padding": 1, "padding_mode": "circular"},
            other={"padding": 2, "padding_mode": "circular"},
        ),
        ["1,2,50"],
        [(3, 2, 31), (1, 2, 9)],
    ),
    "3-d": (
        lambda: Chain(nn.Conv3d(1, 6, 3), nn.Conv3d(6, 1, 1), nn.ReLU()),
        pair(),
        ["1,1,8,9,10"],
        [(2, 1, 5, 6, 7)],
    ),
    "transposed": (
        lambda: Chain(nn.ConvTranspose2d(2, 8, 2, stride=2), nn.Conv2d(8, 2, 1), nn.Sigmoid()),
        pair(one={"type": "conv_transpose", "stride": 2}),
        ["1,2,6,7"],
        [(2, 2, 5, 4)],
    ),
    "fixed sizes": (Numbers, pair(**NAMED), ["1,3,8,8"], []),
    "tokens": (
        Tokens,
        pair(**NAMED, one={"type": "linear"}, other={"type": "linear"}),
        ["1,5:int64", "1,5"],
        [((2, 8), (2, 8))],
    ),
    "one layer alone": (
        lambda: Chain(nn.Conv2d(2, 8, 3), nn.Conv2d(8, 2, 1)),
        pair(),
        ["1,2,9,9"],
        [(2, 2, 5, 4)],
    ),
}


def squeezed_pair(
    folder: Path, kind: str, dtype: torch.dtype
) -> tuple[nn.Module, nn.Module, Path, Path]:
    build, manifest, _, _ = KINDS[kind]
    torch.manual_seed(0)
    model = build().to(dtype).eval()
    source, squeezed = folder / "m.pt", folder / "m.squeezed.pt"
    torch.save(model.state_dict(), source)
    convsqueeze.merge_file(source, manifest_from_data(manifest, "test"), squeezed, growth="allow")
    return model, convsqueeze.apply(model, squeezed), source, squeezed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_models_of_many_kinds(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    if dtype in (torch.float16, torch.bfloat16) and kind not in ("strided and twice", "tokens"):
        return
    model, _, source, squeezed = squeezed_pair(tmp_path, kind, dtype)
    short = str(dtype).removeprefix("torch.")
    texts = [t if ":" in t else f"{t}:{short}" for t in KINDS[kind][2]]
    result = export_whole(
        model, squeezed, tmp_path / "m.onnx", parsed_inputs(texts), checkpoint=source
    )
    assert result.whole is not None
    assert result.whole.ok
    if kind == "fixed sizes":
        assert result.checked.inputs == (("x", (1, 3, 8, 8)),)
        assert any("numbers for sizes" in note for note in result.checked.notes)
    else:
        assert "batch" in result.checked.inputs[0][1]
    copied = any("a copy in float32 was run" in note for note in result.checked.notes)
    assert copied is (dtype == torch.float64 and kind != "tokens")
    if dtype == torch.bfloat16:
        assert "exported as float32" in result.checked.notes[0]
    if copied or dtype not in (torch.float32, torch.float64):
        return
    for shapes in KINDS[kind][3]:
        given = shapes if isinstance(shapes[0], tuple) else (shapes,)
        specs = parsed_inputs(texts).resized(given).drawn(5)
        with torch.no_grad():
            wanted = model(*specs)
        found = outputs(tmp_path / "m.onnx", *specs)
        for one, other in zip(
            found, wanted if isinstance(wanted, tuple) else [wanted], strict=True
        ):
            assert near(one, other, 1e-5 if dtype == torch.float32 else 1e-13)


def changed_weight(model: ModelProto) -> None:
    tensor = next(one for one in model.graph.initializer if one.name == "block.expand.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[1, 2, 0, 0] += 1e-2 * np.abs(values).max()
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def changed_corner(model: ModelProto) -> None:
    tensor = next(one for one in model.graph.initializer if ".border.01.weight" in one.name)
    values = numpy_helper.to_array(tensor).copy()
    values *= 1.01
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def lost_activation(model: ModelProto) -> None:
    node = next(one for one in model.graph.node if one.op_type == "Relu")
    node.op_type = "Identity"


def lost_bias(model: ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "Conv" and "stem.0.bias" in n.input)
    del node.input[2]


def ill_formed(model: ModelProto) -> None:
    model.graph.node[0].op_type = "NoSuchOperator"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (changed_weight, "onnxruntime and torch differ by"),
        (changed_corner, "onnxruntime and torch differ by"),
        (lost_activation, "onnxruntime and torch differ by"),
        (lost_bias, "onnxruntime and torch differ by"),
        (ill_formed, "is not well-formed"),
    ],
)
def test_a_fault_in_the_graph_is_seen(
    shared: Scene, fault: Callable[[ModelProto], None], words: str
) -> None:
    squeezed, inputs = shared.squeezed().eval(), parsed_inputs(["1,3,20,23"])
    _, *both = verified(shared.model, squeezed, inputs)
    check = OnnxCheck(squeezed, inputs, 0, tuple(both))
    made = next(exports(squeezed, inputs, 18))
    assert check.report(made).worst.share <= 1.0
    faulty = copy.deepcopy(made)
    fault(faulty)
    with pytest.raises(VerificationError, match=words):
        check.report(faulty)


def test_a_failed_check_writes_nothing(
    shared: Scene, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convsqueeze.models import exporting

    inlined = exporting.inlined

    def faulty(*given: Any) -> ModelProto:
        made = inlined(*given)
        lost_activation(made)
        return made

    monkeypatch.setattr(exporting, "inlined", faulty)
    output = tmp_path / "whole.onnx"
    output.write_bytes(b"as it was")
    outcome: Outcome = exported(shared, code, output, "--overwrite")
    assert outcome.status == 1
    assert "onnxruntime and torch differ" in outcome.stderr
    assert output.read_bytes() == b"as it was"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["user_code.py", "whole.onnx"]


def test_large_values_go_beside_the_model(
    shared: Scene, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for home in ("convsqueeze.export.files", "convsqueeze.models.onnx_check"):
        monkeypatch.setattr(f"{home}.fits_one_message", lambda model: False)
    output = tmp_path / "whole.onnx"
    outcome = exported(shared, code, output, "--json")
    assert outcome.status == 0, outcome.stderr
    assert outcome.data["files"] == [str(output), f"{output}.data"]
    logits, _ = outputs(output, torch.ones(1, 3, 9, 9))
    with torch.no_grad():
        assert near(logits, network().eval()(torch.ones(1, 3, 9, 9))["logits"])


class Cancelling(nn.Module):
    """Loses most digits of what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        return (y + 1e3) - 1e3


@pytest.mark.parametrize("original", [False, True])
def test_what_a_dtype_loses_is_measured_where_it_is_more_than_a_few_roundings(
    original: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = Cancelling().eval()
    torch.save(model.state_dict(), tmp_path / "m.pt")
    squeezed = tmp_path / "m.squeezed.pt"
    convsqueeze.merge_file(tmp_path / "m.pt", manifest_from_data(pair(**NAMED), "test"), squeezed)
    source = tmp_path / "m.pt" if original else None

    def exported_again() -> Any:
        inputs, output = parsed_inputs(["1,2,9,9"]), tmp_path / "m.onnx"
        made = copy.deepcopy(model)
        return export_whole(made, squeezed, output, inputs, checkpoint=source, overwrite=True)

    eps = torch.finfo(torch.float32).eps
    checked = exported_again().checked
    assert checked.worst.error > FACTOR * eps * checked.largest
    assert checked.worst.bound > checked.worst.error
    monkeypatch.setattr(OnnxCheck, "_moved", lambda *given: {})
    with pytest.raises(VerificationError, match="onnxruntime and torch differ by"):
        exported_again()
