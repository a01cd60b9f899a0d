"""The order in which a chain is composed changes nothing but what it costs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convsqueeze import layers
from convsqueeze.algebra import chains
from convsqueeze.algebra.chains import cheapest_order, composed_chain
from convsqueeze.algebra.geometry import GeometryError

from .drawn import MODES, convolutions, images, law, operators, ranks, whole
from .test_operators import composed


@law(120)
@given(st.data(), ranks, st.integers(1, 4), st.booleans())
def test_any_order_is_one_after_the_other(
    data: st.DataObject, rank: int, count: int, modes: bool
) -> None:
    """Geometry, values and bias, with upsampling or padding modes too."""
    links = []
    for _ in range(count):
        channels = links[-1].geometry.out_channels if links else None
        drawn = convolutions(rank, channels, modes=MODES) if modes else operators(rank, channels)
        links.append(data.draw(drawn))
    expected = links[0]
    for link in links[1:]:
        expected = composed(link, expected)
    found = composed_chain(links)
    assert found.geometry == expected.geometry
    x = data.draw(images(expected))
    assert torch.equal(found(x), expected(x))


def chain(*shapes: tuple[int, ...]):
    return tuple(layers.convolution(whole(1, *shape)).geometry for shape in shapes)


def test_a_narrow_layer_is_met_before_a_wide_one() -> None:
    wide = chain((96, 48, 1, 1), (96, 96, 3, 3), (48, 96, 1, 1))
    assert cheapest_order(wide) == ((0, 1), 2)
    assert cheapest_order(wide[::-1]) == ((0, 1), 2)  # does not chain: one after the other
    narrow = chain((96, 96, 3, 3), (96, 96, 1, 1), (8, 96, 1, 1))
    assert cheapest_order(narrow) == (0, (1, 2))


def test_a_long_chain_is_joined_one_by_one() -> None:
    links = chain(*[(2, 2, 1)] * (chains.LONGEST + 1))
    order, depth = cheapest_order(links), 0
    while not isinstance(order, int):
        order, depth = order[0], depth + 1
    assert depth == chains.LONGEST


def test_what_is_not_one_operator_is_refused() -> None:
    links = [layers.convolution(whole(1, 2, 2, 3), stride=2), layers.convolution(whole(2, 2, 3, 3))]
    with pytest.raises(GeometryError, match="2 channels leave"):
        composed_chain(links)
