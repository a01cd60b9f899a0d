"""Networks whose code pip installs: a scan finds their regions, and squeezing keeps the output.

The packages are the extra `networks`, which `dev` includes: without them these tests fail.
"""

import pytest
import torch

from convsqueeze.scan import Scan

from .cases import CASES, Case
from .running import example, squeezed, stored_numbers, tensors
from .scanning import kinds, regions, scanned

pytestmark = pytest.mark.stress

FLOAT64_LOSS = 1e-12


@pytest.fixture(params=CASES, ids=lambda case: case.name, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def found(case: Case) -> Scan:
    return scanned(case, case.factory())


def test_the_network_is_what_the_table_says(case: Case) -> None:
    network = case.factory()
    assert not network.training
    assert stored_numbers(network) == case.weights[0]
    modules = dict(network.named_modules())
    named = {name for region in case.regions for name in region} - {"identity"}
    named |= {name for left in case.left for name in (left.first, left.second)}
    assert named <= modules.keys()


def test_its_outputs_hide_nothing(case: Case) -> None:
    with torch.no_grad():
        outputs = tensors(case.factory().double()(example(case)))
    assert outputs
    assert all(bool(output.isfinite().all()) for output in outputs)
    assert max(float(output.std()) for output in outputs) > 0


def test_a_scan_finds_the_regions(case: Case, found: Scan) -> None:
    assert sorted(regions(found)) == sorted(case.regions)


def test_a_scan_says_why_a_pair_is_left_alone(case: Case, found: Scan) -> None:
    wrong = {left: kinds(found, left) for left in case.left}
    assert {left: {left.kind} for left in case.left} == wrong


def test_squeezed_it_gives_the_same_and_stores_less(case: Case) -> None:
    one = squeezed(case)
    assert one.weights == case.weights
    assert one.difference <= FLOAT64_LOSS
