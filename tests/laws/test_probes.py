"""What verification looks at: sizes that meet the border in every way, impulses that read off
every number.
"""

from collections import Counter
from itertools import product
from math import prod

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from convsqueeze import layers
from convsqueeze.algebra import Chain, Conv, Geometry
from convsqueeze.algebra.border.corrections import AxisCorrections, Corrections, SizeClass
from convsqueeze.algebra.border.leaks import wrong_rows
from convsqueeze.algebra.border.taps import corrections
from convsqueeze.algebra.sizes import merged, output_size, period, reach, smallest_size
from convsqueeze.algebra.tree import Tree
from convsqueeze.verify import probes
from convsqueeze.verify.probes import (
    Impulses,
    border_impulses,
    bounded_image,
    every_impulse,
    every_kind,
    impulse_batches,
    kernel_impulses,
    random_image,
    showing_size,
    sizes,
    telling_size,
)

from .drawn import MODES, channel_counts, convolutions, law, seeds, whole
from .test_border import chains, geometries, mergeable


def past(tree: Tree[Geometry], axis: int, times: int) -> int:
    """Where an image is so large that the kernels fit into it that many times."""
    return smallest_size(tree, axis) + times * reach(tree, axis)


@st.composite
def shapes(draw: st.DrawFn, rank: int) -> Tree[Geometry]:
    """Geometries of two layers that make one, or in one dimension of any chain."""
    if rank == 1 and draw(st.booleans()):
        tree: Tree[Conv] = draw(chains())
    else:
        first = draw(convolutions(rank, stride=2, padding=2, modes=MODES))
        second = draw(convolutions(rank, first.geometry.out_channels, stride=2, padding=2))
        tree = Chain((first, second))
    assume(mergeable(tree))
    return geometries(tree)


@law(80)
@given(st.data(), st.sampled_from((1, 1, 2, 3)))
def test_sizes_are_the_smallest_and_some_past_every_kernel(data: st.DataObject, rank: int) -> None:
    """A multiple of the period and its neighbour, one further off, one small on the first axis."""
    tree = data.draw(shapes(rank))
    smallest, multiple, odd, *others = (found := sizes(tree, None))
    assert len(set(found)) == len(found)
    for size in found:
        assert all(output_size(tree, axis, n) is not None for axis, n in enumerate(size))
    for axis in range(rank):
        repeat, enough = period(tree, axis), past(tree, axis, 1)
        assert smallest[axis] == smallest_size(tree, axis)
        assert multiple[axis] % repeat == 0
        assert enough <= multiple[axis] < enough + repeat
        assert odd[axis] == multiple[axis] + 1
    extents = [axis.extent for axis in merged(tree).axes]
    larger = tuple(n + 3 + extent for n, extent in zip(multiple, extents, strict=True))
    mixed = (smallest[0], *odd[1:])
    assert others == ([larger] if mixed == smallest else [larger, mixed])


def test_a_linear_layer_has_one_size() -> None:
    tree = Chain((layers.linear(whole(1, 3, 2)).geometry,) * 1)
    assert sizes(tree, None) == sizes(tree, ()) == [()]
    assert every_impulse(tree, None) == [Impulses((), ())]
    assert kernel_impulses(tree, None) == Impulses((), ())


@law(80)
@given(st.data(), st.integers(0, 200))
def test_a_fixed_size_is_tried_as_the_smallest_that_is_like_it(
    data: st.DataObject, more: int
) -> None:
    tree = data.draw(shapes(1))
    repeat, enough = period(tree, 0), past(tree, 0, 2)
    size = smallest_size(tree, 0) + more
    ((tried,),) = sizes(tree, (size,))
    if size <= enough + repeat:
        assert tried == size
    else:
        assert enough <= tried < enough + repeat
        assert (size - tried) % repeat == 0
        outputs, fewer = output_size(tree, 0, size), output_size(tree, 0, tried)
        wrong, told = wrong_rows(tree, 0, size), wrong_rows(tree, 0, tried)
        assert outputs is not None
        assert fewer is not None
        assert {min(n, outputs - 1 - n) for n in wrong} == {min(n, fewer - 1 - n) for n in told}


