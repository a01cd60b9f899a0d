"""Small models whose forward is a function, and what scanning and squeezing make of a model."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convsqueeze.models.inputs import inputs_of
from convsqueeze.models.outputs import named_tensors
from convsqueeze.models.squeeze import scan_model
from convsqueeze.scan import Scan
from tests.networks.values import filled


class Code(nn.Module):
    """`forward(self, *inputs)` over modules and parameters, each under its own name."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.code = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.code(self, *inputs, **named)


class OfOne(Code):
    """`forward(self, x)`, which torch.fx can follow too."""

    def forward(self, x: Any) -> Any:
        return self.code(self, x)


def made(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The model with values that hide no mistake, in eval mode."""
    torch.manual_seed(seed)
    return filled(build(), seed)


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scanned(model: nn.Module, *inputs: Any, **settings: Any) -> Scan:
    return scan_model(model, inputs_of(inputs), **settings)


def merged_layers(scan: Scan) -> list[tuple[str, ...]]:
    """The names of the layers of every merge, those that have any, sorted."""
    found = []
    for merged in scan.merged:
        found.append(tuple(leaf.layer.label for leaf in merged.merge.layers))
    return sorted(found)


def reasons(scan: Scan) -> list[tuple[tuple[str, ...], str, str]]:
    """Layers left alone, the kind of reason, and its words."""
    return [(one.layers, one.reason.kind, one.reason.text) for one in scan.left]


def largest_share(before: nn.Module, after: nn.Module, inputs: Sequence[Any]) -> float:
    """The largest difference of any output, of the largest value of that output."""
    wanted, found = (_outputs(one, inputs) for one in (before, after))
    assert wanted.keys() == found.keys()
    worst = 0.0
    for place, tensor in wanted.items():
        assert tensor.shape == found[place].shape
        if tensor.numel() == 0:
            continue
        largest = float(tensor.double().abs().max()) or 1.0
        worst = max(worst, float((tensor.double() - found[place].double()).abs().max()) / largest)
    return worst


def _outputs(model: nn.Module, inputs: Sequence[Any]) -> dict[str, Tensor]:
    """Outputs for which whatever is random in the model is drawn from the same seed."""
    torch.manual_seed(0)
    with torch.no_grad():
        return named_tensors(model(*_cloned(inputs)))


def _cloned(inputs: Sequence[Any]) -> list[Any]:
    return [one.clone() if isinstance(one, Tensor) else one for one in inputs]
