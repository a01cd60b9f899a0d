"""What merging and verifying take is estimated, held to a bound and told; a lack of memory is no
failed comparison.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import convsqueeze
from convsqueeze.checkpoint import from_state_dict, open_checkpoint
from convsqueeze.errors import PlanError, lacks_memory
from convsqueeze.manifest import Border, load_manifest, manifest_from_data
from convsqueeze.module import SqueezedConv
from convsqueeze.pipeline.merging import planned
from convsqueeze.plan import make_plan
from convsqueeze.verify import check_effort, effort
from tests.command_line import run_here
from tests.pipeline.test_bad_input import written_pickle

FIXTURES = Path(__file__).parents[1] / "fixtures"
PADDED = {
    "version": 1,
    "pairs": [{"first": {"name": "a", "padding": 1}, "second": {"name": "b", "padding": 1}}],
}


def drawn(channels: int = 4, kernel: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (channels, channels, kernel, kernel)
    return {f"{name}.weight": torch.randn(shape, generator=generator) for name in "ab"}


@pytest.mark.parametrize(
    ("border", "says"),
    [
        ("interior", r"takes [\d.]+ GB to verify on an image of 22x36x18, at most 1.1 GB may be"),
        ("corrected", r"takes [\d.]+ GB to verify on an image of 8x10x8, at most 1.1 GB may be"),
    ],
)
def test_a_small_manifest_that_asks_for_much_is_refused_with_the_figure(
    border: Border, says: str
) -> None:
    checkpoint = open_checkpoint(FIXTURES / "oom.safetensors")
    with pytest.raises(PlanError, match=says):
        planned(load_manifest(FIXTURES / "oom.yaml"), checkpoint, border, "allow")


def test_of_the_command_it_is_exit_2(tmp_path: Path) -> None:
    model = FIXTURES / "oom.safetensors"
    options = ("--border", "interior", "--growth", "allow", "-o", tmp_path / "o.safetensors")
    outcome = run_here("merge", model, "--pairs", FIXTURES / "oom.yaml", *options)
    assert outcome.status == 2, outcome
    assert "GB to verify on an image of" in outcome.errors[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("border", ["exact", "interior", "corrected"])
@pytest.mark.parametrize(
    ("first", "second", "padding"),
    [
        ((1024, 1024, 3, 3), (1024, 1024, 3, 3), 1),
        ((4096, 4096, 1, 1), (4096, 4096, 1, 1), 0),
        ((8192, 8192), (8192, 8192), None),
        ((256, 256, 7, 7), (256, 256, 7, 7), 3),
        ((768, 3, 16, 16), (768, 768, 1, 1), 0),
        ((128, 128, 3, 3, 3), (128, 128, 3, 3, 3), 1),
    ],
)
def test_layers_as_large_as_networks_have_pass(
    first: tuple[int, ...],
    second: tuple[int, ...],
    padding: int | None,
    border: Border,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Planned from shapes alone, as on a machine that has the memory for them."""
    monkeypatch.setattr("convsqueeze.plan.memory.bytes_here", lambda: None)
    tensors = {
        f"{name}.weight": torch.zeros(()).expand(shape)
        for name, shape in zip("ab", (first, second), strict=True)
    }
    words: dict[str, Any] = {"type": "linear"} if padding is None else {"padding": padding}
    if border == "exact":
        words = {k: 0 if k == "padding" else v for k, v in words.items()}
    pair = {"first": {"name": "a", **words}, "second": {"name": "b", **words}}
    manifest = manifest_from_data({"version": 1, "pairs": [pair]})
    check_effort(make_plan(manifest, from_state_dict(tensors), border=border, growth="allow"))


