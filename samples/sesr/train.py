"""Train SESR x2 on the pictures that scikit-image ships, and measure it on held-out ones.

From the repository root, with the dependency group `samples` installed:

    python samples/sesr/train.py

The blocks are collapsed on the fly while training (each pair of kernels becomes one, inside
the graph), which gives the same function and the same gradients about twenty times faster. What
is saved is the un-collapsed network. It takes about 25 minutes on two CPU cores.
"""

import argparse
import copy
import random
import time
from pathlib import Path

import numpy as np
import skimage.data
import torch
from network import SESR, LinearBlock
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

HERE = Path(__file__).resolve().parent
SCALE = 2
SEED = 20
BATCH = 32
PATCH = 32  # low-resolution pixels a side
BORDER = 4  # high-resolution pixels left out of PSNR at each edge
EMA_DECAY = 0.999

# Name of the function in skimage.data, and the sizes at which the picture is trained on.
# The retina is soft at full size: only reduced copies of it carry fine detail.
TRAINING: dict[str, tuple[float, ...]] = {
    "astronaut": (1.0, 0.8, 0.6),
    "brick": (1.0, 0.8, 0.6),
    "grass": (1.0, 0.8, 0.6),
    "gravel": (1.0, 0.8, 0.6),
    "hubble_deep_field": (1.0, 0.7, 0.5),
    "immunohistochemistry": (1.0, 0.8, 0.6),
    "retina": (0.5, 0.35),
    "rocket": (1.0, 0.8, 0.6),
    "text": (1.0, 0.8),
}
HELD_OUT = ("camera", "chelsea", "coffee", "coins")

Pair = tuple[Tensor, Tensor]


def picture(name: str) -> Image.Image:
    """Load one picture of scikit-image, grey or colour, as it is shipped."""
    return Image.fromarray(getattr(skimage.data, name)())


