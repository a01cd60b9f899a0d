"""The copy that a model's code is run on: shared memory, what code leaves in it, and how often a
model is copied and run by `squeeze`, `merge --model` and `export-onnx --model`.
"""

import copy
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import _get_current_function_mode

import convsqueeze
from convsqueeze.copying import Sandbox
from convsqueeze.models import factory, load_model
from convsqueeze.tracing.branches import SeenAs
from tests.command_line import SAMPLES, SESR, run_here

NETWORK = f"{SAMPLES}/sesr/network.py:SESR"


class Keeping(nn.Module):
    """Layers to merge; `keep` says what a call leaves in the module."""

    def __init__(self, keep: Callable[[Any, Tensor], None] = lambda model, x: None) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1)
        self.again = [self.one.weight]
        self.register_buffer("seen", torch.zeros(1))
        self.table: dict[str, Any] = {"sizes": []}
        self.record = SimpleNamespace(last=None)
        self.scale = torch.ones(3, 1, 1)
        self.large = 1000
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        self.keep(self, x)
        y: Tensor = self.two(self.one(x)) * self.scale
        return y.relu()


def _same_number_again(model: Any, x: Tensor) -> None:
    model.large = int("1000")
    model.table = {"sizes": [*model.table["sizes"]]}


KEPT: dict[str, Callable[[Any, Tensor], Any]] = {
    "attribute": lambda model, x: setattr(model, "last", x),
    "number": lambda model, x: setattr(model, "large", model.large + 1),
    "list": lambda model, x: model.table["sizes"].append(x.shape),
    "object": lambda model, x: setattr(model.record, "last", x),
    "buffer": lambda model, x: model.seen.add_(1),
    "tensor": lambda model, x: model.scale.mul_(2),
    "hook": lambda model, x: model.one.register_forward_hook(print),
    "mode": lambda model, x: model.eval(),
}


@pytest.mark.parametrize("kept", KEPT)
def test_a_copy_in_which_something_is_left_is_made_anew(kept: str) -> None:
    sandbox = Sandbox(Keeping(_same_number_again))
    first = sandbox.module()
    first(torch.ones(1, 3, 2, 2))
    assert sandbox.module() is first
    KEPT[kept](first, torch.ones(1, 3, 2, 2))
    second = sandbox.module()
    assert second is not first
    assert sandbox.module() is second


def test_a_copy_shares_memory_until_it_is_given_away() -> None:
    model = Keeping()
    sandbox = Sandbox(model)
    made = sandbox.module()
    assert made.one.weight is not model.one.weight
    assert made.one.weight.data_ptr() == model.one.weight.data_ptr()
    assert made.again[0] is made.one.weight
    model.one.weight.data.add_(1)
    assert sandbox.module() is made
    given = sandbox.given_away()
    assert given is made
    assert given.again[0] is given.one.weight
    for one, other in zip(given.state_dict().values(), model.state_dict().values(), strict=True):
        assert one.equal(other)
        assert one.data_ptr() != other.data_ptr()
    assert sandbox.module() is not made


def test_the_copy_in_float64_is_one_while_nothing_changes() -> None:
    model = Keeping().train()
    sandbox = Sandbox(model)
    wide = sandbox.in_float64()
    assert wide.one.weight.dtype == torch.float64
    assert not wide.training
    assert model.training
    wide(torch.ones(1, 3, 2, 2).double())
    assert sandbox.in_float64() is wide
    wide.table["sizes"].append(1)
    again = sandbox.in_float64()
    assert again is not wide
    with torch.no_grad():
        model.one.weight += 1
    assert sandbox.in_float64().one.weight.equal(model.one.weight.double())
    model.one.weight = nn.Parameter(torch.zeros(16, 3, 1, 1))
    assert not sandbox.module().one.weight.any()


