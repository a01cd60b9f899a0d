"""No right merge of random manifests fails its verification, and no wrong one passes."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from convsqueeze.squeezing import Squeezed, squeeze_one

from . import verified
from .__main__ import verified_summary
from .verified import MOST_BYTES, MOST_S, examined

pytestmark = pytest.mark.stress

CASES = 80
BLOCK = 10


@pytest.mark.parametrize("first", range(0, CASES, BLOCK))
def test_verification_and_torch_agree(first: int) -> None:
    outcomes = [o for seed in range(first, first + BLOCK) for o in examined(seed)]
    print(verified_summary(outcomes))
    assert [o for o in outcomes if o.verdict in ("wrong", "wrongly failed")] == []
    assert max(o.peak_bytes for o in outcomes) < MOST_BYTES
    assert max(o.seconds for o in outcomes) < 4 * MOST_S  # of a machine with other work
    verdicts = Counter(o.verdict for o in outcomes)
    assert verdicts["verified"] >= 2 * BLOCK
    assert {o.border for o in outcomes if o.verdict == "verified"} == set(verified.POLICIES)
    assert {o.dtype for o in outcomes if o.verdict == "verified"} == {
        str(dtype).removeprefix("torch.") for dtype in verified.DTYPES
    }


def doubled(values: Tensor) -> Tensor:
    changed = values.clone()
    changed.view(-1)[values.abs().argmax()] *= 2
    return changed


def test_a_planted_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle sees it as verification does: else neither would show anything."""

    def faulty(*arguments: object, **more: object) -> Squeezed:
        squeezed = squeeze_one(*arguments, **more)  # type: ignore[arg-type]
        changed = {**squeezed.stored, "weight": doubled(squeezed.stored["weight"])}
        return replace(squeezed, stored=changed)

    monkeypatch.setattr(verified, "squeeze_one", faulty)
    outcomes = [o for seed in range(4) for o in examined(seed)]
    found = [o for o in outcomes if o.verdict in ("wrong", "wrongly failed", "verified")]
    assert len(found) > 10
    assert {o.verdict for o in found} == {"wrong"}
    assert all("verification: ['" in o.told for o in found)


def test_a_seed_gives_the_same_case_every_time() -> None:
    for seed in (3, 31):
        one, two = (
            verified.spread_out(verified.drawn_case(seed)[0], torch.float32) for _ in range(2)
        )
        assert one.entry == two.entry
        assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
