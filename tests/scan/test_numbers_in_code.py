"""Numbers that a model's code adds and multiplies by: every spelling of them is told as scales."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convsqueeze
from convsqueeze.errors import TracingError
from convsqueeze.kinds.scale import ScaleLayer
from convsqueeze.module import SqueezedConv
from convsqueeze.scan import Scan
from convsqueeze.tracing import reading
from tests.scan.code import Code, image, largest_share, made, merged_layers, reasons, scanned

pytestmark = pytest.mark.stress

EXACT = 1e-14
"""Of the largest output, in float64."""

Spelling = Callable[[Any, Tensor], Tensor]
Scales = list[tuple[float, float]]
"""(factor, shift) of each scale, in order."""


def augmented(of: Any, y: Tensor) -> Tensor:
    y -= 2
    y *= 3
    return y


def in_place(of: Any, y: Tensor) -> Tensor:
    y.add_(0.5)
    return augmented(of, y)


def column(y: Tensor, *numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=y.dtype).view(1, -1, 1)


NUMBERS: Mapping[str, tuple[Spelling, Scales]] = {
    "x + 0.5": (lambda of, y: y + 0.5, [(1, 0.5)]),
    "0.5 + x": (lambda of, y: 0.5 + y, [(1, 0.5)]),
    "x - 1": (lambda of, y: y - 1, [(1, -1)]),
    "1 - x": (lambda of, y: 1 - y, [(-1, 1)]),
    "(x + 3) / 6": (lambda of, y: (y + 3) / 6, [(1, 3), (1 / 6, 0)]),
    "(x - 0.25) / 0.5": (lambda of, y: (y - 0.25) / 0.5, [(1, -0.25), (2, 0)]),
    "augmented": (augmented, [(1, -2), (3, 0)]),
    "in place, in a row": (lambda of, y: y.add_(0.5).mul_(3), [(1, 0.5), (3, 0)]),
    "add, alpha": (lambda of, y: torch.add(y, 2, alpha=3), [(1, 6)]),
    "sub, alpha": (lambda of, y: torch.sub(y, 2, alpha=3), [(1, -6)]),
    "rsub": (lambda of, y: torch.rsub(y, 2), [(-1, 2)]),
    "rsub, alpha": (lambda of, y: torch.rsub(y, 2, alpha=3), [(-3, 2)]),
    "methods": (lambda of, y: y.sub(1).mul(2).add(3).div(4), [(1, -1), (2, 0), (1, 3), (0.25, 0)]),
}
OTHER_NUMBERS: Mapping[str, tuple[Spelling, Scales]] = {
    "in place": (in_place, [(1, 0.5), (1, -2), (3, 0)]),
    "subtract": (lambda of, y: torch.subtract(y, 2, alpha=3), [(1, -6)]),
    "negative": (
        lambda of, y: torch.negative(y).multiply(3).divide(4),
        [(-1, 0), (3, 0), (0.25, 0)],
    ),
    "true_divide": (lambda of, y: torch.true_divide(y + 1, 4), [(1, 1), (0.25, 0)]),
    "a constant tensor": (lambda of, y: y - torch.tensor(0.25), [(1, -0.25)]),
    "from a constant tensor": (lambda of, y: torch.sub(torch.tensor(2.0), y, alpha=3), [(-3, 2)]),
    "the same for each channel": (lambda of, y: y + column(y, *[0.25] * 6), [(1, 0.25)]),
    "full": (lambda of, y: (y - torch.full((6, 1), 0.5)) / torch.ones(1), [(1, -0.5)]),
    "a buffer that is not stored": (lambda of, y: (y - of.step) / of.step, [(1, -0.5), (2, 0)]),
}
STORED: Mapping[str, tuple[Spelling, Scales]] = {
    "x + mean": (lambda of, y: y + of.mean, [(1, 0)]),
    "x - mean": (lambda of, y: y - of.mean, [(-1, 0), (-1, 0)]),
    "mean - x": (lambda of, y: of.mean - y, [(-1, 0)]),
    "(x - mean) / 0.5": (lambda of, y: (y - of.mean) / 0.5, [(-1, 0), (-1, 0), (2, 0)]),
    "x - 2 mean": (lambda of, y: y - 2 * of.mean, [(-0.5, 0), (-2, 0)]),
    "mean + 3 x": (lambda of, y: torch.add(of.mean, y, alpha=3), [(3, 0)]),
    "x + mean / 4": (lambda of, y: y + of.mean / 4, [(4, 0), (0.25, 0)]),
}
SPELLINGS = {**NUMBERS, **OTHER_NUMBERS, **STORED}


class Between(nn.Module):
    """Two convolutions, the second padded, and what code does in between."""

    def __init__(self, code: Spelling, padding: int) -> None:
        super().__init__()
        self.a = nn.Conv1d(2, 6, 3, bias=False)
        self.b = nn.Conv1d(6, 2, 3, padding=padding, bias=False)
        self.register_buffer("mean", torch.empty(6, 1))
        self.register_buffer("step", torch.full((1,), 0.5), persistent=False)
        self.code = code

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.code(self, self.a(x)))
        return y


def around(code: Spelling, padding: int = 0) -> nn.Module:
    """The module as a child of another, in float64."""
    return made(lambda: nn.Sequential(Between(code, padding))).double()


X = image(2, 2, 11).double()


@pytest.fixture
def by_fx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are followed by torch.fx alone."""

    def refused(*_: object) -> None:
        raise TracingError("not now")

    monkeypatch.setattr(reading, "exported", refused)


