"""What a scan must leave alone, with its reason; and the sample, bit for bit."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convsqueeze
from convsqueeze import merge_state_dict
from convsqueeze.errors import VerificationError
from convsqueeze.graph import find
from convsqueeze.models import inputs_of, scan_model

SAMPLE = Path(__file__).parent.parent.parent / "samples" / "sesr"


class Two(nn.Module):
    """Two 1x1 convolutions; subclasses say what happens around them."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 1)
        self.two = nn.Conv2d(8, 3, 1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(self.one(x))
        return y


class Activation(Two):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(F.relu(self.one(x)))
        return y


class ReadTwice(Two):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.one(x)
        return self.two(y), y.mean()


class ReadForNothing(Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        self.norm(y).exp()
        z: Tensor = self.two(y)
        return z


class Shared(Two):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.two(self.one(x)), self.two(self.one(x + 1).sin())


class Tied(Two):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(3, 8, 1)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.two(self.one(x)), self.other(x).sin()


class Functional(Two):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(F.conv2d(x, self.one.weight * 2.0, self.one.bias).tanh())
        return y


class InTraining(Two):
    def __init__(self) -> None:
        super().__init__()
        self.norm.track_running_stats = False
        self.norm.running_mean = self.norm.running_var = None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(self.norm(self.one(x)))
        return y


class Hooked(Two):
    def __init__(self) -> None:
        super().__init__()
        self.one.register_forward_hook(lambda module, args, result: None)


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (Activation, "activation"),
        (ReadTwice, "read elsewhere"),
        (ReadForNothing, "read elsewhere"),
        (Shared, "used twice"),
        (Tied, "tied"),
        (Functional, "not linear"),
        (InTraining, "training"),
        (Hooked, "hook"),
    ],
)
def test_what_is_left_alone_and_why(build: type[Two], kind: str) -> None:
    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(2, 3, 8, 8)
    found = scan_model(model, inputs_of(x))
    assert found.entries == ()
    assert kind in {one.reason.kind for one in found.left}, found.left
    squeezed, report = convsqueeze.squeeze(model, x)
    assert report.merged is None
    assert squeezed is not model


class ModesAdded(nn.Module):
    """Branches that are no one layer, then numbers of one channel, which do not tell how many."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 1, bias=False)
        self.two = nn.Conv2d(8, 1, 3, padding=1)
        self.mirrored = nn.Conv2d(3, 1, 3, padding=1, padding_mode="reflect")
        self.beta = nn.Parameter(torch.rand(1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mirrored(x) + self.two(self.one(x)) + self.beta
        return y


def test_branches_that_are_no_one_layer_leave_the_rest_to_be_merged() -> None:
    torch.manual_seed(0)
    model, x = ModesAdded().eval(), torch.randn(2, 3, 8, 8)
    squeezed, report = convsqueeze.squeeze(model, x)
    assert (report.weights_before, report.weights_after) == (97, 28)
    assert torch.allclose(squeezed(x), model(x), atol=1e-5)


class SizeAsked(Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        assert y.shape[1] == 8
        return F.relu(self.two(y))


def test_without_its_size_the_value_would_be_merged_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the whole model, with all its other merges, be refused."""
    torch.manual_seed(0)
    model, x = nn.Sequential(SizeAsked(), Two()).eval(), torch.randn(2, 3, 8, 8)
    _, report = convsqueeze.squeeze(model, x)
    assert [one.into for entry in report.scan.entries for one in entry.merged] == ["1"]
    (told,) = (one for one in report.left if one.layers == ("0.one", "0.two"))
    assert (told.reason.kind, told.reason.text) == (
        "read elsewhere",
        f"test_left_alone.py:{_line_of('assert y.shape[1]')} asks for its size",
    )
    monkeypatch.setattr(find, "_sizes_read", lambda graph, region: ())
    with pytest.raises(VerificationError):
        convsqueeze.squeeze(model, x)


def _line_of(words: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if words in line)


def test_the_same_layers_with_nothing_between_are_merged() -> None:
    torch.manual_seed(0)
    model, x = Two().eval(), torch.randn(2, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    squeezed, report = convsqueeze.squeeze(model, x)
    assert (report.weights_before, report.weights_after) == (59, 12)
    assert torch.allclose(squeezed(x), model(x), atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_sample_is_squeezed_as_its_manifest_says_bit_for_bit() -> None:
    from samples.sesr.network import SESR

    model = SESR()
    model.load_state_dict(torch.load(SAMPLE / "sesr_x2.pt", weights_only=True)["params_ema"])
    squeezed, _ = convsqueeze.squeeze(model.eval())
    found = squeezed.state_dict()
    wanted, _ = merge_state_dict(model.state_dict(), SAMPLE / "pairs.yaml")
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
