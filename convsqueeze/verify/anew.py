"""Verification of a layer that is too large for an impulse for every weight.

With the values in float64 that were rounded, or that are computed anew, two things are held apart.
*Those values are the layers'*: on random images the operator that they make differs from the layers
by no more than float64 can lose, which is far below an ulp of what is stored. That is Freivalds'
argument (R. Freivalds, "Probabilistic machines can use less running time", IFIP 1977): where
weights are wrong, an output misses it only if the inputs that they take cancel, which has
probability zero but for rounding, inputs being drawn from intervals. *The stored numbers are those
values*, every one of them, within half an ulp. Beside that the stored layer meets the layers
directly, on zeros and on impulses in some input channels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product

import torch
from torch import Tensor

from convsqueeze.algebra.apply import transposed_layout
from convsqueeze.algebra.precision import half_ulp
from convsqueeze.algebra.sizes import output_size, period
from convsqueeze.errors import GeometryError, TensorDataError
from convsqueeze.module import SqueezedConv
from convsqueeze.plan import Merge
from convsqueeze.squeezing import exact_values
from convsqueeze.verify.amplitude import Amplitudes
from convsqueeze.verify.comparison import Comparison, noise_of, run_of
from convsqueeze.verify.effort import (
    allowance,
    groups_of_images,
    groups_of_singles,
    images_for,
    single_work,
)
from convsqueeze.verify.numbers import misfit, numbers_checked
from convsqueeze.verify.outcome import LayerReport, Probe, checked
from convsqueeze.verify.probes import (
    Impulses,
    Size,
    bounded_image,
    every_kind,
    impulse_images,
    showing_size,
)
from convsqueeze.verify.reference import Part, reference
from convsqueeze.verify.slices import (
    Cut,
    Load,
    input_of,
    layer_of,
    of_all,
    of_groups,
    summed_inputs,
)

Named = Mapping[str, Tensor]


def checked_anew(
    report: LayerReport,
    merge: Merge,
    module: SqueezedConv,
    load: Load,
    exact: Named | None,
    *,
    impulses: Sequence[Impulses],
    trials: int,
    seed: int,
) -> LayerReport:
    """The report on a large layer, whose `sizes` are those that may be tried.

    `exact` are the values that the stored tensors were rounded from, computed anew if not given.
    `impulses` show every tap; some of them are run.
    """
    anew = exact is None
    try:
        values = exact
        if values is None:
            values = exact_values(merge, load, module.weight.device)
    except (TensorDataError, GeometryError) as error:
        return replace(report, problem=f"cannot be merged anew: {str(error).rstrip('.')}")
    problem = misfit(merge, module, values)
    if problem is not None:
        return replace(report, problem=problem)
    generator = torch.Generator().manual_seed(seed)
    if merge.corrections is not None:
        impulses = impulses[1:]  # those at the border show the kernel's taps too
    needed, allowed = _needed(merge, report.sizes, impulses), allowance(merge, trials) // 2
    wide = cache(lambda name: load(name).detach().double())  # each of them once
    groups = groups_of_images(merge, needed, allowed)
    look = _Look(merge, _cut(merge, module, wide, groups, generator))
    counts = images_for(merge, needed, report.sizes, trials, allowed)
    report = replace(report, sizes=tuple(counts))
    report = checked(report, merge, look.of_images(module, values, counts, generator))
    if not report.ok:
        return report
    if not report.worst.place:
        return replace(report, problem="no output of any input could be held to the bound")
    report = numbers_checked(report, merge, module, values, load, anew=anew)
    del values
    fewer = groups_of_singles(merge, needed, impulses, allowed)
    if fewer < groups:
        look = _Look(merge, _cut(merge, module, wide, fewer, generator))
    singles = look.of_inputs(module, needed, impulses, allowed, generator)
    while report.ok and (probe := next(singles, None)) is not None:
        report = checked(report, merge, probe)
    return report


def _cut(
    merge: Merge, module: SqueezedConv, load: Load, count: int, generator: torch.Generator
) -> Cut:
    """All channels, or so many groups."""
    groups = merge.geometry.groups
    if count < groups == module.groups:
        chosen = torch.randperm(groups, generator=generator)[:count].sort().values
        cut = of_groups(merge, load, chosen)
        if cut is not None:
            return cut
    return of_all(merge, load)


def _needed(merge: Merge, sizes: Sequence[Size], impulses: Sequence[Impulses]) -> list[Size]:
    """The sizes that the border or strides need: the smallest, one that shows every tap and, with
    strides, the next, and every one at which corrections are told apart.
    """
    tree = merge.geometry_tree
    fixed = None if merge.border == "interior" else merge.input_size
    shown = showing_size(tree, fixed)
    needed = [sizes[0]]
    if merge.corrections is not None:
        needed += [one.size for one in impulses]
        needed += every_kind(merge.corrections)
    if not any(all(a >= b for a, b in zip(size, shown, strict=True)) for size in needed):
        needed.append(shown)
    if fixed is None and any(period(tree, axis) > 1 for axis in range(len(shown))):
        needed.append(tuple(size + 1 for size in shown))
    return list(dict.fromkeys(needed))


@dataclass(frozen=True, eq=False)
class _Look:
    """How a layer is looked at: all of its channels or a `cut`."""

    merge: Merge
    cut: Cut

    @cached_property
    def amplitudes(self) -> Amplitudes:
        return Amplitudes(self.cut.tree, self.cut.load)

    @cached_property
    def noise(self) -> tuple[float, float]:
        return noise_of(self.merge)

    def of_images(
        self,
        module: SqueezedConv,
        exact: Named,
        counts: Mapping[Size, int],
        generator: torch.Generator,
    ) -> Probe:
        """Random images through the layers and through the operator of these values."""
        cut, merge = self.cut, self.merge
        laid_out = dict(exact)
        if module.is_transposed:
            laid_out["weight"] = transposed_layout(exact["weight"], merge.geometry.groups)
        layer, tensors = cut.cut(module.layer, laid_out)
        own = layer_of(layer, tensors)
        ones = own.weight.new_ones(1, cut.geometry.in_channels)
        most = self.amplitudes.of(ones, "affine").every
        added = None  # a plain operator adds up no more than the layers do
        if own.border is not None:
            added = layer_of(layer, summed_inputs(layer, tensors), signs=False)
        noise, floor = self.noise

        def bound(x: Tensor) -> Tensor:
            found = self._spread(noise * most + floor, x)
            if added is not None:
                found = found + noise * added(x.new_ones(1, cut.geometry.groups, *x.shape[2:]))
            return found.expand(x.shape[0], *found.shape[1:])

        images = (
            bounded_image(cut.geometry, size, generator, batch) for size, batch in counts.items()
        )
        both = Comparison(reference(cut.tree, cut.load), run_of(own), bound, own.weight.device)
        return Probe("random", images, both, cut.channels)

    def of_inputs(
        self,
        module: SqueezedConv,
        sizes: Sequence[Size],
        impulses: Sequence[Impulses],
        allowed: int,
        generator: torch.Generator,
    ) -> Iterator[Probe]:
        """Zeros of these sizes, and impulses in some input channels, through the stored layer."""
        order = torch.randperm(self.cut.per_group, generator=generator).tolist()
        groups = self.cut.geometry.groups
        if self.merge.geometry.bias:
            zeros = (torch.zeros(1, groups, *size, dtype=torch.float64) for size in sizes)
            most = self._most("affine", [], module.weight.device)
            both = self._of_input(module, order[0], "affine", most)
            yield Probe("zero", zeros, both, self.cut.channels)
        wanted: dict[int, list[Tensor]] = {}
        for one in impulses:
            places = list(product(*one.positions))
            work = single_work(self.merge, one.size)
            count = max(1, allowed // len(impulses) // (work.image + work.run))
            if count < len(places):
                some = torch.randperm(len(places), generator=generator)[:count].tolist()
                places = [places[index] for index in some]
            images = impulse_images([(0, place) for place in places], groups, 1, one.size)
            for channel in order[: max(1, count // len(places))]:
                wanted.setdefault(channel, []).append(images)
        most = self._most("linear", list(wanted), module.weight.device)
        for index, (channel, batches) in enumerate(wanted.items()):
            both = self._of_input(module, channel, "linear", most[index : index + 1])
            yield Probe("impulse", iter(batches), both, self.cut.channels)

    def _most(self, part: Part, channels: Sequence[int], device: torch.device) -> Tensor:
        """What float64 can lose where a channel is one, or none: (channels, out_channels)."""
        x = torch.zeros(max(len(channels), 1), self.cut.geometry.in_channels, dtype=torch.float64)
        for index, channel in enumerate(channels):
            x[index, channel :: self.cut.per_group] = 1.0
        noise, floor = self.noise
        return noise * self.amplitudes.of(x.to(device), part).every + floor

    def _of_input(self, module: SqueezedConv, channel: int, part: Part, most: Tensor) -> Comparison:
        """For inputs (batch, groups, *size): this channel of every group."""
        cut, noise = self.cut, self.noise[0]
        layer, tensors = cut.tensors_of(module)
        tensors = input_of(layer, tensors, channel)
        if part == "linear":
            tensors = {name: t for name, t in tensors.items() if not name.endswith("bias")}
        double = {name: tensor.double() for name, tensor in tensors.items()}
        cost = {name: half_ulp(tensor) for name, tensor in tensors.items()}
        if module.border is not None:  # which adds up more than the layers do
            cost = {name: one + noise * double[name].abs() for name, one in cost.items()}
        own = layer_of(layer, cost, signs=False)
        return Comparison(
            cut.of_input(channel, part),
            run_of(layer_of(layer, double)),
            lambda x: own(x.abs()) + self._spread(most, x),
            own.weight.device,
        )

    def _spread(self, by_channel: Tensor, x: Tensor) -> Tensor:
        """(1, channels) for every output of an input like `x`."""
        tree, size = self.merge.geometry_tree, x.shape[2:]
        shape = [output_size(tree, axis, n) or 0 for axis, n in enumerate(size)]
        return by_channel.reshape(1, -1, *(1,) * len(shape)).expand(1, -1, *shape)
