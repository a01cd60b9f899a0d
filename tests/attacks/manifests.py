"""Small files whose manifests ask for much: numbers that no network has, in every place there is.

Each is a chain of layers with small tensors. What matters is that a run of any of them ends soon,
in little memory, done or refused in words.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Item = dict[str, Any]


@dataclass(frozen=True)
class Large:
    """One entry, and the shapes of its layers' weights, ones of `dtype`; biases by request."""

    entry: Item
    shapes: Mapping[str, tuple[int, ...]]
    biases: tuple[str, ...] = ()
    dtype: torch.dtype = field(default=torch.float32)

    @property
    def manifest(self) -> Item:
        return {"version": 1, "pairs": [self.entry]}

    def tensors(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)

        def drawn(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.dtype)

        found = {f"{name}.weight": drawn(shape) for name, shape in self.shapes.items()}
        return found | {f"{name}.bias": drawn(self.shapes[name][:1]) for name in self.biases}


def chain(*links: Item, **more: Any) -> Item:
    return {"chain": list(links), "into": "m", **more}


def square(rank: int, taps: int, channels: int = 1) -> tuple[int, ...]:
    return (channels, channels, *(taps,) * rank)


def _row(rank: int, taps: int, count: int, channels: int = 1) -> dict[str, tuple[int, ...]]:
    return {f"l{index}": square(rank, taps, channels) for index in range(count)}


def _strided(rank: int, strides: tuple[int, ...], padding: int = 1, **more: Any) -> Large:
    links = [
        {"name": f"l{n}", "stride": stride, "padding": padding} for n, stride in enumerate(strides)
    ]
    return Large(chain(*links, **more), _row(rank, 3, len(strides)))


def _pair(rank: int, taps: int, channels: int = 1, *, of: Item, then: Item, **more: Any) -> Large:
    links = {"name": "l0", **of}, {"name": "l1", **then}
    return Large(chain(*links), _row(rank, taps, 2, channels), **more)


def _sums(depth: int, branches: int) -> Large:
    """A chain of sums of scales, of which every combination of branches is a path of its own."""
    scales: list[Item] = [{"type": "scale", "factor": 0.5} for _ in range(branches)]
    links: list[Item] = [{"name": "l0", "padding": 1}, *({"sum": scales} for _ in range(depth))]
    return Large(chain(*links, {"name": "l1", "padding": 1}), _row(1, 3, 2))


def _nested(depth: int) -> Large:
    """Chains and sums in each other."""
    item: Item = {"sum": [{"name": "l0", "padding": 1}, {"name": "l1", "padding": 1}]}
    for _ in range(depth):
        item = {"sum": [{"chain": [item, {"type": "scale", "factor": 0.5}]}, {"type": "identity"}]}
    return Large({**item, "into": "m"}, _row(2, 3, 2))


