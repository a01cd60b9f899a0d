"""How large an image has to be, and past which size its borders meet nothing new."""

from functools import reduce
from math import lcm

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convsqueeze import layers
from convsqueeze.algebra import Axis, Chain, Geometry, Sum
from convsqueeze.algebra.sizes import (
    merged,
    output_size,
    period,
    reach,
    sizes_to_examine,
    smallest_size,
)

from .drawn import LARGEST, convolutions, law, whole

pytestmark = pytest.mark.quick


def layer(axis: Axis) -> Geometry:
    return Geometry(in_channels=1, out_channels=1, axes=(axis,))


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    return Axis(
        kernel_size=draw(st.integers(1, 4)),
        stride=draw(st.integers(1, 4)),
        dilation=draw(st.integers(1, 3)),
        before=draw(st.integers(-2, 3)),
        after=draw(st.integers(-2, 3)),
    )


def width(axis: Axis) -> int:
    """Samples that an output can depend on, padding and what is taken away counted."""
    return axis.dilation * (axis.kernel_size - 1) + 1 + abs(axis.before) + abs(axis.after)


@law(150)
@given(st.lists(axes(), min_size=1, max_size=4))
def test_reach_and_period_of_a_chain(links: list[Axis]) -> None:
    """`r1 + s1*r2 + s1*s2*r3 + ...`, and the product of the strides."""
    chain = Chain(tuple(map(layer, links)))
    step, total = 1, 0
    for axis in links:
        total += step * width(axis)
        step *= axis.stride
    assert reach(chain, 0) == total
    assert period(chain, 0) == step


@law(100)
@given(st.lists(st.lists(axes(), min_size=1, max_size=3), min_size=1, max_size=3))
def test_reach_and_period_of_a_sum(ways: list[list[Axis]]) -> None:
    """The widest branch's, and what is a multiple of every branch's period."""
    branches = [Chain(tuple(map(layer, way))) for way in ways]
    assert reach(Sum(tuple(branches)), 0) == max(reach(one, 0) for one in branches)
    every = reduce(lcm, (period(one, 0) for one in branches))
    assert period(Sum(tuple(branches)), 0) == every


@law(100)
@given(st.data(), st.integers(1, 3))
def test_the_smallest_size_is_the_first_that_every_layer_takes(
    data: st.DataObject, count: int
) -> None:
    links = [data.draw(convolutions(1, 1, modes=("zeros", "reflect", "circular"))).geometry]
    for _ in range(count):
        more = data.draw(convolutions(1, links[-1].out_channels))
        links.append(more.geometry)
    chain = Chain(tuple(links))

    def takes(size: int) -> bool:
        for link in links:
            if not link.axes[0].accepts(size):
                return False
            size = link.axes[0].output_size(size)
        return True

    first = next(size for size in range(1, LARGEST) if takes(size))
    assert smallest_size(chain, 0) == first
    assert output_size(chain, 0, first - 1) is None
    assert isinstance(output_size(chain, 0, first), int)


@law(60)
@given(st.data())
def test_sizes_are_examined_past_every_kernel_for_one_period(data: st.DataObject) -> None:
    first = data.draw(convolutions(1, 1))
    second = data.draw(convolutions(1, first.geometry.out_channels))
    chain = Chain((first.geometry, second.geometry))
    examined = sizes_to_examine(chain, 0)
    assert examined.start == smallest_size(chain, 0)
    past = reach(chain, 0) + width(merged(chain).axes[0]) + period(chain, 0)
    assert list(examined) == list(range(examined.start, examined.start + past + 1))


def test_a_sum_takes_what_each_of_its_branches_takes() -> None:
    """Five samples are too few to reflect five, though enough for the branch beside it."""
    wide = layers.convolution(whole(1, 1, 1, 11), padding=5, padding_mode="reflect").geometry
    point = layers.convolution(whole(2, 1, 1, 1)).geometry
    for branches in ((wide, point), (point, wide)):
        both = Sum(branches)
        assert output_size(both, 0, 5) is None
        assert output_size(both, 0, 6) == 6
        assert smallest_size(both, 0) == 6


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_chain_takes_what_each_of_its_links_takes(order: tuple[int, int]) -> None:
    links = [layers.convolution(whole(1, 1, 1, taps)).geometry for taps in (5, 3)]
    chain = Chain(tuple(links[index] for index in order))
    assert [output_size(chain, 0, size) for size in range(1, 9)] == [*[None] * 6, 1, 2]
