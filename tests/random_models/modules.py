"""A description -> modules as a user writes them. Knows torch, nothing of convsqueeze."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from .description import (
    Branch,
    ChannelsLast,
    CodeKind,
    Gated,
    Layer,
    Model,
    Node,
    Repeated,
    Row,
    Sum,
    SumForm,
    Wasteful,
)

CONVOLUTIONS = (None, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (None, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
POOLS = (None, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
LARGEST_POOLS = (None, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


def per_channel(values: Tensor, x: Tensor, rank: int) -> Tensor:
    """One number for each channel, along the channels of `x`."""
    return values.reshape(-1, *(1,) * rank) if rank else values


class Listed(nn.Module):
    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


class Added(nn.Module):
    """Branches added by code, each by its factor."""

    def __init__(self, branches: tuple[Branch, ...], form: SumForm) -> None:
        super().__init__()
        self.factors = [branch.factor for branch in branches]
        self.form = form
        first = branches[0].part
        self.owns_first = isinstance(first, Layer) and first.kind == "conv"
        for index, branch in enumerate(branches):
            if branch.part is not None:
                self.add_module(f"branch{index}", built(branch.part))

    def extra_repr(self) -> str:
        return f"{self.form}, {self.factors}"

    def branch(self, index: int, x: Tensor) -> Tensor:
        part = getattr(self, f"branch{index}", None)
        return x if part is None else part(x)

    def forward(self, x: Tensor) -> Tensor:
        values = [self.branch(index, x) for index in range(len(self.factors))]
        if self.form == "stack":
            return torch.stack(
                [value * f for value, f in zip(values, self.factors, strict=True)]
            ).sum(0)
        total = values[0] if self.factors[0] == 1 else self.factors[0] * values[0]
        if self.form == "in place" and not self.owns_first:
            total = total.clone()
        for value, factor in zip(values[1:], self.factors[1:], strict=True):
            if self.form == "in place":
                total += value if factor == 1 else value * factor
            elif factor == -1:
                total = total - value
            else:
                total = total + (value if factor == 1 else factor * value)
        return total


class Again(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.part(x))


class Wasting(nn.Module):
    def __init__(self, part: nn.Module, unused: nn.Module) -> None:
        super().__init__()
        self.part, self.unused = part, unused

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        return self.part(x)


class Gate(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        y = self.part(x)
        axes = list(range(2, y.ndim))
        return x * F.relu(y.mean(axes, keepdim=True) if axes else y)


class WithCode(nn.Module):
    def __init__(self, part: nn.Module, kind: CodeKind, channels: int, rank: int, number: float):
        super().__init__()
        self.part, self.kind, self.rank, self.number = part, kind, rank, number
        if kind in ("gamma", "beta"):
            self.values = nn.Parameter(torch.ones(channels))

    def extra_repr(self) -> str:
        return f"{self.kind} {self.number}"

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.part(x)
        if self.kind in ("gamma", "beta"):
            values = per_channel(self.values, y, self.rank)
            return values * y if self.kind == "gamma" else y + values
        return {
            "factor": lambda: self.number * y,
            "divide": lambda: y / self.number,
            "negate": lambda: -y,
            "relu": lambda: F.relu(y),
            "pad": lambda: F.pad(y, [1, 0] * self.rank),
            "clone": lambda: y.clone(),
            "view": lambda: y.reshape(y.shape),
        }[self.kind]()


class Turned(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x.movedim(1, -1)).movedim(-1, 1)


class Scaled(nn.Module):
    """Times one number for each channel, or one for all; `number` stands in the code."""

    def __init__(self, form: str, channels: int, rank: int, number: float = 1.0) -> None:
        super().__init__()
        self.form, self.rank, self.number = form, rank, number
        if form == "parameter":
            self.gamma = nn.Parameter(torch.ones(channels, *(1,) * rank))
        elif form == "scalar":
            self.gamma = nn.Parameter(torch.ones(1))
        elif form == "buffer":
            self.register_buffer("gamma", torch.ones(channels))
        elif form == "unsaved":
            self.register_buffer("gamma", 0.3 + torch.arange(float(channels)), persistent=False)
        elif form == "shift":
            self.beta = nn.Parameter(torch.ones(channels))

    def extra_repr(self) -> str:
        return f"{self.form} {self.number}"

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "number":
            return x * self.number
        if self.form == "shift":
            return x + per_channel(self.beta, x, self.rank)
        gamma = self.gamma
        return x * (gamma if self.form == "scalar" else gamma.reshape(-1, *(1,) * self.rank))


class Code(nn.Module):
    """An operator on a signal (N, channels, ...) that is none of the layers."""

    def __init__(self, kind: str, rank: int) -> None:
        super().__init__()
        self.kind, self.rank = kind, rank

    def extra_repr(self) -> str:
        return self.kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "cat":
            return torch.cat([x, x.flip(1)], 1)
        if self.kind == "chunk":
            return torch.cat(x.chunk(2, 1)[::-1], 1)
        if self.kind == "permute":
            return x.transpose(-1, -2)
        if self.kind == "mean":
            return x.mean(list(range(2, 2 + self.rank)))
        return F.interpolate(x, scale_factor=2, mode="nearest")


class Whole(nn.Module):
    """A model, with its outputs as its user wants them."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.body = built(model.row)
        self.taps, self.output = model.taps, model.output

    def extra_repr(self) -> str:
        return f"{self.output}, taps {self.taps}"

    def forward(self, x: Tensor) -> Any:
        taken = []
        for index, part in enumerate(getattr(self.body, "parts", self.body)):
            x = part(x)
            if index in self.taps:
                taken.append(x)
        if self.output == "tensor":
            return x
        if self.output == "tuple":
            return (x, *taken)
        return {"out": x, "between": taken}


