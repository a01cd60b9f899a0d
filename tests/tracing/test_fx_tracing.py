"""Models that torch.export refuses and torch.fx follows: what is merged, and what a merge would
break is left alone.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convsqueeze
from convsqueeze.checkpoint import from_state_dict
from convsqueeze.errors import TracingError
from convsqueeze.scan import Scan, scan
from convsqueeze.tracing.symbolic import symbolically_traced
from tests.scan.code import Code, image, largest_share, made, merged_layers, reasons, scanned

X = image(2, 3, 8, 8)
Parts = dict[str, nn.Module]


def two_layers(**others: nn.Module) -> Parts:
    return {"one": nn.Conv2d(3, 8, 1), "two": nn.Conv2d(8, 3, 1), **others}


def by_fx(model: nn.Module, *inputs: Any) -> Scan:
    graph = symbolically_traced(model, inputs)
    return scan(graph, from_state_dict(model.state_dict()).tensors)


def kinds(found: Scan) -> set[str]:
    return {kind for _, kind, _ in reasons(found)}


@dataclass
class Answer:
    """torch.export has no word for it."""

    image: Tensor


class Hidden(nn.Module):
    """What enters leaves: no operation tells of the call."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def _in_an_answer(self: Any, x: Tensor) -> Answer:
    return Answer(self.two(self.one(x)))


def _times_a_number(self: Any, x: Tensor) -> Answer:
    return Answer(self.two(self.one(x)) * x.mean().item())


def _beside_compiled_code(self: Any, x: Tensor) -> Tensor:
    y: Tensor = self.two(self.one(self.compiled(x)))
    return y


def _of_some_inputs(self: Any, *several: Tensor) -> Answer:
    return Answer(self.two(self.one(several[0])))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize(
    "forward", [_in_an_answer, _times_a_number, _beside_compiled_code, _of_some_inputs]
)
def test_what_torch_export_refuses_is_merged(forward: Callable[..., Any]) -> None:
    compiled = torch.jit.script(nn.Conv2d(3, 3, 1))
    model = made(lambda: Code(forward, **two_layers(compiled=compiled)))
    assert merged_layers(by_fx(model, X)) == [("one", "two")]
    found = scanned(model, X)
    assert merged_layers(found) == [("one", "two")]
    assert "torch.export cannot follow" in found.notes[0]
    squeezed, report = convsqueeze.squeeze(model, X)
    assert report.weights_after < report.weights_before
    assert largest_share(model, squeezed, [X]) < 1e-5


@pytest.mark.parametrize("between", [nn.Identity(), nn.Dropout(), Hidden()])
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_on_a_module_that_passes_its_input_on_is_seen(
    between: nn.Module, register: str
) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y: Tensor = self.two(self.between(self.one(x)))
        return y

    model = made(lambda: Code(forward, **two_layers(between=between)))
    assert merged_layers(by_fx(model, X)) == [("one", "two")]
    handle = getattr(model.between, register)(lambda *told: None)
    found = by_fx(model, X)
    assert merged_layers(found) == []
    assert (("one", "two"), "hook", "between calls a hook that sees it") in reasons(found)
    handle.remove()


def test_a_hook_on_a_container_is_seen() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y: Tensor = self.two(self.block(x))
        return y

    block = nn.Sequential(nn.Conv2d(3, 8, 1))
    model = made(lambda: Code(forward, block=block, two=nn.Conv2d(8, 3, 1)))
    (first, *_) = symbolically_traced(model, [X]).ops.values()
    assert [call.name for call in first.calls] == ["block", "block.0"]
    assert merged_layers(by_fx(model, X)) == [("block.0", "two")]
    block.register_forward_hook(lambda module, args, result: None)
    found = by_fx(model, X)
    assert merged_layers(found) == []
    assert kinds(found) == {"hook"}


def _adds_weights(self: Any, x: Tensor) -> Any:
    return self.two(self.one(x)) + self.one.weight.sum()


def _convolves_again(self: Any, x: Tensor) -> Any:
    return self.two(self.one(x)) + F.conv2d(x, self.one.weight).mean()


def _gives_weights(self: Any, x: Tensor) -> Any:
    return self.two(self.one(x)), self.one.weight


def _reads_for_nothing(self: Any, x: Tensor) -> Any:
    self.one.weight.sum()
    return self.two(self.one(x))


def _reads_past_the_proxies(self: Any, x: Tensor) -> Any:
    return self.two(self.one(x)) + float(self.one._parameters["weight"].detach().sum())


def _adds_a_buffer(self: Any, x: Tensor) -> Any:
    return self.two(self.norm(self.one(x))) + self.norm.running_mean.sum()


@pytest.mark.parametrize(
    "forward",
    [_adds_weights, _convolves_again, _gives_weights, _reads_for_nothing, _reads_past_the_proxies],
)
def test_a_stored_tensor_that_code_reads_too_stays(forward: Callable[..., Any]) -> None:
    found = by_fx(made(lambda: Code(forward, **two_layers())), X)
    assert merged_layers(found) == []
    assert kinds(found) >= {"read elsewhere"}
    assert any("one.weight" in text for _, _, text in reasons(found))


def test_a_buffer_that_code_reads_too_stays() -> None:
    model = made(lambda: Code(_adds_a_buffer, **two_layers(norm=nn.BatchNorm2d(8))))
    found = by_fx(model, X)
    assert merged_layers(found) == []
    assert any("norm.running_mean" in text for _, _, text in reasons(found))


