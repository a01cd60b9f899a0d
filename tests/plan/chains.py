"""Random chains and sums of layers as a manifest writes them, with tensors of their shapes.

Knows the manifest's words and torch's conventions, nothing of convsqueeze but how many numbers and
multiplications a layer has, which is counted here from torch's documentation.
"""

import random
from dataclasses import dataclass, field
from math import gcd, prod
from typing import Any

import torch

Item = dict[str, Any]
Size = tuple[int, ...]


@dataclass
class Drawn:
    """An entry's items (links of a chain, or branches of a sum) and the tensors of their layers."""

    rank: int
    items: list[Item] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def weights(self, item: Item) -> int:
        """Numbers that a layer stores; running statistics are some, counters are none."""
        prefix = f"{item.get('name')}."
        return sum(
            tensor.numel()
            for key, tensor in self.tensors.items()
            if key.startswith(prefix) and not key.endswith("num_batches_tracked")
        )

    def macs(self, item: Item, size: Size) -> int:
        """Multiplications of a layer: of every weight at every position that it is applied at."""
        kind = item.get("type", "conv")
        weight = self.tensors.get(f"{item.get('name')}.weight")
        if kind == "conv":
            return (
                prod(self.size_behind(item, size)) * self.tensors[item["name"] + ".weight"].numel()
            )
        if kind == "conv_transpose":
            positions = prod(
                n if s > 1 else out
                for n, s, out in zip(
                    size, [item["stride"]] * self.rank, self.size_behind(item, size), strict=True
                )
            )
            return positions * self.tensors[item["name"] + ".weight"].numel()
        if kind in ("batch_norm", "scale") and item.get("name"):
            return prod(size) * item["channels"]
        return prod(size) * weight.numel() if kind == "linear" and weight is not None else 0

    def size_behind(self, item: Item, size: Size) -> Size:
        """As torch documents the output size of each layer."""
        kind = item.get("type", "conv")
        if kind in ("conv", "avg_pool"):
            k = item["kernel_size"]
            s, p, d = item.get("stride", 1), item.get("padding", 0), item.get("dilation", 1)
            return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n in size)
        if kind == "conv_transpose":
            k, s, p = item["kernel_size"], item["stride"], item["padding"]
            return tuple((n - 1) * s - 2 * p + k for n in size)
        if kind == "pad":
            return tuple(n + 2 * item["padding"] for n in size)
        return size


def written(item: Item) -> Item:
    """The item without what only this module needs."""
    if "sum" in item or "chain" in item:
        return {key: [written(part) for part in parts] for key, parts in item.items()}
    hidden = {"channels"} | (set() if item.get("type") == "avg_pool" else {"kernel_size"})
    return {key: value for key, value in item.items() if key not in hidden}


class Source:
    """Draws layers; channels, kernels and all else are chosen so that many merges are possible."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.drawn = Drawn(rank=self.rng.choice((1, 1, 2)))
        self.count = 0

    def chain(self, length: int, channels: int | None = None) -> Drawn:
        channels = channels or self.width()
        style = self.rng.choice(("valid", "padded", "any", "narrow", "up"))
        told = self.rng.randrange(length)  # a convolution there says how many axes there are
        for index in range(length):
            make = self.conv if index == told else self.layer
            item = make(channels, style)
            self.drawn.items.append(item)
            channels = item["channels"]
        return self.drawn

    def width(self) -> int:
        return self.rng.choice((1, 2, 3, 4, 6, 8, 12, 24))

    def layer(self, channels: int, style: str) -> Item:
        kinds = ["conv"] * 8 + ["batch_norm"] * 3 + ["scale", "identity", "linear"]
        kinds += ["pad", "avg_pool"] * (style != "valid")
        kinds += ["conv_transpose"] * (3 if style == "up" else 1)
        kind = self.rng.choice(kinds)
        return getattr(self, kind)(channels, style)

    def stored(self, **shapes: tuple[int, ...] | None) -> str:
        name = f"layer{self.count}"
        self.count += 1
        for role, shape in shapes.items():
            if shape is not None:
                self.drawn.tensors[f"{name}.{role}"] = torch.empty(shape, device="meta")
        return name

    def conv(self, channels: int, style: str, out: int | None = None) -> Item:
        rng = self.rng
        out = out or self.width()
        k, d = rng.choice((1, 1, 2, 3, 3)), rng.choice((1, 1, 1, 2))
        groups = rng.choice([g for g in range(1, 25) if gcd(channels, out) % g == 0])
        groups = 1 if rng.random() < 0.6 else groups
        padding = {"valid": 0, "narrow": 0}.get(style, rng.choice((0, 0, 1, d * (k - 1))))
        bias = (out,) if rng.random() < (0.2 if style == "up" else 0.5) else None
        name = self.stored(weight=(out, channels // groups, *(k,) * self.drawn.rank), bias=bias)
        stride = rng.choice((1, 1, 1, 1, 2))
        item: Item = {"name": name, "kernel_size": k, "channels": out, "padding": padding}
        item |= {"stride": stride, "dilation": d, "groups": groups}
        if padding and style == "any" and rng.random() < 0.2:
            item["padding_mode"] = rng.choice(("reflect", "replicate", "circular"))
        return item

    def conv_transpose(self, channels: int, style: str) -> Item:
        out = self.width()
        k, s = self.rng.choice((1, 2, 3, 4)), self.rng.choice((1, 2, 2))
        bias = (out,) if self.rng.random() < 0.5 else None
        name = self.stored(weight=(channels, out, *(k,) * self.drawn.rank), bias=bias)
        padding = self.rng.randint(0, (k - 1) // 2)
        item = {"name": name, "type": "conv_transpose", "kernel_size": k, "channels": out}
        return {**item, "stride": s, "padding": padding}

    def batch_norm(self, channels: int, style: str) -> Item:
        affine = (channels,) if self.rng.random() < 0.8 else None
        shapes = {"weight": affine, "bias": affine, "running_mean": (channels,)}
        name = self.stored(**shapes, running_var=(channels,))
        if self.rng.random() < 0.5:
            self.drawn.tensors[f"{name}.num_batches_tracked"] = torch.empty((), device="meta")
        return {"name": name, "type": "batch_norm", "eps": 1e-5, "channels": channels}

    def scale(self, channels: int, style: str) -> Item:
        if self.rng.random() < 0.3:
            number = self.rng.choice(("factor", "shift"))
            return {"type": "scale", number: 0.5, "channels": channels}
        bias = (channels,) if self.rng.random() < 0.3 else None
        name = self.stored(weight=(channels,), bias=bias)
        return {"name": name, "type": "scale", "channels": channels}

    def identity(self, channels: int, style: str) -> Item:
        return {"type": "identity", "channels": channels}

    def linear(self, channels: int, style: str) -> Item:
        out = self.width()
        bias = (out,) if self.rng.random() < 0.5 else None
        name = self.stored(weight=(out, channels), bias=bias)
        return {"name": name, "type": "linear", "channels": out}

    def pad(self, channels: int, style: str) -> Item:
        return {"type": "pad", "padding": self.rng.choice((-1, 1, 2)), "channels": channels}

    def avg_pool(self, channels: int, style: str) -> Item:
        k, s = self.rng.choice((2, 3)), self.rng.choice((1, 2))
        item = {"type": "avg_pool", "kernel_size": k, "stride": s, "padding": 0}
        return {**item, "channels": channels}
