"""A report as text: what the command prints, without a terminal."""

from pathlib import Path

import pytest
import torch
from torch import nn

import convsqueeze
from convsqueeze.checkpoint import open_checkpoint
from convsqueeze.formatting import Row, Table
from tests.command_line import BLOCKS, SESR, SESR_PAIRS, run_here
from tests.scan.code import made
from tests.scan.small_models import chain

pytestmark = pytest.mark.quick

PAIRS = {"version": 1, "pairs": [{"first": {"name": "0"}, "second": {"name": "2"}}]}


def words(text: str) -> list[str]:
    """Without the frame of a table, and wherever lines are broken."""
    return "".join(" " if c in "│┃━┏┳┓┡╇┩├┼┤└┴┘─" else c for c in text).split()


@pytest.mark.parametrize(
    ("file", "pairs", "border"),
    [
        (SESR, SESR_PAIRS, None),
        (BLOCKS / "convnext_ols_stem.safetensors", BLOCKS / "convnext_ols_stem.yaml", "interior"),
    ],
)
def test_a_merge_report_says_what_the_command_prints(
    file: Path, pairs: Path, border: str | None, tmp_path: Path
) -> None:
    options = ("--border", border) if border else ()
    output = tmp_path / f"squeezed{file.suffix}"
    outcome = run_here("merge", file, "--pairs", pairs, "-o", output, *options)
    checkpoint = open_checkpoint(file)
    state = {name: checkpoint.load(name) for name in checkpoint.tensors}
    _, report = convsqueeze.merge_state_dict(state, pairs, border=border)  # type: ignore[arg-type]
    printed, told = words(outcome.stdout), words(str(report))
    assert told[0] == "merged"
    missing = [word for word in told[1:] if word not in printed]
    assert missing == []
    lines = str(report).splitlines()
    assert lines[1].split() == ["layer", "kernel", "weights", "MACs", "border", "largest", "error"]
    for merge in report.plan.merges:
        row = next(line for line in lines if line.startswith(f"{merge.into} "))
        assert f"{merge.weights_before:,}" in row
    assert any(line.startswith("verified: ") for line in lines)
    assert any(line.startswith("border: ") for line in lines) is (border == "interior")


def test_a_squeeze_report_is_a_table_and_no_nested_reprs() -> None:
    _, report = convsqueeze.squeeze(made(chain))
    text = str(report)
    assert len(text) < 2000
    assert repr(report) == text
    for fact in ("112", "-> ", "verified: 1 layer is equal", "Left alone:", "relu is not linear"):
        assert fact in text
    assert "note: input 1,3,64,64: guessed from 0 (Conv2d)" in text.splitlines()[0]
    assert "whole model: same output before and after on 2 random inputs of 1,3,64,64" in text
    assert not {"\x1b", "[", "━", "│"} & set(text.replace("output at [", ""))


def test_a_report_of_nothing_says_so() -> None:
    _, report = convsqueeze.squeeze(nn.Sequential(nn.ReLU()), torch.ones(1, 3))
    assert "Nothing to merge." in str(report)


def test_a_table_is_aligned() -> None:
    rows = (Row(("one\nmore", "7\n-> 1,000", "exact")), Row(("second", "23", "")))
    told = str(Table("title", ("layer", "weights", ""), rows, "caption"))
    assert told.splitlines() == [
        "title",
        "layer    weights",
        "one            7  exact",
        "  more  -> 1,000",
        "second        23",
        "caption",
    ]
