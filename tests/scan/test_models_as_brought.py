"""Models as people bring them: code that takes one size, sizes that depend on values, graphs that
torch made of a model, a model in training mode, code that leaves.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convsqueeze
from convsqueeze.errors import ModelCodeError, ModelInputError, ModelMismatchError
from convsqueeze.models import load_model
from tests.command_line import run_here
from tests.scan.code import Code, image, largest_share, made, merged_layers, reasons, scanned

X = image(2, 3, 8, 8)


def layers(**others: nn.Module) -> dict[str, nn.Module]:
    return {"one": nn.Conv2d(3, 16, 1), "two": nn.Conv2d(16, 3, 1), **others}


def squeezed(model: nn.Module, *inputs: Any) -> convsqueeze.SqueezeReport:
    """The report, of a result that computes what the model does."""
    result, report = convsqueeze.squeeze(model, inputs)
    assert largest_share(model, result, inputs) < 1e-5
    return report


# Sizes


def _asserts(size: int) -> None:
    assert size == 8, "images of 8x8 alone"


SIZE_CHECKS: dict[str, Callable[[int], object]] = {
    "AssertionError": _asserts,
    "IndexError": lambda size: [8][int(size != 8)],
    "KeyError": lambda size: {8: 1}[size],
    "ZeroDivisionError": lambda size: 1 / (size == 8),
}


def of_one_size(raised: str) -> nn.Module:
    """A block that takes one size, beside an activation."""

    def forward(self: Any, x: Tensor) -> Tensor:
        SIZE_CHECKS[raised](x.shape[-1])
        y: Tensor = self.two(self.one(x))
        return y

    block = Code(forward, **layers())
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), block, nn.ReLU())


@pytest.mark.parametrize("raised", SIZE_CHECKS)
def test_a_block_that_takes_one_size_is_merged(raised: str) -> None:
    assert squeezed(made(lambda: of_one_size(raised)), X).weights_after == 12


def squeezed_file(model: nn.Module, folder: Path, into: str) -> Path:
    """The two layers of a block merged by hand, into a module of the model."""
    chain = [{"name": "2.one"}, {"name": "2.two"}]
    manifest = {"version": 1, "pairs": [{"into": into, "chain": chain}]}
    state, _ = convsqueeze.merge_state_dict(model.state_dict(), manifest)
    torch.save(state, folder / "squeezed.pt")
    return folder / "squeezed.pt"


@pytest.mark.parametrize("raised", SIZE_CHECKS)
def test_code_that_raises_is_told_as_its_own(raised: str, tmp_path: Path) -> None:
    model = made(lambda: of_one_size(raised))
    path = squeezed_file(model, tmp_path, "2")
    with pytest.raises(ModelMismatchError) as refusal:
        convsqueeze.apply(model, path)
    assert f"2: its own code raises {raised} at test_models_as_brought.py:" in str(refusal.value)
    assert "Give an example input" in str(refusal.value)
    assert "computes something else" not in str(refusal.value)
    result = convsqueeze.apply(model, path, example=X)
    assert largest_share(model, result, [X]) < 1e-5


def test_at_the_size_of_the_example_an_activation_is_still_seen(tmp_path: Path) -> None:
    model = made(lambda: of_one_size("KeyError"))
    path = squeezed_file(model, tmp_path, "2")
    forward = model[2].code
    model[2].code = lambda self, x: forward(self, x).relu()
    with pytest.raises(ModelMismatchError, match="2: computes something else than the merged"):
        convsqueeze.apply(model, path, example=X)


def test_a_size_that_depends_on_values_leaves_that_part_alone() -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.two(self.one(x))
        chosen = y.permute(0, 2, 3, 1)[y[:, 0] > 0]
        return self.act(self.head(chosen)), y

    others = {"head": nn.Linear(3, 5), "act": nn.ReLU()}
    model = made(lambda: Code(forward, **layers(**others)))
    assert merged_layers(scanned(model, X)) == [("one", "two")]
    assert squeezed(model, X).weights_after == 12


def test_code_that_takes_no_open_sizes_is_followed_at_the_size_of_the_example() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        if not all(isinstance(size, int) for size in x.shape):
            raise TypeError("sizes that are numbers were needed")
        y: Tensor = self.two(self.one(x))
        return y.relu()

    found = scanned(made(lambda: Code(forward, **layers())), X)
    assert merged_layers(found) == [("one", "two")]
    assert "holds for the size of the example" in found.notes[0]


# Graphs that torch made


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand, self.project = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.expand(x))
        return x + y


def blocks() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), Block(), nn.ReLU(), Block(), nn.ReLU())


def test_a_graph_of_torch_fx_is_merged() -> None:
    """It tells of the blocks of the model that it was made of, and calls their layers alone."""
    model = torch.fx.symbolic_trace(made(blocks))
    found = squeezed(model, X)
    assert merged_layers(found.scan) == [
        ("2.expand", "2.project"),
        ("4.expand", "4.project"),
    ]


def test_a_part_that_is_a_graph_of_torch_fx_is_merged() -> None:
    model = nn.Sequential(torch.fx.symbolic_trace(made(blocks)), nn.Sigmoid())
    assert len(squeezed(model, X).scan.merged) == 2


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.filterwarnings("ignore:.*treespec.*")
def test_what_torch_export_made_is_refused_in_words_about_the_model(decomposed: bool) -> None:
    program = torch.export.export(made(blocks), (X,))
    model = (program.run_decompositions({}) if decomposed else program).module()
    with pytest.raises(ModelInputError, match=r"is what torch\.export makes of a model"):
        convsqueeze.squeeze(model, X)


# Values changed in place, then read in parts


class Chunks(nn.Module):
    """Res2Net's: parts of a value, each read by a module of a list."""

    def __init__(self, parts: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 12, 1), nn.ReLU(inplace=True)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        parts = self.parts(self.act(self.stem(x)))
        every = zip(parts, self.convs, self.norms, strict=True)
        return torch.cat([self.act(norm(conv(part))) for part, conv, norm in every], 1)