def scales_of(scan: Scan) -> Scales:
    """Of the only merge, between its two convolutions."""
    (merged,) = scan.merged
    _, *between, _ = (leaf.layer for leaf in merged.merge.layers)
    assert all(isinstance(layer, ScaleLayer) for layer in between)
    return [(layer.factor, layer.shift) for layer in between]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_merged(spelling: str) -> None:
    code, scales = SPELLINGS[spelling]
    model = around(code)
    squeezed, report = convsqueeze.squeeze(model, X)
    assert scales_of(report.scan) == scales
    assert largest_share(model, squeezed, [X]) < EXACT


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_exact_at_the_border(spelling: str) -> None:
    code, scales = SPELLINGS[spelling]
    model = around(code, padding=1)
    squeezed, report = convsqueeze.squeeze(model, X, border="corrected", growth="allow")
    assert scales_of(report.scan) == scales
    assert largest_share(model, squeezed, [X]) < EXACT
    for size in (3, 4, 5, 30):
        assert largest_share(model, squeezed, [image(1, 2, size).double()]) < EXACT


@pytest.mark.usefixtures("by_fx")
@pytest.mark.parametrize("spelling", NUMBERS)
def test_torch_fx_tells_the_same(spelling: str) -> None:
    code, scales = NUMBERS[spelling]
    model = around(code)
    squeezed, report = convsqueeze.squeeze(model, X)
    assert "torch.fx" in report.scan.notes[0]
    assert scales_of(report.scan) == scales
    assert largest_share(model, squeezed, [X]) < EXACT


NOTHING: Mapping[str, Spelling] = {
    "0": lambda of, y: y + 0,
    "-0.0": lambda of, y: y - 0.0,
    "alpha 0": lambda of, y: torch.add(y, 5, alpha=0),
    "ones": lambda of, y: y * torch.ones(6, 1),
}


@pytest.mark.parametrize("spelling", NOTHING)
def test_what_changes_nothing_is_no_layer(spelling: str) -> None:
    found = scanned(around(NOTHING[spelling]), X)
    assert merged_layers(found) == [("0.a", "0.b")]
    assert scales_of(found) == []


OPAQUE: Mapping[str, tuple[Spelling, str]] = {
    "numbers of the channels": (
        lambda of, y: y - column(y, 1, 2, 3, 4, 5, 6),
        "it is combined with numbers that no stored tensor holds",
    ),
    "by a stored tensor": (lambda of, y: (y - 1) / of.mean, "it divides by a stored tensor"),
    "infinity": (lambda of, y: y + float("inf"), "it computes with a number that is not finite"),
    "by next to nothing": (
        lambda of, y: y / 1e-320,
        "it computes with a number that is not finite",
    ),
    "no number": (lambda of, y: y * float("nan"), "it computes with a number that is not finite"),
    "more channels": (lambda of, y: y[:, :1] + torch.ones(6, 1), "slice gives another shape"),
    "more samples": (lambda of, y: y + torch.ones(3, 1, 1), "add gives another shape"),
    "a size": (lambda of, y: y + y.shape[-1], "it is combined with a tensor that is computed"),
    "as often as there are samples": (
        lambda of, y: torch.add(y, 1, alpha=y.shape[-1]),
        "it adds a multiple that depends on the input",
    ),
    "itself, often": (
        lambda of, y: torch.add(y, y, alpha=y.shape[-1]),
        "a multiple of a value is added",
    ),
    "itself, twice": (lambda of, y: torch.sub(y, y, alpha=2), "a multiple of a value is added"),
    "in another dtype": (
        lambda of, y: (y.float() + torch.ones(1, dtype=torch.float64)).double(),
        "it converts to torch.float32",
    ),
}


