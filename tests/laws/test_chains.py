"""The order in which a chain is composed changes nothing but what it costs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convsqueeze import layers
from convsqueeze.algebra import chains, ways
from convsqueeze.algebra.chains import cheapest_order, composed_chain
from convsqueeze.algebra.geometry import GeometryError
from convsqueeze.pipeline import merge_state_dict

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
    assert cheapest_order(wide, False) == ((0, 1), 2)
    assert cheapest_order(wide[::-1], False) == ((0, 1), 2)  # does not chain: one after the other
    narrow = chain((96, 96, 3, 3), (96, 96, 1, 1), (8, 96, 1, 1))
    assert cheapest_order(narrow, False) == (0, (1, 2))


def test_a_norm_leaves_the_large_composition_last() -> None:
    """Where points make that one cheaper, as its result is rounded."""
    pair = chain((128, 128, 3, 3), (128, 128, 3, 3))
    norm = layers.diagonal(whole(1, 128), rank=2).geometry
    assert cheapest_order((*pair, norm), True) == (0, (1, 2))
    assert cheapest_order((norm, *pair), True) == ((0, 1), 2)


def test_a_long_chain_is_joined_one_by_one() -> None:
    links = chain(*[(2, 2, 1)] * (chains.LONGEST + 1))
    order, depth = cheapest_order(links, False), 0
    while not isinstance(order, int):
        order, depth = order[0], depth + 1
    assert depth == chains.LONGEST


def test_what_is_not_one_operator_is_refused() -> None:
    links = [layers.convolution(whole(1, 2, 2, 3), stride=2), layers.convolution(whole(2, 2, 3, 3))]
    with pytest.raises(GeometryError, match="2 channels leave"):
        composed_chain(links)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("widen", [False, True])
def test_a_merge_uses_points_and_passes_its_verification(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, widen: bool
) -> None:
    """Stored is what the direct sum would be; a tensor that is widened is summed directly."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{index}.weight": torch.randn(40, 40, 3, 3, generator=generator).to(dtype)
        for index in (0, 1)
    }
    if widen:
        tensors["1.weight"][0] *= 300
        tensors["0.weight"] *= 100
    pairs = {"version": 1, "pairs": [{"first": {"name": "0"}, "second": {"name": "1"}}]}
    merged = {}
    for least in (0, 1 << 60):
        for name, value in (("LARGE", least), ("EVALUATE", 0), ("INTERPOLATE", 0)):
            monkeypatch.setattr(ways, name, value)
        cheapest_order.cache_clear()
        found, report = merge_state_dict(tensors, pairs, growth="allow", widen=widen)
        assert report.verification is not None
        merged[least] = found["0.weight"]
    wide = widen and dtype == torch.float16
    assert merged[0].dtype == merged[1 << 60].dtype == (torch.float32 if wide else dtype)
    assert torch.equal(merged[0], merged[1 << 60])
