"""The manifest of a scan: an entry for many merges says the same as each merge written out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from convsqueeze import merge_state_dict
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.manifest import Contracted, Entry, Manifest, expand, parse_manifest
from convsqueeze.plan import Merge, Timing, make_plan
from convsqueeze.scan import Scan, scanning
from convsqueeze.scan.writing import scan_yaml
from tests.command_line import SESR, SESR_PAIRS, run_here
from tests.scan.blocks import BLOCKS, Block
from tests.scan.code import image, made, scanned

pytestmark = pytest.mark.stress

NETWORK = SESR.with_name("network.py")


class Linear(nn.Sequential):
    """Two convolutions with nothing between them."""

    def __init__(self, channels: int, expanded: int) -> None:
        super().__init__(
            nn.Conv2d(channels, expanded, 3, padding=1, bias=False),
            nn.Conv2d(expanded, channels, 1),
        )


class Stages(nn.Module):
    """`blocks[i]` linear blocks of `3 + i` channels in stage i, an activation behind each; `left`
    is behind the first convolution of one more.
    """

    def __init__(self, *blocks: int, left: bool = False) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.ModuleList(Linear(3 + i, 24) for _ in range(number))
            for i, number in enumerate(blocks)
        )
        self.widths = nn.ModuleList(nn.Conv2d(3 + i, 4 + i, 1) for i in range(len(blocks)))
        self.left = left

    def forward(self, x: Tensor) -> Tensor:
        for stage, wider in zip(self.stages, self.widths, strict=True):
            for block in stage:
                last = self.left and stage is self.stages[-1] and block is stage[-1]
                x = block[1](block[0](x).relu()) if last else block(x)
                x = x.relu()
            x = wider(x).tanh()
        return x


NETWORKS = (
    *BLOCKS,
    Block("stages", lambda: Stages(2, 3), "", [((1, 3, 6, 6),)]),
    Block("a block that is left alone", lambda: Stages(3, 2, left=True), "", [((1, 3, 6, 6),)]),
)

networks = pytest.mark.parametrize("block", NETWORKS, ids=lambda block: block.name)


@contextmanager
def written_out() -> Iterator[None]:
    """Scans give every merge an entry of its own."""

    def each(entries: list[Entry], names: list[str]) -> list[Contracted[Entry]]:
        return [Contracted(entry, (place,)) for place, entry in enumerate(entries)]

    with mock.patch.object(scanning, "contract", each):
        yield


def both(model: nn.Module, *inputs: Tensor) -> tuple[Scan, Scan]:
    """The model's scan, and the one whose merges are written out."""
    settings = {"border": "corrected", "growth": "allow"}
    found = scanned(model, *inputs, **settings)
    with written_out():
        return found, scanned(model, *inputs, **settings)


def read_again(found: Scan) -> Manifest:
    return parse_manifest(scan_yaml(found, "here"), "pairs.yaml")


def stored(model: nn.Module, manifest: Manifest) -> dict[str, Tensor]:
    found, _ = merge_state_dict(model.state_dict(), manifest, growth="allow", verify=False)
    return dict(found)


@networks
def test_what_is_written_stands_for_the_entries_that_it_replaces(block: Block) -> None:
    model = made(block.build)
    inputs = [image(*shape) for shape in block.shapes[0]]
    found, wanted = both(model, *inputs)
    assert found.left == wanted.left
    if not wanted.entries:
        assert found.document is None
        return
    manifest = read_again(found)
    assert manifest.document == found.document
    names = list(from_state_dict(model.state_dict()).tensors)
    expanded = [e for one in manifest.document.pairs for _, e in expand(one, names).entries]
    entries = [one.entry for one in wanted.entries]
    assert sorted(expanded, key=str) == sorted(entries, key=str)
    assert [entry.into for entry in expanded] == [one.merge.into for one in found.merged]
    plans = [
        make_plan(m, from_state_dict(model.state_dict()), growth="allow")
        for m in (manifest, read_again(wanted))
    ]
    assert plans[0].notes == plans[1].notes
    merges = [stored(model, one) for one in (manifest, read_again(wanted))]
    assert list(merges[0]) == list(merges[1])
    assert all(torch.equal(merges[0][name], tensor) for name, tensor in merges[1].items())


