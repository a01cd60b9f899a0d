"""Hostile files are refused in words; `python -m tests.attacks` measures what that takes."""

import re
from pathlib import Path

import pytest

from tests.attacks.__main__ import Run, problem
from tests.attacks.files import ATTACKS, PAIRS, Attack, RunsCommand, sound
from tests.command_line import run_here


@pytest.mark.stress
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack_is_refused(tmp_path: Path, attack: Attack) -> None:
    (tmp_path / "pairs.yaml").write_text(PAIRS)
    model = attack.build(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = run_here("merge", model, "--pairs", tmp_path / "pairs.yaml")
    assert done.status == 2, done
    assert len(done.errors) == 1
    assert re.search(attack.says, done.errors[0]), done.errors
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_in_the_pickle_would_run(tmp_path: Path) -> None:
    """Else its refusal shows nothing."""
    call, arguments = RunsCommand(tmp_path / "ran").__reduce__()
    call(*arguments)
    assert (tmp_path / "ran").exists()


def test_a_sound_file_is_merged(tmp_path: Path) -> None:
    (tmp_path / "pairs.yaml").write_text(PAIRS)
    assert run_here("merge", sound(tmp_path), "--pairs", tmp_path / "pairs.yaml").status == 0


USUAL = Run(0, "", 2.0, 250 << 20)


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (Run(0, "", 2.0, 250 << 20), "exit 0"),
        (Run(-9, "", 2.0, 250 << 20), "exit -9"),
        (Run(2, "error: something else\n", 2.0, 250 << 20), "said"),
        (Run(2, "error: it\nerror: twice\n", 2.0, 250 << 20), "said"),
        (Run(2, "error: it\n", 13.0, 250 << 20), "took 13.0 s"),
        (Run(2, "error: it\n", 2.0, 350 << 20), "took 350 MiB"),
    ],
)
def test_what_counts_as_a_failure(run: Run, says: str) -> None:
    attack = Attack("an attack", sound, "it")
    assert problem(attack, Run(2, "error: it\n", 11.0, 300 << 20), USUAL) is None
    assert says in (problem(attack, run, USUAL) or "")
