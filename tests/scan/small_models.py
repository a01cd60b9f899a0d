"""Small models of every kind of merge, what squeezing makes of each, and how both are compared."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convsqueeze
from convsqueeze.models import SqueezeReport
from convsqueeze.models.outputs import named_tensors
from convsqueeze.module import SqueezedConv
from tests.scan.code import image, made

Shape = tuple[int, ...]
EXACT = 1e-13
"""Of the largest output, in float64."""


@dataclass(frozen=True, eq=False)
class Small:
    """A model, the shape of its example, other shapes that it takes, and how it is squeezed.

    `merged` are the modules that hold a squeezed layer then.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: Shape
    others: Sequence[Shape]
    merged: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)

    def original(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        return made(self.build).to(dtype)

    def example(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return image(*self.shape).to(dtype)


class Residual(nn.Module):
    """A skip around two layers, then an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.project = nn.Conv2d(12, 3, 1)
        self.head = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(x + self.project(self.expand(x))))
        return y


def chain() -> nn.Sequential:
    norm = nn.BatchNorm2d(16)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3), norm, nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    )


SMALL: Sequence[Small] = (
    Small("chain", chain, (2, 3, 9, 10), ((1, 3, 3, 3), (5, 3, 4, 11), (0, 3, 7, 7)), ("0",)),
    Small(
        "residual",
        Residual,
        (2, 3, 9, 10),
        ((1, 3, 3, 3), (3, 3, 7, 5), (3, 8, 8), (0, 3, 7, 7)),
        ("expand",),
    ),
    Small(
        "corrected",
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1), nn.ReLU()
        ),
        (2, 3, 9, 10),
        ((1, 3, 1, 1), (3, 3, 2, 7), (3, 3, 1), (0, 3, 4, 4)),
        ("0",),
        {"border": "corrected"},
    ),
    Small(
        "transposed",
        lambda: nn.Sequential(
            nn.ConvTranspose2d(3, 16, 3, stride=2, padding=1, output_padding=1, bias=False),
            *(nn.Conv2d(16, 3, 1), nn.ReLU()),
        ),
        (2, 3, 5, 6),
        ((1, 3, 1, 1), (3, 3, 2, 7), (3, 4, 4), (0, 3, 4, 4)),
        ("0",),
    ),
    Small(
        "linear",
        lambda: nn.Sequential(
            *(nn.Linear(6, 20), nn.Linear(20, 5), nn.ReLU(), nn.Linear(5, 30), nn.Linear(30, 4))
        ),
        (3, 6),
        ((1, 6), (6,), (2, 3, 6), (0, 6)),
        ("0", "3"),
    ),
)


@dataclass(frozen=True, eq=False)
class Squeezed:
    """A model before and after; shared between tests, which copy what they change."""

    original: nn.Module
    model: nn.Module
    report: SqueezeReport
    example: Tensor


@cache
def squeezed(small: Small, dtype: torch.dtype = torch.float32) -> Squeezed:
    original, example = small.original(dtype), small.example(dtype)
    model, report = convsqueeze.squeeze(original, example, **small.settings)
    return Squeezed(original, model, report, example)


models = pytest.mark.parametrize("small", SMALL, ids=lambda small: small.name)


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = model(x)
    return y


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert tensor.equal(other[name]), name


def layers(model: nn.Module) -> tuple[str, ...]:
    return tuple(n for n, module in model.named_modules() if isinstance(module, SqueezedConv))


class Two(nn.Module):
    """Two layers to merge and an activation; subclasses say what goes in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1)

    def merged(self, x: Tensor) -> Tensor:
        y: Tensor = torch.relu(self.b(self.a(x)))
        return y


def assert_equal_outputs(before: nn.Module, after: nn.Module, *given: Any, **named: Any) -> None:
    with torch.no_grad():
        wanted, found = before(*given, **named), after(*given, **named)
    assert type(found) is type(wanted)
    tensors, others = named_tensors(found), named_tensors(wanted)
    assert tensors.keys() == others.keys()
    for place, tensor in tensors.items():
        torch.testing.assert_close(tensor, others[place], rtol=1e-4, atol=1e-5)
