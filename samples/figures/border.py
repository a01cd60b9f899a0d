"""Draw where plain merging is wrong: the figure of the README.

    python samples/figures/border.py

Three pairs on a 16x16 input with random weights and values; each panel shows, for every output
pixel, the difference between the pair and its plain merge as a share of the largest output. Needs
matplotlib.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from convsqueeze import Conv
from convsqueeze.algebra.layers import convolution

SIZE, CHANNELS = 16, 16


def random_layer(kernel_size: int, padding: int, *, stride: int = 1, bias: bool = False) -> Conv:
    """A convolution of 16 channels with the weights torch would start with, float64."""
    fan_in = CHANNELS * kernel_size**2
    weight = torch.randn(CHANNELS, CHANNELS, kernel_size, kernel_size, dtype=torch.float64)
    shift = torch.randn(CHANNELS, dtype=torch.float64) / 4 if bias else None
    return convolution(weight / fan_in**0.5, shift, stride=stride, padding=padding)


def share_wrong(inner: Conv, outer: Conv) -> torch.Tensor:
    """(height, width): the worst channel's difference over the largest output."""
    x = torch.randn(1, CHANNELS, SIZE, SIZE, dtype=torch.float64)
    true = outer(inner(x))
    return ((outer @ inner)(x) - true).abs().amax(dim=(0, 1)) / true.abs().max()


def main() -> None:
    """Write border.png beside this file and print the figures in it."""
    torch.manual_seed(0)
    panels = {
        "3x3 pad 1, then 3x3 pad 1": (random_layer(3, 1), random_layer(3, 1)),
        "1x1 with bias, then 3x3 pad 1": (random_layer(1, 0, bias=True), random_layer(3, 1)),
        "3x3 pad 2, then 3x3 pad 2": (random_layer(3, 2), random_layer(3, 2)),
    }
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.2), layout="constrained")
    for place, (title, (inner, outer)) in zip(axes, panels.items(), strict=True):
        wrong = share_wrong(inner, outer)
        count = int((wrong > 1e-12).sum())
        print(f"{title}: {count} of {wrong.numel()} pixels wrong, by up to {wrong.max():.1%}")
        drawn = place.imshow(wrong, vmin=0, vmax=0.3, cmap="magma_r")
        place.set_title(title, fontsize=10)
        told = "exact" if count == 0 else f"{count / wrong.numel():.0%} of the pixels wrong"
        place.set_xlabel(told, fontsize=9)
        place.set_xticks([])
        place.set_yticks([])
    figure.colorbar(drawn, ax=axes, label="share of the largest output", shrink=0.8)
    figure.savefig(Path(__file__).with_name("border.png"), dpi=110)


if __name__ == "__main__":
    main()
