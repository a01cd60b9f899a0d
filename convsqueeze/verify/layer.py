"""One squeezed layer against the layers it replaced: what is looked at, and the verdict.

Three things are held apart, for a layer of any size. *Every stored number is its value* in float64,
within half a unit in the last place (see `numbers`). *Those values are the layers'*: on random
images the operator that they make differs from the layers by no more than float64 can lose. That is
Freivalds' argument (R. Freivalds, "Probabilistic machines can use less running time", IFIP 1977):
where weights are wrong, an output misses it only if the inputs that they take cancel, which has
probability zero but for rounding, inputs being drawn from intervals. *The stored layer* gives on
small images what the layers give, but for the rounding of its numbers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from math import isfinite

import torch
from torch import Tensor

from convsqueeze.algebra.border.corrections import BORDER
from convsqueeze.algebra.precision import denormals_kept
from convsqueeze.algebra.threads import one_thread
from convsqueeze.errors import GeometryError, TensorDataError
from convsqueeze.module import SqueezedConv
from convsqueeze.plan import Merge
from convsqueeze.squeezing import exact_values, stored_layout
from convsqueeze.verify.comparison import comparison, stored_magnitudes
from convsqueeze.verify.effort import ALONE, image
from convsqueeze.verify.groups import some_groups
from convsqueeze.verify.magnitudes import input_scales
from convsqueeze.verify.numbers import number_place, recomputed, unfit, worst_number
from convsqueeze.verify.outcome import LayerReport, Probe, compared
from convsqueeze.verify.probes import (
    Size,
    bounded_image,
    every_impulse,
    exhaustive_sizes,
    sizes_of,
)
from convsqueeze.verify.reference import Load, reference
from convsqueeze.verify.worst import nearer

Named = Mapping[str, Tensor]


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
    every, small = sizes_of(merge.geometry_tree, merge.corrections, merge.input_size, merge.border)
    report = LayerReport(merge.into, merge.border, sizes=tuple(dict.fromkeys([small, *every])))
    device, granted = module.weight.device, None
    try:
        if exact is None:
            granted = recomputed(merge, load, device)
            exact = exact_values(merge, load, device)
    except (TensorDataError, GeometryError) as error:
        return replace(report, problem=f"cannot be merged anew: {str(error).rstrip('.')}")
    values = stored_layout(merge, exact)
    report = _numbers_checked(report, merge, module, values, granted)
    wide = cache(lambda name: load(name).detach().double())  # each of them once
    try:
        probes = _probes(merge, module, wide, values, every, small, trials, seed, exhaustive)
        while report.ok and (probe := next(probes, None)):
            report = compared(report, merge, probe)
    except GeometryError as error:
        return replace(report, problem=str(error))
    if report.ok and not report.largest.place:
        return replace(report, problem="no output of any input could be held to the bound")
    return report


def _numbers_checked(
    report: LayerReport,
    merge: Merge,
    module: SqueezedConv,
    values: Named,
    granted: Callable[[str, Tensor], Tensor] | None,
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
        slack = None if granted is None else partial(granted, name)
        at, worst = worst_number(stored[name], value, slack)
        worst, number = replace(worst, place=number_place(merge, name, at)), stored[name][at].item()
        problem = worst.problem if isfinite(number) else f"is {number}, {worst.place}"
        report = replace(report, problem=problem)
        if name.startswith(f"{BORDER}."):
            report = replace(report, border=nearer(report.border, worst))
        else:
            report = replace(report, interior=nearer(report.interior, worst))
        if problem is not None:
            break
    return report


def _probes(
    merge: Merge,
    module: SqueezedConv,
    load: Load,
    values: Named,
    every: list[Size],
    small: Size,
    trials: int,
    seed: int,
    exhaustive: bool,
) -> Iterator[Probe]:
    """Images for the exact values and for the stored layer.

    Channels are scaled so that none is lost in the others. Biases are seen on zeros.
    """
    generator = torch.Generator().manual_seed(seed)
    groups, channels = None, None
    if module.layer.groups == merge.geometry.groups and not exhaustive:
        groups = some_groups(merge, every, generator)
    if groups is not None:
        module, values, channels = groups.module(module), groups.values(values), groups.channels
        merge, load = groups.part, groups.load(load)
    scales = input_scales(merge, load, module.weight.device)
    sums = None
    if module.border is not None:
        sums = stored_magnitudes(merge, module, load, scales)
    before = SqueezedConv.of(module.layer, values).requires_grad_(False)
    layers = reference(merge.tree, load, magnitude=True)
    exact = comparison(merge, before, load, rounded=False, stored=sums, layers=layers)
    stored = comparison(merge, module, load, stored=sums, layers=layers)

    def images(size: Size, count: int, *, zeros: bool = True) -> Tensor:
        x = bounded_image(merge.geometry, size, generator, count)
        x = x * scales.reshape(-1, *(1,) * len(size))
        return torch.cat([x, _zeros(merge, size)]) if zeros and merge.geometry.bias else x

    def batches(size: Size, x: Tensor) -> Sequence[Tensor]:
        """All at once, or one by one where they are large."""
        return x.split(1) if image(merge, size).numbers > ALONE else [x]

    for size in every:
        zeros = merge.corrections is not None or size == small
        for x in batches(size, images(size, 1, zeros=zeros)):
            yield Probe("random", x, exact, channels, measured=False)
    if merge.geometry.bias and small not in every:
        yield Probe("random", _zeros(merge, small), exact, channels, measured=False)
    for x in batches(small, images(small, trials)):
        yield Probe("random", x, stored, channels)
    if exhaustive:
        yield from _exhaustive(merge, module, load)


def _zeros(merge: Merge, size: Size) -> Tensor:
    return torch.zeros(1, merge.geometry.in_channels, *size, dtype=torch.float64)


def _exhaustive(merge: Merge, module: SqueezedConv, load: Load) -> Iterator[Probe]:
    """The stored layer on zeros, and on an impulse for each input channel and position."""
    tree = merge.geometry_tree
    affine, linear = (comparison(merge, module, load, part) for part in ("affine", "linear"))
    for size in exhaustive_sizes(tree, merge.input_size):
        yield Probe("zero", _zeros(merge, size), affine)
        for x in every_impulse(tree, size):
            yield Probe("impulse", x, linear)
