"""Evaluation and interpolation: exact in fractions, and rounded as the exact sum is.

The exact sum is taken in fractions of the stored numbers on small cases, and directly in float64 on
larger ones.
"""

from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from math import frexp

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from convsqueeze import layers
from convsqueeze.algebra import Conv, interpolated, points, products, ways
from convsqueeze.algebra.conv import composed
from convsqueeze.algebra.geometry import Axis, merge_axes
from convsqueeze.algebra.precision import half_ulp, round_once

from .drawn import law, seeds, whole

NARROW = (torch.float32, torch.float16, torch.bfloat16)
UNIT = Fraction(1, 1 << 53)


@pytest.fixture(autouse=True)
def always_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small layers too, in several blocks."""
    for name, value in (("LARGE", 0), ("SMALLEST", 1), ("MOST_MIDDLE", 1 << 30)):
        monkeypatch.setattr(ways, name, value)
    for name, value in (("EVALUATE", 0), ("INTERPOLATE", 0), ("MOST_ZEROS", 2.0)):
        monkeypatch.setattr(ways, name, value)
    for name, value in (("COLUMNS", 3), ("PIECE", 4), ("DEPTH", 2), ("EVALUATED", 4)):
        monkeypatch.setattr(interpolated, name, value)
    monkeypatch.setattr(products, "ROWS", 2)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """How many numbers of each piece were doubted, and how many there were."""
    counts: list[tuple[int, int]] = []
    original = interpolated._Interpolated._doubted

    def doubted(self, sums: Tensor, *rest):
        found = original(self, sums, *rest)
        counts.append((len(found), sums.numel()))
        return found

    monkeypatch.setattr(interpolated._Interpolated, "_doubted", doubted)
    return counts


SCHEMES = [(2, 2), (2, 3), (3, 2), (3, 3), (4, 4), (5, 3), (3, 5), (5, 5), (7, 3), (7, 7), (11, 6)]


@pytest.mark.parametrize(("outer", "inner"), SCHEMES)
@pytest.mark.parametrize("parts", product((1, 2, 3), repeat=2), ids=str)
def test_schemes_are_products_of_polynomials(
    outer: int, inner: int, parts: tuple[int, int]
) -> None:
    """Exactly: a tap of each kernel makes the merged tap at their sum, and nothing else."""
    one = points.by_points(outer, inner, *parts)
    for b, a in product(range(outer), range(inner)):
        held = [sum(one.outer[j][b] * one.inner[i][a] for j, i in pairs) for pairs in one.slots]
        taps = [sum(c * value for c, value in zip(row, held, strict=True)) for row in one.combine]
        assert taps == [Fraction(tap == a + b) for tap in range(outer + inner - 1)]


@pytest.mark.parametrize(("outer", "inner"), SCHEMES)
def test_points_take_fewer_products_than_pairs(outer: int, inner: int) -> None:
    direct, best = points.schemes(merge_axes(Axis(outer), Axis(inner)), outer, inner)
    assert direct.products == outer * inner
    assert best.products < direct.products
    assert len(best.slots) <= points.MOST_SLOTS * len(best.combine)


@pytest.mark.parametrize("evaluated", ["inner", "outer"])
def test_evaluating_never_rounds_a_factor(evaluated: str) -> None:
    """Factors are powers of two: what the bound counts on."""
    for outer, inner in SCHEMES:
        *_, one = points.schemes(merge_axes(Axis(outer), Axis(inner)), outer, inner)
        factors = {abs(value) for row in getattr(one, evaluated) for value in row if value}
        assert all(value.denominator == 1 and frexp(value)[0] == 0.5 for value in factors)


def test_one_tap_or_steps_have_no_points() -> None:
    for outer, inner in ((Axis(1), Axis(5)), (Axis(3, dilation=2), Axis(3)), (Axis(3), Axis(3, 2))):
        merge = merge_axes(outer, inner)
        assert len(list(points.schemes(merge, outer.kernel_size, inner.kernel_size))) == 1
    alike = Axis(3, dilation=2), Axis(3, dilation=2)
    assert len(list(points.schemes(merge_axes(*alike), 3, 3))) == 2


@pytest.mark.parametrize("taps", [(31, 31), (9, 9, 9)])
def test_kernels_with_too_many_slots_are_summed_directly(taps: tuple[int, ...]) -> None:
    """No block may outgrow memory; and no time goes into numbering them."""
    merges = tuple(merge_axes(Axis(n), Axis(n)) for n in taps)
    assert ways.way_by_points(merges, taps, taps) is None


def exactly(outer: Conv, inner: Conv) -> tuple[list[Fraction], list[Fraction], int]:
    """The merged weight in fractions, flat, the sums of absolute products, and most terms."""
    merged = outer @ inner  # for its shape alone
    merges = [merge_axes(o, i) for o, i in zip(outer.axes, inner.axes, strict=True)]
    total: dict[tuple[int, ...], Fraction] = {}
    sizes: dict[tuple[int, ...], Fraction] = {}
    terms: dict[tuple[int, ...], int] = {}
    left, right = outer.weight.double(), inner.weight.double()
    per_inner = inner.weight.shape[0] // inner.groups
    per_outer = outer.weight.shape[0] // outer.groups
    ins, merged_ins = inner.weight.shape[1], merged.weight.shape[1]
    for o, c in product(range(left.shape[0]), range(left.shape[1])):
        middle = o // per_outer * left.shape[1] + c
        for i in range(ins):
            column = (middle // per_inner * ins + i) % merged_ins
            taps2, taps1 = (product(*map(range, w.shape[2:])) for w in (left, right))
            for b, a in product(list(taps2), list(taps1)):
                value = Fraction(left[(o, c, *b)].item()) * Fraction(right[(middle, i, *a)].item())
                steps = zip(merges, b, a, strict=True)
                place = (o, column, *(m.outer_step * y + m.inner_step * x for m, y, x in steps))
                total[place] = total.get(place, Fraction(0)) + value
                sizes[place] = sizes.get(place, Fraction(0)) + abs(value)
                terms[place] = terms.get(place, 0) + 1
    places = list(product(*map(range, merged.weight.shape)))
    return (
        [total.get(place, Fraction(0)) for place in places],
        [sizes.get(place, Fraction(0)) for place in places],
        max(terms.values()),
    )


def assert_contract(outer: Conv, inner: Conv, dtype: torch.dtype) -> Tensor:
    """Stored is within half an ulp of the exact sum, and what a sum in float64 may lose."""
    found = composed(outer, inner, stored=dtype).weight
    stored = round_once(found, dtype)
    exact, sizes, terms = exactly(outer, inner)
    lost = terms * UNIT / (1 - terms * UNIT)
    allowed = half_ulp(stored).flatten().tolist()
    for value, half, true, size in zip(
        stored.double().flatten().tolist(), allowed, exact, sizes, strict=True
    ):
        assert abs(Fraction(value) - true) <= Fraction(half) + lost * size
        if size == 0:
            assert value == 0
    return stored


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, int]]:
    """Weights of two layers with several taps each on some axis, and what else the layers are."""
    rank = draw(st.sampled_from((1, 1, 1, 2, 2, 3)))
    most = {1: 5, 2: 3, 3: 2}[rank]
    taps = st.tuples(*[st.integers(1 if rank > 1 else 2, most)] * rank)
    groups = draw(st.sampled_from((1, 1, 2)))
    ins, middle, outs = (groups * draw(st.integers(1, 3)) for _ in range(3))
    inner, outer = (middle, ins // groups, *draw(taps)), (outs, middle // groups, *draw(taps))
    return outer, inner, {"groups": groups, "dilation": draw(st.sampled_from((1, 1, 2)))}


KINDS = ("normal", "taps apart", "channels apart", "cancelling", "zeros", "whole", "narrow")


def values(kind: str, seed: int, *shape: int) -> Tensor:
    """Weights that an interpolation may find hard."""
    weight = normal(seed, *shape)
    spread = torch.Generator().manual_seed(seed + 7)
    if kind == "taps apart":
        taps = torch.randint(-60, 1, shape[2:], generator=spread)
        return torch.ldexp(weight, taps.double().expand(shape))
    if kind == "channels apart":
        channels = torch.randint(-12, 13, shape[:2], generator=spread).double()
        return torch.ldexp(weight, channels.reshape(*shape[:2], *(1,) * (len(shape) - 2)))
    if kind == "cancelling":
        weight[:, 1::2] = -weight[:, : shape[1] - 1 : 2][:, : weight[:, 1::2].shape[1]]
        return weight
    if kind == "zeros":
        return weight * (torch.rand(shape, generator=spread) < 0.3)
    if kind == "whole":
        return whole(seed, *shape)
    if kind == "narrow":
        return weight * 1e-3
    return weight


@law(150)
@given(shapes(), seeds, st.sampled_from(KINDS), st.sampled_from(KINDS), st.sampled_from(NARROW))
def test_the_contract_in_fractions(
    shape: tuple[tuple[int, ...], tuple[int, ...], dict[str, int]],
    seed: int,
    kind: str,
    other: str,
    dtype: torch.dtype,
) -> None:
    """Any shape, groups and dilation; weights stored in the dtype, and whatever float64 holds."""
    outer_shape, inner_shape, extra = shape
    weights = values(kind, seed, *outer_shape), values(other, seed + 1, *inner_shape)
    if seed % 2:
        weights = tuple(weight.to(dtype) for weight in weights)
    outer, inner = (layers.convolution(weight, **extra) for weight in weights)
    assume(bool(round_once((_absolute(outer) @ _absolute(inner)).weight, dtype).isfinite().all()))
    assert_contract(outer, inner, dtype)


def pair(*, channels: int = 8, taps: tuple[int, ...] = (3, 3), seed: int = 0) -> tuple[Conv, Conv]:
    one, other = (normal(seed + n, channels, channels, *taps) for n in (0, 1))
    return layers.convolution(one.float()), layers.convolution(other.float())


def test_random_weights_are_seldom_doubted(seen: list[tuple[int, int]]) -> None:
    outer, inner = pair(channels=24)
    stored = composed(outer, inner, stored=torch.float32).weight
    doubted, numbers = map(sum, zip(*seen, strict=True))
    assert numbers == stored.numel()
    assert 0 < doubted < numbers / 200
    assert not torch.equal(stored, (outer @ inner).weight)  # else no point was used
    assert torch.equal(stored.float(), (outer @ inner).weight.float())


@pytest.mark.parametrize("kind", ["zeros at an end", "an identity", "zeros between", "far apart"])
def test_what_interpolation_cannot_tell_is_doubted(seen: list[tuple[int, int]], kind: str) -> None:
    """Exact zeros stay zeros, at the ends without a doubt; small taps beside large ones are summed
    directly.
    """
    outer, inner = pair(channels=4)
    if kind == "zeros at an end":
        inner.weight[..., 0] = outer.weight[..., 2] = 0
    elif kind == "zeros between":
        inner.weight[..., 1] = outer.weight[..., 1] = 0
    elif kind == "an identity":
        inner = layers.convolution(torch.zeros(4, 4, 3, 3))
        inner.weight[:, :, 1, 1] = torch.eye(4)
    else:
        inner.weight[..., 0] *= 1e-30
        outer.weight[..., 0] *= 1e-30
    direct = (outer @ inner).weight
    stored = composed(outer, inner, stored=torch.float32).weight
    some = sum(doubted for doubted, _ in seen)
    assert (some > 0) == (kind in ("zeros between", "far apart"))
    assert torch.equal(stored.float(), direct.float())
    assert torch.equal(stored == 0, direct == 0)


@pytest.mark.parametrize("factor", [0.0, 1e-300, 1e-170, 1e-40, 1e40, 1e200, 1e300])
def test_any_size_of_weights(factor: float) -> None:
    outer, inner = pair(channels=4)
    scaled = Conv(outer.weight.double() * factor, None, outer.axes)
    for one, other in ((scaled, inner), (inner, scaled), (scaled, scaled)):
        stored = composed(one, other, stored=torch.float32).weight.float()
        direct = (one @ other).weight.float()
        assert torch.equal(stored.isfinite(), direct.isfinite())
        assert torch.equal(stored.nan_to_num(0, 0, 0), direct.nan_to_num(0, 0, 0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_stays_where_it_was(bad: float) -> None:
    outer, inner = pair(channels=4)
    inner.weight[1, 2, 0, 0] = bad
    stored = composed(outer, inner, stored=torch.float32).weight.float()
    direct = (outer @ inner).weight.float()
    assert torch.equal(stored.isfinite(), direct.isfinite())
    assert torch.equal(stored.nan_to_num(0, 0, 0), direct.nan_to_num(0, 0, 0))


def test_float64_is_summed_directly(seen: list[tuple[int, int]]) -> None:
    outer, inner = pair()
    for stored in (None, torch.float64):
        assert torch.equal(composed(outer, inner, stored=stored).weight, (outer @ inner).weight)
    assert not seen


@pytest.mark.parametrize("taps", [(3,), (5,), (31,), (2, 2), (3, 3), (5, 3), (7, 7), (2, 3, 2)])
@pytest.mark.parametrize("dtype", NARROW)
def test_larger_kernels_against_the_direct_sum(taps: tuple[int, ...], dtype: torch.dtype) -> None:
    outer, inner = pair(channels=12, taps=taps)
    direct = (outer @ inner).weight
    found = composed(outer, inner, stored=dtype).weight
    assert not torch.equal(found, direct)
    assert float((found - direct).abs().max() / direct.abs().max()) < 1e-12
    terms = 12 * outer.weight[0, 0].numel()
    sizes = (_absolute(outer) @ _absolute(inner)).weight
    stored = round_once(found, dtype)
    allowed = half_ulp(stored) + 2 * terms * 2.0**-53 * sizes
    assert bool(((stored.double() - direct).abs() <= allowed).all())


def _absolute(conv: Conv) -> Conv:
    return Conv(conv.weight.double().abs(), None, conv.axes, conv.groups)


def test_bits_do_not_depend_on_threads() -> None:
    outer, inner = pair(channels=20)
    before, seen = torch.get_num_threads(), set()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        seen.add(composed(outer, inner, stored=torch.float32).weight.numpy().tobytes())
    torch.set_num_threads(before)
    assert len(seen) == 1


class TestPlanted:
    """Faults that the tests above would see."""

    @pytest.mark.parametrize("place", [(0, 0), (1, 3), (2, 1), (4, 4)])
    def test_a_wrong_factor(self, monkeypatch: pytest.MonkeyPatch, place: tuple[int, int]) -> None:
        outer, inner = pair(channels=4, taps=(3,))
        original = ways._matrix

        def wrong(rows: points.Matrix) -> Tensor:
            matrix = original(rows)
            if len(rows) == len(rows[0]) == 5:
                matrix[place] += 1e-7
            return matrix

        monkeypatch.setattr(ways, "_matrix", wrong)
        ways.way_by_points.cache_clear()
        try:
            with pytest.raises(AssertionError):
                assert_contract(outer, inner, torch.float32)
        finally:
            ways.way_by_points.cache_clear()

    @pytest.mark.parametrize("factor", [0.0, 1e-12])
    def test_no_guard(self, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
        outer, inner = pair(channels=4, taps=(3,))
        for conv in (outer, inner):
            conv.weight[..., 1] *= factor
        assert_contract(outer, inner, torch.float32)
        nothing = torch.zeros((0, 3), dtype=torch.long)
        monkeypatch.setattr(interpolated._Interpolated, "_doubted", lambda *_: nothing)
        with pytest.raises(AssertionError):
            assert_contract(outer, inner, torch.float32)

    def test_a_bound_that_is_far_too_small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(interpolated, "UNIT", 2.0**-73)
        outer, inner = (
            layers.convolution(values("taps apart", seed, 4, 4, 3, 3).float()) for seed in (1, 2)
        )
        with pytest.raises(AssertionError):
            assert_contract(outer, inner, torch.float32)
