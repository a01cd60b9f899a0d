"""Composition, sums and multiples of operators are what their names say."""

import re
from math import gcd

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from convsqueeze import layers
from convsqueeze.algebra import Chain, Conv
from convsqueeze.algebra.border.mismatches import mismatches
from convsqueeze.algebra.geometry import Axis, Geometry, add, compose
from convsqueeze.errors import GeometryError

from .drawn import (
    MODES,
    convolutions,
    fitting,
    images,
    law,
    operators,
    ranks,
    transposed,
    whole,
    within,
)


def composed(outer: Conv, inner: Conv) -> Conv:
    try:
        return outer @ inner
    except GeometryError:
        assume(False)
        raise


def out_of(conv: Conv) -> int:
    return conv.geometry.out_channels


def drawn_pair(data: st.DataObject, rank: int) -> tuple[Conv, Conv]:
    inner = data.draw(operators(rank))
    return data.draw(operators(rank, out_of(inner))), inner


@law(200)
@given(st.data(), ranks)
def test_composition_is_one_after_the_other(data: st.DataObject, rank: int) -> None:
    """Exactly, in the interior always and everywhere if nothing leaks."""
    outer, inner = drawn_pair(data, rank)
    merged = composed(outer, inner)
    x = data.draw(images(inner, outer))
    middle = inner(x)
    expected, actual = outer(middle), merged(x)
    assert actual.shape == expected.shape
    mask = within(outer, middle.shape[2:], expected.shape[2:])
    if not mismatches(Chain((inner.geometry, outer.geometry)), x.shape[2:]):
        mask = torch.ones_like(mask)
    assert torch.equal(actual * mask, expected * mask)


@law(120)
@given(st.data(), ranks, st.sampled_from(MODES), st.sampled_from(MODES))
def test_composition_with_padding_modes(
    data: st.DataObject, rank: int, first: str, second: str
) -> None:
    inner = data.draw(convolutions(rank, padding=2, stride=2, modes=(first,)))
    pads = data.draw(st.booleans())
    outer = data.draw(
        convolutions(rank, out_of(inner), padding=2 * pads, stride=2, modes=(second,))
    )
    merged = composed(outer, inner)
    x = data.draw(images(inner, outer))
    middle = inner(x)
    expected, actual = outer(middle), merged(x)
    assert actual.shape == expected.shape
    mask = within(outer, middle.shape[2:], expected.shape[2:])
    if not mismatches(Chain((inner.geometry, outer.geometry)), x.shape[2:]):
        mask = torch.ones_like(mask)
    assert torch.equal(actual * mask, expected * mask)


@law(80)
@given(st.data(), ranks, st.sampled_from(MODES))
def test_what_is_pointwise_passes_any_padding(data: st.DataObject, rank: int, mode: str) -> None:
    """Any mode but zeros, bias included; and an unpadded outer layer takes any inner mode."""
    pointwise = data.draw(convolutions(rank, padding=0, stride=1, taps=1))
    outer = data.draw(convolutions(rank, out_of(pointwise), padding=2, modes=(mode,)))
    if mode != "zeros":
        assert not mismatches(Chain((pointwise.geometry, outer.geometry)))
        x = data.draw(images(pointwise, outer))
        assert torch.equal((outer @ pointwise)(x), outer(pointwise(x)))
    valid = data.draw(convolutions(rank, out_of(outer), padding=0))
    assert not mismatches(Chain((outer.geometry, valid.geometry)))
    x = data.draw(images(outer, valid))
    assert torch.equal((valid @ outer)(x), valid(outer(x)))


@law(80)
@given(st.data(), ranks)
def test_composition_is_associative(data: st.DataObject, rank: int) -> None:
    """Wherever both ways of bracketing are one operator: in every output, and without upsampling
    in geometry and every value too (with it, taps that no sample meets may stay).
    """
    a = data.draw(operators(rank))
    b = data.draw(operators(rank, out_of(a)))
    c = data.draw(operators(rank, out_of(b)))
    left, right = composed(composed(c, b), a), composed(c, composed(b, a))
    x = data.draw(images(a, b, c))
    assert torch.equal(left(x), right(x))
    assert (left.bias is None) == (right.bias is None)
    if not any(conv.geometry.is_transposed for conv in (a, b, c)):
        assert left.geometry == right.geometry
        assert torch.equal(left.weight, right.weight)
        assert left.bias is None or torch.equal(left.bias, right.bias)