@pytest.mark.stress
@pytest.mark.parametrize(
    "parts",
    [
        lambda y: torch.split(y, 4, 1),
        lambda y: y.chunk(3, 1),
        lambda y: (y[:, :4], y[:, 4:8], y[:, 8:]),
        lambda y: y.unflatten(1, (3, 4)).unbind(1),
    ],
)
def test_parts_of_a_value_that_are_each_read_by_a_module_of_a_list(
    parts: Callable[[Tensor], Any],
) -> None:
    model = made(lambda: Chunks(parts))
    pairs = [(f"convs.{i}", f"norms.{i}") for i in range(3)]
    assert merged_layers(scanned(model, X)) == pairs
    assert len(squeezed(model, X).scan.merged) == 3


def test_a_reason_says_something() -> None:
    class Flipped(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flip(2))

    model = made(lambda: nn.Sequential(Flipped(3, 8, 1), nn.BatchNorm2d(8)))
    assert reasons(scanned(model, X)) == [
        (("0", "1"), "in code", "the code of 0 does more than this layer")
    ]


# Modes and code that leaves


def test_a_model_in_training_mode_is_told_of_first() -> None:
    model = made(lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU())).train()
    _, report = convsqueeze.squeeze(model, X)
    assert report.merged is None
    assert "is in training mode" in report.notes[0]
    assert "Call model.eval() first" in report.notes[0]
    _, report = convsqueeze.squeeze(model.eval(), X)
    assert not any("training mode" in note for note in report.notes)
    assert report.merged is not None


class LeavingError(BaseException):
    """Of the model's own."""


LEAVING: dict[str, Callable[[], Any]] = {
    "SystemExit": lambda: sys.exit(3),
    "LeavingError": lambda: (_ for _ in ()).throw(LeavingError("gone")),
}


@pytest.mark.parametrize("name", LEAVING)
@pytest.mark.parametrize("example", [X, None])
def test_code_that_leaves_is_refused_in_a_sentence(name: str, example: Tensor | None) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return LEAVING[name]()

    class Leaving(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return forward(self, x)

    with pytest.raises(ModelInputError, match=name):
        convsqueeze.squeeze(Leaving(3, 3, 1), example)


@pytest.mark.parametrize("name", LEAVING)
def test_a_factory_that_leaves_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    code = tmp_path / "leaving_model.py"
    code.write_text(
        "import sys\nclass LeavingError(BaseException): pass\n"
        f"def build():\n    {'sys.exit(3)' if name == 'SystemExit' else 'raise LeavingError()'}\n"
    )
    with pytest.raises(ModelCodeError, match=rf"calling it fails at .*leaving_model.py:4: {name}"):
        load_model(f"{code}:build")
    outcome = run_here("scan", f"{code}:build")
    assert outcome.status == 2
    assert name in outcome.errors[0]


def test_a_signal_that_comes_while_the_code_runs_goes_on(tmp_path: Path) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convsqueeze.squeeze(made(lambda: Code(forward, **layers())), X)


# Examples of apply


class Masked(nn.Module):
    """Two arguments, and a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.act = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1), nn.Identity()

    def forward(self, x: Tensor, mask: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        y = self.two(self.act(self.one(x)))
        return {"all": y * mask, "mean": y.mean() * scale}


MASK = (X > 0).float()


@pytest.mark.parametrize(
    "example", [(X, MASK), [X, MASK, 2.0], {"mask": MASK, "x": X}, {"x": X, "mask": MASK.half()}]
)
def test_apply_takes_the_examples_that_squeeze_takes(example: Any, tmp_path: Path) -> None:
    model, pair = made(Masked), [{"first": {"name": "one"}, "second": {"name": "two"}}]
    state, _ = convsqueeze.merge_state_dict(model.state_dict(), {"version": 1, "pairs": pair})
    torch.save(state, tmp_path / "squeezed.pt")
    result = convsqueeze.apply(model, tmp_path / "squeezed.pt", example=example)
    assert largest_share(model, result, [X, MASK]) < 1e-5
    model.act = nn.ReLU()
    with pytest.raises(ModelMismatchError, match=r"differs by .* on the example"):
        convsqueeze.apply(model, tmp_path / "squeezed.pt", example=example)
    with pytest.raises(ModelInputError, match=r"does not take these example .missing"):
        convsqueeze.apply(model, tmp_path / "squeezed.pt", example=X)
    with pytest.raises(ModelInputError, match=r"does not run on these inputs .* Give example with"):
        convsqueeze.apply(model, tmp_path / "squeezed.pt", example=(X, X[:, :, 1:]))
