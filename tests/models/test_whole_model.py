"""Whole models before and after: equal ones pass, and every planted fault is seen and placed."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convsqueeze
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.errors import ModelInputError, ModelMismatchError, VerificationError
from convsqueeze.models import (
    WholeReport,
    exact_parameters,
    inputs_of,
    parsed_inputs,
    verify_whole,
)
from convsqueeze.models.running import Running
from convsqueeze.squeezing import exact_values
from convsqueeze.surgery import plan_of
from tests.whole_models import Block, Network, Scene, layer, network, scene

INPUTS = parsed_inputs(["2,3,17,18"])
LARGE = parsed_inputs(["1,3,128,128"])
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtyped(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return scene(tmp_path, request.param)


@pytest.fixture
def single(tmp_path: Path) -> Scene:
    return scene(tmp_path)


def whole(one: Scene, squeezed: nn.Module | None = None, **options: Any) -> WholeReport:
    exact = values_before_rounding(one)
    return verify_whole(one.model, squeezed or one.squeezed(), INPUTS, exact=exact, **options)


def test_the_same_but_for_rounding(dtyped: Scene) -> None:
    report = whole(dtyped)
    assert report.ok, report.failures
    assert report.before_rounding is not None
    assert report.before_rounding.bound < 1e-10 * report.largest
    assert report.before_rounding.error > 0
    report = verify_whole(dtyped.model, dtyped.squeezed(), INPUTS)
    assert report.ok, report.failures


def test_models_are_left_as_they_are(single: Scene) -> None:
    squeezed = single.squeezed()
    pair = [single.model, squeezed]
    before = [copy.deepcopy(model.state_dict()) for model in pair]
    verify_whole(*pair, INPUTS, exact=values_before_rounding(single))
    for model, state in zip(pair, before, strict=True):
        assert model.training
        assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
        assert not any(m._forward_hooks for m in model.modules())
        for name, value in model.state_dict().items():
            assert value.equal(state[name])


class BlockWithActivation(Block):
    """What a manifest overlooks."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.project(F.relu(self.expand(x))))
        return x + y


