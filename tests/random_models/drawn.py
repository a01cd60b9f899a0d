"""Random descriptions of models, the same for the same seed.

A part that keeps the size does so for every size, so that branches can be added.
"""

import random
from collections.abc import Sequence
from math import gcd
from typing import Any

from .description import (
    Branch,
    ChannelsLast,
    Coded,
    CodeKind,
    Gated,
    Layer,
    Model,
    Node,
    Repeated,
    Row,
    Sum,
    Wasteful,
)

Part = tuple[Node, int]
"""A part and the channels that leave it."""

DEEPEST = 2
"""Containers within containers."""
WIDEST = {0: 12, 1: 12, 2: 10, 3: 6}
CODES: tuple[CodeKind, ...] = (
    *("factor", "divide", "negate", "gamma", "beta", "relu", "pad", "clone", "view"),
)
ACTIVATIONS = ("relu", "leaky_relu", "prelu")
BETWEEN = ("dropout", "identity")
"""Layers that give what they take, in eval mode."""


class Source:
    """Draws models of `rank` axes behind the channels."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.rank = self.rng.choices((0, 1, 2, 3), (12, 28, 48, 12))[0]

    def model(self) -> tuple[Model, int]:
        """A model and the channels that it takes."""
        channels = given = self.width()
        parts: list[Node] = []
        for _ in range(self.rng.choices((1, 2, 3, 4), (15, 45, 30, 10))[0]):
            part, channels = self.part(channels, keeps=False, depth=0)
            parts.append(part)
        if self.rank and self.chance(0.12):
            parts += self.head(channels)
        taps: tuple[int, ...] = ()
        output = self.rng.choices(("tensor", "tuple", "dict"), (70, 15, 15))[0]
        if output != "tensor":
            taps = tuple(index for index in range(len(parts)) if self.chance(0.35))
        return Model(Row(tuple(parts), self.form()), taps, output), given

    def head(self, channels: int) -> list[Node]:
        """The mean of all samples, and layers of vectors behind it."""
        rank, self.rank = self.rank, 0
        row, _ = self.row(channels, keeps=False, depth=DEEPEST)
        head = [Layer("mean", rank, channels, channels), row]
        self.rank = rank
        return head

    # containers

    def part(self, channels: int, *, keeps: bool, depth: int) -> Part:
        """Mostly rows of layers."""
        if depth >= DEEPEST:
            return self.layer(channels, keeps=keeps)
        draw = self.rng.choices(
            (self.row, self.layer_here, self.sum, self.of_one),
            (40, 25, 20, 15) if depth else (55, 8, 20, 17),
        )[0]
        return draw(channels, keeps=keeps, depth=depth + 1)

    def layer_here(self, channels: int, *, keeps: bool, depth: int) -> Part:
        return self.layer(channels, keeps=keeps)

    def form(self) -> Any:
        return self.rng.choices(("sequential", "list"), (60, 40))[0]

    def row(self, channels: int, *, keeps: bool, depth: int) -> Part:
        """Layers, and now and then a container among them; often a convolution with its norm."""
        parts: list[Node] = []
        for _ in range(self.rng.choices((1, 2, 3), (25, 50, 25))[0]):
            if self.chance(0.12) and depth < DEEPEST:
                part, channels = self.part(channels, keeps=keeps, depth=depth)
                parts.append(part)
                continue
            part, channels = self.layer(channels, keeps=keeps)
            parts.append(part)
            if isinstance(part, Layer) and part.kind in ("conv", "linear", "conv_transpose"):
                if self.chance(0.1):
                    parts.append(Layer(self.rng.choice(BETWEEN), self.rank, channels, channels))
                if self.chance(0.4) and self.can_norm():
                    parts.append(self.batch_norm(channels))
            if self.chance(0.25):
                parts.append(self.activation(channels))
        return Row(tuple(parts), self.form()), channels

    def sum(self, channels: int, *, keeps: bool, depth: int) -> Part:
        """Branches whose sizes agree at every size: all keep it, or all take every second sample,
        as `padding = dilation * (kernel_size - 1) / 2` makes it.
        """
        stride = 1 if keeps or not self.rank or self.chance(0.75) else 2
        out = channels if stride == 1 and self.chance(0.5) else self.width()
        branches: list[Branch] = []
        count = self.rng.choices((2, 3, 4), (70, 25, 5))[0]
        alike = self.centred(channels, out, stride) if self.rank and self.chance(0.2) else None
        if out == channels and stride == 1 and self.chance(0.6):
            branches.append(Branch(None, self.factor()))
        while len(branches) < count:
            part = alike or self.branch(channels, out, stride, depth)
            branches.append(Branch(part, self.factor()))
        self.rng.shuffle(branches)
        form = self.rng.choices(("operators", "in place", "stack"), (60, 25, 15))[0]
        return Sum(tuple(branches), form), out

    def branch(self, channels: int, out: int, stride: int, depth: int) -> Node:
        parts: list[Node] = []
        if self.chance(0.3):
            part, channels = self.part(channels, keeps=True, depth=depth)
            parts.append(part)
        if self.rank:
            parts.append(self.centred(channels, out, stride))
        else:
            parts.append(self.linear(channels, out))
        if self.can_norm() and self.chance(0.4):
            parts.append(self.batch_norm(out))
        if self.chance(0.1):
            parts.append(self.activation(out))
        return parts[0] if len(parts) == 1 else Row(tuple(parts), self.form())

    def factor(self) -> float:
        return self.rng.choices((1.0, -1.0, 0.5, -1.75), (70, 15, 10, 5))[0]

    def of_one(self, channels: int, *, keeps: bool, depth: int) -> Part:
        """A container with one part, or one part that counts."""
        kind = self.rng.choices(
            ("repeated", "wasteful", "gated", "channels last", "coded"), (15, 25, 10, 15, 35)
        )[0]
        if kind == "channels last" and self.rank:
            rank, self.rank = self.rank, 0
            self.is_last = True
            part, out = self.row(channels, keeps=True, depth=DEEPEST)
            self.is_last, self.rank = False, rank
            return ChannelsLast(part), out
        if kind in ("repeated", "gated") or kind == "channels last":
            part = self.branch(channels, channels, 1, depth)
            return (Gated(part) if kind == "gated" else Repeated(part)), channels
        part, out = self.part(channels, keeps=keeps, depth=depth)
        if kind == "wasteful":
            unused, _ = self.layer(channels, keeps=True)
            return Wasteful(part, unused), out
        codes = [c for c in CODES if c != "pad" or (self.rank and not keeps)]
        code = self.rng.choice(codes)
        return Coded(part, code, out, self.rank, self.rng.choice((0.5, -2.0, 1.25))), out

    is_last = False
    """Whether channels are the last axis behind others, which no norm takes."""

    # layers

    def layer(self, channels: int, *, keeps: bool) -> Part:
        if not self.rank:
            return self.layer_of_vectors(channels)
        kinds = {"conv": 55, "point": 22, "batch_norm": 7, "scale": 8, "between": 3, "act": 4}
        if not keeps:
            kinds |= {"conv_transpose": 6, "pad": 5, "avg_pool": 5, "code": 4, "max_pool": 1}
        kind = self.rng.choices(list(kinds), list(kinds.values()))[0]
        if kind in ("conv", "point"):
            out = self.width()
            return self.conv(channels, out, keeps=keeps, point=kind == "point"), out
        if kind == "conv_transpose":
            out = self.width()
            return self.conv_transpose(channels, out), out
        return self.same_channels(kind, channels)

    def same_channels(self, kind: str, channels: int) -> Part:
        if kind == "code":
            return self.code(channels)
        make = {
            "batch_norm": self.batch_norm,
            "scale": self.scale,
            "pad": self.pad,
            "act": self.activation,
            "avg_pool": self.avg_pool,
            "max_pool": lambda c: Layer("max_pool", self.rank, c, c, {"kernel_size": 2}),
            "between": lambda c: Layer(self.rng.choice(BETWEEN), self.rank, c, c),
        }
        return make[kind](channels), channels

    def layer_of_vectors(self, channels: int) -> Part:
        kinds = {"linear": 60, "scale": 10, "act": 7, "between": 4, "batch_norm": 12}
        if not self.can_norm():
            kinds.pop("batch_norm")
        kind = self.rng.choices(list(kinds), list(kinds.values()))[0]
        if kind == "linear":
            out = self.width()
            return self.linear(channels, out), out
        return self.same_channels(kind, channels)

    def can_norm(self) -> bool:
        return not self.is_last

    def conv(self, channels: int, out: int, *, keeps: bool, point: bool) -> Layer:
        if point:
            settings: dict[str, Any] = {"kernel_size": 1}
            if not keeps and self.chance(0.15):
                settings["stride"] = 2
            return self.with_kernel("conv", channels, out, settings)
        if keeps:
            return self.centred(channels, out, 1)
        kernel = self.kernel()
        dilation = [self.rng.choices((1, 2), (92, 8))[0] for _ in kernel]
        settings = {"kernel_size": self.one_or_each(kernel)}
        settings |= {"dilation": self.one_or_each(dilation)} if max(dilation) > 1 else {}
        if self.chance(0.15):
            strides = [self.rng.choices((1, 2, 3), (40, 50, 10))[0] for _ in kernel]
            settings["stride"] = self.one_or_each(strides)
        widest = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if self.chance(0.45):
            padding = [self.rng.choice((w, w // 2, self.rng.randint(0, w))) for w in widest]
            settings["padding"] = self.one_or_each(padding)
            settings |= self.mode()
        return self.with_kernel("conv", channels, out, settings)

    def centred(self, channels: int, out: int, stride: int) -> Layer:
        """As many outputs as inputs, by `stride` less."""
        kernel = [self.rng.choice((1, 3, 3, 3, 3, 5)) for _ in range(self.rank)]
        if self.chance(0.6):
            kernel = kernel[:1] * self.rank
        if self.chance(0.3) and stride == 1:
            same: dict[str, Any] = {
                "kernel_size": self.one_or_each(self.kernel()),
                "padding": "same",
            }
            return self.with_kernel("conv", channels, out, same | self.mode())
        dilation = self.rng.choices((1, 2), (92, 8))[0]
        settings: dict[str, Any] = {
            "kernel_size": self.one_or_each(kernel),
            "padding": self.one_or_each([dilation * (k - 1) // 2 for k in kernel]),
        }
        settings |= {"stride": stride} if stride > 1 else {}
        settings |= {"dilation": dilation} if dilation > 1 else {}
        return self.with_kernel("conv", channels, out, settings | self.mode())

    def mode(self) -> dict[str, str]:
        modes = ("zeros", "reflect", "replicate", "circular")
        mode = self.rng.choices(modes, (82, 6, 6, 6))[0]
        return {} if mode == "zeros" else {"padding_mode": mode}

    def conv_transpose(self, channels: int, out: int) -> Layer:
        kernel = self.rng.choice((1, 2, 3, 4))
        stride = self.rng.choice((1, 2, 2, 3))
        settings: dict[str, Any] = {"kernel_size": kernel, "stride": stride}
        if self.chance(0.4):
            settings["padding"] = self.rng.randint(0, (kernel - 1) // 2)
        if stride > 1 and self.chance(0.3):
            settings["output_padding"] = 1
        return self.with_kernel("conv_transpose", channels, out, settings)

    def linear(self, channels: int, out: int) -> Layer:
        return self.with_kernel("linear", channels, out, {})

    def with_kernel(self, kind: str, channels: int, out: int, settings: dict[str, Any]) -> Layer:
        settings["bias"] = self.chance(0.55)
        common = gcd(channels, out)
        divisors = [g for g in range(2, common + 1) if common % g == 0]
        if kind != "linear" and divisors and self.chance(0.25):
            settings["groups"] = self.rng.choice((common, self.rng.choice(divisors)))
        if self.chance(0.06):
            settings["normed"] = self.rng.choice(("weight_norm", "parametrized"))
        return Layer(kind, self.rank if kind != "linear" else 0, channels, out, settings)

    def batch_norm(self, channels: int) -> Layer:
        settings: dict[str, Any] = {"eps": self.rng.choice((1e-5, 1e-3, 0.1))}
        settings |= {"affine": False} if self.chance(0.15) else {}
        return Layer("batch_norm", self.rank, channels, channels, settings)

    def scale(self, channels: int) -> Layer:
        forms = ("parameter", "scalar", "buffer", "unsaved", "shift", "number")
        form = self.rng.choices(forms, (30, 10, 20, 10, 15, 15))[0]
        settings: dict[str, Any] = {"form": form}
        settings |= {"number": self.rng.choice((0.5, -1.5))} if form == "number" else {}
        return Layer("scale", self.rank, channels, channels, settings)

    def pad(self, channels: int) -> Layer:
        mode = self.rng.choices(("zeros", "reflect", "replicate"), (70, 15, 15))[0]
        amounts = [self.rng.randint(0, 2) for _ in range(2 * self.rank)]
        return Layer("pad", self.rank, channels, channels, {"mode": mode, "padding": amounts})

    def avg_pool(self, channels: int) -> Layer:
        kernel = self.rng.choice((2, 3))
        settings: dict[str, Any] = {"kernel_size": kernel}
        settings |= {"stride": self.rng.choice((1, 2))} if self.chance(0.5) else {}
        settings |= {"padding": 1} if self.chance(0.4) else {}
        settings |= {"count_include_pad": False} if self.chance(0.2) else {}
        settings |= {"ceil_mode": True} if self.chance(0.1) else {}
        return Layer("avg_pool", self.rank, channels, channels, settings)

    def activation(self, channels: int) -> Layer:
        kind = self.rng.choice(ACTIVATIONS)
        settings = (
            {"inplace": True} if kind == "relu" and self.chance(0.4 * (not self.is_last)) else {}
        )
        return Layer(kind, self.rank, channels, channels, settings)

    def code(self, channels: int) -> Part:
        kinds = ["cat", "interpolate"] + ["permute"] * (self.rank > 1) + ["chunk"] * (channels > 1)
        kind = self.rng.choice(kinds)
        out = 2 * channels if kind == "cat" else channels
        return Layer(kind, self.rank, channels, out), out

    # numbers

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def width(self) -> int:
        widths = [w for w in (1, 2, 3, 4, 4, 6, 6, 8, 10, 12) if w <= WIDEST[self.rank]]
        return self.rng.choice(widths)

    def kernel(self) -> list[int]:
        shares = (15, 25, 40, 10, 10) if self.rank < 3 else (30, 30, 40, 0, 0)
        if self.chance(0.6):
            return self.rng.choices((1, 2, 3, 4, 5), shares) * self.rank
        return self.rng.choices((1, 2, 3, 4, 5), shares, k=self.rank)

    def one_or_each(self, numbers: Sequence[int]) -> Any:
        return numbers[0] if len(set(numbers)) == 1 and self.chance(0.7) else tuple(numbers)
