"""A folder with a checkpoint to merge and maybe an earlier output, and what is in it afterwards."""

import json
import re
import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from convsqueeze.checkpoint import from_state_dict, open_checkpoint, write_checkpoint

FORMATS = {"safetensors": ".safetensors", "pt": ".pt", "shards": ".safetensors.index.json"}
SHARDS = 3
KEPT = 12
"""Tensors of 4 MB that no pair touches, by default: writing then takes as long as the rest."""
PAIRS = """
version: 1
pairs:
  - first: {type: conv, name: body.0}
    second: {type: conv, name: body.1}
    border: exact
"""

DIGITS = re.compile("-[0-9a-f]{8}(?=-[0-9]{5}-of-)")
"""What the name of a shard gets where an earlier output's shard has its name."""

Files = dict[str, str]
"""The sha256 of each file by its name."""


def tensors(seed: int, kept_tensors: int) -> dict[str, Tensor]:
    """A mergeable pair between tensors that are only carried along."""
    generator = torch.Generator().manual_seed(seed)
    kept = {f"kept.{i}": torch.rand(1 << 20, generator=generator) for i in range(kept_tensors)}
    pair = {
        "body.0.weight": torch.randn(256, 32, 3, 3, generator=generator),
        "body.1.weight": torch.randn(32, 256, 1, 1, generator=generator),
    }
    return {
        **dict(list(kept.items())[: KEPT // 2]),
        **pair,
        **dict(list(kept.items())[KEPT // 2 :]),
    }


@dataclass(frozen=True)
class Scene:
    """Files of one format: the input, the output of an earlier input, and the expected output."""

    folder: Path
    form: str

    @property
    def model(self) -> Path:
        return self.folder / f"model{FORMATS[self.form]}"

    @property
    def output(self) -> Path:
        return self.folder / f"out{FORMATS[self.form]}"

    def arguments(self, *, overwrite: bool) -> list[str]:
        """Of the run that is to be killed."""
        pairs = self.folder / "pairs.yaml"
        options = ["--overwrite"] if overwrite else []
        return ["merge", str(self.model), "--pairs", str(pairs), "-o", str(self.output), *options]

    def files(self, *, of_output: bool) -> Files:
        """What the input, or else the output, consists of, whatever its shards are called.

        Of an index, the text with the names that its shards would have at a vacant place.
        """
        return {
            DIGITS.sub("", place.name): _digest(place) for place in self.places(of_output=of_output)
        }

    def places(self, *, of_output: bool) -> list[Path]:
        """The files of the input or of the output that exist: an index leads to its shards."""
        first = self.output if of_output else self.model
        names = [first.name]
        if self.form == "shards" and first.exists():
            names += sorted(set(json.loads(first.read_text())["weight_map"].values()))
        return [self.folder / name for name in names if (self.folder / name).exists()]

    def leftovers(self) -> list[str]:
        """Files that belong neither to the input nor to an output."""
        known = [*self.places(of_output=False), *self.places(of_output=True)]
        names = {"pairs.yaml", *(place.name for place in known)}
        return sorted(path.name for path in self.folder.iterdir() if path.name not in names)

    def copy_to(self, folder: Path, *, with_output: bool) -> "Scene":
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        places = [self.folder / "pairs.yaml", *self.places(of_output=False)]
        places += self.places(of_output=True) if with_output else []
        for place in places:
            shutil.copy2(place, folder / place.name)
        return Scene(folder, self.form)


def _digest(place: Path) -> str:
    if place.suffix == ".json":
        return sha256(DIGITS.sub("", place.read_text()).encode()).hexdigest()
    return sha256(place.read_bytes()).hexdigest()


def built(folder: Path, form: str, seed: int, kept_tensors: int = KEPT) -> Scene:
    """A scene without an output."""
    folder.mkdir(parents=True)
    scene = Scene(folder, form)
    (folder / "pairs.yaml").write_text(PAIRS)
    named = tensors(seed, kept_tensors)
    if form == "shards":
        _write_shards(scene.model, named)
    else:
        write_checkpoint(from_state_dict(named), scene.model, [], "")
    open_checkpoint(scene.model)
    return scene


def _write_shards(index: Path, named: dict[str, Tensor]) -> None:
    names = list(named)
    homes: dict[str, str] = {}
    for number in range(SHARDS):
        shard = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        inside = names[number::SHARDS]
        save_file({name: named[name] for name in inside}, index.parent / shard)
        homes |= dict.fromkeys(inside, shard)
    index.write_text(json.dumps({"metadata": {}, "weight_map": {n: homes[n] for n in names}}))