class PooledAlone(nn.Module):
    """Gives only what is averaged over the whole image."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)["logits"]
        return logits


def overlooked_activation(one: Scene) -> tuple[nn.Module, nn.Module]:
    model = copy.deepcopy(one.model)
    model.block.__class__ = BlockWithActivation
    return model, one.squeezed()


def lost_activation(one: Scene) -> tuple[nn.Module, nn.Module]:
    squeezed = one.squeezed()
    squeezed.act2 = nn.Identity()
    return one.model, squeezed


def one_pixel(one: Scene) -> tuple[nn.Module, nn.Module]:
    """One channel of one corner, by a thousandth of the largest output."""
    squeezed = one.squeezed()

    def change(module: nn.Module, given: Any, y: Tensor) -> Tensor:
        y[:, 1, 0, -1] += 1e-3 * y.abs().max()
        return y

    layer(squeezed, "block.expand").register_forward_hook(change)
    return one.model, squeezed


def no_corrections(one: Scene) -> tuple[nn.Module, nn.Module]:
    """Padding is not undone: every border row is wrong."""
    squeezed = one.squeezed()
    layer(squeezed, "block.expand").border = None
    return one.model, squeezed


def missing_bias(one: Scene) -> tuple[nn.Module, nn.Module]:
    squeezed = one.squeezed()
    layer(squeezed, "block.expand").bias.data[2] = 0.0
    return one.model, squeezed


def wrong_eps(one: Scene) -> tuple[nn.Module, nn.Module]:
    model = copy.deepcopy(one.model)
    model.block.norm.eps = 1e-5
    return model, one.squeezed()


def other_weights_beside(one: Scene) -> tuple[nn.Module, nn.Module]:
    squeezed = one.squeezed()
    squeezed.head.bias.data[0] += 0.5
    return one.model, squeezed


FAULTS = [
    overlooked_activation,
    lost_activation,
    one_pixel,
    no_corrections,
    missing_bias,
    wrong_eps,
    other_weights_beside,
]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("pooled", [False, True])
def test_a_fault_is_seen_in_any_dtype(
    dtyped: Scene, fault: Callable[[Scene], tuple[nn.Module, nn.Module]], pooled: bool
) -> None:
    """With the weights before rounding nothing hides in a coarse dtype, nor behind a mean."""
    before, after = fault(dtyped)
    exact = values_before_rounding(dtyped)
    if fault is missing_bias:  # the stored number is seen at once; here the model has to show it
        assert not verify_whole(before, after, INPUTS, exact=exact).ok
        exact["block.expand.bias"][2] = 0.0
    if fault is wrong_eps:
        with pytest.raises(ModelMismatchError, match="eps"):
            convsqueeze.apply(before, dtyped.squeezed_file)
    report = compare(before, after, exact, pooled)
    assert not report.ok
    with pytest.raises(VerificationError, match="the whole model differs by"):
        report.raise_if_failed()


def compare(
    before: nn.Module, after: nn.Module, exact: dict[str, Tensor], pooled: bool
) -> WholeReport:
    inputs = INPUTS
    if pooled:
        exact = {f"inner.{name}": value for name, value in exact.items()}
        before, after, inputs = PooledAlone(before), PooledAlone(after), LARGE
    names = dict(after.named_parameters())
    kept = {name: value for name, value in exact.items() if name in names}
    return verify_whole(before, after, inputs, exact=kept)


def values_before_rounding(one: Scene) -> dict[str, Tensor]:
    own = from_state_dict(one.model.state_dict())
    plan = plan_of(own, one.recipe)
    return exact_parameters(plan, own.prefix, lambda merge: exact_values(merge, own.load))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen_without_the_weights_before_rounding(
    single: Scene, fault: Callable[[Scene], tuple[nn.Module, nn.Module]]
) -> None:
    before, after = fault(single)
    assert not verify_whole(before, after, INPUTS).ok


@pytest.mark.parametrize(
    ("fault", "name", "suspects"),
    [
        (overlooked_activation, "block", ("block.expand",)),
        (one_pixel, "block", ("block.expand",)),
        (no_corrections, "block", ("block.expand",)),
        (missing_bias, "block", ("block.expand",)),
        (other_weights_beside, "head", ()),
    ],
)
def test_the_first_module_that_differs_is_named(
    single: Scene,
    fault: Callable[[Scene], tuple[nn.Module, nn.Module]],
    name: str,
    suspects: tuple[str, ...],
) -> None:
    report = verify_whole(*fault(single), INPUTS)
    assert report.first is not None
    assert (report.first.name, report.first.suspects) == (name, suspects)
    assert report.first.error > report.first.bound
    assert f"Layer by layer, {name} (" in report.failures[0]
    if name == "block":
        assert (report.first.agreeing, report.first.after) == (2, "act")


def test_a_fault_within_a_stored_number_is_told_with_its_place(single: Scene) -> None:
    squeezed = single.squeezed()
    weight = layer(squeezed, "stem.0").weight.data
    weight[1, 2, 0, 1] = weight[1, 2, 0, 1].nextafter(torch.tensor(9.0))
    weight[1, 2, 0, 1] = weight[1, 2, 0, 1].nextafter(torch.tensor(9.0))
    report = whole(single, squeezed)
    assert report.problem is not None
    assert "stem.0.weight holds" in report.problem
    assert "at [1, 2, 0, 1]" in report.problem


class Twice(nn.Module):
    """Calls one module twice, and fails on the second call where a flag says so."""

    def __init__(self, second: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.conv(x) * self.second)
        return y


def test_calls_of_a_module_are_counted() -> None:
    torch.manual_seed(0)
    before, after = Twice(1.0), Twice(2.0)
    after.load_state_dict(before.state_dict())
    first = verify_whole(before, after, INPUTS).first
    assert first is not None
    assert (first.name, first.call, first.after) == ("conv", 1, "conv")
    assert "call 2" in first.describe()


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.conv(x), 0.5, training=True)


class Counting(Random):
    def forward(self, x: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        y: Tensor = self.conv(x) * self.calls
        return y


class Nothing(Random):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) * torch.nan
        return y


class Picky(Random):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("shape '[1, 2]' is invalid\nmore")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Random, ["another output", "Switch off what is random"]),
        (Counting, ["another output", "keeps from one call to the next"]),
        (Nothing, ["gives no finite number"]),
        (Picky, ["does not run on these inputs", "shape '[1, 2]' is invalid)", "Give --input"]),
    ],
)
def test_what_cannot_be_compared_is_refused(kind: type[nn.Module], words: list[str]) -> None:
    model = kind()
    with pytest.raises(ModelInputError) as refusal:
        verify_whole(model, copy.deepcopy(model), INPUTS)
    for word in words:
        assert word in str(refusal.value)


class Turning(nn.Module):
    """Does something else at some calls, whichever copy of it is called."""

    def __init__(self, turns: Callable[[int], bool]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.turns, self.calls = turns, [0]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Turning":
        other = type(self)(self.turns)
        other.load_state_dict(self.state_dict())
        other.calls = self.calls
        return other

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        y: Tensor = self.conv(x)
        return y.relu() if self.turns(self.calls[0]) else y


TURNS: dict[str, Callable[[int], bool]] = {
    **{f"every {n}th": lambda count, n=n: count % n == 0 for n in range(2, 6)},  # type: ignore[misc]
    "two and two": lambda count: count // 2 % 2 == 1,
    "three and three": lambda count: count // 3 % 2 == 1,
    "unevenly": lambda count: 7 * count**2 % 31 > 15,
}


@pytest.mark.parametrize("before", range(5))
@pytest.mark.parametrize("name", TURNS)
def test_code_that_does_something_else_at_some_calls_is_not_called_equal(
    name: str, before: int
) -> None:
    torch.manual_seed(0)
    model = Turning(TURNS[name])
    model.calls[0] = before
    other = copy.deepcopy(model)
    told: tuple[str, ...]
    try:
        told = verify_whole(model, other, INPUTS).failures
    except ModelInputError as refusal:
        told = (str(refusal),)
    assert len(told) == 1


class Choosing(nn.Module):
    """Chooses by the last digits: of equal weights, one that was moved is the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        nn.init.constant_(self.conv.weight, 0.5)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x.sum() + y.argmax(1).double() * y.detach().abs().max()


