"""Layers as a manifest writes them, drawn from a seed, with tensors to go with them.

Knows the manifest's words and torch's conventions, nothing of convsqueeze. Every part carries what
it does to sizes, so that branches can be made to fit each other.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import Any

import torch
from torch import Tensor

Item = dict[str, Any]
Pair = tuple[int, int]

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Sizes:
    """What a part does to the size of one axis: `n -> (up*(n-1) + slack) // stride + 1`."""

    up: int = 1
    stride: int = 1
    slack: int = 0

    def then(self, outer: "Sizes") -> "Sizes":
        """Right wherever the two make one convolution; elsewhere nothing is built on it."""
        return Sizes(
            self.up * outer.up,
            self.stride * outer.stride,
            outer.up * self.slack + self.stride * outer.slack,
        )


@dataclass(frozen=True)
class Part:
    """A layer, a chain or a sum, the channels that leave it and what it does to each axis."""

    item: Item
    channels: int
    sizes: tuple[Sizes, ...]


@dataclass(frozen=True)
class Wish:
    """What a link of a chain should be like. `padding`: none, full, same, some, wide
    (also wider than the kernel) or any.
    """

    padding: str = "any"
    bias: bool | None = None
    mode: str = "zeros"
    stride: bool = True
    taps: str = "any"


@dataclass
class LayerSource:
    """Draws layers and keeps their tensors."""

    seed: int
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.values = torch.Generator().manual_seed(self.seed)
        self.rank = self.rng.choices((0, 1, 2, 3), (3, 45, 36, 16))[0]
        self.dtype = self.rng.choices(DTYPES, (40, 25, 17, 18))[0]

    def link(self, channels: int, wish: Wish, out: int | None = None) -> Part:
        """Any kind of layer that grants the wish; mostly a convolution."""
        free = out is None or out == channels
        kinds = ["conv"] * 12
        if wish.taps != "many" and wish.padding != "size":
            kinds += ["linear"] * 2 + ["avg_pool"] * (2 * free * wish.stride)
            kinds += ["pad"] * free + ["scale"] * free + ["identity"] * free
            kinds += ["batch_norm"] * (2 * free * (wish.bias is not False))
        elif wish.padding == "size":
            kinds += ["linear"] + ["batch_norm"] * free + ["scale"] * free
        kind = self.rng.choice(kinds)
        if kind == "conv":
            return self.conv(channels, wish, out=out)
        if kind == "linear":
            return self.linear(channels, wish.bias, out=out)
        if kind == "avg_pool":
            return self.avg_pool(channels, wish)
        if kind == "pad":
            return self.pad(channels, wish)
        make = {"scale": self.scale, "identity": self.identity, "batch_norm": self.batch_norm}
        return make[kind](channels, wish.bias)

    def conv(self, channels: int, wish: Wish, out: int | None = None) -> Part:
        kernel, dilation = self.kernel(wish.taps), self.dilation()
        strides = self.strides() if wish.stride else [1] * self.rank
        pairs = [
            self.padding(wish.padding, d * (k - 1) + 1, s)
            for k, s, d in zip(kernel, strides, dilation, strict=True)
        ]
        out = out or self.width()
        return self.conv_of(channels, out, kernel, strides, dilation, pairs, wish.bias, wish.mode)

    def conv_of(
        self,
        channels: int,
        out: int,
        kernel: Sequence[int],
        strides: Sequence[int],
        dilation: Sequence[int],
        pairs: Sequence[Pair],
        bias: bool | None,
        mode: str,
    ) -> Part:
        groups = self.groups(channels, out)
        name = self.stored(
            weight=(out, channels // groups, *kernel), bias=(out,) if self.biased(bias) else None
        )
        item: Item = {"name": name, **self.steps(strides, dilation, groups)}
        item |= self.written_padding(pairs, list(zip(kernel, strides, dilation, strict=True)))
        if mode != "zeros":
            item["padding_mode"] = mode
        if self.chance(0.2):
            item["type"] = "conv"
        sizes = [
            Sizes(1, s, low + high - d * (k - 1))
            for k, s, d, (low, high) in zip(kernel, strides, dilation, pairs, strict=True)
        ]
        return Part(item, out, tuple(sizes))

    def transposed(self, channels: int, bias: bool | None, out: int | None = None) -> Part:
        kernel, dilation = self.kernel("any"), self.dilation()
        strides = self.strides(often=True)
        pairs, extras = [], []
        for k, s, d in zip(kernel, strides, dilation, strict=True):
            reach = d * (k - 1)
            low = self.rng.randint(0, reach)
            pairs.append((low, low) if self.chance(0.8) else (low, self.rng.randint(0, reach)))
            extras.append(self.rng.randrange(max(s, d)) if self.chance(0.35) else 0)
        out = out or self.width()
        return self.transposed_of(channels, out, kernel, strides, dilation, pairs, extras, bias)

    def transposed_of(
        self,
        channels: int,
        out: int,
        kernel: Sequence[int],
        strides: Sequence[int],
        dilation: Sequence[int],
        pairs: Sequence[Pair],
        extras: Sequence[int],
        bias: bool | None,
    ) -> Part:
        groups = self.groups(channels, out)
        name = self.stored(
            weight=(channels, out // groups, *kernel), bias=(out,) if self.biased(bias) else None
        )
        item: Item = {"name": name, "type": "conv_transpose"}
        item |= self.steps(strides, dilation, groups) | self.written_padding(pairs, None)
        if any(extras):
            item["output_padding"] = self.written(extras)
        sizes = [
            Sizes(s, 1, d * (k - 1) - low - high + extra)
            for k, s, d, (low, high), extra in zip(
                kernel, strides, dilation, pairs, extras, strict=True
            )
        ]
        return Part(item, out, tuple(sizes))

    def linear(self, channels: int, bias: bool | None, out: int | None = None) -> Part:
        out = out or self.width()
        name = self.stored(weight=(out, channels), bias=(out,) if self.biased(bias) else None)
        return Part({"name": name, "type": "linear"}, out, (Sizes(),) * self.rank)

    def batch_norm(self, channels: int, _: bool | None = None) -> Part:
        affine = (channels,) if self.chance(0.8) else None
        dtype = torch.float32 if self.chance(0.15) else self.dtype
        name = self.stored(dtype=dtype, weight=affine, bias=affine, running_mean=(channels,))
        variance = self.drawn((channels,)).abs() + 0.1
        if self.chance(0.25):
            variance[self.rng.randrange(channels)] = 0.0
        self.tensors[f"{name}.running_var"] = variance.to(dtype)
        if self.chance(0.5):
            self.tensors[f"{name}.num_batches_tracked"] = torch.tensor(7)
        half = self.dtype == torch.float16
        eps = self.rng.choice((1e-3, 1e-2, 0.1) if half else (1e-5, 1e-3, 0.1))
        item = {"name": name, "type": "batch_norm", "eps": eps}
        return Part(item, channels, (Sizes(),) * self.rank)

    def scale(self, channels: int, bias: bool | None = None) -> Part:
        item: Item = {"type": "scale"}
        if self.chance(0.6):
            item["factor"] = self.rng.choice((0.5, -2.0, 0.125, 1.7))
        spread = [(channels,), (channels, *(1,) * self.rank), (1,), ()]
        weight = self.rng.choice(spread) if "factor" not in item or self.chance(0.5) else None
        added = self.biased(bias) and self.chance(0.6)
        if self.biased(bias) and self.chance(0.5):
            item["shift"] = self.rng.choice((0.5, -1.3, 2.0))
        if weight is not None or added:
            item["name"] = self.stored(weight=weight, bias=(channels,) if added else None)
        return Part(item, channels, (Sizes(),) * self.rank)

    def identity(self, channels: int, _: bool | None = None) -> Part:
        return Part({"type": "identity"}, channels, (Sizes(),) * self.rank)

    def avg_pool(self, channels: int, wish: Wish) -> Part:
        kernel = self.kernel("any")
        strides = self.strides() if self.chance(0.5) else list(kernel)
        pairs = []
        for k in kernel:
            widest = k // 2
            if wish.padding == "none":
                pairs.append((0, 0))
            elif wish.padding == "full":
                pairs.append((widest, widest))
            else:
                low = self.rng.randint(0, widest)
                pairs.append((low, low if self.chance(0.8) else self.rng.randint(0, widest)))
        item: Item = {"type": "avg_pool", "kernel_size": self.written(kernel)}
        if strides != list(kernel) or self.chance(0.3):
            item["stride"] = self.written(strides)
        item |= self.written_padding(pairs, None)
        sizes = [
            Sizes(1, s, low + high - k + 1)
            for k, s, (low, high) in zip(kernel, strides, pairs, strict=True)
        ]
        return Part(item, channels, tuple(sizes))

    def pad(self, channels: int, wish: Wish) -> Part:
        ranges = {"none": (-2, 0), "full": (0, 3), "same": (1, 2)}
        low, high = ranges.get(wish.padding, (-2, 2))
        pairs = [(self.rng.randint(low, high), self.rng.randint(low, high)) for _ in self.axes()]
        if self.chance(0.4):
            pairs = [(before, before) for before, _ in pairs]
        item = self.pad_item(pairs, wish.mode)
        return Part(item, channels, tuple(padding_sizes(pairs)))

    def pad_item(self, pairs: Sequence[Pair], mode: str) -> Item:
        item: Item = {"type": "pad", "padding": 0, **self.written_padding(pairs, None)}
        if mode != "zeros":
            item["padding_mode"] = mode
        return item

    # numbers

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def biased(self, wanted: bool | None) -> bool:
        return self.chance(0.55) if wanted is None else wanted

    def axes(self) -> range:
        return range(self.rank)

    def width(self) -> int:
        return self.rng.choice((1, 2, 3, 4, 6, 6, 6) if self.rank < 3 else (1, 2, 3, 6))

    def groups(self, channels: int, out: int) -> int:
        common = gcd(channels, out)
        divisors = [g for g in range(2, common + 1) if common % g == 0]
        return 1 if not divisors or self.chance(0.4) else self.rng.choice(divisors)

    def kernel(self, taps: str) -> list[int]:
        if taps == "one":
            return [1] * self.rank
        lowest = 2 if taps == "many" else 1
        widest = 4 if self.rank < 3 else 3
        if self.chance(0.5):
            return [self.rng.randint(lowest, widest)] * self.rank
        return [self.rng.randint(lowest, widest) for _ in self.axes()]

    def dilation(self) -> list[int]:
        shares = ((1, 2, 3), (70, 20, 10)) if self.rank < 3 else ((1, 2, 3), (85, 13, 2))
        if self.chance(0.5):
            return self.rng.choices(*shares) * self.rank
        return [self.rng.choices(*shares)[0] for _ in self.axes()]

    def strides(self, often: bool = False) -> list[int]:
        shares = (25, 50, 25) if often else ((70, 20, 10) if self.rank < 3 else (82, 14, 4))
        if self.chance(0.5):
            return self.rng.choices((1, 2, 3), shares) * self.rank
        return [self.rng.choices((1, 2, 3), shares)[0] for _ in self.axes()]

    def padding(self, kind: str, extent: int, stride: int) -> Pair:
        if kind == "any":
            kind = self.rng.choice(("none", "full", "same", "some", "size"))
        if kind == "wide":
            return self.rng.randint(0, extent + 2), self.rng.randint(0, extent + 2)
        if kind == "none":
            return 0, 0
        if kind == "full":
            least = max(extent - stride, 0) if self.chance(0.5) else extent - 1
            extra = self.rng.randint(0, 1) if self.chance(0.2) else 0
            return least + extra, extent - 1 + extra
        if kind == "same":
            around = max((extent - 1) // 2, 1)
            return around, around
        if kind == "size":
            return (extent - 1) // 2, extent - 1 - (extent - 1) // 2
        low = self.rng.randint(0, extent // 2 + 1)
        if self.chance(0.2):
            return self.rng.choice(((low, 0), (0, low)))
        return low, low if self.chance(0.5) else self.rng.randint(0, extent // 2 + 1)

    # words

    def steps(self, strides: Sequence[int], dilation: Sequence[int], groups: int) -> Item:
        item: Item = {}
        for key, values in (("stride", strides), ("dilation", dilation)):
            if any(value > 1 for value in values) or self.chance(0.1):
                item[key] = self.written(values)
        if groups > 1:
            item["groups"] = groups
        return item

    def written(self, values: Sequence[int]) -> Any:
        """One number, if it is one number and chance has it, or a list."""
        return values[0] if len(set(values)) == 1 and self.chance(0.7) else list(values)

    def written_padding(
        self, pairs: Sequence[Pair], steps: Sequence[tuple[int, int, int]] | None
    ) -> Item:
        """Padding in one of the forms that mean it; `steps` (k, s, d) allow `same` and `valid`."""
        forms: list[Any] = [[list(pair) for pair in pairs]]
        if all(low == high for low, high in pairs):
            forms = [*forms, *[self.written([low for low, _ in pairs])] * 3]
        if steps is not None:
            totals = [d * (k - 1) for k, _, d in steps]
            same = [(total // 2, total - total // 2) for total in totals]
            if list(pairs) == same and all(s == 1 for _, s, _ in steps):
                forms = [*forms, *["same"] * 3]
            if not any(amount for pair in pairs for amount in pair):
                forms.append("valid")
        if not any(amount for pair in pairs for amount in pair) and self.chance(0.5):
            return {}
        return {"padding": self.rng.choice(forms)}

    # tensors

    def stored(self, dtype: torch.dtype | None = None, **shapes: tuple[int, ...] | None) -> str:
        """Tensors of these shapes under a new name."""
        name = f"body.{len({key.rsplit('.', 1)[0] for key in self.tensors})}"
        for role, shape in shapes.items():
            if shape is not None:
                self.tensors[f"{name}.{role}"] = self.drawn(shape).to(dtype or self.dtype)
        return name

    def drawn(self, shape: Sequence[int]) -> Tensor:
        """Values of a size between a tenth and two, of either sign."""
        sizes = torch.rand(tuple(shape), generator=self.values, dtype=torch.float64) * 1.9 + 0.1
        signs = torch.randint(0, 2, tuple(shape), generator=self.values) * 2 - 1
        return sizes * signs

    def entering(self, part: Part) -> int:
        """The channels that enter a layer which keeps their number or holds a linear weight."""
        weight = self.tensors.get(f"{part.item.get('name')}.weight")
        return weight.shape[1] if part.item.get("type") == "linear" else part.channels  # type: ignore[union-attr]


def padding_sizes(pairs: Sequence[Pair]) -> list[Sizes]:
    return [Sizes(1, 1, low + high) for low, high in pairs]
