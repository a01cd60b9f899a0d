"""A note reaches the user in every form of a report."""

import json
from pathlib import Path

import torch

import convsqueeze
from tests.command_line import run_here

NET = """
import random
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 3)

    def forward(self, x):
        y = self.b(self.a(x))
        return y if x.shape[-1] > 30000 or random.random() > 2 else y + 0
"""
TOLD = {
    "guess": "guessed from a (Conv2d)",
    "scan": "looks at the size of its input",
    "whole model": "draws random numbers",
    "unreached": "too large or too many",
}


def test_every_note_is_in_the_table_and_in_json_also_when_quiet(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    space: dict[str, type[torch.nn.Module]] = {}
    exec(NET, space)
    torch.save(space["Net"]().state_dict(), tmp_path / "net.pt")
    merge = ("merge", tmp_path / "net.pt", "--model", f"{tmp_path / 'net.py'}:Net")
    shown = run_here(*merge, "-o", tmp_path / "one.pt")
    lines = [line for line in shown.stdout.splitlines() if line.startswith("note: ")]
    for told in TOLD.values():
        assert sum(told in line for line in lines) == 1, (told, lines)
    for index, quiet in enumerate(((), ("-q",))):
        done = run_here(*merge, "-o", tmp_path / f"json{index}.pt", "--json", *quiet)
        notes = json.loads(done.stdout)["notes"]
        for told in TOLD.values():
            assert sum(told in note for note in notes) == 1, (told, notes)
        assert ("note: " in done.stderr) == (not quiet)


def test_what_squeeze_returns_has_the_notes_that_it_prints(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    space: dict[str, type[torch.nn.Module]] = {}
    exec(compile(NET, tmp_path / "net.py", "exec"), space)
    _, report = convsqueeze.squeeze(space["Net"]().eval())
    shown = [line for line in str(report).splitlines() if line.startswith("note: ")]
    for told in TOLD.values():
        assert sum(told in note for note in report.notes) == 1, (told, report.notes)
        assert sum(told in line for line in shown) == 1, (told, shown)
    assert len(shown) == len(report.notes)


def test_a_scan_for_data_tells_its_notes_on_standard_error_too(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    done = run_here("scan", f"{tmp_path / 'net.py'}:Net", "--json")
    for told in (TOLD["guess"], TOLD["scan"]):
        assert sum(told in note for note in json.loads(done.stdout)["notes"]) == 1
        assert sum(told in line for line in done.stderr.splitlines()) == 1
