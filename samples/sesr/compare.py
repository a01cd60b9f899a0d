"""Run the original and the squeezed network on a picture: both and their difference as one PNG.

    convsqueeze merge samples/sesr/sesr_x2.pt --pairs samples/sesr/pairs.yaml
    python samples/sesr/compare.py

Needs Pillow. The difference is drawn `--gain` times as strong as it is.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from network import SESR
from PIL import Image

import convsqueeze

HERE = Path(__file__).parent


def load_original(path: Path) -> SESR:
    """The network with the weights it was trained to."""
    network = SESR()
    network.load_state_dict(torch.load(path, weights_only=True)["params_ema"])
    return network.eval()


def luminance(path: Path) -> torch.Tensor:
    """A picture's luminance, (1, 1, height, width) from 0 to 1."""
    pixels = np.asarray(Image.open(path).convert("L"), dtype=np.float32) / 255
    return torch.from_numpy(pixels)[None, None]


def to_bytes(image: torch.Tensor) -> np.ndarray:
    """(1, 1, height, width) from 0 to 1 as bytes (height, width)."""
    return (image[0, 0].clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def main() -> None:
    """Write the comparison and print the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--picture", type=Path, default=HERE / "picture.png")
    parser.add_argument("--original", type=Path, default=HERE / "sesr_x2.pt")
    parser.add_argument("--squeezed", type=Path, default=HERE / "sesr_x2.squeezed.pt")
    parser.add_argument("--output", type=Path, default=Path("comparison.png"))
    parser.add_argument("--gain", type=float, default=1e5)
    options = parser.parse_args()

    original = load_original(options.original)
    squeezed = convsqueeze.apply(original, options.squeezed)
    small = luminance(options.picture)
    with torch.no_grad():
        before, after = original(small), squeezed(small)
    difference = (after - before).abs()
    panels = [to_bytes(before), to_bytes(after), to_bytes(difference * options.gain)]
    Image.fromarray(np.concatenate(panels, axis=1)).save(options.output)

    counts = [sum(p.numel() for p in model.parameters()) for model in (original, squeezed)]
    print(f"weights {counts[0]:,} -> {counts[1]:,}")
    print(f"largest difference {difference.max():.2e} of 1.0 (float32)")
    print(f"original | squeezed | difference x {options.gain:g}: {options.output}")


if __name__ == "__main__":
    main()
