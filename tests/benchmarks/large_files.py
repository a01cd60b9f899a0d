"""Checkpoints of any size with pairs of layers to merge, and the manifests for them.

`python -m tests.benchmarks.large_files PATH [--gigabytes N] [--pairs N] [--channels N]` makes one:
`.safetensors`, `.safetensors.index.json` or `.pt`, by the suffix of PATH.
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

FILLER = 1 << 24
"""Elements of a tensor that no pair touches, float32."""
SHARD_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Pairs:
    """`count` pairs, each a 3x3 layer from `channels` to twice as many and a 1x1 layer back."""

    count: int = 10
    channels: int = 256

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        random = torch.Generator().manual_seed(0)
        outer, inner = self.channels, 2 * self.channels
        shapes = {"0.weight": (inner, outer, 3, 3), "0.bias": (inner,)}
        shapes |= {"1.weight": (outer, inner, 1, 1), "1.bias": (outer,)}
        for number in range(self.count):
            for name, shape in shapes.items():
                values = torch.randn(shape, generator=random) / math.prod(shape[1:]) ** 0.5
                yield f"pairs.{number}.{name}", values

    @property
    def nbytes(self) -> int:
        """Of the tensors of one of them, before and after the merge."""
        weights = 9 * 2 * self.channels**2 + 2 * self.channels**2 + 9 * self.channels**2
        return 4 * (weights + 4 * self.channels)

    def manifest(self) -> str:
        entries = [
            {
                "first": {"name": f"pairs.{number}.0", "padding": 1},
                "second": {"name": f"pairs.{number}.1"},
            }
            for number in range(self.count)
        ]
        return json.dumps({"version": 1, "pairs": entries})  # JSON is YAML


def make(path: Path, nbytes: int, pairs: Pairs) -> Path:
    """Write a checkpoint of about `nbytes` at `path`; returns the manifest beside it."""
    named = dict(pairs.tensors())
    left = nbytes - sum(tensor.nbytes for tensor in named.values())
    filler = torch.randn(FILLER, generator=torch.Generator().manual_seed(1))
    number = 0
    while left > 0:
        named[f"others.{number}"] = filler[: max(left // 4, 1)] + number
        left -= named[f"others.{number}"].nbytes
        number += 1
    if path.suffix == ".pt":
        torch.save(named, path)
    elif path.name.endswith(".index.json"):
        _save_shards(path, named)
    else:
        save_file(named, path, {"format": "pt"})
    manifest = path.with_name(f"{path.name}.yaml")
    manifest.write_text(pairs.manifest())
    return manifest


def _save_shards(index: Path, named: dict[str, Tensor]) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in named.items():
        if sum(one.nbytes for one in shards[-1].values()) + tensor.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = tensor
    stem = index.name.removesuffix(".safetensors.index.json")
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        home = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, index.with_name(home), {"format": "pt"})
        weight_map |= dict.fromkeys(shard, home)
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.large_files")
    parser.add_argument("path", type=Path)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--channels", type=int, default=256)
    given = parser.parse_args()
    print(make(given.path, int(1e9 * given.gigabytes), Pairs(given.pairs, given.channels)))


if __name__ == "__main__":
    main()
