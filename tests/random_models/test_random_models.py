"""Random models squeezed are the models they were, and the oracle sees every planted fault."""

import warnings
from collections.abc import Iterator

import pytest

from .__main__ import table
from .cases import FIXED, fixed_case
from .faults import FAULTS, Fault, is_seen
from .oracle import examine

BLOCK = 15


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Torch warns of weight norm's older form."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("first", range(0, FIXED, BLOCK))
def test_squeezed_models_give_the_same_output(first: int) -> None:
    outcomes = [one for n in range(first, first + BLOCK) for one in examine(*fixed_case(n))]
    print(table(outcomes))
    assert sum(outcome.merges for outcome in outcomes) >= BLOCK
    assert sum(outcome.pairs for outcome in outcomes) >= BLOCK
    assert sum(outcome.weights[1] < outcome.weights[0] for outcome in outcomes) >= BLOCK


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_seen(fault: Fault) -> None:
    assert fault.case < FIXED
    assert is_seen(fault, fault.case)