@pytest.mark.parametrize(
    ("bound", "value", "says"),
    [
        ("MOST_WORK", 10, "billion multiplications to verify, at most 0 billion may be"),
        ("MOST_MERGING", 10, "billion multiplications to merge, at most 0 billion may be"),
        ("MOST_BYTES", 0, "GB to verify on an image of "),
    ],
)
def test_every_way_in_has_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, value: int, says: str
) -> None:
    model, pairs = written_pickle(tmp_path / "model.pt", drawn()), tmp_path / "pairs.yaml"
    pairs.write_text(str(PADDED).replace("'", '"'))
    options = ("--border", "corrected", "--growth", "allow")
    assert run_here("merge", model, "--pairs", pairs, *options).status == 0
    squeezed = tmp_path / "model.squeezed.pt"
    assert run_here("verify", model, squeezed).status == 0
    monkeypatch.setattr(effort, bound, value)
    monkeypatch.setattr(effort, "bytes_needed", lambda merge: 0)
    for outcome in (
        run_here("merge", model, "--pairs", pairs, "-o", tmp_path / "o.pt", *options),
        run_here("verify", model, squeezed),
    ):
        assert outcome.status == 2, outcome
        assert says in outcome.errors[0], outcome
    assert not (tmp_path / "o.pt").exists()
    with pytest.raises(PlanError, match="at most"):
        convsqueeze.merge_state_dict(drawn(), PADDED, border="corrected", growth="allow")
    layers = torch.nn.Sequential(torch.nn.Conv2d(4, 16, 3), torch.nn.Conv2d(16, 4, 1)).eval()
    squeezed, report = convsqueeze.squeeze(layers, torch.zeros(1, 4, 9, 9))
    assert len(squeezed) == len(layers)
    (left,) = report.scan.left
    assert (left.layers, left.reason.kind) == (("0", "1"), "too large")
    assert says in left.reason.text
    assert "too large to be merged or verified here:" in str(report)


@pytest.mark.parametrize(("bound", "what"), [("MOST_IN_ALL", "verify"), ("MOST_MERGING", "merge")])
def test_merges_that_may_each_be_made_may_be_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, what: str
) -> None:
    """Of one entry for all layers whose names differ in a number."""
    tensors = {f"{k}.{name}": tensor for k in range(3) for name, tensor in drawn().items()}
    model, pairs = written_pickle(tmp_path / "model.pt", tensors), tmp_path / "pairs.yaml"
    options = ("--pairs", pairs, "--growth", "allow", "-o", tmp_path / "o.pt", "--overwrite")
    entry = PADDED["pairs"][0]
    every = {role: {**entry[role], "name": f"{{k}}.{entry[role]['name']}"} for role in entry}
    pairs.write_text(json.dumps({"version": 1, "border": "corrected", "pairs": [every]}))
    assert run_here("merge", model, *options).status == 0
    plan = planned(load_manifest(pairs), open_checkpoint(model), None, "allow")
    works = {
        "verify": [effort.verifying(merge) for merge in plan.merges],
        "merge": [effort.merging(merge) for merge in plan.merges],
    }[what]
    assert len(works) == 3
    monkeypatch.setattr(effort, bound, sum(works))
    assert run_here("merge", model, *options).status == 0
    assert run_here("verify", model, tmp_path / "o.pt").status == 0
    monkeypatch.setattr(effort, bound, sum(works) - 1)
    for outcome in (
        run_here("merge", model, *options),
        run_here("verify", model, tmp_path / "o.pt"),
    ):
        assert outcome.status == 2, outcome
        (error,) = outcome.errors
        assert f"multiplications to {what}, at most" in error
        assert "Make its 3 merges in several runs" in error
    pairs.write_text(
        json.dumps(
            {
                "version": 1,
                "border": "corrected",
                "pairs": [
                    {
                        role: {**one, "name": one["name"].replace("{k}", "0")}
                        for role, one in every.items()
                    }
                ],
            }
        )
    )
    assert run_here("merge", model, *options).status == 0


