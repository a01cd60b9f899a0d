"""Some of `python -m tests.misbehaving`, and that its look at a run sees what is wrong."""

from dataclasses import replace

import pytest
import torch

from tests.misbehaving.__main__ import Ended, ended, every_name, weights

SOUND = Ended("Net", 0, "", "", weights())


IN_BRIEF = (
    *("ExitsAtExit", "StaysBehind", "forward_thread_that_stays", "forward_meta_by_default"),
    *("depends_calls_third", "load_state_dict__what__recursion"),
)


@pytest.mark.parametrize(
    "name", [*IN_BRIEF, *(pytest.param(n, marks=pytest.mark.stress) for n in every_name()[::9])]
)
def test_it_ends_in_words_or_with_a_right_output(name: str) -> None:
    done = ended(name)
    assert done.problem is None, done


def test_a_wrong_end_is_seen() -> None:
    assert SOUND.problem is None
    merged = {"a.weight": torch.zeros(4, 3, 3, 3)}
    for changed in (
        {"tensors": None},
        {"status": 2},
        {"status": 2, "tensors": None},
        {"status": 3, "tensors": None, "errors": "error: x"},
        {"status": 1, "tensors": None, "errors": "Traceback\nerror: x"},
        {"status": 1, "tensors": None, "errors": "error: " + 4000 * "x"},
        {"tensors": merged},
        {"tensors": {**weights(), "a.bias": torch.zeros(12)}},
    ):
        assert replace(SOUND, **changed).problem is not None, changed
    assert replace(SOUND, status=2, tensors=None, errors="error: x").problem is None