@law(5)
@given(st.data())
def test_the_widest_layers_have_an_image(data: st.DataObject) -> None:
    """None was drawn once for three such layers, and a law failed that held."""
    wide = layers.convolution(whole(1, 1, 1, 4), stride=3, dilation=3)
    assert data.draw(images(wide, wide, wide)).shape[2] >= 118


@law(80)
@given(st.data(), ranks)
def test_the_identity_is_neutral(data: st.DataObject, rank: int) -> None:
    a = data.draw(operators(rank))
    before = layers.identity(a.geometry.in_channels, rank=rank)
    after = layers.identity(out_of(a), rank=rank)
    assert (a @ before).geometry.axes == a.axes
    x = data.draw(images(a))
    assert torch.equal((a @ before)(x), a(x))
    if a.bias is None or not a.geometry.is_transposed:
        assert torch.equal((after @ a)(x), a(x))


@law(120)
@given(st.data(), ranks)
def test_a_sum_adds_the_outputs(data: st.DataObject, rank: int) -> None:
    a = data.draw(convolutions(rank))
    b = data.draw(fitting(a))
    x = data.draw(images(a))
    assert torch.equal((a + b)(x), a(x) + b(x))
    assert torch.equal((b + a).weight, (a + b).weight)
    assert (a + b).geometry == (b + a).geometry == add(a.geometry, b.geometry)
    assert (a + b).groups == gcd(a.groups, b.groups)


@law(40)
@given(st.data(), ranks)
def test_a_sum_of_transposed_branches(data: st.DataObject, rank: int) -> None:
    a = data.draw(transposed(rank))
    assume(a.geometry.is_transposed)
    x = data.draw(images(a))
    assert torch.equal((a + a)(x), 2 * a(x))
    assert (a + a).geometry == a.geometry


@law(60)
@given(st.data(), ranks)
def test_a_sum_of_padding_modes(data: st.DataObject, rank: int) -> None:
    """Branches padded alike are summed; an unpadded branch goes with any of them."""
    mode = data.draw(st.sampled_from(MODES))
    width = data.draw(st.integers(0, 2))
    wide = layers.convolution(
        whole(1, 3, 3, *(2 * width + 1,) * rank), padding=width, padding_mode=mode
    )
    point = layers.convolution(whole(2, 3, 3, *(1,) * rank))
    x = data.draw(images(wide))
    assert torch.equal((wide + point)(x), wide(x) + point(x))
    assert torch.equal((point + wide)(x), wide(x) + point(x))


@law(40)
@given(st.data(), ranks, st.sampled_from((0.5, -2.0, 3.0)))
def test_a_multiple(data: st.DataObject, rank: int, factor: float) -> None:
    a = data.draw(operators(rank))
    x = data.draw(images(a))
    assert torch.equal((factor * a)(x), factor * a(x))
    assert torch.equal((a * factor)(x), factor * a(x))
    assert (factor * a).geometry == a.geometry


@law(60)
@given(st.data(), ranks)
def test_composition_distributes_over_sums(data: st.DataObject, rank: int) -> None:
    a = data.draw(convolutions(rank))
    b = data.draw(fitting(a))
    outer = data.draw(convolutions(rank, out_of(a)))
    left, right = outer @ (a + b), (outer @ a) + (outer @ b)
    x = data.draw(images(left))
    assert left.geometry.axes == right.geometry.axes
    if outer.bias is None:
        assert torch.equal(left(x), right(x))
    else:
        spread = outer.bias.reshape(-1, *(1,) * rank)
        assert torch.equal(left(x) + spread, right(x))


