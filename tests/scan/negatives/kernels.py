"""Kernels that the model's code makes of stored tensors, or of others."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

from tests.networks.values import filled
from tests.scan.negatives.rows import CD, EVERY, Left, Row, head, tail, whole


def _kernel(
    name: str,
    call: Callable[[Any, Tensor], Tensor],
    words: str,
    label: str = "conv2d",
    **given: Any,
) -> Row:
    """A convolution in code in the place of `b`."""

    def forward(model: Any, x: Tensor) -> Tensor:
        return tail(model, call(model, model.a(x))).sin()

    left: list[Left] = [(("a", "c"), "not linear", words)]
    if label:
        left.append(((label,), "not linear", words))
    return whole(name, forward, *left, merged=CD, **given)


def _standardised(weight: Tensor) -> Tensor:
    axes = (1, 2, 3)
    return (weight - weight.mean(axes, keepdim=True)) / weight.std(axes, keepdim=True)


_COMPUTED = "its weight is computed"
_RESHAPED = "its weight is stored in another shape"

KERNELS: Sequence[Row] = (
    whole(
        "as it is stored",
        lambda m, x: tail(m, F.conv2d(m.a(x), m.b.weight, m.b.bias)).sin(),
        (("a", "b"), "in code", "b stands in the code"),
        (("b", "c", "d"), "in code", "b stands in the code"),
        merged=CD,
    ),
    whole(
        "without its bias",
        lambda m, x: tail(m, F.conv2d(m.a(x), m.b.weight)).sin(),
        (("a", "b.weight"), "in code", "b.weight stands in the code"),
        (("b.weight", "c", "d"), "in code", "b.weight stands in the code"),
        merged=CD,
    ),
    _kernel("twice the weight", lambda m, y: F.conv2d(y, m.b.weight * 2.0, m.b.bias), _COMPUTED),
    _kernel("twice the bias", lambda m, y: F.conv2d(y, m.b.weight, m.b.bias * 2), "its bias"),
    _kernel("standardised", lambda m, y: F.conv2d(y, _standardised(m.b.weight)), _COMPUTED),
    _kernel("rectified", lambda m, y: F.conv2d(y, m.b.weight.relu(), m.b.bias), _COMPUTED),
    _kernel("rounded", lambda m, y: F.conv2d(y, m.b.weight.float().double()), _COMPUTED),
    _kernel(
        "transposed",
        lambda m, y: F.conv2d(y, m.p.transpose(0, 1)),
        _COMPUTED,
        p=lambda: nn.Parameter(torch.ones(8, 4, 1, 1)),
    ),
    _kernel(
        "a part",
        lambda m, y: F.conv2d(y, m.p[:4]),
        _COMPUTED,
        p=lambda: nn.Parameter(torch.ones(8, 8, 1, 1)),
    ),
    _kernel(
        "a view with more axes",
        lambda m, y: F.conv2d(y, m.p[:, :, None, None]),
        _RESHAPED,
        p=lambda: nn.Parameter(torch.ones(4, 8)),
    ),
    _kernel(
        "a view of other sizes",
        lambda m, y: F.conv2d(y, m.p.view(4, 8, 3, 3)),
        _RESHAPED,
        p=lambda: nn.Parameter(torch.ones(4, 8, 1, 9)),
    ),
    _kernel(
        "spectral norm",
        lambda m, y: m.b(y),
        _COMPUTED,
        "conv2d in b",
        prepare=lambda m: parametrizations.spectral_norm(m.b),
    ),
    _kernel(
        "numbers of the code",
        lambda m, y: F.conv2d(y, y.new_ones(4, 8, 1, 1)),
        "its weight is not one of",
        "",
    ),
    _kernel(
        "made of the input",
        lambda m, y: F.conv2d(y, y.mean((0, 2, 3)).repeat(4, 1)[:, :, None, None]),
        "mean",
        "",
    ),
    whole(
        "older spectral norm",
        lambda m, x: tail(m, head(m, x)),
        (("a", "c"), "hook", "b calls a hook"),
        (("conv2d in b",), "not linear", _COMPUTED),
        merged=CD,
        prepare=lambda m: spectral_norm(m.b),
    ),
    *(
        whole(
            f"weight norm over {dim}",
            lambda m, x: tail(m, head(m, x)).sin(),
            merged=EVERY,
            prepare=lambda m, dim=dim: filled(parametrizations.weight_norm(m.b, dim=dim)).double(),
        )
        for dim in (0, 1, None)
    ),
)
"""A kernel that the code makes; weight norm is resolved, whatever its axis."""
