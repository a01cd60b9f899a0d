"""Where a plain merge is exact and where it is not: the plan's answer against the numbers.

With generic weights a row that ought to be wrong is wrong, so `wrong_rows` can be held to
equality: it must miss no row that differs (or a merge would be silently wrong) and name none that
does not (or an exact merge would be refused). Both answers must be seen.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from math import ceil

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from convsqueeze import layers
from convsqueeze.algebra import Chain, Conv, Geometry, Sum
from convsqueeze.algebra.border import mismatches as border
from convsqueeze.algebra.border.mismatches import mismatches, wrong_rows
from convsqueeze.algebra.sizes import (
    along,
    output_size,
    past_both_borders,
    period,
    sizes_to_examine,
    smallest_size,
)
from convsqueeze.algebra.tree import Tree, fold
from convsqueeze.errors import GeometryError, TooLargeError

from .drawn import MODES, convolutions, fitting, law, seeds, transposed

WRONG = 1e-7
"""Relative to the largest output: a difference that no rounding makes."""


def generic(conv: Conv, seed: int) -> Conv:
    """The same layer with weights that nothing cancels."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(like: Tensor) -> Tensor:
        values = torch.rand(like.shape, generator=generator, dtype=torch.float64) + 0.5
        return values * (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1)

    bias = None if conv.bias is None else drawn(conv.bias)
    return replace(conv, weight=drawn(conv.weight), bias=bias)


def geometries(tree: Tree[Conv]) -> Tree[Geometry]:
    return fold(
        tree,
        lambda leaf: leaf.geometry,
        lambda links: Chain(tuple(links)),
        lambda branches: Sum(tuple(branches)),
    )


def plain(tree: Tree[Conv]) -> Conv:
    return fold(
        tree,
        lambda leaf: leaf,
        lambda links: reduce(lambda inner, outer: outer @ inner, links),
        lambda branches: reduce(lambda left, right: left + right, branches),
    )


def run(tree: Tree[Conv], x: Tensor) -> Tensor:
    if isinstance(tree, Chain):
        return reduce(lambda y, link: run(link, y), tree.links, x)
    if isinstance(tree, Sum):
        return torch.stack([run(branch, x) for branch in tree.branches]).sum(0)
    return tree(x)


def differing(tree: Tree[Conv], merged: Conv, size: Sequence[int]) -> Tensor:
    """The outputs, over channels, at which the plain merge is wrong; shape (*output)."""
    generator = torch.Generator().manual_seed(sum(size))
    x = torch.randn(3, merged.geometry.in_channels, *size, generator=generator).double()
    expected, actual = run(tree, x), merged(x)
    assert actual.shape == expected.shape
    largest = expected.abs().max().clamp(min=1.0)
    return ((actual - expected).abs() > WRONG * largest).flatten(0, 1).any(0)


def sizes(tree: Tree[Conv]) -> list[int]:
    """The smallest legal ones, and some on both sides of where the plan stops looking."""
    shapes = geometries(tree)
    first, stop = smallest_size(shapes, 0), sizes_to_examine(shapes, 0).stop
    return sorted({*range(first, first + 10), *range(max(first, stop - 3), stop + 3)})


def assert_wrong_rows_are_those_that_differ(tree: Tree[Conv]) -> None:
    merged, shapes = plain(tree), geometries(tree)
    every = mismatches(shapes)
    for n in sizes(tree):
        wrong = set(differing(tree, merged, (n,)).nonzero().flatten().tolist())
        told = wrong_rows(shapes, 0, n)
        assert wrong == told, f"size {n}: {wrong} differ, {set(told)} were told"
        assert not wrong or every, f"size {n}: {wrong} differ, but no mismatch was told"
    assert bool(mismatches(shapes, (n,))) == bool(wrong_rows(shapes, 0, n))


def conv(
    kernel_size: int, channels: int = 2, *, bias: bool = False, seed: int = 0, **steps: object
) -> Conv:
    weight = torch.empty(channels, channels, kernel_size)
    made = layers.convolution(weight, torch.empty(channels) if bias else None, **steps)  # type: ignore[arg-type]
    return generic(made, seed + kernel_size)


