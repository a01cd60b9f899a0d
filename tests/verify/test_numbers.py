"""Stored numbers against their values: where the bound stands, and what is granted beside it."""

from math import inf, nan, nextafter

import pytest
import torch
from torch import Tensor

from convsqueeze.algebra.precision import round_once
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.manifest import manifest_from_data
from convsqueeze.plan import make_plan
from convsqueeze.verify.numbers import recomputed, worst_number
from convsqueeze.verify.worst import UNMEASURED, Worst, nearer, share_of, worst_of

pytestmark = pytest.mark.quick
MANY = 3 << 16
"""More numbers than are looked at together."""


def test_the_bound_itself_is_no_problem() -> None:
    assert UNMEASURED.problem is None
    assert Worst(1.0, 1.0, 1.0, "here").problem is None
    beyond = Worst(2.0, 1.0, nextafter(1.0, 2.0), "here").problem
    assert beyond == "differs by 2.000e+00 where at most 1.000e+00 is rounding, here"


def test_what_has_a_place_is_nearer_than_what_was_not_measured() -> None:
    one, other = Worst(share=0.2, place="a"), Worst(share=0.4, place="b")
    assert nearer(one, other) is nearer(other, one) is other
    assert nearer(UNMEASURED, one) is nearer(one, UNMEASURED) is one
    assert nearer(Worst(share=3.0), one) is one


def test_shares_of_no_difference_and_of_no_number() -> None:
    error = torch.tensor([0.0, 0.0, 1.0, 1.0, nan, inf])
    bound = torch.tensor([0.0, 2.0, 4.0, 0.0, 1.0, 1.0])
    assert share_of(error, bound).tolist() == [0.0, 0.0, 0.25, inf, inf, inf]


def test_the_worst_is_the_largest_share_or_what_ranks_highest() -> None:
    error = torch.tensor([[1.0, 4.0], [3.0, 8.0]])
    bound = torch.tensor([[1.0, 8.0], [2.0, 64.0]])
    assert worst_of(error, bound, str) == Worst(3.0, 2.0, 1.5, "[1, 0]")
    assert worst_of(error, bound, str, rank=error) == Worst(8.0, 64.0, 0.125, "[1, 1]")


@pytest.mark.parametrize("at", [0, (1 << 16) - 1, 1 << 16, MANY - 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_number_next_to_the_nearest_is_found_wherever_it_is(at: int, dtype: torch.dtype) -> None:
    """The nearest number is at most a half unit off; its neighbour at least that, at most three
    halves: one to three times the bound.
    """
    exact = torch.randn(MANY // 4, 4, dtype=torch.float64)
    stored = round_once(exact, dtype).clone()
    _, fine = worst_number(stored, exact)
    assert fine.problem is None
    assert fine.share <= 1.0
    further = torch.where(stored.double() >= exact, inf, -inf).to(dtype)
    stored.view(-1)[at] = _next(stored, further).view(-1)[at]
    place, worst = worst_number(stored, exact)
    assert place == (at // 4, at % 4)
    assert 1.0 < worst.share <= 3.0
    assert worst.error == float((stored.double() - exact)[place].abs())


def _next(x: Tensor, towards: Tensor) -> Tensor:
    """The next number of its dtype; torch has it for float32 and float64 only."""
    if x.dtype in (torch.float32, torch.float64):
        return torch.nextafter(x, towards)
    bits = x.view(torch.int16)
    away = (towards > 0) == (x > 0)
    return (bits + torch.where(away, 1, -1).to(torch.int16)).view(x.dtype)


def test_what_is_granted_counts_where_rounding_is_not_enough_and_only_there() -> None:
    exact = torch.ones(MANY, dtype=torch.float64)
    stored = exact.float()
    asked: list[int] = []
    ulp = 2.0**-23
    for at, off in ((5, 1), (1 << 17, 2)):
        stored[at] += off * ulp

    def granted(flat: Tensor) -> Tensor:
        asked.extend(flat.tolist())
        return torch.full(flat.shape, ulp, dtype=torch.float64)

    place, worst = worst_number(stored, exact, granted)
    assert asked == [5, 1 << 17]
    assert place == (1 << 17,)
    assert worst.share == pytest.approx(2 / 1.5)
    assert worst.bound == 1.5 * ulp


@pytest.mark.parametrize("between", [5, 500])
def test_two_sums_of_the_same_products_may_differ_by_their_roundings(between: int) -> None:
    """By twice as many units as there are roundings, or ten of their square roots, of what is added
    up in absolute values; where nothing is added up, by nothing.
    """
    first, second = torch.randn(between, 2), torch.randn(3, between)
    first[:, 1] = 0
    tensors = {"a.weight": first[..., None, None], "b.weight": second[..., None, None]}
    data = {"version": 1, "pairs": [{"first": {"name": "a"}, "second": {"name": "b"}}]}
    checkpoint = from_state_dict(tensors)
    (merge,) = make_plan(manifest_from_data(data), checkpoint, growth="allow").merges
    granted = recomputed(merge, checkpoint.load, torch.device("cpu"))
    found = granted("weight", torch.arange(6)).view(3, 2)
    sums = second.abs().double() @ first.abs().double()
    terms = (2 + 8) + (between + 8)
    roundings = 23 if between == 5 else 10 * terms**0.5
    torch.testing.assert_close(found, 2 * roundings * 2.0**-53 * sums, rtol=1e-12, atol=0)
    assert found[:, 1].tolist() == [0.0] * 3
    assert torch.equal(granted("weight", torch.tensor([4, 0])), found.flatten()[[4, 0]])