@pytest.mark.stress
@pytest.mark.parametrize("kept", [name for name in KEPT if name not in ("hook", "mode")])
@pytest.mark.filterwarnings("ignore:The tensor attribute")
def test_what_code_keeps_is_neither_in_the_model_nor_in_its_way(kept: str) -> None:
    torch.manual_seed(0)  # of some weights the activation lets nothing through
    model = Keeping(KEPT[kept]).eval()
    state, held = copy.deepcopy(model.state_dict()), dict(vars(model))
    table, scale = copy.deepcopy(model.table), model.scale.clone()
    if kept == "tensor":  # every call gives something else
        with pytest.raises(convsqueeze.ConvsqueezeError):
            convsqueeze.squeeze(model, torch.rand(1, 3, 4, 4))
    else:
        _, report = convsqueeze.squeeze(model, torch.rand(1, 3, 4, 4))
        assert report.merged is not None
    assert vars(model) == held
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    assert (model.table, model.record.last) == (table, None)
    assert model.scale.equal(scale)


def test_hooks_that_collect_what_the_model_makes_are_not_in_the_way() -> None:
    """One that knows the model itself writes there, whichever copy is run, with or without values;
    the user's own run has left computed tensors.
    """
    seen: list[Any] = []

    def keep(module: nn.Module, given: Any, made: Tensor) -> None:
        seen.append(made)
        model.last = made  # type: ignore[assignment]

    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), Keeping()).eval()
    model.features, model.last = seen, None  # type: ignore[assignment]
    model[1].register_forward_hook(keep)
    with torch.enable_grad():
        model(torch.rand(1, 3, 4, 4))
    assert not seen[0].is_leaf
    before = [*seen]
    squeezed, report = convsqueeze.squeeze(model, torch.rand(1, 3, 4, 4))
    assert report.merged is not None
    assert seen[0] is before[0]
    assert not any(isinstance(one, FakeTensor) for one in [*seen, model.last])
    copy.deepcopy(squeezed)


@contextmanager
def counted(kind: type[nn.Module]) -> Iterator[Counter[str]]:
    """How often a model of a class is copied and run meanwhile."""
    counts: Counter[str] = Counter()
    deepcopy, forward = copy.deepcopy, kind.forward

    def copying(value: Any, *given: Any) -> Any:
        counts["copies"] += isinstance(value, kind)
        return deepcopy(value, *given)

    @functools.wraps(forward)
    def running(*given: Any) -> Any:
        followed = isinstance(_get_current_function_mode(), SeenAs)  # without values
        counts["followed" if followed else "runs"] += 1
        return forward(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copy, "deepcopy", copying)
        patch.setattr(kind, "forward", running)
        yield counts


def few(counts: Counter[str], copies: int = 3, runs: int = 10) -> bool:
    return 0 < counts["copies"] <= copies and 0 < counts["runs"] <= runs and counts["followed"] <= 4


def test_squeeze_copies_and_runs_the_sample_a_few_times() -> None:
    model = load_model(NETWORK).eval()
    model.load_state_dict(torch.load(SESR)["params_ema"])
    with counted(type(model)) as counts:
        _, report = convsqueeze.squeeze(model, torch.rand(1, 1, 64, 64))
    assert len(report.scan.merged) == 7
    assert few(counts), counts


def test_the_commands_copy_and_run_the_sample_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(NETWORK)
    monkeypatch.setattr(factory, "load_model", lambda place: model)
    squeezed = tmp_path / "squeezed.pt"
    with counted(type(model)) as counts:
        assert run_here("merge", SESR, "--model", NETWORK, "-o", squeezed).status == 0
        assert few(counts), counts
        counts.clear()
        command = ("export-onnx", squeezed, "--model", NETWORK, "-o", tmp_path / "squeezed.onnx")
        assert run_here(*command, "--checkpoint", SESR).status == 0
        # a copy shares its memory with the model; one run is the first again, once all are done
        assert few(counts, copies=4, runs=11), counts