def built(node: Node) -> nn.Module:
    """The module that a description is of; its children are named as `children` names them."""
    if isinstance(node, Layer):
        return _LAYERS[node.kind](node)
    if isinstance(node, Row):
        parts = [built(part) for part in node.parts]
        return nn.Sequential(*parts) if node.form == "sequential" else Listed(parts)
    if isinstance(node, Sum):
        return Added(node.branches, node.form)
    if isinstance(node, Repeated):
        return Again(built(node.part))
    if isinstance(node, Wasteful):
        return Wasting(built(node.part), built(node.unused))
    if isinstance(node, Gated):
        return Gate(built(node.part))
    if isinstance(node, ChannelsLast):
        return Turned(built(node.part))
    return WithCode(built(node.part), node.kind, node.channels, node.rank, node.number)


def _with_kernel(layer: Layer) -> nn.Module:
    settings = dict(layer.settings)
    normed = settings.pop("normed", None)
    module: nn.Module
    if layer.kind == "linear":
        module = nn.Linear(layer.in_channels, layer.out_channels, **settings)
    else:
        kinds = TRANSPOSED if layer.kind == "conv_transpose" else CONVOLUTIONS
        module = kinds[layer.rank](layer.in_channels, layer.out_channels, **settings)
    if normed == "weight_norm":
        return nn.utils.weight_norm(module)
    return parametrizations.weight_norm(module) if normed == "parametrized" else module


def _pad(layer: Layer) -> nn.Module:
    kinds = {
        "zeros": (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
        "reflect": (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
        "replicate": (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    }
    return kinds[layer.settings["mode"]][layer.rank - 1](tuple(layer.settings["padding"]))


def _code(layer: Layer) -> nn.Module:
    return Code(layer.kind, layer.rank)


_LAYERS = {
    **dict.fromkeys(("conv", "conv_transpose", "linear"), _with_kernel),
    "batch_norm": lambda layer: NORMS[layer.rank](layer.in_channels, **layer.settings),
    "scale": lambda layer: Scaled(channels=layer.in_channels, rank=layer.rank, **layer.settings),
    "pad": _pad,
    "avg_pool": lambda layer: POOLS[layer.rank](**layer.settings),
    "max_pool": lambda layer: LARGEST_POOLS[layer.rank](**layer.settings),
    "dropout": lambda layer: nn.Dropout(0.3),
    "identity": lambda layer: nn.Identity(),
    "relu": lambda layer: nn.ReLU(**layer.settings),
    "leaky_relu": lambda layer: nn.LeakyReLU(0.2),
    "prelu": lambda layer: nn.PReLU(),
    **dict.fromkeys(("cat", "chunk", "permute", "mean", "interpolate"), _code),
}
