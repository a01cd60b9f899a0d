"""What a plan is: the merges that will be done, their geometry and cost. Holds no tensor data."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from convsqueeze.algebra.border.corrections import BORDER, Corrections
from convsqueeze.algebra.border.mismatches import Mismatch
from convsqueeze.algebra.border.taps import AxisTaps, axis_taps
from convsqueeze.algebra.geometry import Geometry
from convsqueeze.algebra.tree import Tree, counted, mapped
from convsqueeze.graph import Placement
from convsqueeze.manifest import Border, Manifest, Request
from convsqueeze.plan.resolve import ResolvedLayer

Growth = Literal["refuse", "skip", "allow"]
FormName = Literal["apart", "plain", "bias", "strips"]
PAYS = 0.5
"""Share of the layers' multiplications up to which a merge is worth it for its speed: what is saved
beyond that is lost again to larger kernels and to putting the ends in their place.
"""


@dataclass(frozen=True)
class Form:
    """One way to compute what the layers do, and its cost.

    `apart`: the layers as they are. `plain`: one convolution. `bias` and `strips`: the same with
    corrections at the border, which in the form `bias` do not depend on the input. `macs` count
    multiplications for one image of the merge's `size`.
    """

    name: FormName
    exact: bool
    weights: int
    macs: int


@dataclass(frozen=True)
class Timing:
    """What layers take, apart and as one, in nanoseconds for one image.

    `faster`: the difference is more than the noise of the measurement.
    """

    before: int
    after: int
    faster: bool


@dataclass(frozen=True)
class Merge:
    """One merge that will be done: layers, result, cost.

    `request` is what was asked for, `into` the name of the result. `macs_*` count multiplications
    for one image of `size`. `mismatches` is empty where the plain convolution is exact at every
    pixel; where it is not, `exact_by` are the corrections that make it exact, and `corrected` says
    that they are to be stored. `placement` says where it goes in a model whose code was followed,
    `timing` is there where latency is minimised.
    """

    place: str
    into: str
    request: Request[ResolvedLayer]
    geometry: Geometry
    mismatches: tuple[Mismatch, ...]
    dtype: torch.dtype
    consumed: tuple[str, ...]
    weights_before: int
    size: tuple[int, ...]
    exact_by: Corrections | None = None
    corrected: bool = False
    placement: Placement[ResolvedLayer] | None = None
    timing: Timing | None = None

    @property
    def tree(self) -> Tree[ResolvedLayer]:
        """The layers as chains and sums."""
        return self.request.region.expression

    @property
    def layers(self) -> tuple[ResolvedLayer, ...]:
        return self.request.region.layers

    @property
    def input_size(self) -> tuple[int, ...] | None:
        """The only size of an input that matters, if there is one."""
        return self.request.input_size

    @property
    def corrections(self) -> Corrections | None:
        """The corrections that are stored."""
        return self.exact_by if self.corrected else None

    @cached_property
    def geometry_tree(self) -> Tree[Geometry]:
        return geometry_tree(self.tree)

    @property
    def border_taps(self) -> tuple[AxisTaps, ...]:
        """What the taps of `corrections` are sums of, for each axis."""
        return axis_taps(self.geometry_tree, self.input_size)

    @property
    def border(self) -> Border:
        if self.corrections is not None:
            return "corrected"
        return "interior" if self.mismatches else "exact"

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Full name and shape of everything that the merge stores; weights as in `Geometry`."""
        shapes = {f"{self.into}.weight": self.geometry.weight_shape}
        if self.geometry.bias:
            shapes[f"{self.into}.bias"] = (self.geometry.out_channels,)
        if self.corrections is not None:
            terms = self.corrections.shapes(self.geometry)
            shapes |= {f"{self.into}.{BORDER}.{name}": shape for name, shape in terms.items()}
        return shapes

    @cached_property
    def forms(self) -> tuple[Form, ...]:
        """Every form that there is: apart, plain, and one that is exact where that is not."""
        weights, macs = self.geometry.weights, self.geometry.macs(self.size)
        apart = macs_and_size(self.tree, self.size)[0]
        forms = [
            Form("apart", True, self.weights_before, apart),
            Form("plain", not self.mismatches, weights, macs),
        ]
        if self.exact_by is not None:
            name: FormName = "bias" if self.exact_by.only_biases else "strips"
            weights += self.exact_by.weights(self.geometry)
            macs += self.exact_by.macs(self.geometry, self.size)
            forms.append(Form(name, True, weights, macs))
        return tuple(forms)

    @property
    def form(self) -> Form:
        """The form that is stored."""
        return self.forms[-1] if self.corrected else self.forms[1]

    @property
    def weights_after(self) -> int:
        return self.form.weights

    @property
    def macs_before(self) -> int:
        return self.forms[0].macs

    @property
    def macs_after(self) -> int:
        return self.form.macs

    @property
    def pays(self) -> bool:
        """Whether the result is expected to be faster than the layers apart."""
        return self.macs_after <= PAYS * self.macs_before


@dataclass(frozen=True)
class Plan:
    """What merging a checkpoint by a manifest will do."""

    manifest: Manifest
    merges: tuple[Merge, ...]
    notes: tuple[str, ...] = ()

    @property
    def weights_before(self) -> int:
        return sum(merge.weights_before for merge in self.merges)

    @property
    def weights_after(self) -> int:
        return sum(merge.weights_after for merge in self.merges)


def geometry_tree(tree: Tree[ResolvedLayer]) -> Tree[Geometry]:
    """The same tree with only the geometry of each layer."""
    return mapped(tree, lambda leaf: leaf.geometry)


def macs_and_size(tree: Tree[ResolvedLayer], size: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Multiplications of the original layers on one image of `size`, and the size behind them."""

    def step(leaf: ResolvedLayer, size: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        macs = leaf.geometry.macs(size) if leaf.parameters else 0
        return macs, leaf.geometry.output_size(size)

    return counted(tree, size, step)
