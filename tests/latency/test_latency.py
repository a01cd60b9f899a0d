"""The time of a merge: both runtimes compute the layers, and alike merges are timed once."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from convsqueeze.checkpoint import from_state_dict
from convsqueeze.latency import measuring, timing
from convsqueeze.latency.unmerged import as_onnx, in_torch, random_layers
from convsqueeze.manifest import manifest_from_data
from convsqueeze.plan import Merge, Timing, make_plan
from tests.command_line import run_here

EPS = {"type": "batch_norm", "eps": 1e-5}


def merge_of(entry: dict[str, Any], border: str = "corrected", **shapes: tuple[int, ...]) -> Merge:
    tensors = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            tensors[f"{name}.weight"] = torch.zeros(shape)
            continue
        roles = ("running_mean", "running_var", *(() if name == "bare" else ("weight", "bias")))
        tensors |= {f"{name}.{role}": torch.ones(shape) for role in roles}
    manifest = manifest_from_data({"version": 1, "pairs": [entry]})
    plan = make_plan(manifest, from_state_dict(tensors), border=border, growth="allow")  # type: ignore[arg-type]
    return plan.merges[0]


PAIR = {"chain": [{"name": "a", "padding": 1}, {"name": "b", "padding": 1}]}
WIDE = {"a": (32, 4, 3, 3), "b": (4, 32, 3, 3)}
MERGES = {
    "pair": lambda: merge_of(PAIR, **WIDE),
    "norms and scales": lambda: merge_of(
        {
            "chain": [
                {"name": "a", "padding": [[0, 1], [2, 0]]},
                {"name": "n", **EPS},
                {"type": "scale", "factor": 0.5, "shift": 2.0},
                {"type": "scale", "shift": -0.5},
                {"type": "identity"},
                {"name": "b"},
            ]
        },
        n=(32,),
        **WIDE,
    ),
    "a norm without weights": lambda: merge_of(
        {"chain": [{"name": "a"}, {"name": "bare", **EPS}, {"name": "b"}]}, bare=(32,), **WIDE
    ),
    "pool and pad": lambda: merge_of(
        {
            "chain": [
                {"type": "pad", "padding": 1, "padding_mode": "reflect"},
                {"name": "a"},
                {"type": "avg_pool", "kernel_size": 2},
            ]
        },
        **WIDE,
    ),
    "transposed": lambda: merge_of(
        {"chain": [{"name": "a"}, {"name": "b", "type": "conv_transpose", "stride": 2}]},
        a=(8, 4, 1, 1),
        b=(8, 3, 4, 4),
    ),
    "sum": lambda: merge_of(
        {"sum": [{"name": "a", "padding": 1}, {"type": "identity"}, {"name": "n", **EPS}]},
        a=(4, 4, 3, 3),
        n=(4,),
    ),
    "linear": lambda: merge_of(
        {"chain": [{"name": "a", "type": "linear"}, {"name": "b", "type": "linear"}]},
        a=(8, 4),
        b=(4, 8),
    ),
    "one axis": lambda: merge_of(
        {"chain": [{"name": "a", "stride": 2}, {"name": "b", "type": "linear"}]},
        a=(8, 4, 3),
        b=(4, 8),
    ),
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LEAST_NS", 0)


@pytest.mark.parametrize("name", MERGES)
def test_what_is_timed_are_the_layers(name: str) -> None:
    """Torch and onnxruntime give the same, of the shape that the merged layer gives."""
    merge = MERGES[name]()
    layers = random_layers(merge, torch.float32)
    x = torch.randn(1, merge.geometry.in_channels, *merge.size)
    y = in_torch(layers)(x)
    model = as_onnx(layers, merge).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (other,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(other), y, rtol=1e-4, atol=1e-3)
    assert timing.random_squeezed(merge, torch.float32)(x).shape == y.shape


@pytest.mark.parametrize("name", MERGES)
@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_every_kind_of_layer_can_be_timed(name: str, runtime: timing.Runtime) -> None:
    found = timing.measure(MERGES[name](), runtime, 1)
    assert min(found.before, found.after) > 0


def test_faster_is_what_is_faster_in_most_rounds_and_by_enough() -> None:
    assert timing.judge([100] * 15, [50] * 15) == Timing(100, 50, True)
    assert not timing.judge([100] * 15, [99] * 15).faster
    assert not timing.judge([100] * 15, [50] * 10 + [101] * 5).faster
    assert not timing.judge([50] * 15, [100] * 15).faster
    assert timing.judge([100] * 14 + [9000], [50] * 14 + [9100]) == Timing(100, 50, True)


def test_rounds_take_turns() -> None:
    order: list[str] = []
    taken = timing.in_rounds(lambda: order.append("a"), lambda: order.append("m"))
    assert len(taken[0]) == len(taken[1]) == timing.ROUNDS
    assert "".join(order[6:14]) == "ammaamma"


def test_merges_that_are_alike_are_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int]] = []

    def measured(merge: Merge, runtime: str, threads: int) -> Timing:
        made.append((runtime, threads))
        return Timing(200, 100, True)

    monkeypatch.setattr(timing, "measure", measured)
    latency = measuring("torch", threads=3)
    merge = MERGES["pair"]()
    same = replace(MERGES["pair"](), place="elsewhere", into="b")
    assert [latency(one) for one in (merge, merge, same)] == [Timing(200, 100, True)] * 3
    assert made == [("torch", 3)]
    for other in (
        replace(merge, size=(9, 9)),
        replace(merge, corrected=False),
        replace(merge, dtype=torch.float64),
        MERGES["norms and scales"](),
    ):
        latency(other)
    assert len(made) == 5
    measuring()(merge)
    assert made[-1] == ("onnxruntime", torch.get_num_threads())


def test_the_command_decides_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two merges that have fewer weights only the one that is faster is proposed."""

    def measured(merge: Merge, runtime: str, threads: int) -> Timing:
        fast = [leaf.label for leaf in merge.layers] == ["a", "b"]
        return Timing(2_000_000, 500_000 if fast else 1_990_000, fast)

    monkeypatch.setattr(timing, "measure", measured)
    shapes = {"a": (32, 4, 1, 1), "b": (4, 32, 1, 1), "c": (32, 4, 1, 1)}
    save_file({f"{n}.weight": torch.ones(s) for n, s in shapes.items()}, tmp_path / "m.safetensors")
    chain = [{"name": name} for name in shapes]
    (tmp_path / "pairs.yaml").write_text(json.dumps({"version": 1, "pairs": [{"chain": chain}]}))
    outcome = run_here(
        *("plan", tmp_path / "m.safetensors", "--pairs", tmp_path / "pairs.yaml"),
        *("--minimize", "latency"),
    )
    assert outcome.status == 0, outcome
    assert "one layer: a, b into a" in outcome.stdout
    assert "2 -> 0.5 ms" in outcome.stdout
    assert "no faster beyond the noise" in outcome.stdout
    assert "A better manifest, by time" in outcome.stdout