def test_code_that_makes_much_of_rounding_is_told() -> None:
    model = Choosing()
    report = verify_whole(model, copy.deepcopy(model), INPUTS)
    assert report.ok
    (note,) = report.notes
    assert re.match(
        r"rounding may move an output by \d\.\d of its largest .* nothing is shown", note
    )
    assert report.describe().startswith("no more than rounding between output before and after")
    (agreeing,) = (verify_whole(network(), network(), INPUTS),)
    assert not agreeing.notes
    assert agreeing.describe().startswith("same output")


def _masked(value: float) -> Callable[[Tensor], Tensor]:
    return lambda y: y.masked_fill(torch.arange(y.shape[-1]) % 3 == 0, value)


def _beside_ids(y: Tensor) -> Tensor:
    return torch.cat([y, torch.full_like(y[:, :1], 1.7e18)], 1)


TAILS: dict[str, Callable[[Tensor], Any]] = {
    "float16": lambda y: y.half().float(),
    "bfloat16": lambda y: y.bfloat16(),
    "bfloat16, softmax": lambda y: y.bfloat16().softmax(1),
    "bfloat16, norm": lambda y: F.group_norm(y.bfloat16(), 2).float(),
    "bfloat16, mixed": lambda y: F.conv2d(y.bfloat16(), torch.ones(2, 6, 3, 3).bfloat16() / 27),
    "least float64": _masked(torch.finfo(torch.float64).min),
    "least float32": _masked(torch.finfo(torch.float32).min),
    "-1e15": _masked(-1e15),
    "-1e4": _masked(-1e4),
    "ids": _beside_ids,
    "inverse": lambda y: 1 / y,
    "classes": lambda y: y.argmax(1),
    "signs": lambda y: y > 0,
    "spectrum": torch.fft.fft2,
}
ALIKE: dict[str, Callable[[Tensor], Any]] = {
    **TAILS,
    "zeros": lambda y: y * 0.0,
    "tiny": lambda y: y * 1e-60,
    "tiny and zero": lambda y: (y * 1e-60).relu(),
    "nearly nothing": lambda y: y - y.flip(-1).flip(-1) + (y * 3 - y - y - y),
    "float8": lambda y: y.to(torch.float8_e4m3fn).float(),
}
"""Behind which both are alike."""


class Tailed(nn.Module):
    """Two layers, then something; on wide images with an activation between, if asked."""

    def __init__(self, tail: Callable[[Tensor], Any], is_turning: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 6, 1)
        self.tail, self.is_turning = tail, is_turning

    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        if self.is_turning and x.shape[-1] > 40:
            y = F.relu(y)
        return self.tail(self.b(y))


