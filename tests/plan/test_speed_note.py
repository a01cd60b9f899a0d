"""What a plan says where merging saves weights but hardly any time."""

import pytest
import torch

from convsqueeze.checkpoint import from_state_dict
from convsqueeze.manifest import manifest_from_data
from convsqueeze.pipeline.merging import planned


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (1, "a does 2 times the multiplications of the layers apart"),
        (2, "a does as many multiplications as the layers apart"),
        (3, "a does 0.67 times the multiplications of the layers apart"),
        (4, None),
    ],
)
def test_the_note_says_how_many_multiplications_there_are(
    between: int, expected: str | None
) -> None:
    """Of 4 channels in and out: 16 merged, 8 for each channel between."""
    checkpoint = from_state_dict(
        {"a.weight": torch.randn(between, 4, 1, 1), "b.weight": torch.randn(4, between, 1, 1)}
    )
    manifest = manifest_from_data(
        {"version": 1, "pairs": [{"chain": [{"name": "a"}, {"name": "b"}]}]}
    )
    plan = planned(manifest, checkpoint, "exact", "allow")
    words = [] if expected is None else [f"{expected}: it may well not be faster"]
    assert [note for note in plan.notes if "multiplications" in note] == words