@st.composite
def pairs(draw: st.DrawFn, modes: Sequence[str] = ("zeros",)) -> Chain[Conv]:
    """Two generic layers on one axis; the outer one pads or does not."""
    seed = draw(seeds)
    first = draw(convolutions(1, modes=modes, padding=4))
    channels = first.geometry.out_channels
    second = draw(convolutions(1, channels, padding=draw(st.sampled_from((0, 3))), modes=modes))
    return Chain((generic(first, seed), generic(second, seed + 1)))


@st.composite
def links(draw: st.DrawFn, channels: int, depth: int) -> Tree[Conv]:
    """A layer, now and then padding or cropping, a sum of branches that fit, or a chain."""
    kind = draw(st.sampled_from(("conv", "conv", "conv", "pad", "sum", "chain", "transposed")))
    seed = draw(seeds)
    if kind == "transposed":
        return generic(draw(transposed(1, channels, bias=False)), seed)
    if kind == "pad":
        amounts = st.integers(-1, 2)
        return layers.pad(channels, padding=[draw(st.tuples(amounts, amounts))], rank=1)
    if kind == "chain" and depth:
        return draw(chains(channels, depth - 1))
    if kind != "sum":
        mode = draw(st.sampled_from(("zeros", "zeros", *MODES)))
        padding = draw(st.sampled_from((0, 3)))
        conv = draw(convolutions(1, channels, stride=2, padding=padding, modes=(mode,)))
        return generic(conv, seed)
    first = generic(draw(convolutions(1, channels, stride=2)), seed)
    branches: list[Tree[Conv]] = [first]
    for more in range(draw(st.integers(1, 2))):
        branch: Tree[Conv] = generic(draw(fitting(first)), seed + 1 + more)
        if depth and draw(st.booleans()):
            point = draw(convolutions(1, channels, padding=0, stride=1, taps=1))
            second = draw(fitting(convolution_of(point.geometry.out_channels, first)))
            branch = Chain((generic(point, seed + 5), generic(second, seed + 6 + more)))
        branches.append(branch)
    return Sum(tuple(branches))


def convolution_of(channels: int, like: Conv) -> Conv:
    """`like` with another number of input channels."""
    weight = torch.ones(like.geometry.out_channels, channels, like.weight.shape[2])
    return Conv(weight, like.bias, like.axes)


@st.composite
def chains(draw: st.DrawFn, channels: int | None = None, depth: int = 1) -> Chain[Conv]:
    """Two to four links."""
    given_channels = channels or draw(st.sampled_from((1, 2, 3)))
    found: list[Tree[Conv]] = []
    for _ in range(draw(st.integers(2, 4 if depth else 2))):
        found.append(draw(links(given_channels, depth)))
        given_channels = fold(
            found[-1], lambda leaf: leaf.geometry.out_channels, lambda n: n[-1], lambda n: n[0]
        )
    return Chain(tuple(found))


def mergeable(tree: Tree[Conv]) -> bool:
    try:
        plain(tree)
        smallest_size(geometries(tree), 0)
    except GeometryError:
        return False
    return True


def examinable(tree: Tree[Geometry], find: Callable[[Tree[Geometry]], object]) -> bool:
    """Whether the border of layers that make one operator is within what is looked at."""
    try:
        find(tree)
    except TooLargeError:
        return False
    return True


def seen_both(answers: Counter[bool]) -> None:
    """A predicate that is under test is seen true and false, each often."""
    total = sum(answers.values())
    assert min(answers[True], answers[False]) >= total / 8, answers


@pytest.mark.stress
def test_pairs_with_zeros() -> None:
    answers: Counter[bool] = Counter()

    @law(200)
    @given(pairs())
    def each(pair: Chain[Conv]) -> None:
        answers[bool(mismatches(geometries(pair)))] += 1
        assert_wrong_rows_are_those_that_differ(pair)

    each()
    seen_both(answers)


