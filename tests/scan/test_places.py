"""Where merges go in models whose modules hold more, or less, than the merged layers."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import convsqueeze
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.manifest import parse_manifest
from convsqueeze.plan import make_plan
from convsqueeze.surgery.trials import computes
from tests.scan.code import Code, image, largest_share, made


def times_number() -> nn.Module:
    return nn.Sequential(Code(lambda self, x: -1.5 * x), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 1))


def pad_in_its_place() -> nn.Module:
    """The first convolution stands beside a pad, both in the place that the merge takes."""
    inside = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.ZeroPad2d((2, 1, 0, 1)))
    return nn.Sequential(inside, nn.Conv2d(8, 2, 2))


def minus_its_input() -> nn.Module:
    less = Code(lambda self, x: self.inner(x) - x, inner=nn.Conv2d(3, 3, 1))
    return nn.Sequential(nn.BatchNorm2d(3), less)


def in_a_list() -> nn.Module:
    parts = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)])
    row = Code(lambda self, x: self.parts[1](self.parts[0](x)), parts=parts)
    other = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    third = nn.Conv2d(3, 3, 3, padding=1, bias=False, padding_mode="circular")
    return Code(
        lambda self, x: 0.5 * self.third(x) + self.row(x) + self.other(x),
        third=third,
        row=row,
        other=other,
    )


def wasting(first: nn.Module, unused: nn.Module) -> nn.Module:
    def forward(self: Code, x: torch.Tensor) -> torch.Tensor:
        self.unused(x)
        y: torch.Tensor = self.first(x)
        return y

    return Code(forward, first=first, unused=unused)


def read_for_nothing_behind_dropout() -> nn.Module:
    row = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.Dropout())
    return nn.Sequential(row, wasting(nn.Conv2d(8, 2, 1), nn.Conv2d(8, 4, 3)))


def whole_row_with_unused_tensors() -> nn.Module:
    row = wasting(nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(3, 1, 3))
    return nn.Sequential(nn.Sequential(row, nn.Conv2d(8, 2, 1)))


def branch_with_unused_tensors() -> nn.Module:
    row = wasting(nn.Conv2d(4, 6, 1, bias=False), nn.Conv2d(4, 8, 2))
    branch = nn.Sequential(row, nn.Conv2d(6, 4, 3, padding=1))
    both = Code(lambda self, x: self.one(x) + self.branch(x), one=nn.Conv2d(4, 4, 1), branch=branch)
    return nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), both)


@pytest.mark.stress
@pytest.mark.parametrize(
    ("build", "merges"),
    [
        (times_number, 1),
        (pad_in_its_place, 1),
        (minus_its_input, 1),
        (in_a_list, 1),
        (read_for_nothing_behind_dropout, 0),
        (whole_row_with_unused_tensors, 1),
        (branch_with_unused_tensors, 1),
    ],
)
def test_a_merge_has_the_same_place_in_the_graph_and_in_the_model(
    build: Callable[[], nn.Module], merges: int
) -> None:
    model, x = made(build).double(), image(2, 3, 9, 10).double()
    squeezed, report = convsqueeze.squeeze(model, x)
    assert len(report.scan.merged) == merges
    assert largest_share(model, squeezed, [x]) < 1e-11
    numbers = [sum(p.numel() for p in m.state_dict().values()) for m in (model, squeezed)]
    assert numbers[1] <= numbers[0]


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Identity, nn.Hardswish, nn.Softplus])
def test_an_activation_that_passes_a_few_images_is_one(activation: type[nn.Module]) -> None:
    """A bias far above what a small image makes of the weights keeps all values above zero."""
    model = made(lambda: nn.Sequential(nn.Conv2d(2, 1, 1), nn.Conv2d(1, 1, 1), activation()))
    model = model.double()
    with torch.no_grad():
        model[0].bias.fill_(0.0)
        model[1].bias.fill_(1e3)
    own = from_state_dict(model.state_dict())
    manifest = parse_manifest("version: 1\npairs:\n  - chain: [{name: '0'}, {name: '1'}]\n", "two")
    tree = make_plan(manifest, own).merges[0].tree
    assert computes(model, own, tree) == (activation is nn.Identity)
