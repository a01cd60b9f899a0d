"""A small network of squeezed layers with everything beside them that a fault can hide behind, its
squeezed file, and faults to plant in the squeezed model.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import convsqueeze
from convsqueeze.checkpoint import open_checkpoint
from convsqueeze.manifest import manifest_from_data
from convsqueeze.module import SqueezedConv
from convsqueeze.recipe import Recipe, read_recipe


class Block(nn.Module):
    """A 3x3 then a 3x3, both padded, and a norm, with a skip around them."""

    def __init__(self, channels: int, wide: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, wide, 3, padding=1)
        self.project = nn.Conv2d(wide, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.project(self.expand(x)))
        return x + y


class Network(nn.Module):
    """A plain merge (stem), a corrected one (block), activations, dropout, and two outputs, one of
    them pooled over the whole image, where a fault at a border is hardly seen.
    """

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Conv2d(16, 6, 1))
        self.act = nn.GELU()
        self.block = Block(6, 12)
        self.act2 = nn.ReLU()
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.act2(self.block(self.act(self.stem(x))))
        pooled = self.drop(y).mean((2, 3))
        return {"logits": self.head(pooled), "all": (y, None)}


MANIFEST: dict[str, Any] = {
    "version": 1,
    "border": "corrected",
    "pairs": [
        {
            "first": {"name": "stem.0", "stride": 2, "padding": 1},
            "second": {"name": "stem.1"},
        },
        {
            "into": "block.expand",
            "chain": [
                {"name": "block.expand", "padding": 1},
                {"name": "block.project", "padding": 1},
                {"name": "block.norm", "type": "batch_norm", "eps": 1e-3},
            ],
        },
    ],
}


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    model = Network()
    norm = model.block.norm
    nn.init.uniform_(norm.running_mean, -1, 1)
    nn.init.uniform_(norm.running_var, 0.05, 2)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -1, 1)
    return model.to(dtype)


@dataclass(frozen=True)
class Scene:
    """A model, its checkpoint, its squeezed file and the model that has the squeezed layers."""

    model: nn.Module
    original: Path
    squeezed_file: Path

    @property
    def recipe(self) -> Recipe:
        return read_recipe(open_checkpoint(self.squeezed_file).recipe, "squeezed")

    def squeezed(self) -> nn.Module:
        return convsqueeze.apply(self.model, self.squeezed_file)


def scene(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Scene:
    """The network and its squeezed file; `changes` are made to the manifest, at the top."""
    model = network(dtype)
    data = copy.deepcopy(MANIFEST)
    original, squeezed = folder / "model.pt", folder / "model.squeezed.pt"
    torch.save(model.state_dict(), original)
    manifest = manifest_from_data({**data, **changes}, "test")
    convsqueeze.merge_file(original, manifest, squeezed, growth="allow", overwrite=True)
    return Scene(model, original, squeezed)


def layer(model: nn.Module, name: str) -> SqueezedConv:
    found = model.get_submodule(name)
    assert isinstance(found, SqueezedConv)
    return found