@pytest.mark.stress
def test_pairs_with_padding_modes() -> None:
    answers: Counter[bool] = Counter()

    @law(200)
    @given(pairs(MODES))
    def each(pair: Chain[Conv]) -> None:
        if mergeable(pair):
            answers[bool(mismatches(geometries(pair)))] += 1
            assert_wrong_rows_are_those_that_differ(pair)

    each()
    seen_both(answers)


def test_chains_and_sums() -> None:
    answers: Counter[bool] = Counter()

    @law(150)
    @given(chains())
    def each(chain: Chain[Conv]) -> None:
        if mergeable(chain) and examinable(geometries(chain), mismatches):
            answers[bool(mismatches(geometries(chain)))] += 1
            assert_wrong_rows_are_those_that_differ(chain)

    each()
    seen_both(answers)


@law(60)
@given(st.data(), seeds, st.booleans())
def test_transposed_layers(data: st.DataObject, seed: int, later: bool) -> None:
    up = data.draw(transposed(1, 2, bias=None if later else False))
    other = data.draw(convolutions(1, up.geometry.out_channels))
    if not later:
        other = data.draw(convolutions(1, 3, bias=False, stride=1))
        up = data.draw(transposed(1, other.geometry.out_channels))
    inner, outer = (up, other) if later else (other, up)
    pair = Chain((generic(inner, seed), generic(outer, seed + 1)))
    assert_wrong_rows_are_those_that_differ(pair)


@law(40)
@given(st.data(), seeds)
def test_each_axis_answers_for_itself(data: st.DataObject, seed: int) -> None:
    """In two dimensions the wrong outputs are whole rows and columns, corners included."""
    inner = generic(data.draw(convolutions(2, bias=True, padding=2)), seed)
    outer = generic(data.draw(convolutions(2, inner.geometry.out_channels, padding=2)), seed + 1)
    pair = Chain((inner, outer))
    shapes, merged = geometries(pair), plain(pair)
    size = tuple(smallest_size(shapes, axis) + data.draw(st.integers(0, 7)) for axis in (0, 1))
    expected = torch.zeros(merged.geometry.output_size(size), dtype=torch.bool)
    for axis in (0, 1):
        rows = sorted(wrong_rows(shapes, axis, size[axis]))
        expected.index_fill_(axis, torch.tensor(rows, dtype=torch.long), True)
    assert torch.equal(differing(pair, merged, size), expected)


# The closed formulas


def sides_of(chain: Chain[Conv]) -> dict[str, int]:
    """Rows that differ, by side."""
    return {leak.side: leak.rows for leak in mismatches(geometries(chain))}