def test_a_value_that_is_read_for_nothing_stays() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.one(x)
        self.norm(y)
        return self.two(y)

    found = by_fx(made(lambda: Code(forward, **two_layers(norm=nn.BatchNorm2d(8)))), X)
    assert merged_layers(found) == []
    assert kinds(found) == {"read elsewhere"}


def _method(self: Any, x: Tensor) -> Any:
    y = self.one(x)
    y.add_(1)
    return self.two(y)


def _statement(self: Any, x: Tensor) -> Any:
    y = z = self.one(x)
    z += 1
    return self.two(y)


def _function(self: Any, x: Tensor) -> Any:
    y = self.one(x)
    F.relu(y, True)
    return self.two(y)


def _module(self: Any, x: Tensor) -> Any:
    y = self.one(x)
    self.act(y)
    return self.two(y)


def _view(self: Any, x: Tensor) -> Any:
    y = self.one(x)
    y[:, :4].relu_()
    return self.two(y)


def _output(self: Any, x: Tensor) -> Any:
    y = self.one(x)
    torch.add(y, 1, out=y)
    return self.two(y)


def _afterwards(self: Any, x: Tensor) -> Any:
    y = self.one(x)
    z = self.two(y)
    y += 1
    return z


def _before_the_second(self: Any, x: Tensor) -> Any:
    y = self.pad(x)
    x.mul_(2)
    return self.wide(y)


def _before_the_second_branch(self: Any, x: Tensor) -> Any:
    y = self.wide(x)
    x.mul_(2)
    return y + self.other(x)


CHANGES = [
    *(_method, _statement, _function, _module, _view, _output, _afterwards),
    *(_before_the_second, _before_the_second_branch),
]


@pytest.mark.parametrize("forward", CHANGES)
def test_no_merge_goes_across_a_value_that_is_changed_in_place(
    forward: Callable[..., Any],
) -> None:
    others = {
        "act": nn.ReLU(inplace=True),
        "pad": nn.ZeroPad2d(1),
        "wide": nn.Conv2d(3, 8, 1),
        "other": nn.Conv2d(3, 8, 1),
    }
    model = made(lambda: Code(forward, **two_layers(**others)))
    assert merged_layers(by_fx(model, X.clone())) == []


def test_what_is_changed_in_place_and_read_by_its_new_name_is_merged_around() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.act(self.one_norm(self.one(x)))
        z = self.two_norm(self.two(y))
        z += x
        return self.act(z)

    norms = {"one_norm": nn.BatchNorm2d(8), "two_norm": nn.BatchNorm2d(3)}
    model = made(lambda: Code(forward, **two_layers(act=nn.ReLU(inplace=True), **norms)))
    assert merged_layers(by_fx(model, X)) == [("one", "one_norm"), ("two", "two_norm")]


@pytest.mark.parametrize("training", [True, False])
def test_the_path_is_the_one_of_the_models_mode(training: bool) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.one(x)
        return self.two(y.tanh() if self.training else y)

    model = made(lambda: Code(forward, **two_layers())).train(training)
    assert merged_layers(by_fx(model, X)) == ([] if training else [("one", "two")])


def test_arguments_that_are_not_given_have_their_defaults() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor, mask: Tensor | None = None, *, twice: bool = False) -> Any:
            y = self.one(x)
            y = y.tanh() if mask is None or twice else y * mask
            return self.two(y)

    found = by_fx(made(Optional), X)
    assert merged_layers(found) == []
    assert kinds(found) == {"activation"}


def test_code_that_asks_for_the_type_of_a_value_is_refused() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.one(x)
        return self.two(y.tanh() if isinstance(y, Tensor) else y)

    model = made(lambda: Code(forward, **two_layers()))
    with pytest.raises(TracingError, match="gives another output"):
        by_fx(model, X)


def test_code_that_catches_what_a_layer_raises_is_refused() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.one(x)
        with suppress(RuntimeError):
            y = self.misfit(y)
        return self.two(y)

    model = made(lambda: Code(forward, **two_layers(), misfit=nn.Conv2d(1, 1, 1)))
    with pytest.raises(TracingError, match="does not run"):
        scanned(model, X)


def _given_a_size(self: Any, x: Tensor) -> Any:
    return self.two(self.up(x, output_size=[17, 17]))


def _plain(self: Any, x: Tensor) -> Any:
    return self.two(self.up(x))


def test_a_layer_that_is_given_more_than_its_input_is_none_of_the_manifests() -> None:
    parts = {"up": nn.ConvTranspose2d(3, 8, 3, stride=2, bias=False), "two": nn.Conv2d(8, 3, 1)}
    assert merged_layers(by_fx(made(lambda: Code(_plain, **parts)), X)) == [("up", "two")]
    assert merged_layers(by_fx(made(lambda: Code(_given_a_size, **parts)), X)) == []


def _doubled(model: nn.Module) -> None:
    layer: Any = model.up
    layer.forward = lambda x: 2 * nn.ConvTranspose2d.forward(layer, x)


def test_a_layer_with_a_forward_of_its_own_is_none_of_the_manifests() -> None:
    parts = {"up": nn.ConvTranspose2d(3, 8, 3, stride=2, bias=False), "two": nn.Conv2d(8, 3, 1)}
    model = made(lambda: Code(_plain, **parts))
    _doubled(model)
    assert merged_layers(by_fx(model, X)) == []
