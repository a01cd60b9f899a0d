"""Draw where plain merging is wrong, and that corrected merging is not: the figure of the README.

    python samples/figures/border.py

Four pairs with random weights and inputs, in float64; each panel shows, for every output pixel, the
difference between the pair and its merge as a share of the largest output. Needs matplotlib.
"""

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import convsqueeze
from convsqueeze.module import SqueezedConv, module_of
from convsqueeze.recipe import read_recipe

PAIRS: dict[str, tuple[list[dict[str, Any]], tuple[int, int, int], int]] = {
    "3x3, then 3x3": ([{"kernel_size": 3, "padding": 1}] * 2, (16, 64, 16), 20),
    "1x1 with bias, then 3x3": (
        [{"kernel_size": 1}, {"kernel_size": 3, "padding": 1}],
        (16, 64, 16),
        20,
    ),
    "ConvNeXt stem: 3x3 stride 2, twice": (
        [{"kernel_size": 3, "padding": 1, "stride": 2}] * 2,
        (3, 24, 40),
        78,
    ),
    "VAN: 5x5, then 7x7 dilation 3": (
        [
            {"kernel_size": 5, "padding": 2, "groups": 8},
            {"kernel_size": 7, "padding": 9, "dilation": 3, "groups": 8},
        ],
        (8, 8, 8),
        40,
    ),
}
"""Layers, channels and input size by name."""


def pair_of(settings: list[dict[str, Any]], channels: tuple[int, int, int]) -> nn.Sequential:
    """The two layers, float64."""
    layers = [
        nn.Conv2d(channels[index], channels[index + 1], **one) for index, one in enumerate(settings)
    ]
    return nn.Sequential(*layers).double().requires_grad_(False)


def merged(pair: nn.Sequential, settings: list[dict[str, Any]], border: str) -> SqueezedConv:
    """The pair as one layer."""
    first, second = (
        {"name": str(index)} | {key: value for key, value in one.items() if key != "kernel_size"}
        for index, one in enumerate(settings)
    )
    manifest = {"version": 1, "border": border, "pairs": [{"first": first, "second": second}]}
    tensors, _ = convsqueeze.merge_state_dict(pair.state_dict(), manifest, growth="allow")
    recipe = read_recipe(tensors._metadata["convsqueeze"], "the merged state dict")
    return module_of(recipe.layers[0], tensors).requires_grad_(False)


def share_wrong(pair: nn.Module, layer: nn.Module, channels: int, size: int) -> Tensor:
    """(height, width): the worst channel's difference over the largest output."""
    x = torch.randn(1, channels, size, size, dtype=torch.float64)
    true = pair(x)
    return (layer(x) - true).abs().amax(dim=(0, 1)) / true.abs().max()


def main() -> None:
    """Write border.png beside this file and print the figures in it."""
    torch.manual_seed(0)
    figure = Figure(figsize=(11.5, 6.2), layout="constrained")
    axes = figure.subplots(2, len(PAIRS))
    for column, (title, (settings, channels, size)) in enumerate(PAIRS.items()):
        pair = pair_of(settings, channels)
        before = sum(p.numel() for p in pair.parameters())
        for row, border in enumerate(("interior", "corrected")):
            layer = merged(pair, settings, border)
            wrong = share_wrong(pair, layer, channels[0], size)
            weights = sum(p.numel() for p in layer.parameters())
            share = float((wrong > 1e-12).double().mean())
            print(
                f"{title}, {border}: {share:.0%} of the pixels wrong, largest difference "
                f"{wrong.max():.1e}, {before:,} -> {weights:,} weights"
            )
            place = axes[row, column]
            drawn = place.imshow(wrong, vmin=0, vmax=0.3, cmap="magma_r")
            told = f"{share:.0%} of pixels wrong, up to {wrong.max():.0%}"
            if not share:
                told = f"exact: {wrong.max():.0e}"
            place.set_xlabel(f"{told}\n{before:,} -> {weights:,} weights", fontsize=9)
            place.set_xticks([])
            place.set_yticks([])
        axes[0, column].set_title(title, fontsize=10)
    axes[0, 0].set_ylabel("plain (border: interior)")
    axes[1, 0].set_ylabel("border: corrected")
    figure.colorbar(drawn, ax=axes, label="difference, share of the largest output", shrink=0.6)
    figure.savefig(Path(__file__).with_name("border.png"), dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()
