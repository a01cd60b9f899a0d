"""One squeezed layer against the layers it replaced: which inputs are run, and the verdict.

A small layer meets random images and an impulse for every single weight. A large one is held to the
same in two steps, see `anew`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain

import torch
from torch import Tensor

from convsqueeze.algebra.precision import denormals_kept
from convsqueeze.algebra.threads import one_thread
from convsqueeze.module import SqueezedConv
from convsqueeze.plan import Merge
from convsqueeze.verify.anew import checked_anew
from convsqueeze.verify.comparison import comparison
from convsqueeze.verify.effort import MOMENT, work_in_full
from convsqueeze.verify.outcome import LayerReport, Probe, Worst, checked
from convsqueeze.verify.probes import (
    Impulses,
    Size,
    border_impulses,
    every_impulse,
    every_kind,
    impulse_batches,
    kernel_impulses,
    random_image,
    sizes,
)

__all__ = ["LayerReport", "Worst", "check_layer", "comparison"]


@denormals_kept()
@one_thread()
def check_layer(
    merge: Merge,
    module: SqueezedConv,
    load: Callable[[str], Tensor],
    *,
    trials: int,
    seed: int,
    exhaustive: bool = False,
    exact: Mapping[str, Tensor] | None = None,
) -> LayerReport:
    """Run original and squeezed layer on random images and impulses and compare every output.

    `load` gives the original's stored tensors, `exact` are the values that the stored ones were
    rounded from, where they are known. Every single number is looked at: by an impulse each or, in
    a large layer, against those values. `exhaustive` impulses stand at every position of small
    images, which proves equality for every input of those sizes, both sides being affine. The
    outcome is the report; nothing is raised.
    """
    tried, impulses = _sizes(merge), _impulses(merge)
    report = LayerReport(merge.into, merge.border, Worst(), Worst(), 0.0, 0.0, tuple(tried), 0)
    if not exhaustive and work_in_full(merge, tried, impulses, trials) > MOMENT:
        return checked_anew(
            report, merge, module, load, exact, impulses=impulses, trials=trials, seed=seed
        )
    for probe in _in_full(merge, module, cache(load), tried, impulses, trials, seed, exhaustive):
        report = checked(report, merge, probe)
        if not report.ok:
            return report
    if not report.worst.place:
        return replace(report, problem="no output of any input could be held to the bound")
    return report


def _sizes(merge: Merge) -> list[Size]:
    """The input sizes to try. Under `interior` a fixed size may be all border, so that one more
    that has an inside is tried: the kernel is the same for every size.
    """
    tried = sizes(merge.geometry_tree, merge.input_size)
    if merge.corrections is not None:
        found = border_impulses(merge.geometry_tree, merge.corrections)
        kinds = every_kind(merge.corrections)
        tried = list(dict.fromkeys([*tried, *(one.size for one in found), *kinds]))
    if merge.border == "interior" and merge.input_size is not None:
        tried += [size for size in sizes(merge.geometry_tree, None)[1:2] if size not in tried]
    return tried


def _impulses(merge: Merge) -> list[Impulses]:
    """Those that show every tap of the kernel, then those that show every border tap."""
    tree = merge.geometry_tree
    found = [kernel_impulses(tree, None if merge.border == "interior" else merge.input_size)]
    if merge.corrections is not None:
        found += border_impulses(tree, merge.corrections)
    return found


def _in_full(
    merge: Merge,
    module: SqueezedConv,
    load: Callable[[str], Tensor],
    tried: Sequence[Size],
    impulses: Sequence[Impulses],
    trials: int,
    seed: int,
    exhaustive: bool,
) -> Iterator[Probe]:
    """Random images and zeros of every size, and every impulse."""
    tree, geometry = merge.geometry_tree, merge.geometry
    generator = torch.Generator().manual_seed(seed)
    affine = comparison(merge, module, load, "affine")
    images = (random_image(geometry, size, generator, trials) for size in tried)
    yield Probe("random", images, affine)
    zeros = (torch.zeros(1, geometry.in_channels, *size, dtype=torch.float64) for size in tried)
    yield Probe("zero", zeros, affine)
    linear = comparison(merge, module, load, "linear")
    for index, one in enumerate(impulses):
        yield Probe("border impulse" if index else "impulse", impulse_batches(tree, one), linear)
    if exhaustive:
        every = every_impulse(tree, merge.input_size)
        batches = chain.from_iterable(impulse_batches(tree, one) for one in every)
        yield Probe("impulse", batches, linear)
