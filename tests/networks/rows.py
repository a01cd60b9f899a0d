"""What a row of the table says, and what merging it gives; computed once a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from convsqueeze.manifest import Border

from .pipeline import Difference, Merged, difference, image, in_double, merged
from .values import filled

Linear = Callable[[Tensor], Tensor]
Size = tuple[int, ...]


@dataclass(frozen=True)
class Refusal:
    """Why a plain merge is refused, and what it would spoil.

    `told` are phrases of the message and `rows` is a pattern in it. `spoiled` gives the output rows
    on one axis that differ, from the input's size on it; `pixels` is the share of output pixels
    that differ at the input size `at`. `blamed` is the layer's place in the manifest's entry.
    """

    told: tuple[str, ...]
    rows: str
    spoiled: Callable[[int], set[int]]
    at: Size
    pixels: float
    blamed: str = ".second"


@dataclass(frozen=True)
class Published:
    """A row's network with its published channels, where the row has fewer, and its figures."""

    build: Callable[[], nn.Module]
    manifest: str
    before: int
    after: int
    corrected: int


@dataclass(frozen=True)
class Row:
    """One published network; weights `before` and `after` are counted by hand.

    Where no plain convolution is exact (`refusal`), `after` is what it stores all the same and
    `corrected` what is stored when it is made exact, `form` whether that takes strips of weights
    along the border or a table of biases alone.

    `sizes` are the inputs to compare at, `part` the linear part of the network that the merge into
    a name replaces (by default all of it), `times` how much the merge grows the checkpoint.
    `small` is the same network with few channels, and its manifest, for the exhaustive proof.
    `verify` is how many of the merges the package verifies, where all would take too long.
    """

    network: str
    build: Callable[[], nn.Module]
    manifest: str
    before: int
    after: int
    sizes: tuple[Size, ...]
    part: Callable[[nn.Module, str], Linear] = lambda network, into: network
    times: float | None = None
    refusal: Refusal | None = None
    small: tuple[Callable[[], nn.Module], str] | None = None
    verify: int | None = None
    corrected: int | None = None
    form: str = "strips"
    published: Published | None = None

    @property
    def border(self) -> Border:
        """The policy under which the row merges."""
        return "interior" if self.refusal else "exact"

    @property
    def full(self) -> "Row":
        """The row with its published channels."""
        if self.published is None:
            return self
        return replace(self, **vars(self.published), times=None, small=None, published=None)


def submodule(suffix: str, method: str = "forward") -> Callable[[nn.Module, str], Linear]:
    """A row's `part`: a method of the module that holds what is merged, `into` without its last
    names.
    """

    def part(network: nn.Module, into: str) -> Linear:
        linear: Linear = getattr(network.get_submodule(into.removesuffix(suffix)), method)
        return linear

    return part


@cache
def network_of(row: Row) -> nn.Module:
    return filled(row.build())


@cache
def merged_of(row: Row, border: Border | None = None) -> Merged:
    """The network in float32 and its merge, by default under the policy of the row."""
    return merged(network_of(row), row.manifest, border=border or row.border, growth="allow")


@cache
def differences_of(row: Row, border: Border | None = None) -> Mapping[Size, tuple[Difference, ...]]:
    """At each size of the row, every squeezed layer against the network itself."""
    whole, network = merged_of(row, border), in_double(network_of(row))
    return {
        size: tuple(
            difference(
                row.part(network, merge.into),
                whole.layer(merge.into),
                image(merge.geometry.in_channels, size),
            )
            for merge in whole.plan.merges
        )
        for size in row.sizes
    }


def spoiled_pixels(refusal: Refusal, size: Size, output: Size) -> Tensor:
    """Which pixels of an output a plain merge spoils, for an input of `size`."""
    mask = torch.zeros(output, dtype=torch.bool)
    for axis, given in enumerate(size):
        rows = torch.tensor(sorted(refusal.spoiled(given)), dtype=torch.long)
        mask.index_fill_(axis, rows, True)
    return mask


@dataclass(frozen=True)
class Outcome:
    """A row's largest error with its bound, away from the border where that is refused.

    `pixels` and `ring` tell of the spoiled part at the size of the refusal: its share of the
    pixels, and the error there relative to the output there, both as Euclidean norms.
    """

    error: float
    bound: float
    pixels: float = 0.0
    ring: float = 0.0


def outcome_of(row: Row) -> Outcome:
    found = differences_of(row)
    pixels = ring = 0.0
    if row.refusal is None:
        kept = [one for differences in found.values() for one in differences]
    else:
        kept = []
        for size, (one,) in found.items():
            mask = spoiled_pixels(row.refusal, size, tuple(one.error.shape[2:]))
            if not mask.all():
                kept.append(one.where(~mask))
            if size == row.refusal.at:
                pixels = float(mask.double().mean())
                border = one.where(mask)
                ring = float(border.error.norm() / border.expected.norm())
    worst = max(kept, key=lambda one: float(one.share.max()))
    place = int(worst.share.argmax())
    return Outcome(
        float(worst.error.flatten()[place]), float(worst.bound.flatten()[place]), pixels, ring
    )