@law(150)
@given(st.data(), ranks)
def test_geometry_tells_what_the_values_do(data: st.DataObject, rank: int) -> None:
    """Groups, shapes, sizes and the count of weights, without looking at any value."""
    outer, inner = drawn_pair(data, rank)
    merged = composed(outer, inner)
    told = compose(outer.geometry, inner.geometry)
    assert merged.geometry == told
    assert told.groups == gcd(outer.groups, inner.groups)
    assert tuple(merged.weight.shape) == told.weight_shape
    assert merged.weight.dtype == torch.float64
    numbers = merged.weight.numel() + (0 if merged.bias is None else merged.bias.numel())
    assert told.weights == numbers
    x = data.draw(images(inner, outer))
    size = tuple(x.shape[2:])
    assert told.accepts(size)
    assert told.output_size(size) == outer.geometry.output_size(inner.geometry.output_size(size))
    assert tuple(merged(x).shape[2:]) == told.output_size(size)


@law(60)
@given(st.data(), ranks)
def test_extent_stride_and_padding_follow_the_formulas(data: st.DataObject, rank: int) -> None:
    """For two ordinary convolutions: `d1*(k1-1) + s1*d2*(k2-1) + 1`, `s1*s2`, `p1 + s1*p2`."""
    inner = data.draw(convolutions(rank))
    outer = data.draw(convolutions(rank, out_of(inner)))
    for one, two, both in zip(inner.axes, outer.axes, (outer @ inner).axes, strict=True):
        assert both.extent == one.extent + one.stride * (two.extent - 1)
        assert both.stride == one.stride * two.stride
        assert both.before == one.before + one.stride * two.before
        assert both.after == one.after + one.stride * two.after
        steps = [
            step
            for step, kernel in (
                (one.dilation, one.kernel_size),
                (one.stride * two.dilation, two.kernel_size),
            )
            if kernel > 1
        ]
        assert both.dilation == (gcd(*steps) if steps else 1)


@law(60)
@given(st.data(), ranks)
def test_operands_are_left_as_they_were(data: st.DataObject, rank: int) -> None:
    outer, inner = drawn_pair(data, rank)
    kept = [t for conv in (outer, inner) for t in (conv.weight, conv.bias) if t is not None]
    copies = [tensor.clone() for tensor in kept]
    x = data.draw(images(inner, outer))
    same = x.clone()
    merged = composed(outer, inner)
    for result in (merged, inner + inner, 2.0 * inner, inner.to(torch.float16)):
        result(x)
    assert torch.equal(x, same)
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