def tailed(name: str) -> list[Tailed]:
    torch.manual_seed(0)
    right, wrong = (Tailed(ALIKE[name], is_turning) for is_turning in (False, True))
    wrong.load_state_dict(right.state_dict())
    return [right, wrong]


@pytest.mark.parametrize("name", ALIKE)
def test_nothing_that_stands_behind_is_taken_for_a_difference(name: str) -> None:
    _, report = convsqueeze.squeeze(tailed(name)[0], torch.randn(1, 3, 16, 16))
    assert report.merged is not None


@pytest.mark.parametrize("name", TAILS)
def test_nothing_that_stands_behind_hides_a_difference(name: str) -> None:
    with pytest.raises(VerificationError, match=r"differs .* on an input of 1,3,16,\d\d"):
        convsqueeze.squeeze(tailed(name)[1], torch.randn(1, 3, 16, 16))


class Ties(nn.Module):
    """Two channels that are one in mathematics, added up otherwise, and the larger of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 24, 1, bias=False), nn.Conv2d(24, 2, 1, bias=False)
        with torch.no_grad():
            self.a.weight[12:] = self.a.weight[:12]
            self.b.weight[0, 12:] = self.b.weight[0, :12]
            self.b.weight[1, :12], self.b.weight[1, 12:] = 2 * self.b.weight[0, :12], 0.0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.b(self.a(x))
        return y, y.argmax(1)


def test_what_the_last_digits_choose_is_no_difference() -> None:
    torch.manual_seed(0)
    _, report = convsqueeze.squeeze(Ties(), torch.randn(1, 3, 16, 16))
    assert report.merged is not None
    assert any("rounding may move an output" in note for note in report.notes), report.notes


class Kept(Turning):
    def forward(self, x: Tensor) -> Tensor:
        self.size = x.shape[-1]
        y: Tensor = super().forward(x)
        return y


def test_what_the_code_counts_is_told() -> None:
    model = Kept(lambda count: count > 1000)
    (note,) = verify_whole(model, copy.deepcopy(model), INPUTS).notes
    assert note == (
        "the model's code changes self.calls from one call to the next: what was compared holds "
        "for the calls that were made"
    )


class Saturating(Turning):
    """Does something else once it has seen another size."""

    def forward(self, x: Tensor) -> Tensor:
        self.sizes = {*getattr(self, "sizes", ()), x.shape[-1]}
        y: Tensor = self.conv(x)
        return y.relu() if len(self.sizes) > 1 and x.shape[-1] == 18 else y


def test_what_changes_after_another_size_is_seen() -> None:
    model = Saturating(lambda count: False)
    with pytest.raises(ModelInputError, match="on the same input again"):
        verify_whole(model, copy.deepcopy(model), INPUTS)


def test_dropout_is_off_as_in_deployment(single: Scene) -> None:
    assert single.model.training
    assert whole(single).ok


class InSingle(nn.Module):
    """Computes in float32 whatever it is given."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (self.conv(x).float() * self.scale).softmax(1)
        return y