def test_an_exhaustive_verification_has_a_bound_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pairs = written_pickle(tmp_path / "model.pt", drawn()), tmp_path / "pairs.yaml"
    pairs.write_text(str(PADDED).replace("'", '"'))
    options = ("--border", "interior", "--growth", "allow")
    assert run_here("merge", model, "--pairs", pairs, *options).status == 0
    squeezed = tmp_path / "model.squeezed.pt"
    assert run_here("verify", model, squeezed, "--exhaustive").status == 0
    monkeypatch.setattr(effort, "MOST_EXHAUSTIVE", 2_000_000)
    assert run_here("verify", model, squeezed).status == 0
    outcome = run_here("verify", model, squeezed, "--exhaustive")
    assert outcome.status == 2, outcome
    assert "to verify exhaustively, at most" in outcome.errors[0]


# Sizes without end


STRIDED = [{"stride": stride, "padding": stride // 2} for stride in (2, 4, 5, 8)]
DILATED = [{"dilation": 2**power, "padding": 2**power} for power in range(7)]


@pytest.mark.parametrize(
    ("words", "taps", "says"),
    [(STRIDED, 16, r"depends on [\d,]+ input sizes"), (DILATED, 3, r"[\d,]+ taps")],
)
def test_layers_with_too_many_sizes_merge_for_one(
    words: list[dict[str, int]], taps: int, says: str
) -> None:
    tensors = {f"{i}.weight": torch.randn(2, 2, taps) for i in range(len(words))}
    chain = [{"name": str(i), **one} for i, one in enumerate(words)]
    options: dict[str, Any] = {"border": "interior", "growth": "allow"}
    with pytest.raises(PlanError, match=rf"{says}.*give the entry the one size of its input"):
        convsqueeze.merge_state_dict(
            tensors, {"version": 1, "pairs": [{"chain": chain}]}, **options
        )
    sized = {"version": 1, "pairs": [{"chain": chain, "input": [1600]}]}
    _, report = convsqueeze.merge_state_dict(tensors, sized, **options)
    assert report.verification is not None
    assert report.verification.ok


# A lack of memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 5850722304 bytes. Error code 12"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("Failed to allocate memory for requested buffer of size 32"),
        RuntimeError("Storage size calculation overflowed with sizes=[9223372036854775807]"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_what_lacks_memory(error: BaseException) -> None:
    assert lacks_memory(error)
    assert not lacks_memory(RuntimeError("Kernel size can't be greater than actual input size"))


def test_memory_that_torch_is_refused_is_a_lack_of_it() -> None:
    for shape in ((1 << 45,), (1 << 62, 1 << 62)):
        with pytest.raises(RuntimeError) as caught:
            torch.empty(shape, dtype=torch.float64)
        assert lacks_memory(caught.value)


def test_a_lack_of_memory_is_no_failed_verification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    model, pairs = written_pickle(tmp_path / "model.pt", drawn()), tmp_path / "pairs.yaml"
    pairs.write_text(str(PADDED).replace("'", '"'))
    options = ("--border", "interior", "--growth", "allow")
    assert run_here("merge", model, "--pairs", pairs, *options).status == 0
    monkeypatch.setattr(SqueezedConv, "forward", fails)
    for outcome in (
        run_here("merge", model, "--pairs", pairs, "-o", tmp_path / "o.pt", *options),
        run_here("verify", model, tmp_path / "model.squeezed.pt"),
    ):
        assert outcome.status == 2, outcome
        assert outcome.errors[0].startswith("memory: there is not enough of it")
    assert not (tmp_path / "o.pt").exists()


# The border of `interior`


@pytest.mark.parametrize("channels", [2, 16])
def test_an_interior_border_is_measured_on_some_tens_of_outputs(channels: int) -> None:
    _, report = convsqueeze.merge_state_dict(
        drawn(channels), PADDED, border="interior", growth="allow"
    )
    assert report.verification is not None
    (layer,) = report.verification.layers
    assert max(layer.sizes) == (32, 32)
    assert layer.border_error > 0.1 * layer.border_range
    assert "on 32x32 samples" in str(report)