@law(80)
@given(st.data(), st.sampled_from((1, 1, 1, 2, 3)))
def test_a_telling_size_shows_the_inside_and_the_worst_border(
    data: st.DataObject, rank: int
) -> None:
    tree = data.draw(shapes(rank))
    for axis, size in enumerate(telling_size(tree, None)):
        whole_axis, repeat = merged(tree).axes[axis], period(tree, axis)
        shown = {1: 64, 2: 32, 3: 16}[rank]
        enough = next(
            n
            for n in range(past(tree, axis, 2), 10_000)
            if n * whole_axis.upsample >= shown * whole_axis.stride
        )
        window = range(enough, enough + repeat)
        assert size in window
        rows = {n: len(wrong_rows(tree, axis, n)) for n in window}
        worst = [n for n in window if rows[n] == max(rows.values())]
        assert size in worst
        found = corrections(tree)
        if found is not None:
            taps = {n: len(found.axes[axis].of(n).weights) for n in worst}
            worst = [n for n in worst if taps[n] == max(taps.values())]
            assert size in worst
        multiples = [n for n in worst if n % repeat == 0]
        assert size in (multiples or worst)


@law(60)
@given(st.data(), st.integers(0, 300))
def test_a_telling_size_is_like_the_fixed_one(data: st.DataObject, more: int) -> None:
    tree = data.draw(shapes(1))
    whole_axis, repeat = merged(tree).axes[0], period(tree, 0)
    size = smallest_size(tree, 0) + more
    (shown,) = telling_size(tree, (size,))
    least = -(-64 * whole_axis.stride // whole_axis.upsample)
    enough = max(past(tree, 0, 2), least)
    assert shown == size if size <= enough + repeat else enough <= shown < enough + repeat
    assert (size - shown) % repeat == 0


def seen(tree: Tree[Geometry], axis: int, size: int, positions: tuple[int, ...]) -> bool:
    """Whether every tap reads one of the positions for an output that the border leaves alone."""
    own = merged(tree).axes[axis]
    outputs = set(range(own.output_size(size))) - wrong_rows(tree, axis, size)
    return all(
        any(own.stride * n + tap == own.upsample * p for n in outputs for p in positions)
        for tap in own.taps
    )


def test_kernel_impulses_show_every_tap() -> None:
    """For one position in each phase of the stride; where no size does, every position is tried."""
    answers: Counter[bool] = Counter()

    @law(120)
    @given(st.data(), st.sampled_from((1, 1, 2)), st.booleans())
    def each(data: st.DataObject, rank: int, is_fixed: bool) -> None:
        tree = data.draw(shapes(rank))
        fixed = None
        if is_fixed:
            more = data.draw(st.integers(0, 40))
            fixed = tuple(smallest_size(tree, axis) + more for axis in range(rank))
        found = kernel_impulses(tree, fixed)
        for axis, (size, positions) in enumerate(zip(found.size, found.positions, strict=True)):
            stride = merged(tree).axes[axis].stride
            assert output_size(tree, axis, size) is not None
            assert fixed is None or (fixed[axis] - size) % period(tree, axis) == 0
            if seen(tree, axis, size, positions):
                answers[True] += 1
                assert len(positions) in (min(stride, size), size)
                continue
            answers[False] += 1
            assert positions == tuple(range(size))
            phases = range((size - min(stride, size)) // 2, size)[: min(stride, size)]
            assert not seen(tree, axis, size, tuple(phases))

    each()
    assert answers[True] > 20
    assert answers[False]


def test_a_showing_size_is_hardly_larger_than_it_must_be() -> None:
    """Every tap reads a sample for an output that the border leaves alone, where any size does."""
    answers: Counter[bool] = Counter()

    @law(100)
    @given(st.data(), st.sampled_from((1, 1, 2)))
    def each(data: st.DataObject, rank: int) -> None:
        tree = data.draw(shapes(rank))
        for axis, size in enumerate(showing_size(tree, None)):
            assert output_size(tree, axis, size) is not None
            shown = seen(tree, axis, size, tuple(range(size)))
            answers[shown] += 1
            first = smallest_size(tree, axis)
            smaller = [n for n in range(first, size) if output_size(tree, axis, n) is not None]
            before = smaller[-1:]  # halving finds a size whose neighbour does not show them
            assert not any(seen(tree, axis, n, tuple(range(n))) for n in before)

    each()
    assert answers[True] > 50


def test_a_showing_size_of_a_wide_kernel_with_padding_is_half_of_it() -> None:
    tree = Chain((layers.convolution(whole(1, 1, 1, 31, 5), padding=(15, 0)).geometry,))
    assert showing_size(tree, None) == (16, 5)
    assert showing_size(tree, (40, 9)) == sizes(tree, (40, 9))[0]


def test_an_impulse_stands_in_the_middle_of_a_small_image() -> None:
    tree = Chain((layers.convolution(whole(1, 1, 1, 5), padding=2).geometry,))
    found = kernel_impulses(tree, None)
    (size,), ((position,),) = found.size, found.positions
    assert size <= 9
    assert abs(2 * position - (size - 1)) <= 1


@law(60)
@given(channel_counts(), channel_counts(), st.integers(1, 3), seeds)
def test_every_channel_and_position_has_its_impulse(
    first: tuple[int, int, int], second: tuple[int, int, int], taps: int, seed: int
) -> None:
    """Once, one for each group of the merged layer to an image, in batches of a bounded size."""
    given_channels, middle, groups = first
    _, out, _ = second
    inner = layers.convolution(
        whole(seed, middle, given_channels // groups, taps, 1), groups=groups
    )
    outer = layers.convolution(whole(seed, out, middle, 1, taps))
    geometry = merged(tree := Chain((inner.geometry, outer.geometry)))
    impulses = Impulses((4, 5), ((0, 2, 3), (1, 4)))
    images = torch.cat(list(impulse_batches(tree, impulses)))
    per_group = geometry.in_channels // geometry.groups
    assert images.shape == (6 * per_group, geometry.in_channels, 4, 5)
    assert images.dtype == torch.float64
    assert torch.equal(images, images.bool().double())
    counts = images.sum(0)
    for row, column in product(range(4), range(5)):
        wanted = row in (0, 2, 3) and column in (1, 4)
        assert torch.equal(counts[:, row, column], torch.full((given_channels,), float(wanted)))
    grouped = images.unflatten(1, (geometry.groups, per_group))
    assert bool((grouped.sum((2, 3, 4)) == 1).all())
    assert torch.equal(grouped, grouped[:, :1].expand_as(grouped))


@pytest.mark.parametrize("numbers", [1, 719, 720, 1440, 5000, 1 << 22])
def test_batches_of_impulses_are_as_large_as_memory_allows(
    numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most numbers of any layer's for one output or all its channels, for every sample."""
    first = layers.convolution(whole(1, 3, 4, 3)).geometry
    second = layers.convolution(whole(2, 72, 3, 1)).geometry
    widest, size = 72, 10
    monkeypatch.setattr(probes, "_CHUNK_NUMBERS", numbers)
    found = list(impulse_batches(Chain((first, second)), Impulses((size,), (tuple(range(size)),))))
    most = max(1, numbers // (widest * size))
    assert sum(map(len, found)) == 4 * size
    assert all(len(x) == most for x in found[:-1])
    assert 1 <= len(found[-1]) <= most
    widened = layers.convolution(whole(2, 1, 3, 30)).geometry
    monkeypatch.setattr(probes, "_CHUNK_NUMBERS", 2 * 90 * 40)
    long = impulse_batches(Chain((first, widened)), Impulses((40,), ((0, 1, 2),)))
    assert [len(x) for x in long] == [2] * 6


@law(40)
@given(st.data(), st.sampled_from((1, 2)))
def test_every_impulse_stands_in_the_smallest_image_and_in_one_past_the_kernels(
    data: st.DataObject, rank: int
) -> None:
    tree = data.draw(shapes(rank))
    smallest, larger = every_impulse(tree, None)
    for axis in range(rank):
        assert smallest.size[axis] == smallest_size(tree, axis)
        assert larger.size[axis] == past(tree, axis, 1) + period(tree, axis)
    for one in (smallest, larger):
        assert one.positions == tuple(tuple(range(n)) for n in one.size)
    fixed = tuple(n + 50 for n in smallest.size)
    (only,) = every_impulse(tree, fixed)
    assert [only.size] == sizes(tree, fixed)
    assert only.positions == tuple(tuple(range(n)) for n in only.size)


def factors(found: AxisCorrections, classes: list[SizeClass], role: str) -> torch.Tensor:
    """What each place of the classes takes of each border tap: (places, taps)."""
    count = found.taps if role == "weights" else found.bias_taps
    rows: list[torch.Tensor] = []
    for one in classes:
        places: dict[tuple[int, ...], torch.Tensor] = {}
        for *place, tap, factor in getattr(one, role):
            place_row = places.setdefault(tuple(place), torch.zeros(count, dtype=torch.float64))
            place_row[tap] += factor
        rows += places.values()
    return torch.stack(rows) if rows else torch.zeros(0, count, dtype=torch.float64)


def rank_of(matrix: torch.Tensor) -> int:
    return int(torch.linalg.matrix_rank(matrix)) if matrix.numel() else 0


@law(30)
@given(st.data())
def test_border_impulses_tell_all_border_taps_apart(data: st.DataObject) -> None:
    """No change of the taps cancels at every place that is looked at, and each sample that a
    correction reads has its impulse.
    """
    tree = data.draw(shapes(1))
    found = corrections(tree)
    assume(found is not None)
    assert found is not None
    (axis,) = found.axes
    looked_at = border_impulses(tree, found)
    classes = [axis.of(one.size[0]) for one in looked_at]
    assert rank_of(factors(axis, classes, "weights")) == axis.taps
    assert rank_of(factors(axis, classes, "biases")) == axis.bias_taps
    assert len(set(classes)) == len(classes) <= max(1, axis.taps + axis.bias_taps)
    for impulses, one in zip(looked_at, classes, strict=True):
        (size,), (positions,) = impulses.size, impulses.positions
        outputs = output_size(tree, 0, size)
        assert outputs is not None
        if size < axis.settled:
            assert positions == tuple(range(size))
            continue
        assert list(positions) == sorted(set(positions))
        assert all(-outputs <= row < outputs for row in one.rows)
        assert {column % size for column in one.columns} <= set(positions)
        assert all(-size <= column < size for column in one.columns)
        own = merged(tree).axes[0]
        assert all(
            any(own.stride * n + tap == own.upsample * p for n in range(outputs) for p in positions)
            for tap in own.taps
        )
        assert len(positions) <= len(one.columns) + own.stride


@pytest.mark.parametrize("stride", [1, 2])
def test_border_impulses_stand_in_every_corner(stride: int) -> None:
    """Each class of one axis together with each of the other's."""
    first = layers.convolution(whole(1, 1, 1, 3, 3), stride=stride, padding=(1, 2))
    second = layers.convolution(whole(2, 1, 1, 3, 5), stride=(stride, 1), padding=(1, 2))
    tree = Chain((first.geometry, second.geometry))
    found = corrections(tree)
    assert found is not None
    looked_at = border_impulses(tree, found)
    per_axis = [{(one.size[n], one.positions[n]) for one in looked_at} for n in range(2)]
    assert len(looked_at) == len(per_axis[0]) * len(per_axis[1])
    pairs = {tuple(zip(one.size, one.positions, strict=True)) for one in looked_at}
    assert pairs == set(product(*per_axis))
    for axis, some in zip(found.axes, per_axis, strict=True):
        classes = [axis.of(size) for size, _ in some]
        assert rank_of(factors(axis, classes, "weights")) == axis.taps


@pytest.mark.parametrize("counts", [(1,), (3,), (2, 5), (5, 2), (1, 4, 3)])
def test_every_kind_of_size_is_tried(counts: tuple[int, ...]) -> None:
    axes = tuple(
        AxisCorrections(1, n, 1, 0, tuple(SizeClass(size) for size in range(1, n + 1)))
        for n in counts
    )
    tried = every_kind(Corrections(axes))
    assert len(tried) == max(counts)
    for index, n in enumerate(counts):
        assert {size[index] for size in tried} == set(range(1, n + 1))


def test_a_random_image_is_normal_and_depends_on_its_generator() -> None:
    geometry = layers.convolution(whole(1, 2, 3, 1, 1)).geometry
    first, same, other = (
        random_image(geometry, (40, 50), torch.Generator().manual_seed(seed), 2)
        for seed in (1, 1, 2)
    )
    assert first.shape == (2, 3, 40, 50)
    assert first.dtype == torch.float64
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert abs(float(first.mean())) < 5 / prod(first.shape) ** 0.5
    assert abs(float(first.var()) - 1) < 0.1


def test_a_bounded_image_has_no_small_values_and_no_large_ones() -> None:
    geometry = layers.convolution(whole(1, 2, 3, 1, 1)).geometry
    first, same, other = (
        bounded_image(geometry, (40, 50), torch.Generator().manual_seed(seed), 2)
        for seed in (1, 1, 2)
    )
    assert first.shape == (2, 3, 40, 50)
    assert first.dtype == torch.float64
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert 0.5 <= float(first.abs().min()) < 0.51
    assert 0.99 < float(first.abs().max()) <= 1
    assert abs(float(first.sign().mean())) < 5 / prod(first.shape) ** 0.5
    assert len(first.unique()) == prod(first.shape)
