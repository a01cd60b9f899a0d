"""Models as a whole: branches that fall silent in a longer merge, inputs that are no floats, and
code whose way depends on sizes or values.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convsqueeze
from convsqueeze.errors import ModelInputError, TracingError
from tests.scan.code import OfOne, image, largest_share, made, merged_layers, reasons, scanned
from tests.scan.negatives.rows import INPUT, head, pairs, tail

EXACT = 1e-12
"""Of the largest output, in float64."""


def four(forward: Callable[[Any, Tensor], Any], **parts: nn.Module) -> nn.Module:
    """A model over the four convolutions and other parts, which may stand for some of them."""
    convolutions = {name: build() for name, build in pairs().items()}
    return made(lambda: OfOne(forward, **(convolutions | parts))).double()


def conv(before: int, after: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(before, after, 1, stride=stride)


def _skip(m: Any, x: Tensor) -> Tensor:
    y = head(m, x)
    return tail(m, y + m.e(y))


def _two_ways(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    z: Tensor = m.d(m.b(y).add_(m.e(y)))
    return z


def _ways_first(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.d(m.a(x) + m.e(x))
    return y


def _three_ways(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    z: Tensor = m.d(m.b(y) + y + m.g(m.e(y)))
    return z


def _ways_within_ways(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    z: Tensor = m.d(m.b(y) + m.g(m.e(y) + m.f(y)))
    return z


SUMS: Sequence[tuple[str, Callable[[Any, Tensor], Tensor], dict[str, nn.Module]]] = (
    ("a skip inside", _skip, {"e": conv(4, 4)}),
    ("two ways first", _ways_first, {"a": conv(3, 8, 2), "e": conv(3, 8, 2), "d": conv(8, 2)}),
    (
        "two ways inside",
        _two_ways,
        {"a": conv(3, 8, 2), "b": conv(8, 6, 2), "e": conv(8, 6, 2), "d": conv(6, 2)},
    ),
    (
        "three ways inside",
        _three_ways,
        {"a": conv(3, 8, 2), "b": conv(8, 8), "e": conv(8, 6), "g": conv(6, 8), "d": conv(8, 2)},
    ),
    (
        "ways within ways",
        _ways_within_ways,
        {
            **{"a": conv(3, 8), "b": conv(8, 8, 2), "e": conv(8, 6, 2), "f": conv(8, 6, 2)},
            **{"g": conv(6, 8), "d": conv(8, 2)},
        },
    ),
)


@pytest.mark.stress
@pytest.mark.parametrize(
    ("forward", "parts"), [row[1:] for row in SUMS], ids=[row[0] for row in SUMS]
)
def test_a_sum_in_a_longer_merge_adds_nothing_of_the_right_shape(
    forward: Callable[[Any, Tensor], Tensor], parts: dict[str, nn.Module]
) -> None:
    model = four(forward, **parts)
    squeezed, report = convsqueeze.squeeze(model, image(*INPUT).double())
    assert len(merged_layers(report.scan)) == 1
    assert report.weights_after < report.weights_before
    for size in ((9, 9), (8, 11)):
        assert largest_share(model, squeezed, [image(2, 3, *size).double()]) < EXACT


def test_with_nothing_between_all_four_are_one() -> None:
    model = four(lambda m, x: tail(m, head(m, x)))
    squeezed, report = convsqueeze.squeeze(model, image(*INPUT).double())
    assert merged_layers(report.scan) == [("a", "b", "c", "d")]
    assert report.left == ()
    assert largest_share(model, squeezed, [image(*INPUT).double()]) < EXACT


PASSED: Sequence[tuple[str, Callable[[Any, Tensor], Tensor]]] = (
    ("times 1", lambda m, y: y * 1.0),
    ("plus 0", lambda m, y: y + 0),
    ("the whole slice", lambda m, y: y[:, :, 0:]),
    ("contiguous", lambda m, y: y.contiguous()),
    ("channels last", lambda m, y: y.clone(memory_format=torch.channels_last)),
    ("detached", lambda m, y: y.detach()),
    ("its own dtype", lambda m, y: y.to(y.dtype)),
    ("a pad by 0", lambda m, y: nn.functional.pad(y, (0, 0))),
    ("dropout of nothing", lambda m, y: nn.functional.dropout(y, 0.5, training=False)),
)


@pytest.mark.stress
@pytest.mark.parametrize("between", [row[1] for row in PASSED], ids=[row[0] for row in PASSED])
def test_what_gives_what_it_takes_is_nothing_between(
    between: Callable[[Any, Tensor], Tensor],
) -> None:
    model = four(lambda m, x: tail(m, between(m, head(m, x))))
    assert merged_layers(scanned(model, image(*INPUT).double())) == [("a", "b", "c", "d")]


@pytest.mark.parametrize(
    "normalised",
    [
        lambda m, x: x / 255.0,
        lambda m, x: x * 1.0,
        lambda m, x: x * m.scale,
    ],
    ids=["divided", "times 1", "times stored numbers"],
)
def test_what_makes_floats_of_integers_is_merged_with_nothing(
    normalised: Callable[[Any, Tensor], Tensor],
) -> None:
    floats = OfOne(normalised, scale=nn.Parameter(torch.ones(3, 1, 1)))
    model = made(lambda: OfOne(lambda m, x: m.b(m.a(m.f(x))), f=floats, a=conv(3, 8), b=conv(8, 3)))
    x = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)
    squeezed, report = convsqueeze.squeeze(model, x)
    assert merged_layers(report.scan) == [("a", "b")]
    assert largest_share(model, squeezed, [x]) < 1e-6


def _by_height(m: Any, x: Tensor) -> Tensor:
    y = head(m, x)
    return tail(m, y.relu() if x.shape[2] > 8 else y)


def _by_batch(m: Any, x: Tensor) -> Tensor:
    y = head(m, x)
    return tail(m, y.relu() if x.shape[0] > 8 else y)


def test_code_that_looks_at_sizes_is_followed_for_the_example_and_told() -> None:
    for forward, merged in (
        (_by_height, [("a", "b"), ("c", "d")]),
        (_by_batch, [("a", "b", "c", "d")]),
    ):
        scan = scanned(four(forward), image(*INPUT).double())
        assert merged_layers(scan) == merged
        assert any("looks at the size of its input (test_whole_models.py:" in n for n in scan.notes)


def test_sizes_of_which_the_code_makes_numbers_are_told() -> None:
    """The pool is one of seven by seven for this input alone."""
    told = "makes numbers of the size of its input"
    pooled = four(lambda m, x: F.avg_pool2d(y := tail(m, head(m, x)), (y.shape[2], y.shape[3])))
    padded = four(lambda m, x: tail(m, F.pad(head(m, x), (1, 1))))
    for model, is_fixed in ((pooled, True), (padded, False)):
        scan = scanned(model, image(*INPUT).double())
        assert any(told in note for note in scan.notes) == is_fixed, scan.notes


def test_an_output_size_that_depends_on_the_input_is_no_layer() -> None:
    model = made(
        lambda: OfOne(
            lambda m, x: m.b(m.a(x), output_size=[18, 18]),
            a=conv(3, 8),
            b=nn.ConvTranspose2d(8, 3, 3, stride=2, padding=1, bias=False),
        )
    )
    scan = scanned(model, image(*INPUT))
    assert merged_layers(scan) == []
    assert [(layers, kind) for layers, kind, _ in reasons(scan)] == [
        (("conv_transpose2d in b",), "not linear")
    ]


def _by_value(m: Any, x: Tensor) -> Tensor:
    y = head(m, x)
    return tail(m, y.relu() if y.sum() > 0 else y)


def _as_often(m: Any, x: Tensor) -> Tensor:
    y = head(m, x)
    for _ in range(int(y.abs().sum()) % 3):
        y = y.relu()
    return tail(m, y)


@pytest.mark.parametrize("forward", [_by_value, _as_often], ids=["a branch", "a loop"])
def test_code_that_looks_at_values_is_refused(forward: Callable[[Any, Tensor], Tensor]) -> None:
    with pytest.raises(TracingError, match="its code cannot be followed to a graph"):
        convsqueeze.squeeze(four(forward), image(*INPUT).double())


def test_a_branch_within_the_graph_is_no_layer() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = head(m, x)
        return tail(m, torch.cond(x.sum() > 0, torch.relu, torch.tanh, (y,)))

    scan = scanned(four(forward), image(*INPUT).double())
    assert merged_layers(scan) == [("a", "b"), ("c", "d")]
    assert (("b", "c"), "not linear", "cond joins several values") in reasons(scan)


def test_a_random_model_is_refused() -> None:
    model = four(lambda m, x: tail(m, nn.functional.dropout(head(m, x), 0.5, training=True)))
    with pytest.raises(ModelInputError, match="gives another output when it runs on the same"):
        convsqueeze.squeeze(model, image(*INPUT).double())