def entries(model: nn.Module, *shape: int) -> list[tuple[str | None, int]]:
    """Where the entries of a scan go to, and how many merges they stand for."""
    found = scanned(model, image(*shape))
    return [(one.entry.into, len(one.merged)) for one in found.entries]


@pytest.mark.parametrize(
    ("build", "wanted"),
    [
        (lambda: Stages(3), [("stages.0.{i}", 3)]),
        (lambda: Stages(2, 3), [("stages.{i}.{j}", 5)]),
        (lambda: Stages(1, 1), [("stages.{i}.0", 2)]),
        (lambda: Stages(1), [("stages.0.0", 1)]),
        (
            lambda: Stages(3, 3, left=True),
            [("stages.1.0", 1), ("stages.1.1", 1), ("stages.0.{i}", 3)],
        ),
    ],
    ids=["blocks", "blocks of stages", "stages", "one block", "one left alone"],
)
def test_equal_blocks_are_one_entry(
    build: Callable[[], nn.Module], wanted: list[tuple[str, int]]
) -> None:
    assert entries(made(build), 1, 3, 6, 6) == wanted


def comments(found: Scan) -> list[str]:
    """What stands above the entries."""
    lines = [line.strip() for line in scan_yaml(found, "here").splitlines()[1:]]
    above = lines[: lines.index("# Left alone:")]
    return [line.removeprefix("# ") for line in above if line.startswith("#")]


def test_the_comment_tells_what_one_merge_saves_and_all_of_them() -> None:
    found = scanned(made(lambda: Stages(3)), image(1, 3, 6, 6))
    assert comments(found) == [
        "3 times 723 -> 84 weights, 25,920 -> 2,916 multiplications at 6x6",
        "in all 2,169 -> 252 weights, 77,760 -> 8,748 multiplications at 6x6",
    ]


def test_the_comment_tells_only_the_sum_of_merges_that_differ() -> None:
    found = scanned(made(lambda: Stages(1, 2)), image(1, 3, 6, 6))
    assert comments(found) == [
        "3 times, in all 2,651 -> 380 weights, 95,040 -> 13,284 multiplications at 6x6"
    ]


def test_times_that_were_measured_one_by_one_are_summed() -> None:
    milliseconds = count(2)

    def measured(merge: Merge) -> Timing:
        return Timing(next(milliseconds) * 1_000_000, 500_000, faster=True)

    model = made(lambda: Stages(3))
    found = scanned(model, image(1, 3, 6, 6), minimize="latency", latency=measured)
    assert [one.entry.into for one in found.entries] == ["stages.0.{i}"]
    timings = [one.timing.before for one in found.merged if one.timing is not None]
    assert timings == [2_000_000, 3_000_000, 4_000_000]
    (told,) = comments(found)
    assert told.startswith("3 times, in all 2,169 -> 252 weights, ")
    assert told.endswith(" multiplications at 6x6, 9 -> 1.5 ms")


def test_the_sample_gets_the_manifest_that_was_written_by_hand(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.yaml"
    done = run_here("scan", f"{NETWORK}:SESR", "--checkpoint", SESR, "-o", pairs)
    assert (done.status, done.errors) == (0, [])
    assert "│ body.{i}         │    3x3 │   204,880 │" in done.stdout
    assert "│ 5 times          │        │ -> 11,600 │" in done.stdout
    found, wanted = (
        parse_manifest(place.read_text(), str(place)).document.pairs
        for place in (pairs, SESR_PAIRS)
    )
    assert [one.into for one in found] == ["tail", "body.{i}", "head"]
    assert [one.into for one in wanted] == ["head", "body.{i}", "tail"]
    states = []
    for manifest in (pairs, SESR_PAIRS):
        output = tmp_path / f"{manifest.parent.name}.pt"
        assert run_here("merge", SESR, "--pairs", manifest, "-o", output).status == 0
        states.append(torch.load(output, weights_only=True)["params_ema"])
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


def test_json_tells_which_entry_a_merge_belongs_to() -> None:
    data = run_here("scan", f"{NETWORK}:SESR", "--checkpoint", SESR, "--json").data
    assert [one["into"] for one in data["manifest"]["pairs"]] == ["tail", "body.{i}", "head"]
    assert [(one["entry"], one["into"]) for one in data["merges"]] == [
        (0, "tail"),
        *((1, f"body.{number}") for number in range(5)),
        (2, "head"),
    ]
