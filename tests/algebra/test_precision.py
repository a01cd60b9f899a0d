"""One rounding, to the nearest number, ties to even: in exact rational arithmetic."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convsqueeze.algebra import Conv, precision
from convsqueeze.algebra.geometry import Axis
from convsqueeze.algebra.precision import STORAGE_DTYPES, half_ulp, round_once

from .drawn import law

pytestmark = pytest.mark.quick

FORMATS = {torch.float16: (11, -14, 15), torch.bfloat16: (8, -126, 127)}
"""Bits of the significand, smallest and largest exponent (IEEE 754; bfloat16: float32, cut)."""


def nearest(value: float, dtype: torch.dtype) -> float:
    """`value` rounded to `dtype` by the definition, in fractions."""
    bits, lowest, highest = FORMATS[dtype]
    if value == 0 or math.isnan(value) or math.isinf(value):
        return value
    exact = abs(Fraction(value))
    exponent = max(math.frexp(abs(value))[1] - 1, lowest)
    step = Fraction(2) ** (exponent - bits + 1)
    rounded = round(exact / step) * step  # Python rounds fractions half to even
    if rounded >= Fraction(2) ** (highest + 1):
        return math.copysign(math.inf, value)
    return math.copysign(float(rounded), value)


def of_bits(bits: np.ndarray[Any, Any], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(bits.astype(np.int16)).view(dtype).double()


def interesting(dtype: torch.dtype) -> torch.Tensor:
    """Every midpoint between neighbours of the format and what stands beside it in float64."""
    every = of_bits(np.arange(0, 2**15 - 1), dtype)
    every = every[every.isfinite()]
    top = every[-1] + (every[-1] - every[-2])
    middles = (every + torch.cat([every[1:], top[None]])) / 2
    infinity = torch.full_like(middles, math.inf)
    near = [middles, middles.nextafter(infinity), middles.nextafter(-infinity)]
    float32 = [middles * (1 + 2.0**-26), middles * (1 - 2.0**-26), middles * (1 + 2.0**-40)]
    values = torch.cat([every, *near, *float32])
    return torch.cat([values, -values])


@pytest.mark.parametrize("dtype", FORMATS)
def test_every_midpoint_and_its_neighbours(dtype: torch.dtype) -> None:
    """Ties, subnormals, the step to infinity, and values that round twice on the way."""
    values = interesting(dtype)
    sample = values[:: max(1, len(values) // 60_000)]
    expected = torch.tensor([nearest(v, dtype) for v in sample.tolist()], dtype=torch.float64)
    rounded = round_once(sample, dtype)
    assert rounded.dtype == dtype
    assert torch.equal(rounded.double(), expected)
    assert torch.equal(rounded.signbit(), sample.signbit())


def test_float16_is_what_numpy_rounds_to() -> None:
    values = interesting(torch.float16)
    with np.errstate(over="ignore"):
        expected = torch.from_numpy(values.numpy().astype(np.float16))
    assert torch.equal(round_once(values, torch.float16), expected)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("shape", [(2400,), (60, 40), (8, 10, 5, 6), (2400, 1), (1, 2400)])
def test_some_rows_at_a_time(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    every = interesting(dtype)
    values = every[:: len(every) // 2400][:2400].reshape(shape)
    expected = torch.tensor([nearest(v, dtype) for v in values.flatten().tolist()])
    monkeypatch.setattr(precision, "BLOCK", 100)
    blocks = precision.row_blocks(values)
    assert torch.equal(torch.cat(list(blocks)), values)
    assert all(block.numel() <= max(100, values[0].numel()) for block in blocks)
    for laid_out in (values, values.mT.contiguous().mT if values.ndim > 1 else values):
        rounded = round_once(laid_out, dtype)
        assert rounded.shape == shape
        assert torch.equal(rounded.float().flatten(), expected)


@law(300)
@given(st.floats(allow_nan=False), st.sampled_from(list(FORMATS)))
def test_any_number(value: float, dtype: torch.dtype) -> None:
    rounded = round_once(torch.tensor([value], dtype=torch.float64), dtype).double().item()
    assert rounded == nearest(value, dtype)
    assert math.copysign(1.0, rounded) == math.copysign(1.0, value)


@pytest.mark.parametrize("dtype", FORMATS)
def test_torch_itself_rounds_twice(dtype: torch.dtype) -> None:
    """Why `round_once` is there: one and a half steps and a little more, lost in float32."""
    step = torch.finfo(dtype).eps
    value = torch.tensor([1 + step / 2 + 2.0**-40], dtype=torch.float64)
    assert value.to(dtype).item() == 1.0
    assert round_once(value, dtype).item() == 1.0 + step
    values = interesting(dtype)
    twice, once = values.to(dtype), round_once(values, dtype)
    assert int((twice != once).sum()) > 1000


@pytest.mark.parametrize("dtype", STORAGE_DTYPES)
def test_what_is_no_number_stays_so(dtype: torch.dtype) -> None:
    values = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0], dtype=torch.float64)
    rounded = round_once(values, dtype)
    assert rounded[:2].tolist() == [math.inf, -math.inf]
    assert rounded[2].isnan()
    assert rounded[3:].signbit().tolist() == [False, True]


@law(200)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_wide_formats_round_as_the_machine_does(value: float) -> None:
    values = torch.tensor([value], dtype=torch.float64)
    assert round_once(values, torch.float64).item() == value
    with np.errstate(over="ignore"):
        expected = float(np.float32(value))
    assert round_once(values, torch.float32).item() == expected


@pytest.mark.parametrize("dtype", FORMATS)
def test_half_an_ulp_of_every_half_number(dtype: torch.dtype) -> None:
    every = of_bits(np.arange(0, 2**15 - 1), dtype)
    every = every[every.isfinite()]
    expected = torch.cat([every[1:] - every[:-1], (every[-1] - every[-2])[None]]) / 2
    for sign in (1, -1):
        assert torch.equal(half_ulp((sign * every).to(dtype)), expected)


@law(300)
@given(st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False))
def test_half_an_ulp_of_a_double(value: float) -> None:
    """`math.ulp`; half of the smallest one is no double."""
    tensor = torch.tensor([value], dtype=torch.float64)
    assert half_ulp(tensor).item() == math.ulp(value) / 2


@law(300)
@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_half_an_ulp_of_a_float(value: float) -> None:
    tensor = torch.tensor([value], dtype=torch.float32)
    exponent = max(math.frexp(value)[1] - 1, -126) if value else -126
    assert half_ulp(tensor).item() == 2.0 ** (exponent - 24)


@law(200)
@given(
    st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=8),
    st.sampled_from((torch.float32, torch.float16, torch.bfloat16)),
)
def test_storing_costs_at_most_half_an_ulp(numbers: list[float], dtype: torch.dtype) -> None:
    values = torch.tensor(numbers, dtype=torch.float64)
    stored = round_once(values, dtype)
    assert bool(((stored.double() - values).abs() <= half_ulp(stored)).all())


def test_a_conv_is_stored_by_one_rounding() -> None:
    middle = 1 + 2.0**-9 + 2.0**-40
    weight = torch.full((1, 1, 1), middle, dtype=torch.float64)
    conv = Conv(weight, weight.flatten(), (Axis(),)).to(torch.bfloat16)
    assert conv.weight.dtype == conv.bias.dtype == torch.bfloat16
    assert conv.weight.item() == conv.bias.item() == nearest(middle, torch.bfloat16)