@law(40)
@given(st.data(), ranks, st.sampled_from((torch.float32, torch.float16, torch.bfloat16)))
def test_arithmetic_is_float64_whatever_is_stored(
    data: st.DataObject, rank: int, dtype: torch.dtype
) -> None:
    outer, inner = drawn_pair(data, rank)
    low, high = composed(outer.to(dtype), inner.to(dtype)), outer @ inner
    assert low.weight.dtype == torch.float64
    assert torch.equal(low.weight, high.weight)
    assert (low.bias is None) == (high.bias is None)
    if low.bias is not None:
        assert low.bias.dtype == torch.float64
        assert torch.equal(low.bias, high.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sums_and_multiples_are_float64_whatever_is_stored(dtype: torch.dtype) -> None:
    """`1 + eps / 2` and a third of a number: no storage format holds either."""
    small = torch.finfo(dtype).eps / 2
    one, other = (
        layers.convolution(
            torch.full((1, 1, 1), value, dtype=dtype), torch.full((1,), value, dtype=dtype)
        )
        for value in (1.0, small)
    )
    both, third = one + other, (1 / 3) * one
    for values in (both.weight, both.bias):
        assert values.dtype == torch.float64
        assert values.item() == 1.0 + small
    for values in (third.weight, third.bias):
        assert values.dtype == torch.float64
        assert values.item() == 1 / 3


@pytest.mark.parametrize("stored", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_operator_runs_in_the_dtype_of_its_input(
    stored: torch.dtype, dtype: torch.dtype
) -> None:
    conv = layers.convolution(whole(1, 3, 2, 3), whole(2, 3), padding=1).to(stored)
    x = whole(3, 2, 2, 5)
    y = conv(x.to(dtype))
    assert y.dtype == dtype
    assert torch.equal(y.double(), layers.convolution(whole(1, 3, 2, 3), whole(2, 3), padding=1)(x))


@pytest.mark.parametrize(("first", "second"), [(2, 3), (6, 6), (6, 2), (4, 6), (1, 12), (12, 3)])
def test_groups_are_never_fewer_than_their_common_divisor(first: int, second: int) -> None:
    inner = layers.convolution(whole(1, 12, 12 // first, 3), whole(2, 12), groups=first)
    outer = layers.convolution(whole(3, 12, 12 // second, 2), whole(4, 12), groups=second)
    merged = outer @ inner
    assert merged.groups == gcd(first, second)
    x = whole(5, 2, 12, 9)
    assert torch.equal(merged(x), outer(inner(x)))
    assert merged.geometry.weights == 12 * 12 // gcd(first, second) * 4 + 12


def test_an_upsampling_commutes_with_a_stride_only_from_within() -> None:
    """Up then down is one operator, reduced; down then up is none."""
    up = layers.transposed(whole(1, 1, 1, 3), stride=2, padding=1)
    down = layers.convolution(whole(2, 1, 1, 3), stride=2, padding=0)
    merged = down @ up
    assert (merged.axes[0].upsample, merged.axes[0].stride) == (1, 1)
    x = whole(3, 1, 1, 7)
    assert torch.equal(merged(x), down(up(x)))
    with pytest.raises(GeometryError, match="does not commute"):
        _ = up @ down
    third = layers.transposed(whole(1, 1, 1, 3), stride=3)
    with pytest.raises(GeometryError, match="output sizes that no single"):
        _ = third @ down


@pytest.mark.parametrize(
    ("outer", "inner", "told"),
    [
        ((2, 3, 3), (2, 3, 3), "2 channels leave the first layer, but 3 enter"),
        ((2, 2, 3, 3), (2, 2, 3), "a 2-d layer cannot follow a 1-d"),
    ],
)
def test_layers_that_do_not_chain(
    outer: tuple[int, ...], inner: tuple[int, ...], told: str
) -> None:
    with pytest.raises(GeometryError, match=told):
        _ = layers.convolution(whole(1, *outer)) @ layers.convolution(whole(2, *inner))


def test_a_bias_before_an_upsampling_is_refused_and_never_dropped() -> None:
    inner = layers.convolution(whole(1, 2, 2, 3), whole(2, 2))
    up = layers.transposed(whole(3, 2, 2, 2), stride=2)
    with pytest.raises(GeometryError, match="bias that depends on the output phase"):
        _ = up @ inner


@pytest.mark.parametrize(
    ("one", "two", "told"),
    [
        ({"stride": 1}, {"stride": 2}, "different strides"),
        ({"padding": 1}, {"padding": 0}, "different sizes"),
        (
            {"padding": 1, "padding_mode": "reflect"},
            {"padding": 1, "padding_mode": "circular"},
            "circular and reflect",
        ),
    ],
)
def test_branches_that_have_no_sum(one: dict, two: dict, told: str) -> None:
    a = layers.convolution(whole(1, 2, 2, 3), **one)
    b = layers.convolution(whole(2, 2, 2, 3), **two)
    with pytest.raises(GeometryError, match=told):
        _ = a + b


def test_a_geometry_whose_groups_do_not_divide() -> None:
    with pytest.raises(GeometryError, match="do not divide into groups = 2"):
        Geometry(in_channels=3, out_channels=4, axes=(), groups=2)


@pytest.mark.parametrize(
    ("weight", "axes", "told"),
    [
        ((3,), (), "no kernel of size ()"),
        ((2, 2), (Axis(),), "no kernel of size (1,)"),
        ((2, 2, 3), (), "no kernel of size ()"),
        ((2, 2, 3), (Axis(2),), "no kernel of size (2,)"),
        ((2, 2, 3, 4), (Axis(4), Axis(3)), "no kernel of size (4, 3)"),
    ],
)
def test_a_weight_that_does_not_fit_its_axes(
    weight: tuple[int, ...], axes: tuple[Axis, ...], told: str
) -> None:
    with pytest.raises(GeometryError, match=re.escape(told)):
        Conv(whole(1, *weight), None, axes)
    assert Conv(whole(1, 2, 2, 4, 3), None, (Axis(4), Axis(3))).geometry.weights == 48