LARGE = {
    "coprime strides, 1-d": _strided(1, (2, 3, 5, 7, 11)),
    "coprime strides, 2-d": _strided(2, (2, 3, 5, 7, 11)),
    "coprime strides, 3-d": _strided(3, (2, 3, 5, 7)),
    "coprime strides, unpadded, 2-d": _strided(2, (7, 11, 13), 0),
    "coprime strides, unpadded, 3-d": _strided(3, (5, 7, 9), 0),
    "coprime strides, 1-d, up to the limit": _strided(1, (7, 8, 9, 11, 13)),
    "many small strides, 2-d": _strided(2, (2,) * 8),
    "strides of 65,536, 2-d": _strided(2, (1 << 16,), 0),
    "strides of 2,000, 2-d": _strided(2, (2000, 1), 0),
    "strides of 200, 3-d": _strided(3, (200, 1), 0),
    "coprime strides of branches": Large(
        chain(
            {"name": "l0", "padding": 1},
            {"sum": [{"name": "l1", "stride": 97, "padding": 1}, {"type": "pad", "padding": 0}]},
        ),
        _row(2, 3, 2),
    ),
    "dilation 30,000, 1-d": _pair(
        1, 3, of={"dilation": 30_000}, then={"dilation": 1, "padding": 30_000}
    ),
    "dilation 1,000, 2-d": _pair(2, 3, of={"dilation": 1000}, then={"padding": 1}),
    "dilation 1,000 and 999, 2-d": _pair(2, 3, of={"dilation": 1000}, then={"dilation": 999}),
    "dilation 200 and 199, 3-d": _pair(3, 3, of={"dilation": 200}, then={"dilation": 199}),
    "dilation 20,000 in line, 2-d": _pair(2, 3, of={"dilation": 20_000}, then={"dilation": 20_000}),
    "kernels of 32, 3-d": _pair(3, 32, of={}, then={}),
    "kernels of 32, padded, 3-d": _pair(3, 32, of={"padding": 16}, then={"padding": 16}),
    "kernels of 200, 2-d": _pair(2, 200, of={}, then={}),
    "kernels of 100, padded, 2-d": _pair(2, 100, of={"padding": 50}, then={"padding": 50}),
    "kernels of 20,000, 1-d": _pair(1, 20_000, of={}, then={}),
    "kernels of 1,000, padded, 1-d": _pair(1, 1000, of={"padding": 500}, then={"padding": 500}),
    "ten million taps": Large(
        chain({"name": "l0"}, {"name": "l1"}), {"l0": (1, 1, 10_000_000), "l1": (1, 1, 1)}
    ),
    "padding 60,000, 1-d": _pair(1, 3, of={"padding": 30_000}, then={"padding": 30_000}),
    "padding 60,000, 2-d": _pair(2, 3, of={"padding": 30_000}, then={"padding": 30_000}),
    "padding 60,000, first layer, 2-d": _pair(2, 3, of={"padding": 60_000}, then={}),
    "padding 400, 3-d": _pair(3, 3, of={"padding": 400}, then={}),
    "circular padding 5,000, 2-d": _pair(
        2, 3, of={"padding": 5000, "padding_mode": "circular"}, then={}
    ),
    "reflect padding 5,000, 2-d": _pair(
        2, 1, of={}, then={"padding": 5000, "padding_mode": "reflect"}
    ),
    "pad 1,000,000,000": Large(
        chain({"type": "pad", "padding": 1_000_000_000}, {"name": "l0"}), _row(2, 3, 1)
    ),
    "pad 65,000 to one side, 2-d": Large(
        chain({"type": "pad", "padding": [[65_000, 0], [0, 65_000]]}, {"name": "l0"}), _row(2, 3, 1)
    ),
    "branches far apart": Large(
        {
            "sum": [
                {"name": "l0", "padding": [[6000, 0], [6000, 0]]},
                {"name": "l1", "padding": [[0, 6000], [0, 6000]]},
            ],
            "into": "m",
        },
        _row(2, 3, 2),
    ),
    "cropped by 60,000": Large(
        chain({"type": "pad", "padding": [[-60_000, 0], [-60_000, 0]]}, {"name": "l0"}),
        _row(2, 3, 1),
    ),
    "transposed by 1,000,000": Large(
        chain({"name": "l0"}, {"name": "l1", "type": "conv_transpose", "stride": 1_000_000}),
        _row(2, 3, 2),
    ),
    "transposed by 60,000, 2-d": Large(
        chain({"name": "l0"}, {"name": "l1", "type": "conv_transpose", "stride": 60_000}),
        _row(2, 3, 2),
    ),
    "transposed by 300, 3-d": Large(
        chain({"name": "l0"}, {"name": "l1", "type": "conv_transpose", "stride": 300}),
        _row(3, 2, 2),
    ),
    "output_padding 900, 2-d": Large(
        chain(
            {"name": "l0"},
            {"name": "l1", "type": "conv_transpose", "stride": 1000, "output_padding": 900},
            {"name": "l2", "stride": 7},
        ),
        _row(2, 3, 3),
    ),
    "groups": Large(
        chain({"name": "l0", "groups": 50_000}, {"name": "l1", "groups": 50_000}),
        {"l0": (50_000, 1, 3, 3), "l1": (50_000, 1, 3, 3)},
    ),
    "pool over 1,000,000": Large(
        chain({"type": "avg_pool", "kernel_size": [1_000_000]}, {"name": "l0"}), _row(1, 3, 1)
    ),
    "pool over 65,536 of 1,000 channels": Large(
        chain({"name": "l0"}, {"type": "avg_pool", "kernel_size": 256, "stride": 1}),
        {"l0": (1000, 1, 1, 1)},
    ),
    "pools over 40x40x40": Large(
        chain(
            {"name": "l0"},
            {"type": "avg_pool", "kernel_size": 40, "stride": 1},
            {"type": "avg_pool", "kernel_size": 40, "stride": 1},
        ),
        _row(3, 1, 1, 4),
    ),
    "padded pools": Large(
        chain(
            {"name": "l0"},
            {"type": "avg_pool", "kernel_size": 60, "padding": 30},
            {"type": "avg_pool", "kernel_size": 5, "padding": 2},
        ),
        _row(2, 1, 1, 4),
    ),
    "input 1,000,000,000": Large(
        chain(
            {"name": "l0", "padding": 1},
            {"name": "l1", "padding": 1},
            input=[1_000_000_000, 1_000_000_000],
        ),
        _row(2, 3, 2),
    ),
    "input of 100,000, strided": _strided(2, (64, 64), input=[100_000, 100_003]),
    "paths without number": _sums(12, 4),
    "paths, some": _sums(3, 4),
    "nested 60 deep": _nested(60),
    "nested 20 deep": _nested(20),
    "a row of 300 layers": Large(
        chain(*({"name": f"l{n}", "padding": 1} for n in range(300))), _row(1, 3, 300)
    ),
    "a row of 40 layers, 2-d": Large(
        chain(*({"name": f"l{n}", "padding": 1} for n in range(40))), _row(2, 3, 40)
    ),
    "wide after narrow": Large(
        chain({"name": "l0"}, {"name": "l1"}), {"l0": (1, 9000, 1, 1), "l1": (9000, 1, 3, 3)}
    ),
}
