"""What `squeeze` takes and gives back, and how it refuses."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import convsqueeze
from tests.scan.code import image, made
from tests.scan.small_models import Two, assert_equal_outputs, chain

X = image(2, 3, 5, 6)


# What a model gives


@dataclass
class Result:
    logits: Tensor
    hidden: Tensor | None = None


class Named(NamedTuple):
    logits: Tensor
    hidden: Tensor | None


OUTPUTS: Mapping[str, Callable[[Tensor, Tensor], Any]] = {
    "tensor": lambda x, y: y,
    "tuple": lambda x, y: (y, x),
    "dict": lambda x, y: OrderedDict(logits=y, none=None, number=3),
    "nested": lambda x, y: {"all": [(y, None), {1: x}], "name": "result"},
    "named tuple": lambda x, y: Named(y, None),
    "dataclass": lambda x, y: Result(y),
    "complex": lambda x, y: torch.fft.rfft(y),
    "bool": lambda x, y: (y > 0, y),
}


@pytest.mark.stress
@pytest.mark.parametrize("output", OUTPUTS)
def test_outputs_keep_their_form(output: str) -> None:
    class Giving(Two):
        def forward(self, x: Tensor) -> Any:
            return OUTPUTS[output](x, self.merged(x))

    model = made(Giving)
    result, report = convsqueeze.squeeze(model, X)
    assert report.weights_after == 12
    assert_equal_outputs(model, result, X)


def test_an_output_that_cannot_be_followed_is_refused_in_a_sentence() -> None:
    class Giving(Two):
        def forward(self, x: Tensor) -> Any:
            return {self.merged(x)}

    with pytest.raises(convsqueeze.ConvsqueezeError, match="cannot be followed to a graph"):
        convsqueeze.squeeze(made(Giving), X)


# What it takes


class Masked(Two):
    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0) -> Tensor:
        y = self.merged(x)
        return (y if mask is None else y * mask) ** scale


class Batch(Two):
    """One argument that holds tensors of several kinds."""

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        return self.merged(batch["images"][0]) + batch["table"][batch["index"]].sum()


class Images(Two):
    def forward(self, *images: Tensor) -> Tensor:
        return torch.stack([self.merged(torch.cat(images))])


MASK = (X > 0).float()
BATCH = {"images": [X, None], "table": image(4), "index": torch.tensor([3, 1])}


@pytest.mark.stress
@pytest.mark.parametrize(
    ("kind", "examples", "inputs"),
    [
        (Masked, X, (X,)),
        (Masked, [X, MASK], (X, MASK)),
        (Masked, (X, None, 3), (X, None, 3)),
        (Masked, {"mask": MASK, "x": X}, (X, MASK)),
        (Masked, {"scale": 3.0, "x": X}, (X, None, 3.0)),
        (Batch, (BATCH,), (BATCH,)),
        (Batch, {"batch": BATCH}, (BATCH,)),
        (Images, X, (X,)),
        (Images, (X, X), (X, X)),
        (Masked, None, (X,)),
        (Masked, X.to("meta"), (X,)),
        (Masked, nn.Parameter(X.half()), (X,)),
    ],
)
def test_examples_are_given_in_any_form(kind: type[Two], examples: Any, inputs: Any) -> None:
    model = made(kind)
    result, report = convsqueeze.squeeze(model, examples)
    assert report.weights_after == 12
    assert report.scan.notes == ()
    assert report.whole is not None
    assert report.whole.dtype == "float64"
    assert_equal_outputs(model, result, *inputs)
    if isinstance(examples, dict):
        assert_equal_outputs(model, result, **examples)


def test_examples_inside_a_list_are_compared_as_they_are_given() -> None:
    """Other numbers, such as random ones, would be multiplied by zero."""

    class Picky(Two):
        def forward(self, batch: list[Tensor]) -> Tensor:
            return self.merged(batch[0]) * (batch[1] == 7).all()

    result, report = convsqueeze.squeeze(made(Picky), ([X, torch.tensor([7, 7])],))
    assert report.weights_after == 12
    assert report.whole is not None
    assert report.whole.inputs == "2,3,5,6 2:int64"
    assert report.whole.notes == ()
    assert result([X, torch.tensor([7, 7])]).abs().max() > 0


def test_a_model_that_takes_no_tensor_has_nothing_to_merge() -> None:
    class Constant(Two):
        def forward(self, scale: float = 1.0) -> Tensor:
            return self.merged(torch.ones(1, 3, 4, 4)) * scale

    model = made(Constant)
    result, report = convsqueeze.squeeze(model, ())
    assert report.merged is None
    assert result(2.0).equal(model(2.0))


class ByName(Two):
    def forward(self, *, x: Tensor) -> Tensor:
        return self.merged(x)


@pytest.mark.parametrize(
    ("kind", "examples", "words"),
    [
        (Masked, 7, "example_inputs: int was given, a tensor, a tuple"),
        (Masked, "1,3,8,8", "example_inputs: str was given"),
        (Masked, X.numpy(), "example_inputs: ndarray was given"),
        (Masked, (x for x in [X]), "example_inputs: generator was given"),
        (Masked, (), "does not take these example_inputs .missing a required argument: 'x'"),
        (Masked, (1, 3, 8, 8), "does not take these example_inputs .too many positional"),
        (Masked, {"y": X}, "missing a required argument: 'x'"),
        (Masked, {"x": X, "y": X}, "unexpected keyword argument 'y'"),
        (Masked, {1: X}, "does not take these example_inputs"),
        (Batch, BATCH, r"stands in a tuple, \(\{...\},\)"),
        (ByName, {"x": X}, "takes x by name alone"),
        (ByName, X, "does not take these example_inputs"),
        (Masked, X[0, 0], "does not run on these inputs .RuntimeError at .*: Expected 3D"),
        (Masked, image(2, 4, 5, 6), "does not run on these inputs .* got 4 channels"),
        (Masked, X.long(), "does not run on these inputs .RuntimeError at .*: Input type"),
        (Masked, (X, image(2, 3, 7, 6)), "does not run on these inputs .* must match"),
        (Masked, (X, "mask"), "does not run on these inputs .TypeError"),
        (Masked, X.to_sparse(), "does not run on these inputs"),
        (Masked, X * torch.nan, "gives no finite number on these inputs"),
        (Masked, X[:0], "gives empty tensors alone on these inputs, .* verifies layer by layer"),
        (ByName, None, "takes none of the inputs guessed from a .Conv2d."),
        (nn.ReLU, None, "no layer of it tells what it takes"),
    ],
)
def test_other_examples_are_refused_in_a_sentence(
    kind: type[nn.Module], examples: Any, words: str
) -> None:
    with pytest.raises(convsqueeze.ConvsqueezeError, match=words) as refusal:
        convsqueeze.squeeze(made(kind), examples)
    assert str(refusal.value).endswith(".")
    assert "example_inputs" in str(refusal.value) or "by name alone" in str(refusal.value)


def compiled() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still met
        return torch.jit.trace(made(chain), X)


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        (chain, {}, "function: is no torch.nn.Module"),
        (nn.Identity, {}, "Identity: is no torch.nn.Module"),
        (chain().state_dict(), {}, "OrderedDict: is no torch.nn.Module"),
        (compiled(), {}, "is compiled, so its code cannot be followed"),
        (made(chain), {"border": "exactly"}, "border: 'exactly' was given, one of exact, corr"),
        (made(chain), {"growth": True}, "growth: True was given, one of refuse, skip, allow"),
        (made(chain), {"minimize": "size"}, "minimize: 'size' was given, one of weights, macs"),
    ],
)
def test_what_is_no_model_and_no_policy_is_refused(
    model: Any, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(convsqueeze.ConvsqueezeError, match=words):
        convsqueeze.squeeze(model, X, **settings)


def test_latency_is_measured_in_torch_unless_a_function_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def measuring(runtime: str) -> None:
        asked.append(runtime)

    monkeypatch.setattr("convsqueeze.latency.measuring", measuring)
    with pytest.raises(ValueError, match="none was given"):
        convsqueeze.squeeze(made(chain), X, minimize="latency")
    assert asked == ["torch"]


class ByName(nn.Module):
    """Gives its layers what they take by name, as torch's own layers call it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 1)
        self.b = nn.Conv2d(16, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(input=self.a(input=x))
        return y


def test_layers_may_be_called_by_the_name_of_their_input() -> None:
    model, x = ByName().eval(), torch.randn(1, 3, 9, 9)
    squeezed, report = convsqueeze.squeeze(model, x)
    assert report.weights_after < report.weights_before
    assert torch.allclose(squeezed(x), model(x), atol=1e-5)