@pytest.mark.parametrize("spelling", OPAQUE)
def test_what_is_no_layer_is_told(spelling: str) -> None:
    code, told = OPAQUE[spelling]
    model = around(code)
    found = scanned(model, image(1, 2, 11).double())
    assert found.entries == ()
    assert told in [text for _, kind, text in reasons(found) if kind == "not linear"]


@pytest.mark.usefixtures("by_fx")
@pytest.mark.parametrize("statement", [True, False])
def test_torch_fx_leaves_a_change_in_place_of_what_is_read_later(statement: bool) -> None:
    """It does not tell which reader sees which values."""

    def code(of: Any, y: Tensor) -> Tensor:
        z = y.add_(0.5)
        return y if statement else z + y

    model = around(code)
    squeezed, report = convsqueeze.squeeze(model, X)
    assert report.merged is None
    assert largest_share(model, squeezed, [X]) == 0


@pytest.mark.usefixtures("by_fx")
@pytest.mark.parametrize("spelling", ["infinity", "no number", "by next to nothing"])
def test_what_is_no_layer_is_told_by_torch_fx(spelling: str) -> None:
    code, told = OPAQUE[spelling]
    assert told in [text for _, _, text in reasons(scanned(around(code), X))]


def test_a_number_is_added_to_the_border_too() -> None:
    """One that meets padding leaks as a bias does: refused, or corrected by biases alone."""
    model = around(lambda of, y: y + 0.5, padding=1)
    model[0].a = nn.Conv1d(2, 6, 1, bias=False).double()
    assert scanned(model, X).entries == ()
    (merged,) = scanned(model, X, border="corrected").merged
    assert merged.merge.form.name == "bias"
    model[0].code = lambda of, y: y * 0.5
    (merged,) = scanned(model, X).merged
    assert merged.merge.border == "exact"


class Normalised(nn.Module):
    """Nothing but numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.25) / 0.5


class Shifted(nn.Module):
    """A convolution and a number."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(*sizes)
        self.unused = nn.Conv1d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) * 2 - 1
        return y


def test_numbers_in_the_models_own_code_stay_there() -> None:
    model = made(
        lambda: Code(lambda of, x: of.b(of.a(x) + 0.5), a=nn.Conv1d(2, 6, 3), b=nn.Conv1d(6, 2, 1))
    ).double()
    found = scanned(model, X)
    assert found.entries == ()
    told = "the scale stands in the code of the model"
    assert reasons(found) == [(("a", "b"), "in code", told)]


def test_a_module_of_nothing_but_numbers_stays() -> None:
    """No tensor tells a manifest of it; what stands around it is merged."""
    model = made(
        lambda: nn.Sequential(
            *(Normalised(), nn.Conv1d(2, 6, 3), nn.Conv1d(6, 4, 1)),
            *(Normalised(), nn.Conv1d(4, 6, 3), nn.Conv1d(6, 2, 1)),
        )
    ).double()
    squeezed, report = convsqueeze.squeeze(model, X)
    assert merged_layers(report.scan) == [("1", "2"), ("4", "5")]
    left = (("1", "2", "scale"), "in code", "the scale stands in the code in 3")
    assert left in reasons(report.scan)
    assert largest_share(model, squeezed, [X]) < EXACT


def test_a_module_that_holds_a_layer_and_numbers_is_merged_as_a_whole() -> None:
    model = made(
        lambda: nn.Sequential(Shifted(2, 6, 3), Shifted(6, 6, 1), nn.Conv1d(6, 2, 1))
    ).double()
    squeezed, report = convsqueeze.squeeze(model, X)
    layers = ("0.conv", "scale", "scale", "1.conv", "scale", "scale", "2")
    assert merged_layers(report.scan) == [layers]
    assert [type(module) for module in squeezed] == [SqueezedConv, nn.Identity, nn.Identity]
    assert largest_share(model, squeezed, [X]) < EXACT


def test_a_number_grows_a_layer_by_its_bias() -> None:
    """It is no stored weight, but the bias that it becomes is one. The two numbers that the module
    holds and does not read go with it.
    """
    model = made(lambda: nn.Sequential(Shifted(2, 6, 3, 1, 0, 1, 1, False), nn.ReLU())).double()
    assert scanned(model, X).entries == ()
    with_bias = made(lambda: nn.Sequential(Shifted(2, 6, 3), nn.ReLU())).double()
    (merged,) = scanned(with_bias, X).merged
    assert (merged.merge.weights_before, merged.merge.weights_after) == (42 + 2, 42)
