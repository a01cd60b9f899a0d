"""Code under grad modes, autocast and control flow of torch's own, and code that changes values in
place, as torch.export follows it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import convsqueeze
from convsqueeze.errors import TracingError
from convsqueeze.tracing.symbolic import symbolically_traced
from tests.scan.code import Code, image, largest_share, made, merged_layers, reasons, scanned

X = image(2, 3, 8, 8)


def network(forward: Callable[..., Any], **others: nn.Module) -> nn.Module:
    layers = {"one": nn.Conv2d(3, 8, 1), "two": nn.Conv2d(8, 3, 1)}
    return made(lambda: Code(forward, **layers, **others))


def _half(enabled: bool) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


@pytest.mark.stress
@pytest.mark.parametrize(
    "context",
    [torch.enable_grad, torch.no_grad, torch.inference_mode, lambda: _half(False)],
    ids=["enable_grad", "no_grad", "inference_mode", "autocast off"],
)
@pytest.mark.parametrize("both", [True, False])
def test_layers_under_a_context_are_merged(
    context: Callable[[], AbstractContextManager[Any]], both: bool
) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        with context():
            y = self.one(x)
            if both:
                return self.two(y)
        return self.two(y)

    model = network(forward)
    assert merged_layers(scanned(model, X)) == [("one", "two")]
    squeezed, _ = convsqueeze.squeeze(model, X)
    assert largest_share(model, squeezed, [X]) < 1e-5


def test_contexts_within_each_other() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        with torch.enable_grad():
            y = self.one(x)
            with torch.no_grad(), _half(False):
                return self.two(y)

    assert merged_layers(scanned(network(forward), X)) == [("one", "two")]


def test_layers_under_autocast_are_left_alone() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        with torch.enable_grad(), _half(True):
            y = self.two(self.one(x))
        return self.last(self.other(y.float()))

    model = network(forward, other=nn.Conv2d(3, 8, 1), last=nn.Conv2d(8, 3, 1))
    found = scanned(model, X)
    assert merged_layers(found) == [("other", "last")]
    under = {text for _, _, text in reasons(found) if "autocast" in text}
    assert under == {
        f"it runs under autocast, which converts {name}.weight" for name in ("one", "two")
    }


def _reads_for_nothing(self: Any, x: Tensor) -> Any:
    y = self.one(x)
    with _half(True):
        self.norm(y)
    return self.two(y)


def _changes(self: Any, x: Tensor) -> Any:
    y = self.one(x)
    z = self.two(y)
    with _half(True):
        y.add_(1)
    return z


def _off_within(self: Any, x: Tensor) -> Any:
    with _half(True):
        y = self.one(x)
        with _half(False):
            return self.two(y.float())


@pytest.mark.parametrize("forward", [_reads_for_nothing, _changes, _off_within])
def test_no_merge_reaches_into_autocast(forward: Callable[..., Any]) -> None:
    assert merged_layers(scanned(network(forward, norm=nn.BatchNorm2d(8)), X)) == []


def test_layers_under_autocast_are_left_alone_by_fx_too() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        with _half(True):
            return self.two(self.one(x))

    with pytest.raises(TracingError, match="gives another output"):
        symbolically_traced(network(forward), [X])


def test_layers_beside_control_flow_of_torchs_own_are_merged() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        x = torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))
        return self.two(self.one(x))

    assert merged_layers(scanned(network(forward), X)) == [("one", "two")]


def test_layers_within_control_flow_of_torchs_own_stay() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        inside = lambda y: self.two(self.one(y))  # noqa: E731
        return torch.cond(x.shape[0] > 5, inside, lambda y: inside(y) + 1, (x,))

    assert merged_layers(scanned(network(forward), X)) == []


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_block_is_merged(reentrant: bool) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return checkpoint(lambda y: self.two(self.one(y)), x, use_reentrant=reentrant)

    assert merged_layers(scanned(network(forward), X)) == [("one", "two")]


def _padded(self: Any, x: Tensor) -> Any:
    y = self.pad(x)
    x.mul_(2)
    return self.wide(y)


def _padded_alone(self: Any, x: Tensor) -> Any:
    x.mul_(2)
    return self.wide(self.pad(x))


def _inner(self: Any, x: Tensor) -> Any:
    y = self.one(x)
    z = self.two(y)
    y.add_(1)
    return z


def _view_of_inner(self: Any, x: Tensor) -> Any:
    y = self.one(x)
    z = self.two(y)
    y.chunk(2, dim=1)[0].relu_()
    return z


def _result(self: Any, x: Tensor) -> Any:
    return self.two(self.one(x)).add_(1)


@pytest.mark.stress
@pytest.mark.parametrize(
    ("forward", "merges"),
    [
        (_padded, []),
        (_padded_alone, [("pad", "wide")]),
        (_inner, []),
        (_view_of_inner, []),
        (_result, [("one", "two")]),
    ],
)
def test_no_merge_goes_across_a_change_in_place(
    forward: Callable[..., Any], merges: list[tuple[str, ...]]
) -> None:
    model = network(forward, pad=nn.ZeroPad2d(1), wide=nn.Conv2d(3, 8, 3))
    assert merged_layers(scanned(model, X.clone())) == merges
    squeezed, _ = convsqueeze.squeeze(model, X.clone())
    assert largest_share(model, squeezed, [X]) < 1e-5


@pytest.mark.filterwarnings("ignore:.torch.jit.trace")
def test_a_copy_of_a_compiled_module_can_be_run() -> None:
    compiled = torch.jit.trace(nn.Conv2d(3, 3, 1), X)
    model = network(lambda self, x: self.two(self.one(self.compiled(x))), compiled=compiled)
    squeezed, report = convsqueeze.squeeze(model, X)
    assert len(report.scan.merged) == 1
    assert largest_share(model, squeezed, [X]) < 1e-5
