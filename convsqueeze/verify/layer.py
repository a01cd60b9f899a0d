"""One squeezed layer against the layers it replaced: what is looked at, and the verdict.

Three things are held apart, for a layer of any size. *Every stored number is its value* in float64,
within half a unit in the last place (see `numbers`). *Those values are the layers'*: on random
images the operator that they make differs from the layers by no more than float64 can lose. That is
Freivalds' argument (R. Freivalds, "Probabilistic machines can use less running time", IFIP 1977):
where weights are wrong, an output misses it only if the inputs that they take cancel, which has
probability zero but for rounding, inputs being drawn from intervals. *The stored layer* gives on
small images what the layers give, but for the rounding of its numbers.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from math import prod

import torch
from torch import Tensor

from convsqueeze.algebra.precision import denormals_kept
from convsqueeze.algebra.threads import one_thread
from convsqueeze.errors import GeometryError, TensorDataError
from convsqueeze.module import SqueezedConv
from convsqueeze.plan import Merge
from convsqueeze.squeezing import exact_values
from convsqueeze.verify.comparison import (
    comparison,
    stored_layout,
    stored_magnitudes,
    with_values,
)
from convsqueeze.verify.groups import some_groups
from convsqueeze.verify.magnitudes import input_scales
from convsqueeze.verify.numbers import Recomputed, unfit, where_told, worst_number
from convsqueeze.verify.outcome import LayerReport, Probe, Worst, checked, with_number
from convsqueeze.verify.probes import (
    Size,
    bounded_image,
    corrected_sizes,
    every_impulse,
    exhaustive_sizes,
    interior_sizes,
    plain_sizes,
    small_size,
)

Named = Mapping[str, Tensor]
Load = Callable[[str], Tensor]


@denormals_kept()
@one_thread()
def check_layer(
    merge: Merge,
    module: SqueezedConv,
    load: Load,
    *,
    trials: int,
    seed: int,
    exhaustive: bool = False,
    exact: Named | None = None,
) -> LayerReport:
    """Hold every stored number against its value, and outputs against those of the original layers.

    `load` gives the original's stored tensors, `exact` are the values that the stored ones were
    rounded from, as `squeezing.exact_values` gives them; recomputed where they are not known.
    `trials` random images of each small size meet the stored layer. `exhaustive` adds impulses at
    every position of small images, which proves equality for every input of those sizes, both sides
    being affine. The outcome is the report; nothing is raised.
    """
    sizes = _Sizes.of(merge)
    tried = tuple(dict.fromkeys([sizes.small, *sizes.every]))
    report = LayerReport(merge.into, merge.border, Worst(), Worst(), 0.0, 0.0, tried, 0)
    device, recomputed = module.weight.device, None
    try:
        if exact is None:
            recomputed = Recomputed(merge, load, device)
            exact = exact_values(merge, load, device)
    except (TensorDataError, GeometryError) as error:
        return replace(report, problem=f"cannot be merged anew: {str(error).rstrip('.')}")
    values = stored_layout(merge, exact)
    report = _numbers_checked(report, merge, module, values, recomputed)
    if not report.ok:
        return report
    wide = cache(lambda name: load(name).detach().double())  # each of them once
    try:
        probes = _probes(merge, module, wide, values, sizes, trials, seed, exhaustive)
        for probe in probes:
            report = checked(report, merge, probe)
            if not report.ok:
                return report
    except GeometryError as error:
        return replace(report, problem=str(error))
    if not report.largest.place:
        return replace(report, problem="no output of any input could be held to the bound")
    return report


def _numbers_checked(
    report: LayerReport,
    merge: Merge,
    module: SqueezedConv,
    values: Named,
    recomputed: Recomputed | None,
) -> LayerReport:
    """The report after every stored number, up to the first tensor that holds a wrong one."""
    stored = {name: tensor.detach() for name, tensor in module.named_parameters()}
    for name in sorted(stored.keys() - values.keys()):
        return replace(report, problem=f"{merge.into}.{name} is none that it has")
    for name, value in values.items():
        problem = unfit(f"{merge.into}.{name}", stored.get(name), value)
        if problem is not None:
            return replace(report, problem=problem)
    for name, value in values.items():
        granted = None if recomputed is None else recomputed.granted(name)
        number = worst_number(stored[name], value, granted)
        where = where_told(merge, name, number.place)
        report = with_number(report, name, number.worst(where), number.problem(where))
        if not report.ok:
            break
    return report


@dataclass(frozen=True)
class _Sizes:
    """The input sizes to try: the exact values on all, the stored layer on a small one."""

    every: list[Size]
    small: Size

    @classmethod
    def of(cls, merge: Merge) -> "_Sizes":
        tree, fixed = merge.geometry_tree, merge.input_size
        if merge.corrections is not None:
            sizes = corrected_sizes(tree, merge.corrections, fixed)
            return cls(sizes, sizes[0])
        if merge.border == "interior":
            sizes = interior_sizes(tree, fixed)
            return cls(sizes, max(sizes, key=prod))
        sizes = plain_sizes(tree, fixed)
        return cls(sizes, sizes[0] if fixed else small_size(tree, sizes[0]))


def _probes(
    merge: Merge,
    module: SqueezedConv,
    load: Load,
    values: Named,
    sizes: _Sizes,
    trials: int,
    seed: int,
    exhaustive: bool,
) -> Iterator[Probe]:
    """Images for the exact values and for the stored layer."""
    generator = torch.Generator().manual_seed(seed)
    groups, channels = None, None
    if module.groups == merge.geometry.groups and not exhaustive:
        groups = some_groups(merge, sizes.every, generator)
    if groups is not None:
        module, values, channels = groups.module(module), groups.values(values), groups.channels
        merge, load = groups.part, groups.load(load)
    scales = input_scales(merge, load, module.weight.device)
    sums = None
    if module.border is not None:
        sums = stored_magnitudes(merge, module, load, scales)
    exact = comparison(merge, with_values(module.layer, values), load, rounded=False, stored=sums)
    stored = comparison(merge, module, load, stored=sums)
    draw = _Images(merge, scales, generator)
    yield Probe("random", draw.of_values(sizes), exact, channels, measured=False)
    yield Probe("random", iter([draw.one(sizes.small, trials)]), stored, channels)
    if exhaustive:
        yield from _exhaustive(merge, module, load)


@dataclass(frozen=True, eq=False)
class _Images:
    """Random ones whose channels are so large beside each other that none is lost in the others,
    and zeros, on which biases are seen.
    """

    merge: Merge
    scales: Tensor
    generator: torch.Generator

    def one(self, size: Size, count: int, *, zeros: bool = True) -> Tensor:
        """So many random images and one of zeros where there are biases."""
        x = bounded_image(self.merge.geometry, size, self.generator, count)
        x = x * self.scales.reshape(-1, *(1,) * len(size))
        return torch.cat([x, _zeros(self.merge, size)]) if zeros and self.merge.geometry.bias else x

    def of_values(self, sizes: _Sizes) -> Iterator[Tensor]:
        """One of each size; zeros of the small one and of those at which biases may differ."""
        for size in sizes.every:
            yield self.one(size, 1, zeros=self.merge.corrections is not None or size == sizes.small)
        if self.merge.geometry.bias and sizes.small not in sizes.every:
            yield _zeros(self.merge, sizes.small)


def _zeros(merge: Merge, size: Size) -> Tensor:
    return torch.zeros(1, merge.geometry.in_channels, *size, dtype=torch.float64)


def _exhaustive(merge: Merge, module: SqueezedConv, load: Load) -> Iterator[Probe]:
    """The stored layer on zeros, and on an impulse for each input channel and position."""
    tree = merge.geometry_tree
    sizes = exhaustive_sizes(tree, merge.input_size)
    zeros = (_zeros(merge, size) for size in sizes)
    yield Probe("zero", zeros, comparison(merge, module, load))
    images = chain.from_iterable(every_impulse(tree, size) for size in sizes)
    yield Probe("impulse", images, comparison(merge, module, load, "linear"))
