"""From a network and a manifest to squeezed layers, and how far they are from the network.

The bound here is written apart from the package's own: storing a float32 weight moves it by at
most 2**-24 of its magnitude, so an output may differ by that share of `|weight| * |input|`, summed.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from convsqueeze import SqueezedConv
from convsqueeze.checkpoint import (
    Checkpoint,
    TensorInfo,
    from_state_dict,
    open_checkpoint,
    write_checkpoint,
)
from convsqueeze.manifest import Border, parse_manifest
from convsqueeze.module import module_of
from convsqueeze.pipeline import squeeze_checkpoint
from convsqueeze.plan import Growth, Plan, make_plan
from convsqueeze.recipe import RecipeLayer
from convsqueeze.verify import LayerReport, Settings, verify_plan

HALF_ULP = 2.0**-24
"""Of a float32 number, as a share of it, at most."""
FLOAT64_NOISE = 1e-4
"""As a share of the bound above; float64 sums lose far less."""


@dataclass(frozen=True, eq=False)
class Held:
    """Tensors by name, as `verify_plan` takes them."""

    values: Mapping[str, Tensor]

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in self.values.items()}

    def load(self, name: str) -> Tensor:
        return self.values[name]


@dataclass(frozen=True, eq=False)
class Merged:
    """What a manifest makes of a network."""

    plan: Plan
    original: Checkpoint
    squeezed: Held
    recipe: Mapping[str, RecipeLayer]

    def layer(self, into: str) -> SqueezedConv:
        """A squeezed layer ready for float64 inputs."""
        return module_of(self.recipe[into], self.squeezed.values).double()

    def verified(self, *, exhaustive: bool, first: int | None = None) -> tuple[LayerReport, ...]:
        """What the package's own verification says of the `first` merges, by default of all."""
        plan = replace(self.plan, merges=self.plan.merges[:first])
        settings = Settings(exhaustive=exhaustive)
        return verify_plan(plan, self.original, self.squeezed, self.recipe, settings)


def planned(
    network: nn.Module,
    manifest: str,
    *,
    border: Border | None = None,
    growth: Growth = "refuse",
) -> Plan:
    """The plan alone, from names and shapes; the network may lie on the meta device."""
    original = from_state_dict(network.state_dict())
    parsed = parse_manifest(manifest, "pairs.yaml")
    return make_plan(parsed, original, border=border, growth=growth)


def merged(
    network: nn.Module,
    manifest: str,
    *,
    border: Border | None = None,
    growth: Growth = "refuse",
) -> Merged:
    """Plan and merge. Raises what planning raises."""
    original = from_state_dict(network.state_dict())
    plan = planned(network, manifest, border=border, growth=growth)
    result = squeeze_checkpoint(plan, original, border=border, growth=growth)
    values = {name: tensor for edit in result.edits for name, tensor in edit.insert.items()}
    recipe = {layer.name: layer for layer in result.recipe.layers}
    return Merged(plan, original, Held(values), recipe)


def squeezed_file(
    source: Path,
    manifest: str,
    output: Path,
    *,
    border: Border | None = None,
    growth: Growth = "refuse",
) -> Checkpoint:
    """Merge the checkpoint at `source` into `output`, without verifying it, and open that."""
    original = open_checkpoint(source)
    parsed = parse_manifest(manifest, "pairs.yaml")
    plan = make_plan(parsed, original, border=border, growth=growth)
    result = squeeze_checkpoint(plan, original, border=border, growth=growth)
    write_checkpoint(original, output, result.edits, result.recipe.to_json())
    return open_checkpoint(output)


def image(channels: int, size: Sequence[int], *, seed: int = 0, batch: int = 2) -> Tensor:
    """Normal values, float64, shape (batch, channels, *size)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64)


def in_double(network: nn.Module) -> nn.Module:
    """A copy of the network that computes in float64 with the very same values."""
    return copy.deepcopy(network).double().requires_grad_(False)


def rounding_bound(layer: SqueezedConv, x: Tensor) -> Tensor:
    """How far storing the merged weights in float32 can move each output for the input `x`.

    The layer itself says which weights meet in an output, at the border too, where none is
    subtracted.
    """

    def moved_by(stored: Tensor) -> Tensor:
        return stored.abs() * HALF_ULP * (1 + FLOAT64_NOISE)

    moved = layer.converted(moved_by, moved_by, signs=False)
    with torch.no_grad():
        result: Tensor = moved(x.abs())
    return result


@dataclass(frozen=True, eq=False)
class Difference:
    """Squeezed layer against the network itself on one input, output by output.

    All of shape (batch, channels, *size).
    """

    error: Tensor
    bound: Tensor
    expected: Tensor

    @property
    def share(self) -> Tensor:
        return self.error / self.bound

    @property
    def wrong(self) -> Tensor:
        """The pixels at which some channel of some image is past its bound, shape (*size)."""
        return (self.error > self.bound).flatten(0, 1).any(0)

    def where(self, pixels: Tensor) -> "Difference":
        """The same at some pixels alone, flat."""
        return Difference(
            self.error[..., pixels], self.bound[..., pixels], self.expected[..., pixels]
        )


def difference(linear: Callable[[Tensor], Tensor], layer: SqueezedConv, x: Tensor) -> Difference:
    """How far `layer` is from the part of the network that it replaces, `linear`."""
    with torch.no_grad():
        expected, actual = linear(x), layer(x)
    if expected.shape != actual.shape:
        raise ValueError(f"{tuple(actual.shape)} where {tuple(expected.shape)} was needed")
    return Difference((actual - expected).abs(), rounding_bound(layer, x), expected)
