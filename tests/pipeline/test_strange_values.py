"""Norms that divide by little or nothing, channels of zeros, denormal numbers, zero directions."""

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convsqueeze
from convsqueeze.errors import TensorDataError
from tests.command_line import run_here
from tests.pipeline.test_bad_input import assert_merge_refused, state_of, written_pickle
from tests.strange_values import DENORMAL, EMPTY, NORMS, Strange, manifest, tensors

ALL = {**NORMS, **EMPTY, **DENORMAL}
PAIR = {"version": 1, "pairs": [{"first": {"name": "a"}, "second": {"name": "b"}}]}


def network(changed: dict[str, Tensor], eps: float) -> nn.Module:
    """The layers as torch has them, in float64."""
    model = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(4, 8, 3),
            norm=nn.BatchNorm2d(8, eps),
            point=nn.Conv2d(8, 2, 1, bias=False),
        )
    )
    model.load_state_dict(changed, strict=False)
    doubles = {name: tensor.double() for name, tensor in changed.items()}
    model = model.double()
    model.load_state_dict(doubles, strict=False)
    return model.eval()


@pytest.mark.parametrize("name", [name for name, case in ALL.items() if case.refused])
def test_refused(tmp_path: Path, name: str) -> None:
    case = ALL[name]
    model, pairs = written(case, tmp_path)
    before = state_of(tmp_path)
    for options in ([], ["--json"], ["-q"]):
        outcome = run_here("merge", model, "--pairs", pairs, *options)
        assert (outcome.status, outcome.stdout, len(outcome.errors)) == (2, "", 1), outcome
        for word in case.refused:
            assert word in outcome.errors[0]
        assert outcome.errors[0].endswith(".")
        assert state_of(tmp_path) == before


@pytest.mark.stress
@pytest.mark.parametrize("name", [name for name, case in ALL.items() if not case.refused])
def test_merged_exactly(tmp_path: Path, name: str) -> None:
    case = ALL[name]
    model, pairs = written(case, tmp_path)
    outcome = run_here("merge", model, "--pairs", pairs, "--json", "--growth", "allow")
    assert outcome.status == 0, outcome
    strange = [note for note in outcome.data["notes"] if "multiplications" not in note]
    assert len(strange) == bool(case.note), strange
    assert case.note in "".join(strange)
    assert run_here("verify", model, tmp_path / "model.squeezed.pt").status == 0
    changed = torch.load(model, weights_only=True)
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    layer = convsqueeze.load_layers(tmp_path / "model.squeezed.pt", dtype=torch.float64)["conv"]
    wanted = network(changed, float(case.eps))(x)
    rounding = torch.finfo(case.dtype).eps
    assert (layer(x) - wanted).abs().max() <= 40 * rounding * wanted.abs().max()


def written(case: Strange, folder: Path) -> tuple[Path, Path]:
    changed = tensors(case.dtype)
    case.change(changed)
    pairs = folder / "pairs.yaml"
    pairs.write_text(manifest(case.eps))
    return written_pickle(folder / "model.pt", changed), pairs


# Denormal numbers, bit for bit.


