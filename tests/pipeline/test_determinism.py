"""The same input, manifest and version give the same bytes, whatever else is different."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from convsqueeze.checkpoint import from_state_dict, write_checkpoint
from convsqueeze.pipeline import merge_state_dict
from tests.command_line import run_process

pytestmark = pytest.mark.stress

LONG = 70_000
"""Channels that are summed over: so many that torch shares one sum among its threads."""
PAIRS = {
    "version": 1,
    "pairs": [
        {"first": {"name": "long.0"}, "second": {"name": "long.1"}},
        {
            "first": {"name": "body.0", "padding": 1},
            "second": {"name": "body.1", "padding": 1},
            "border": "corrected",
        },
    ],
}
FORMATS = (".safetensors", ".pt", ".safetensors.index.json")


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "long.0.weight": normal(LONG, 27, 1, 1),
        "long.0.bias": normal(LONG),
        "long.1.weight": normal(3, LONG, 1, 1),
        "body.0.weight": normal(16, 4, 3, 3),
        "body.0.bias": normal(16),
        "body.1.weight": normal(4, 16, 3, 3),
        "kept": normal(1000),
    }


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_sums_that_threads_share_do_depend_on_their_number() -> None:
    """Else the next test shows nothing."""
    first, second = tensors()["long.0.weight"], tensors()["long.1.weight"]
    seen = set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        product = second[..., 0, 0] @ first[..., 0, 0]
        seen.add(product.numpy().tobytes())
    assert len(seen) == 2


def test_values_do_not_depend_on_the_number_of_threads() -> None:
    seen = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        merged, _ = merge_state_dict(tensors(), PAIRS, verify=False)
        assert torch.get_num_threads() == threads
        seen.append({name: tensor.numpy().tobytes() for name, tensor in merged.items()})
    assert seen[0] == seen[1] == seen[2]


def digests(folder: Path) -> dict[str, str]:
    found = sorted(folder.glob("out*"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.mark.parametrize(
    ("suffix", "threads_of_runs"), zip(FORMATS, ("12121", "12", "12"), strict=True)
)
def test_files_are_the_same_over_threads_and_runs(
    tmp_path: Path, suffix: str, threads_of_runs: str
) -> None:
    """Every run is a process of its own, with its own hash seed and addresses."""
    named = {name: t for name, t in tensors().items() if not name.startswith("long")}
    write_checkpoint(from_state_dict(named), tmp_path / f"in{suffix}", [], "")
    (tmp_path / "pairs.json").write_text(json.dumps({**PAIRS, "pairs": PAIRS["pairs"][1:]}))
    seen = []
    for run, threads in enumerate(threads_of_runs):
        output = tmp_path / str(run)
        output.mkdir()
        done = run_process(
            *("merge", tmp_path / f"in{suffix}", "--pairs", tmp_path / "pairs.json"),
            *("-o", output / f"out{suffix}", "--onnx", output / "out.onnx", "-q"),
            *("--growth", "allow"),
            environment={"OMP_NUM_THREADS": threads},
        )
        assert done.status == 0, done.stderr
        seen.append(digests(output))
    assert all(one == seen[0] for one in seen)
    assert len(seen[0]) == (3 if suffix.endswith("json") else 2)
