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
from convsqueeze.algebra import Axis, Chain, Conv, Geometry
from convsqueeze.algebra.border.corrections import AxisCorrections, Corrections, SizeClass
from convsqueeze.algebra.border.mismatches import wrong_rows
from convsqueeze.algebra.border.taps import corrections
from convsqueeze.algebra.sizes import merged, output_size, period, reach, smallest_size
from convsqueeze.algebra.tree import Tree, leaves
from convsqueeze.verify import probes
from convsqueeze.verify.probes import (
    bounded_image,
    corrected_sizes,
    every_impulse,
    every_kind,
    exhaustive_sizes,
    interior_sizes,
    plain_sizes,
    random_image,
    small_size,
    telling_size,
)
from tests.algebra.drawn import MODES, channel_counts, convolutions, law, seeds, whole
from tests.algebra.test_border import chains, examinable, geometries, mergeable


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


def legal(tree: Tree[Geometry], axis: int) -> list[int]:
    """Every size that the layers take, as far as anything can be told apart."""
    first = smallest_size(tree, axis)
    sizes = range(first, first + 3 * (reach(tree, axis) + period(tree, axis)) + 1)
    return [n for n in sizes if output_size(tree, axis, n) is not None]


@pytest.mark.stress
def test_a_plain_merge_that_is_wrong_anywhere_is_wrong_on_a_plain_size() -> None:
    """No other size need be run: on each axis, whatever the padding, and for a fixed size too."""
    answers: Counter[bool] = Counter()

    @law(300)
    @given(st.data(), st.sampled_from((1, 1, 1, 2)))
    def each(data: st.DataObject, rank: int) -> None:
        tree = data.draw(shapes(rank))
        for axis in range(rank):
            wrong = {n: bool(wrong_rows(tree, axis, n)) for n in legal(tree, axis)}
            answers[any(wrong.values())] += 1
            tried = {size[axis] for size in plain_sizes(tree)}
            assert tried <= wrong.keys()
            if period(tree, axis) <= 4:
                assert any(wrong[n] for n in tried) == any(wrong.values())
        fixed = tuple(data.draw(st.sampled_from(legal(tree, axis))) for axis in range(rank))
        (standing,) = plain_sizes(tree, fixed)
        for axis, (n, other) in enumerate(zip(fixed, standing, strict=True)):
            assert other <= n
            assert (n - other) % period(tree, axis) == 0
            assert bool(wrong_rows(tree, axis, other)) == bool(wrong_rows(tree, axis, n))

    each()
    assert min(answers.values()) > 40


@law(100)
@given(st.data(), st.sampled_from((1, 1, 2, 3)))
def test_plain_sizes_have_every_remainder_and_a_small_one_is_beside_them(
    data: st.DataObject, rank: int
) -> None:
    tree = data.draw(shapes(rank))
    found = plain_sizes(tree)
    assert len(set(found)) == len(found)
    for size in found:
        assert all(output_size(tree, axis, n) is not None for axis, n in enumerate(size))
    for axis in range(rank):
        repeat = period(tree, axis)
        possible = {n % repeat for n in legal(tree, axis)}
        tried = {size[axis] % repeat for size in found}
        assert tried == possible if repeat <= 4 else len(tried) > 1
        small = small_size(tree, found[0])[axis]
        assert smallest_size(tree, axis) <= small <= found[0][axis]
        assert small <= smallest_size(tree, axis) + 2
        assert output_size(tree, axis, small) is not None


def test_a_linear_layer_has_one_size() -> None:
    tree = Chain((layers.linear(whole(1, 3, 2)).geometry,) * 1)
    assert plain_sizes(tree) == plain_sizes(tree, ()) == interior_sizes(tree, None) == [()]
    assert exhaustive_sizes(tree, None) == exhaustive_sizes(tree, ()) == [()]
    assert small_size(tree, ()) == ()


@law(60)
@given(st.data(), st.integers(0, 60))
def test_the_interior_is_seen_whatever_size_is_fixed(data: st.DataObject, more: int) -> None:
    tree = data.draw(shapes(1))
    fixed = (smallest_size(tree, 0) + more,)
    assume(output_size(tree, 0, fixed[0]) is not None)
    found = interior_sizes(tree, fixed)
    assert set(found) == {*plain_sizes(tree, fixed), *plain_sizes(tree)}
    assert interior_sizes(tree, None) == plain_sizes(tree)


@pytest.mark.stress
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


def test_a_plain_size_shows_every_tap_and_is_hardly_larger_than_it_must_be() -> None:
    """Every tap reads a sample for an output that the border leaves alone, where any size does."""
    answers: Counter[bool] = Counter()

    @law(100)
    @given(st.data(), st.sampled_from((1, 1, 2)))
    def each(data: st.DataObject, rank: int) -> None:
        tree = data.draw(shapes(rank))
        repeats = [
            any(leaf.axes[a].padding_mode != "zeros" for leaf in leaves(tree)) for a in range(rank)
        ]
        for axis, size in enumerate(plain_sizes(tree)[0]):
            shown = seen(tree, axis, size, tuple(range(size)))
            answers[shown] += 1
            if shown:
                assert (output_size(tree, axis, size) or 0) >= 2
            first = smallest_size(tree, axis) + (reach(tree, axis) if repeats[axis] else 0)
            smaller = [n for n in range(first, size) if output_size(tree, axis, n) is not None]
            before = smaller[-1:]  # halving finds a size whose neighbour does not show them
            assert not any(
                (output_size(tree, axis, n) or 0) >= 2 and seen(tree, axis, n, tuple(range(n)))
                for n in before
            )

    each()
    assert answers[True] > 50