@law(200)
@given(st.data(), st.integers(0, 40))
def test_a_large_input_meets_the_border_as_a_small_one(data: st.DataObject, more: int) -> None:
    """Rows are those of the layers themselves on it, counted from the end that they are near."""
    tree = data.draw(st.one_of(chains(), pairs(), pairs(modes=MODES)))
    assume(mergeable(tree) and examinable(geometries(tree), mismatches))
    alone = geometries(tree)
    size = past_both_borders(alone, 0) + period(alone, 0) + 1 + more
    assume(size < 600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(border, "equivalent_size", lambda tree, axis, size: size)
        rows = border._wrong_rows.__wrapped__(along(alone, 0), size)
        expected = border._on_axis.__wrapped__(along(alone, 0), size)
    assert wrong_rows(alone, 0, size) == rows
    found = border._on_axis(along(alone, 0), size)
    assert [(one.side, one.rows, one.cause, one.link) for one in found] == [
        (one.side, one.rows, one.cause, one.link) for one in expected
    ]


@law(150)
@given(pairs())
def test_a_window_that_cannot_reach_the_image(pair: Chain[Conv]) -> None:
    """`extent1 <= before1 + s1` and `extent1 <= after1 + 1`, without a bias: exact."""
    (inner,), (outer,) = (link.axes for link in pair.links)  # type: ignore[union-attr]
    bias = pair.links[0].geometry.bias  # type: ignore[union-attr]
    out_of_reach = {
        "low": inner.extent <= inner.before + inner.stride,
        "high": inner.extent <= inner.after + 1,
    }
    found = sides_of(pair)
    dense = outer.dilation == 1 and outer.kernel_size >= outer.stride
    for side, amount in (("low", outer.before), ("high", outer.after)):
        exact = amount == 0 or (not bias and out_of_reach[side])
        if exact:
            assert side not in found
        elif dense and outer.kernel_size > amount:  # the window meets the ring beside the image
            assert found[side] == ceil(amount / outer.stride)


@law(50)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4)), min_size=2, max_size=4))
@example([(3, 4), (3, 4), (3, 4), (3, 4)])  # the largest of them is within what is looked at
def test_rows_grow_along_a_chain(steps: list[tuple[int, int]]) -> None:
    """`ceil((b_inner + p) / s)`, with a bias in every layer."""
    chain = Chain(
        tuple(
            conv(max(s, p) + 1, stride=s, padding=p, bias=True, seed=i)
            for i, (s, p) in enumerate(steps)
        )
    )
    rows = 0
    for stride, padding in steps[1:]:
        rows = ceil((rows + padding) / stride)
    assert sides_of(chain) == ({"low": rows, "high": rows} if rows else {})


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_full_padding_without_a_bias(kernel_size: int, stride: int) -> None:
    """Exact in front of any layer; one less on a side, or a bias, and it is not."""
    full = {"stride": stride, "padding": kernel_size - 1}
    outer = conv(3, padding=1)
    assert not sides_of(Chain((conv(kernel_size, **full), outer)))
    assert sides_of(Chain((conv(kernel_size, bias=True, **full), outer))) == {"low": 1, "high": 1}
    if kernel_size > 1:
        short = [[kernel_size - 1, kernel_size - 2]]
        assert sides_of(Chain((conv(kernel_size, padding=short), outer))) == {"high": 1}
        short = [[kernel_size - 2, kernel_size - 1]]
        assert sides_of(Chain((conv(kernel_size, padding=short), outer))) == {"low": 1}


def test_circular_layers_that_keep_the_size() -> None:
    """Padding adds up, bias included; a stride or another size in the inner layer ends that."""
    inner = conv(3, padding=1, padding_mode="circular", bias=True)
    outer = conv(5, padding=2, padding_mode="circular", bias=True)
    assert not sides_of(Chain((inner, outer)))
    assert not sides_of(Chain((inner, inner, outer)))
    smaller = conv(3, padding=0, bias=True)
    assert sides_of(Chain((smaller, outer))) == {"low": 2, "high": 2}
    assert sides_of(Chain((inner, conv(5, padding=2)))) == {"low": 2, "high": 2}


# Answers that were wrong once


def test_a_wrong_sample_wraps_around() -> None:
    """The second layer spoils two samples; circular padding takes them to the far side."""
    circular = {"padding": 1, "padding_mode": "circular"}
    chain = Chain((conv(3, **circular), conv(3, padding=[[2, 0]]), conv(3, **circular)))
    assert wrong_rows(geometries(chain), 0, 8) == {0, 1, 2, 7}
    assert_wrong_rows_are_those_that_differ(chain)


def test_a_wrong_sample_wraps_around_from_the_far_side() -> None:
    circular = {"padding": 1, "padding_mode": "circular"}
    chain = Chain((conv(3, **circular), conv(3, padding=[[0, 2]]), conv(3, **circular)))
    assert wrong_rows(geometries(chain), 0, 8) == {0, 5, 6, 7}
    assert_wrong_rows_are_those_that_differ(chain)


def test_each_side_names_the_layer_whose_padding_it_is() -> None:
    """The second pads in front, the third behind, and only the bias before it matters there."""
    chain = Chain((conv(3), conv(3, padding=[[1, 0]]), conv(3, padding=[[0, 2]])))
    assert {leak.side: (leak.link, leak.cause) for leak in mismatches(geometries(chain))} == {
        "low": ((1,), "window"),
        "high": ((2,), "window"),
    }
    biased = Chain((conv(1, bias=True), conv(3, padding=[[1, 0]]), conv(3, padding=[[0, 2]])))
    found = {leak.side: (leak.link, leak.cause) for leak in mismatches(geometries(biased))}
    assert found["low"] == ((1,), "bias")
    assert found["high"][0] == (2,)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_bias_in_one_of_the_branches_is_enough(order: tuple[int, int]) -> None:
    points = (conv(1, bias=True, seed=1), conv(1, seed=2))
    outer = conv(3, padding=1)
    assert not sides_of(Chain((Sum((points[1], points[1])), outer)))
    tree = Chain((Sum(tuple(points[index] for index in order)), outer))
    assert {leak.cause for leak in mismatches(geometries(tree))} == {"bias"}
    assert_wrong_rows_are_those_that_differ(tree)


