"""The user's model from its code, and with a checkpoint: what is taken, and how refusals read."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from convsqueeze.errors import CheckpointError, ModelCodeError, ModelMismatchError
from convsqueeze.models import load_checkpoint, load_model
from tests.command_line import SAMPLES, SESR, run_here, run_process

CODE = """
import sys
from torch import nn

def build():
    print("building")
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

def wide(channels, *, bias=True, **rest):
    return nn.Conv2d(3, channels, 3, bias=bias)

def broken():
    return nn.Conv2d(3, 4, kernel_size="three")

def leaves():
    sys.exit("no such option")

def late():
    import beside
    return beside.model

class Model(nn.Module):
    def __init__(self, channels=2):
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 3)

    @classmethod
    def small(cls):
        return cls(1)

ready = Model(5)
number = 7

def nothing():
    pass
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "user_network.py"
    file.write_text(CODE)
    (tmp_path / "beside.py").write_text("from torch import nn\nmodel = nn.Identity()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return file


@pytest.mark.parametrize(
    ("name", "kind"),
    [("build", nn.Sequential), ("Model", nn.Module), ("Model.small", nn.Module)],
)
@pytest.mark.parametrize("as_file", [True, False])
def test_a_factory_is_called(code: Path, name: str, kind: type, as_file: bool) -> None:
    model = load_model(f"{code if as_file else 'user_network'}:{name}")
    assert isinstance(model, kind)
    assert model.training  # as the factory gave it


def test_a_module_is_taken_as_it_is(code: Path) -> None:
    assert load_model(f"{code}:ready").conv.out_channels == 5


def test_what_a_factory_imports_late_is_beside_it(code: Path) -> None:
    assert isinstance(load_model(f"{code}:late"), nn.Identity)


def test_a_changed_file_is_read_anew(code: Path) -> None:
    load_model(f"{code}:ready")
    code.write_text(CODE.replace("Model(5)", "Model(6)"))
    assert load_model(f"{code}:ready").conv.out_channels == 6


def test_what_the_code_prints_is_no_output_of_ours(
    code: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_model(f"{code}:build")
    caught = capsys.readouterr()
    assert (caught.out, caught.err) == ("", "building\n")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("user_network", ["names no model", "package.module:factory"]),
        ("user_network:", ["names no model"]),
        ("no_such_module:build", ["there is no module no_such_module"]),
        ("user_network.inner:build", ["there is no module user_network.inner"]),
        ("missing.py:build", ["there is no file missing.py"]),
        ("user_network:bild", ["has no bild", "Did you mean build?"]),
        ("user_network:Model.smal", ["has no Model.smal", "Did you mean small?"]),
        ("user_network:wide", ["needs arguments (channels)", "Write a function"]),
        ("user_network:number", ["is of type int", "a torch.nn.Module was needed"]),
        ("user_network:nothing", ["gives nothing", "a torch.nn.Module was needed"]),
        ("user_network:leaves", ["user_network.py:16", "SystemExit: no such option"]),
        ("user_network:broken", ["user_network.py:13", "This is the model's own code"]),
    ],
)
def test_a_place_that_gives_no_model_is_refused(code: Path, place: str, words: list[str]) -> None:
    with pytest.raises(ModelCodeError) as refusal:
        load_model(place)
    for word in words:
        assert word in str(refusal.value), refusal.value


def test_a_syntax_error_is_told_with_its_line(code: Path) -> None:
    code.write_text("def build(:\n    pass\n")
    with pytest.raises(ModelCodeError, match=r"user_network.py:1: SyntaxError"):
        load_model(f"{code}:build")


def test_a_missing_import_of_the_code_is_its_own(code: Path) -> None:
    code.write_text("import not_installed_anywhere\n")
    with pytest.raises(ModelCodeError, match=r"user_network.py:1: ModuleNotFoundError"):
        load_model(f"{code}:build")


def test_sample_network_with_its_weights() -> None:
    loaded = load_model(f"{SAMPLES}/sesr/network.py:SESR")
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    load_checkpoint(loaded, SESR)
    stored = torch.load(SESR)
    stored = stored.get("state_dict", stored)
    assert not all(v.equal(before[name]) for name, v in loaded.state_dict().items())
    if set(stored) == set(before):
        assert all(v.equal(stored[name]) for name, v in loaded.state_dict().items())


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_and_prefixes_do_not_matter(tmp_path: Path, wrapped: bool, prefix: str) -> None:
    state = {prefix + name: value for name, value in _model().state_dict().items()}
    torch.save({"params_ema": state, "epoch": 3} if wrapped else state, tmp_path / "m.pt")
    loaded = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    load_checkpoint(loaded, tmp_path / "m.pt", "params_ema" if wrapped else None)
    for name, value in _model().state_dict().items():
        assert loaded.state_dict()[name].equal(value)


