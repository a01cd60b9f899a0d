"""How far outputs are apart, in bands of like size."""

import pytest
import torch

from convsqueeze.models.distances import (
    Granted,
    bands,
    compared,
    distances,
    is_beyond,
    named_tensors,
    nearest,
)


def test_values_of_like_size_are_one_band() -> None:
    torch.manual_seed(0)
    for values in (torch.randn(10_000), torch.zeros(7), torch.randn(50) * 1e-60, torch.ones(0)):
        (band,) = bands("output", values.double())
        assert band == ("output", None, values.double().abs().max() if values.numel() else 0.0)


@pytest.mark.parametrize("apart", [-1e5, 1e30, -torch.finfo(torch.float64).max, 1e-30])
def test_values_far_apart_are_two(apart: float) -> None:
    torch.manual_seed(0)
    values = torch.rand(100, dtype=torch.float64) + 1.0
    values[::3], values[1], values[4], values[7] = apart, 0.0, torch.nan, -torch.inf
    low, high = bands("output", values)
    assert low.of is not None
    assert high.of is not None
    assert (low.of ^ high.of).all()
    assert low.of[[1, 4, 7]].all()
    assert (high.of if abs(apart) > 1 else low.of)[::3].all()
    assert low.place == "output"
    assert high.place.startswith("output (values from ")
    assert sorted([low.largest, high.largest])[abs(apart) > 1] == pytest.approx(abs(apart))


def test_a_large_value_hides_no_small_one() -> None:
    one = {"output": torch.tensor([1.0, 2.0, 1e30], dtype=torch.float64)}
    other = {"output": torch.tensor([1.0, 2.1, 1.001e30], dtype=torch.float64)}
    low, high = distances(one, other).values()
    assert (low, high) == (pytest.approx(0.1), pytest.approx(1e27))
    granted = Granted(1e-2, 1.0)
    worst = nearest(compared(one, other, granted, {})).worst
    assert (worst.error, worst.bound, worst.place) == (pytest.approx(0.1), 0.02, "output at [1]")
    assert is_beyond(distances(one, other), one, 0.04) == "output"
    assert is_beyond(distances(one, other), one, 0.06) is None


def test_of_what_is_no_float_the_places_are_counted() -> None:
    one = {"output": torch.tensor([3, 2**40, 5, 5])}
    other = {"output": torch.tensor([3, 7, 5, 6])}
    assert distances(one, other) == {"output": 2.0}
    for measured, share in ({}, torch.inf), ({"output": 1.0}, 2.0), ({"output": 8.0}, 0.25):
        assert nearest(compared(one, other, Granted(1.0, 1.0), measured)).worst.share == share
    assert nearest(compared(one, one, Granted(1.0, 1.0), {})).worst.share == 0.0


def test_other_shapes_are_infinitely_far() -> None:
    one = {"output": torch.ones(3), "more": torch.ones(2)}
    assert distances(one, {"output": torch.ones(4)}) == {"output": torch.inf, "more": torch.inf}


def test_arrays_and_complex_numbers_are_tensors() -> None:
    found = named_tensors([torch.ones(2).numpy(), 1j * torch.ones(2), (2.5, "text")])
    assert {name: tuple(t.shape) for name, t in found.items()} == {
        "output[0]": (2,),
        "output[1]": (2, 2),
        "output[2][0]": (),
    }


def test_of_a_few_values_next_to_zero_no_share_is_told() -> None:
    values = torch.linspace(1.0, 2.0, 100, dtype=torch.float64)
    for few, shares in (3, [0.0, 0.01]), (30, [1e8, 0.01]):
        values[:few] = 1e-10
        one = {"output": values}
        places = [band.place for band in bands("output", values)]
        every = compared(one, one, Granted(0.0, 1.0), dict(zip(places, (0.01, 0.02), strict=True)))
        assert [one.share(one.worst.bound) for one in every] == pytest.approx(shares)