@pytest.mark.parametrize("place", [0, 1])
def test_a_bias_in_one_of_the_links_before_is_enough(place: int) -> None:
    points = [conv(1, bias=index == place, seed=index) for index in range(2)]
    tree = Chain((*points, conv(3, padding=1)))
    assert sides_of(tree) == {"low": 1, "high": 1}
    assert {leak.cause for leak in mismatches(geometries(tree))} == {"bias"}
    assert_wrong_rows_are_those_that_differ(tree)


@pytest.mark.parametrize("taps", [1, 2, 3])
@pytest.mark.parametrize("side", [(2, 0), (0, 2), (1, 1), (3, 3)])
def test_a_third_layer_sees_all_that_two_before_it_read(taps: int, side: tuple[int, int]) -> None:
    """Steps and upsamplings multiply, and each window reaches as far as both together."""
    for first in (
        conv(3, padding=[[2, 0]], stride=2),
        conv(3, padding=[[0, 2]], dilation=2),
        conv(2, padding=[[1, 0]], stride=3),
        generic(layers.transposed(torch.empty(2, 2, 3), stride=2, padding=1), 5),
        generic(layers.transposed(torch.empty(2, 2, 4), stride=3), 6),
    ):
        tree = Chain((first, conv(taps, seed=4), conv(3, padding=[side], seed=9)))
        assert_wrong_rows_are_those_that_differ(tree)


def never_wrong(tree: Tree[Conv]) -> None:
    """No side is told to differ, and none does."""
    merged = plain(tree)
    for n in sizes(tree):
        assert not differing(tree, merged, (n,)).any()
    assert mismatches(geometries(tree)) == ()


def padded_twice() -> tuple[Conv, Conv]:
    return conv(3, padding=1, seed=1), conv(3, padding=1, bias=True, seed=2)


def test_a_chain_within_a_chain_is_the_chain() -> None:
    """Zeros around the image by 2, then 3x3 twice: the second cannot see past the zeros."""
    pad = layers.pad(2, padding=2, rank=1)
    never_wrong(Chain((pad, *padded_twice())))
    never_wrong(Chain((pad, Chain(padded_twice()))))


def test_a_branch_sees_what_stands_before_the_sum() -> None:
    pad = layers.pad(2, padding=2, rank=1)
    never_wrong(Chain((pad, Sum((Chain(padded_twice()), conv(3, padding=1))))))


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
@pytest.mark.parametrize("inner", [{"stride": 2}, {"stride": 3}])
def test_edges_repeat_in_front_of_a_strided_point(mode: str, inner: dict[str, int]) -> None:
    """A one-tap layer with a stride begins at the first sample, so its low side passes."""
    outer = conv(3, padding=[[1, 0]], padding_mode=mode)
    never_wrong(Chain((conv(1, bias=True, **inner), outer)))


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_edges_repeat_in_front_of_a_crop_behind(mode: str) -> None:
    crop = layers.pad(2, padding=[[0, -1]], rank=1)
    never_wrong(Chain((crop, conv(3, padding=[[1, 0]], padding_mode=mode))))


@pytest.mark.parametrize("mode", ["replicate", "circular"])
def test_a_repeated_edge_that_is_padding_itself(mode: str) -> None:
    """A one-tap layer pads by one; what the next layer repeats is that ring, its bias."""
    point = conv(1, padding=1, bias=True)
    never_wrong(Chain((point, conv(3, padding=[[1, 0]], padding_mode=mode))))