class OnlySingle(InSingle):
    """Does not run in float64: it makes a float32 tensor of its own."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(torch.zeros(1, 3, *x.shape[2:]) + x.float())
        return y * self.scale


@pytest.mark.parametrize("kind", [InSingle, OnlySingle])
def test_a_model_that_casts_is_held_to_that(kind: type[InSingle]) -> None:
    torch.manual_seed(0)
    before = kind()
    after = copy.deepcopy(before)
    after.conv.weight.data = after.conv.weight.data.nextafter(torch.tensor(9.0))
    report = verify_whole(before, after, INPUTS)
    assert report.ok, report.failures
    assert report.dtype == "float32"
    assert any("computes in float32" in note for note in report.notes)
    after.scale = 1.001
    assert not verify_whole(before, after, INPUTS).ok


@dataclass
class Result:
    logits: Tensor
    hidden: tuple[Tensor, ...]
    name: str = "result"


class Structured(nn.Module):
    def __init__(self, shift: float = 0.0, index: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.shift, self.index = shift, index

    def forward(self, x: Tensor) -> Result:
        y = self.conv(x)
        return Result(y, (y * 2, y.argmax(1) + self.index, torch.fft.rfft(y) + self.shift))


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"shift": 1e-6j}, "output.hidden[2]"),
        ({"index": 1}, "output.hidden[1]"),
    ],
)
def test_every_tensor_of_an_output_is_compared(changes: dict[str, Any], place: str) -> None:
    torch.manual_seed(0)
    before, after = Structured(), Structured(**changes)
    after.load_state_dict(before.state_dict())
    assert verify_whole(before, copy.deepcopy(before), INPUTS).ok
    report = verify_whole(before, after, INPUTS)
    assert report.problem is not None
    assert place in report.problem


def test_other_outputs_are_a_difference() -> None:
    torch.manual_seed(0)
    before = nn.Conv2d(3, 4, 3)
    smaller, none = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(2, 2)
    smaller.load_state_dict(before.state_dict())
    problem = verify_whole(before, smaller, INPUTS).problem
    assert problem == "gives output of shape (2, 4, 17, 18), (2, 4, 15, 16) was needed"
    assert "does not run" in str(verify_whole(before, none, INPUTS).problem)


def test_a_layer_that_no_output_depends_on_is_told(single: Scene) -> None:
    model = single.model
    model.head.weight.data.zero_()
    squeezed = single.squeezed()
    squeezed.head.weight.data.zero_()
    pooled = PooledAlone(model), PooledAlone(squeezed)
    report = verify_whole(*pooled, INPUTS)
    assert any("inner.block.expand" in note for note in report.notes), report.notes
    assert not whole(single).notes


class WithoutGradients(PooledAlone):
    """Its output depends on all layers, though no gradient says so."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


def test_a_layer_without_a_gradient_may_still_move_an_output(single: Scene) -> None:
    squeezed = single.squeezed()
    names = ["inner.stem.0.weight", "inner.block.expand.weight"]
    for kind, known in ((PooledAlone, frozenset(names)), (WithoutGradients, frozenset())):
        running = Running(kind(copy.deepcopy(squeezed)), torch.float64)
        arguments = INPUTS.first(torch.float64)
        given, moving = running.run_with_gradients(arguments, names)
        assert moving == known
        assert given["output"].equal(running.run(arguments)["output"])
        assert not any(p.requires_grad for p in running.module.parameters())
        assert not verify_whole(kind(single.model), kind(squeezed), INPUTS).notes


def test_hooks_on_gradients_are_not_called(single: Scene) -> None:
    called: list[str] = []
    squeezed = single.squeezed()
    squeezed.head.register_full_backward_hook(lambda *given: called.append("head"))
    assert not verify_whole(single.model, squeezed, INPUTS).notes
    assert called == []


class AsksForGradients(nn.Module):
    """A pair with nothing in between only where no gradients are recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(y.relu() if torch.is_grad_enabled() else y)


def test_code_that_computes_something_else_with_gradients_is_no_success() -> None:
    with pytest.raises(
        VerificationError, match="gives another output where gradients are recorded"
    ):
        convsqueeze.squeeze(AsksForGradients().eval(), torch.randn(1, 3, 8, 8))


def test_what_interior_gets_wrong_is_told_and_accepted(tmp_path: Path) -> None:
    one = scene(tmp_path, border="interior")
    report = whole(one)
    assert report.ok
    assert any("block.expand may at the border" in note for note in report.notes)
    assert "of the largest output" in report.notes[-1]


def test_examples_are_run_as_they_are(single: Scene) -> None:
    inputs, exact = inputs_of(torch.rand(1, 3, 9, 9)), values_before_rounding(single)
    report = verify_whole(single.model, single.squeezed(), inputs, exact=exact)
    assert (report.ok, report.inputs) == (True, "1,3,9,9")


def test_the_seed_decides(single: Scene) -> None:
    one, again, other = (whole(single, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one.worst != other.worst


def test_activations_are_kept_only_where_models_differ(
    single: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[nn.Module] = []
    register = nn.Module.register_forward_hook
    monkeypatch.setattr(
        nn.Module,
        "register_forward_hook",
        lambda self, *given, **named: (seen.append(self), register(self, *given, **named))[1],
    )
    assert whole(single).ok
    assert seen == []
    assert not verify_whole(*lost_activation(single), INPUTS).ok
    assert seen


def test_a_network_of_another_seed_differs() -> None:
    assert not verify_whole(network(seed=0), network(seed=1), INPUTS).ok
    assert verify_whole(network(seed=0), network(seed=0), INPUTS).worst.error == 0.0
    assert isinstance(network(), Network)