def test_a_size_for_a_wide_kernel_with_padding_is_half_of_it() -> None:
    tree = Chain((layers.convolution(whole(1, 1, 1, 31, 5), padding=(15, 0)).geometry,))
    assert plain_sizes(tree) == [(16, 6)]
    assert plain_sizes(tree, (40, 9)) == [(16, 6)]
    assert plain_sizes(tree, (7, 5)) == [(7, 5)]
    assert small_size(tree, (16, 6)) == (3, 6)


def test_where_padding_repeats_the_image_a_size_is_past_every_kernel() -> None:
    layer = layers.convolution(whole(1, 1, 1, 5), padding=2, padding_mode="circular").geometry
    (size,) = plain_sizes(Chain((layer,)))[0]
    assert size >= reach(Chain((layer,)), 0)


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
    images = torch.cat(list(every_impulse(tree, (4, 5))))
    per_group = geometry.in_channels // geometry.groups
    assert images.shape == (20 * per_group, geometry.in_channels, 4, 5)
    assert images.dtype == torch.float64
    assert torch.equal(images, images.bool().double())
    assert torch.equal(images.sum(0), torch.ones(given_channels, 4, 5, dtype=torch.float64))
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
    found = list(every_impulse(Chain((first, second)), (size,)))
    most = max(1, numbers // (widest * size))
    assert sum(map(len, found)) == 4 * size
    assert all(len(x) == most for x in found[:-1])
    assert 1 <= len(found[-1]) <= most
    widened = layers.convolution(whole(2, 1, 3, 30)).geometry
    monkeypatch.setattr(probes, "_CHUNK_NUMBERS", 2 * 90 * 40)
    long = every_impulse(Chain((first, widened)), (40,))
    assert [len(x) for x in long] == [2] * 80


@law(40)
@given(st.data(), st.sampled_from((1, 2)))
def test_exhaustive_sizes_are_the_smallest_and_one_past_the_kernels(
    data: st.DataObject, rank: int
) -> None:
    tree = data.draw(shapes(rank))
    smallest, larger = exhaustive_sizes(tree, None)
    for axis in range(rank):
        assert smallest[axis] == smallest_size(tree, axis)
        assert larger[axis] == past(tree, axis, 1) + period(tree, axis)
    fixed = tuple(n + 50 for n in smallest)
    (only,) = exhaustive_sizes(tree, fixed)
    for axis, (n, tried) in enumerate(zip(fixed, only, strict=True)):
        assert (n - tried) % period(tree, axis) == 0
        assert tried == n if n <= past(tree, axis, 2) + period(tree, axis) else tried < n


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


@pytest.mark.stress
@law(30)
@given(st.data())
def test_corrected_sizes_tell_all_border_taps_apart(data: st.DataObject) -> None:
    """No change of the taps cancels at every place of all sizes, and every class is among them."""
    tree = data.draw(shapes(1))
    assume(examinable(tree, corrections))
    found = corrections(tree)
    assume(found is not None)
    assert found is not None
    (axis,) = found.axes
    sizes = [size for (size,) in corrected_sizes(tree, found, None)]
    assert sizes == sorted(set(sizes))
    roomy = [n for n in sizes if n < axis.settled or has_room(tree, axis, n)]
    classes = [axis.of(n) for n in roomy]
    assert rank_of(factors(axis, classes, "weights")) == axis.taps
    assert rank_of(factors(axis, classes, "biases")) == axis.bias_taps
    assert {axis.class_size(n) for n in sizes} == {one.size for one in axis.classes}
    own = merged(tree).axes[0]
    assert any(reads_every_tap(own, n) for n in sizes)


def has_room(tree: Tree[Geometry], axis: AxisCorrections, size: int) -> bool:
    """Whether entries from either end have places of their own."""
    outputs, one = output_size(tree, 0, size) or 0, axis.of(size)
    rows = all(-outputs <= row < outputs for row in one.rows)
    return rows and all(-size <= column < size for column in one.columns)


def reads_every_tap(own: Axis, size: int) -> bool:
    outputs = range(own.output_size(size))
    return all(
        any(own.stride * n + tap == own.upsample * p for n in outputs for p in range(size))
        for tap in own.taps
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_corrected_sizes_have_every_corner(stride: int) -> None:
    """Each of one axis that tells taps apart together with each of the other's."""
    first = layers.convolution(whole(1, 1, 1, 3, 3), stride=stride, padding=(1, 2))
    second = layers.convolution(whole(2, 1, 1, 3, 5), stride=(stride, 1), padding=(1, 2))
    tree = Chain((first.geometry, second.geometry))
    found = corrections(tree)
    assert found is not None
    tried = corrected_sizes(tree, found, None)
    kinds = set(every_kind(found))
    assert kinds <= set(tried)
    rows, columns = ({size[n] for size in set(tried) - kinds} for n in range(2))
    assert set(product(rows, columns)) <= set(tried)
    for axis, some in zip(found.axes, (rows, columns), strict=True):
        assert rank_of(factors(axis, [axis.of(n) for n in some], "weights")) == axis.taps


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