def luminance(image: Image.Image, size: float = 1.0) -> Image.Image:
    """The 8-bit luminance (ITU-R 601, 0 to 255), resized, cropped to even sides."""
    grey = image.convert("L")
    if size != 1.0:
        grey = grey.resize(
            (round(grey.width * size), round(grey.height * size)), Image.Resampling.BICUBIC
        )
    return grey.crop((0, 0, grey.width // SCALE * SCALE, grey.height // SCALE * SCALE))


def halve(high: Image.Image) -> Image.Image:
    """The low-resolution input: Pillow's bicubic, which widens its filter against aliasing."""
    return high.resize((high.width // SCALE, high.height // SCALE), Image.Resampling.BICUBIC)


def to_tensor(image: Image.Image) -> Tensor:
    """An 8-bit grey picture as (1, H, W), 0 to 1."""
    return torch.from_numpy(np.array(image, dtype=np.float32) / 255.0)[None]


def training_pictures() -> list[list[Pair]]:
    """Per training picture, a (low, high) pair for each of its sizes."""
    pictures = []
    for name, sizes in TRAINING.items():
        highs = [luminance(picture(name), size) for size in sizes]
        pictures.append([(to_tensor(halve(high)), to_tensor(high)) for high in highs])
    return pictures


def crop(pair: Pair, rng: random.Random) -> Pair:
    """A random patch, turned and mirrored at random: (1, PATCH, PATCH) and twice that."""
    low, high = pair
    top = rng.randrange(low.shape[1] - PATCH + 1)
    left = rng.randrange(low.shape[2] - PATCH + 1)
    turns, mirror = rng.randrange(4), rng.random() < 0.5
    patches = []
    for image, k in ((low, 1), (high, SCALE)):
        patch = image[:, k * top : k * (top + PATCH), k * left : k * (left + PATCH)]
        patch = torch.rot90(patch, turns, (1, 2))
        patches.append(patch.flip(2) if mirror else patch)
    return patches[0], patches[1]


def batch(pictures: list[list[Pair]], rng: random.Random) -> Pair:
    """Low (BATCH, 1, PATCH, PATCH) and high (BATCH, 1, 2 * PATCH, 2 * PATCH) patches."""
    crops = [crop(rng.choice(rng.choice(pictures)), rng) for _ in range(BATCH)]
    return torch.stack([low for low, _ in crops]), torch.stack([high for _, high in crops])


def collapsed(block: LinearBlock, x: Tensor) -> Tensor:
    """The block's forward pass through one kernel (out, in, k, k), made from its two."""
    project, expand = block.project.weight[:, :, 0, 0], block.expand.weight
    kernel = torch.einsum("om,mihw->oihw", project, expand)
    y = functional.conv2d(x, kernel, block.project.bias, padding=kernel.shape[-1] // 2)
    return x + y if block.residual else y


def fast_forward(net: SESR, x: Tensor) -> Tensor:
    """SESR.forward with every linear block collapsed: (N, 1, H, W) to (N, 1, 2H, 2W)."""
    first = net.acts[0](collapsed(net.head, x))
    y = first
    for block, act in zip(net.body, net.acts[1:], strict=True):
        y = act(collapsed(block, y))
    return net.shuffle(collapsed(net.tail, y + first) + x)


def check_same(net: SESR) -> None:
    """Stop if the fast forward pass and the network's own have come apart."""
    x = torch.rand(2, 1, 24, 20)
    with torch.no_grad():
        torch.testing.assert_close(fast_forward(net, x), net(x), rtol=1e-4, atol=1e-5)


def train(iterations: int, rate: float) -> SESR:
    """Train with L1 and Adam, cosine decay to nothing; return the averaged network."""
    rng = random.Random(SEED)
    torch.manual_seed(SEED)
    pictures = training_pictures()
    net = SESR(scale=SCALE)
    ema = copy.deepcopy(net).requires_grad_(False)
    adam = torch.optim.Adam(net.parameters(), lr=rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, iterations)
    begun, running = time.perf_counter(), 0.0
    for step in range(1, iterations + 1):
        low, high = batch(pictures, rng)
        loss = functional.l1_loss(fast_forward(net, low), high)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        cosine.step()
        with torch.no_grad():
            decay = min(EMA_DECAY, step / (step + 10))
            for mean, new in zip(ema.parameters(), net.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)
        running += loss.item()
        if step % 1000 == 0:
            seconds = time.perf_counter() - begun
            print(f"{step:6d}  L1 {running / 1000:.5f}  {seconds:5.0f} s", flush=True)
            running = 0.0
    check_same(ema)
    return ema


def psnr(result: Image.Image, truth: Image.Image) -> float:
    """PSNR in dB of one 8-bit picture against another, BORDER pixels left out all round."""
    difference = np.asarray(result, dtype=np.float64) - np.asarray(truth, dtype=np.float64)
    inner = difference[BORDER:-BORDER, BORDER:-BORDER]
    return float(10 * np.log10(255.0**2 / np.mean(inner**2)))


def upscale(net: SESR, low: Image.Image) -> Image.Image:
    """The network's 8-bit result, through its own (un-collapsed) forward pass."""
    with torch.no_grad():
        high = net(to_tensor(low)[None])[0, 0]
    return Image.fromarray((high.clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def evaluate(net: SESR) -> dict[str, tuple[float, float]]:
    """PSNR of bicubic and of the network on each held-out picture, printed as a table."""
    scores = {}
    print(f"\n| {'picture':9} | bicubic | SESR  | gain  |\n|{'-' * 11}|--------:|------:|------:|")
    for name in HELD_OUT:
        high = luminance(picture(name))
        low = halve(high)
        bicubic = psnr(low.resize(high.size, Image.Resampling.BICUBIC), high)
        scores[name] = bicubic, psnr(upscale(net, low), high)
    means = [float(np.mean([score[i] for score in scores.values()])) for i in (0, 1)]
    for name, (bicubic, sesr) in {**scores, "mean": (means[0], means[1])}.items():
        print(f"| {name:9} | {bicubic:7.2f} | {sesr:5.2f} | {sesr - bicubic:+5.2f} |")
    return scores


def save(net: SESR, iterations: int, folder: Path) -> None:
    """Write the un-collapsed weights as a BasicSR-style .pt and as flat safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    state = net.state_dict()
    torch.save({"params_ema": state, "iter": iterations}, folder / "sesr_x2.pt")
    save_file(dict(state), folder / "sesr_x2.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Train, save, and measure."""
    parser = argparse.ArgumentParser(description="train SESR x2 on scikit-image's pictures")
    parser.add_argument("--iterations", type=int, default=28000)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the two files")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    net = train(args.iterations, args.rate)
    save(net, args.iterations, args.out)
    evaluate(net)


if __name__ == "__main__":
    main()