def test_all_misfits_are_told_with_their_names(tmp_path: Path) -> None:
    state = dict(_model().state_dict())
    state["0.wait"] = state.pop("0.weight")
    state["1.bias"] = torch.zeros(3)
    state["1.weight"] = state["1.weight"].double()
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(ModelMismatchError) as refusal:
        load_checkpoint(_model(), tmp_path / "m.safetensors")
    told = str(refusal.value)
    assert "has no 0.weight, which the model has. Did you mean 0.wait?" in told
    assert "has 0.wait, which the model has not." in told
    assert "1.bias has shape (3,), the model's is (2,)" in told
    assert "1.weight is stored as torch.float64, the model holds torch.float32" in told
    assert len(refusal.value.problems) == 4


def test_one_of_two_tied_tensors_is_enough(tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model

    model = tied()
    state = {name: value for name, value in model.state_dict().items() if name != "1.weight"}
    save_file(state, tmp_path / "m.safetensors")
    loaded = tied()
    load_checkpoint(loaded, tmp_path / "m.safetensors")
    assert loaded[0].weight is loaded[1].weight
    assert loaded[1].weight.equal(model[0].weight)


def test_counters_of_batches_may_be_missing(tmp_path: Path) -> None:
    state = {n: v for n, v in _model().state_dict().items() if "num_batches" not in n}
    save_file(state, tmp_path / "m.safetensors")
    load_checkpoint(_model(), tmp_path / "m.safetensors")


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_text("no")
    with pytest.raises(CheckpointError):
        load_checkpoint(_model(), tmp_path / "m.pt")


@pytest.mark.parametrize("debug", [False, True])
def test_the_command_line_shows_the_traceback_when_asked(
    code: Path, tmp_path: Path, debug: bool
) -> None:
    pytest.importorskip("onnxscript")
    options = ["--debug"] if debug else []
    outcome = run_here("export-onnx", "m.pt", "--model", "user_network:broken", *options)
    assert outcome.status == 2
    assert "user_network.py:13" in outcome.errors[0]
    assert ("Traceback" in outcome.stderr) is debug


MADE = """
import sys
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 1))

def compiled():
    return torch.compile(plain())

def compiled_inside():
    model = plain()
    model[0] = torch.compile(model[0])
    return model

def traced():
    return torch.jit.trace(plain(), torch.zeros(1, 3, 8, 8))

def in_a_mode():
    FakeTensorMode().__enter__()
    return plain()

def not_deep():
    sys.setrecursionlimit(150)
    return plain()

class Sparse(nn.Sequential):
    def forward(self, x):
        return super().forward(x).to_sparse()

def sparse():
    return Sparse(*plain())
"""


@pytest.mark.parametrize(
    ("factory", "status", "says"),
    [
        ("compiled", 2, "is compiled, so its code cannot be followed"),
        ("compiled_inside", 2, "0 is compiled, so its code cannot be followed"),
        ("traced", 2, "is compiled, so its code cannot be followed"),
        ("in_a_mode", 2, "leaves torch in a FakeTensorMode"),
        ("not_deep", 0, ""),
        ("sparse", 0, ""),
    ],
)
def test_what_a_factory_gives_or_leaves_behind(
    tmp_path: Path, factory: str, status: int, says: str
) -> None:
    """In a process of its own, whose torch it may leave in any state."""
    (tmp_path / "made.py").write_text(MADE)
    torch.save(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 1)).state_dict(), tmp_path / "m.pt"
    )
    merge = ("merge", "m.pt", "--model", f"made.py:{factory}", "-o", "o.pt")
    done = run_process(*merge, cwd=tmp_path)
    assert done.status == status, done.stderr
    assert says in done.stderr
    assert (tmp_path / "o.pt").exists() == (status == 0)


def test_modules_that_read_more_than_tensors_are_told(tmp_path: Path) -> None:
    """As torch's quantised ones do: what they pack is no tensor of the file."""
    plain = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2))
    model = torch.ao.quantization.quantize_dynamic(plain, {"1"}, dtype=torch.float16)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ModelMismatchError, match=r"KeyError: .*\. Merge the model before it is"):
        load_checkpoint(model, tmp_path / "model.pt")