def test_an_input_of_even_size_wraps_through_a_stride() -> None:
    """Circular around every other sample is circular around all where their number is even."""
    pair = Chain((conv(1, stride=2, bias=True), conv(3, padding=1, padding_mode="circular")))
    merged = plain(pair)
    assert not differing(pair, merged, (8,)).any()
    assert differing(pair, merged, (9,)).any()
    assert mismatches(geometries(pair), (8,)) == ()
    assert output_size(geometries(pair), 0, 8) == 4


# Links that can follow only as a whole


@st.composite
def up_and_down(draw: st.DrawFn) -> Chain[Conv]:
    """A stride and then, as one link, an upsampling and a stride that cancel each other: no single
    layer upsamples behind a stride, but the link is an ordinary layer.
    """
    seed, step = draw(seeds), draw(st.sampled_from((2, 3)))
    first = draw(convolutions(1, taps=3, padding=1))
    strided = layers.convolution(
        first.weight,
        first.bias,
        stride=step,
        padding=[[axis.before, axis.after] for axis in first.axes],
        groups=first.groups,
    )
    taps = draw(st.integers(1, 4))
    up = layers.transposed(
        torch.empty(first.geometry.out_channels, 2, taps),
        stride=step,
        padding=draw(st.integers(0, min(1, taps - 1))),
    )
    has_bias = draw(st.booleans())
    down = layers.convolution(
        torch.empty(2, 2, draw(st.integers(1, 3))),
        torch.empty(2) if has_bias else None,
        stride=step,
        padding=draw(st.integers(0, 2)),
    )
    return Chain((generic(strided, seed), Chain((generic(up, seed + 1), generic(down, seed + 2)))))


def test_a_link_that_follows_only_as_a_whole_has_every_wrong_row_told() -> None:
    answers: Counter[bool] = Counter()

    @law(80)
    @given(up_and_down())
    def each(tree: Chain[Conv]) -> None:
        assume(mergeable(tree))
        merged, shapes = plain(tree), geometries(tree)
        (_, link) = tree.links
        with pytest.raises(GeometryError, match=r"does not commute|output phase"):
            plain(Chain((tree.links[0], *link.links)))  # type: ignore[union-attr]
        for n in sizes(tree):
            wrong = set(differing(tree, merged, (n,)).nonzero().flatten().tolist())
            assert wrong == wrong_rows(shapes, 0, n)
        told = bool(mismatches(shapes))
        assert told == any(wrong_rows(shapes, 0, n) for n in sizes(tree))
        answers[told] += 1

    each()
    seen_both(answers)


@pytest.mark.parametrize("step", [2, 3])
@pytest.mark.parametrize(("taps", "low", "high"), [(2, 0, 0), (3, 0, 0), (3, 1, 0), (3, 1, 1)])
def test_rows_of_a_link_that_follows_only_as_a_whole(
    step: int, taps: int, low: int, high: int
) -> None:
    """As wide a stride behind as upsampling before: exact at its own border, wrong at the ring."""
    first = conv(3, stride=step, padding=[[1, 1]], bias=True)
    up = generic(layers.transposed(torch.empty(2, 2, step), stride=step), 5)
    down = conv(taps, stride=step, padding=[[low, high]], seed=7)
    tree = Chain((first, Chain((up, down))))
    assert_wrong_rows_are_those_that_differ(tree)
    link = geometries(Chain((up, down)))
    inside = mismatches(link)
    assert {leak.side for leak in mismatches(geometries(tree))} >= {leak.side for leak in inside}


def test_after_a_link_that_followed_as_a_whole_the_next_sees_all_of_it() -> None:
    first = conv(3, stride=2, padding=1)
    up = generic(layers.transposed(torch.empty(2, 2, 2), stride=2), 5)
    down = conv(2, stride=2, seed=7)
    last = conv(3, padding=1, seed=9)
    tree = Chain((first, Chain((up, down)), last))
    assert_wrong_rows_are_those_that_differ(tree)
    apart = Chain((first, plain(Chain((up, down))), last))
    for n in sizes(tree):
        assert wrong_rows(geometries(tree), 0, n) == wrong_rows(geometries(apart), 0, n)
    assert mismatches(geometries(tree))