@pytest.fixture(params=[False, True], ids=["denormals kept", "denormals flushed"])
def flushing(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Torch told to flush denormal numbers in this thread, as a program around us may."""
    torch.set_flush_denormal(request.param)
    yield request.param
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_denormal_numbers_survive(flushing: bool, dtype: torch.dtype) -> None:
    """A permutation of channels changes no bit of them; nothing is rounded, so nothing is lost."""
    width = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]
    bits = torch.tensor([[1, 2], [77, 3]], dtype=width).view(2, 2, 1, 1)
    turn = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=dtype).view(2, 2, 1, 1)
    layers = {"a.weight": bits.view(dtype), "b.weight": turn}
    merged, _ = convsqueeze.merge_state_dict(layers, PAIR)
    assert torch.equal(merged["a.weight"].view(width), bits.flip(0))
    flushes = bool(torch.tensor(5e-324, dtype=torch.float64) * 1.0 == 0)
    assert flushes == flushing  # as it was


def test_denormal_products_are_refused_also_where_torch_flushes_them(flushing: bool) -> None:
    small = torch.full((2, 2, 1, 1), 1.1e-20)
    with pytest.raises(TensorDataError, match="would lose"):
        convsqueeze.merge_state_dict({"a.weight": small, "b.weight": small}, PAIR)
    merged, _ = convsqueeze.merge_state_dict(
        {"a.weight": small, "b.weight": small}, PAIR, widen=True
    )
    assert merged["a.weight"].dtype == torch.float64
    bits = (2 * small.double() ** 2).view(torch.int64)
    assert torch.equal(merged["a.weight"].view(torch.int64), bits)


# Layers without channels, directions without length.


SHAPES: dict[str, tuple[dict[str, tuple[int, ...]], str, list[tuple[str, ...]]]] = {
    "no input channels": (
        {"a.weight": (4, 0, 3, 3), "b.weight": (4, 4, 1, 1)},
        "{first: {name: a}, second: {name: b}}",
        [("pairs[0].first", "a: has no channels")],
    ),
    "no channels between": (
        {"a.weight": (0, 4, 3, 3), "a.bias": (0,), "b.weight": (4, 0, 1, 1)},
        "{first: {name: a}, second: {name: b}}",
        [("pairs[0].first", "a: has no channels"), ("pairs[0].second", "b: has no channels")],
    ),
    "no output channels": (
        {"a.weight": (4, 4, 3, 3), "b.weight": (0, 4, 1, 1)},
        "{first: {name: a}, second: {name: b}}",
        [("pairs[0].second", "b: has no channels")],
    ),
    "a norm of nothing": (
        {"a.weight": (0, 4, 3, 3), "b.running_mean": (0,), "b.running_var": (0,)},
        "{first: {name: a}, second: {name: b, type: batch_norm, eps: 0.1}}",
        [("pairs[0].first", "a: has no channels"), ("pairs[0].second", "b: has no channels")],
    ),
    "a linear layer of nothing": (
        {"a.weight": (4, 0), "b.weight": (2, 4)},
        "{first: {name: a, type: linear}, second: {name: b, type: linear}}",
        [("pairs[0].first", "a: has no channels")],
    ),
    "a transposed layer of nothing": (
        {"a.weight": (0, 4, 2, 2), "b.weight": (2, 4, 1, 1)},
        "{first: {name: a, type: conv_transpose}, second: {name: b}}",
        [("pairs[0].first", "a: has no channels")],
    ),
    "a kernel of nothing": (
        {"a.weight": (4, 4, 0, 3), "b.weight": (2, 4, 1, 1)},
        "{first: {name: a}, second: {name: b}}",
        [("pairs[0].first", "a: kernel_size is 0", "needed")],
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_layers_without_channels(tmp_path: Path, name: str) -> None:
    shapes, entry, told = SHAPES[name]
    written_pickle(tmp_path / "model.pt", {k: torch.zeros(s) for k, s in shapes.items()})
    (tmp_path / "pairs.yaml").write_text(f"version: 1\npairs:\n  - {entry}\n")
    assert_merge_refused(tmp_path / "model.pt", tmp_path / "pairs.yaml", tmp_path, *told)


@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_of_a_direction_without_length(dim: Any) -> None:
    conv = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3), dim=dim)
    layers = {f"a.{name}": tensor.detach().clone() for name, tensor in conv.state_dict().items()}
    layers["b.weight"] = torch.randn(2, 8, 1, 1)
    convsqueeze.merge_state_dict(layers, PAIR)
    direction = layers["a.parametrizations.weight.original1"]
    (direction if dim is None else direction.select(dim, 2)).zero_()
    with pytest.raises(TensorDataError, match="has length 0 at") as caught:
        convsqueeze.merge_state_dict(layers, PAIR)
    assert "a.parametrizations.weight.original1" in str(caught.value)
