"""What keeps convolutions apart beside what stands between them: who else reads a value or a
tensor, who calls a layer, and how.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from networks.values import filled
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

from scan.rows import Left, Row, between, head, tail, whole

CD = (("c", "d"),)
EVERY = (("a", "b", "c", "d"),)


def _read(words: str) -> Left:
    return (("b", "c"), "read elsewhere", words)


def _readers(name: str, read: Callable[[Any, Tensor], Any], *left: Left, **given: Any) -> Row:
    """A model whose value between both pairs is read by `read` too."""

    def forward(model: Any, x: Tensor) -> Any:
        y = head(model, x)
        return {"out": tail(model, y).sin(), "other": read(model, y)}

    return whole(name, forward, *left, **given)


def _read_for_nothing(model: Any, x: Tensor) -> Tensor:
    y = head(model, x)
    model.e(y).exp()
    return tail(model, y)


def _summed_for_nothing(model: Any, x: Tensor) -> Tensor:
    y = head(model, x)
    y.sum()
    return tail(model, y)


def _cropped_skip(model: Any, x: Tensor) -> Tensor:
    y = head(model, x)
    return tail(model, y) + y[:, :3, 1:-1, 1:-1]


READERS: Sequence[Row] = (
    _readers(
        "another convolution",
        lambda m, y: m.e(y),
        _read("e reads it too"),
        (("b", "e"), "read elsewhere", "e reads it too"),
        e=lambda: nn.Conv2d(4, 8, 1),
    ),
    _readers("the output", lambda m, y: y, _read("the model's output")),
    _readers("a nested output", lambda m, y: [{"deep": (y,)}], _read("the model's output")),
    _readers("a clone of it", lambda m, y: y.clone(), _read("the model's output")),
    _readers("detached", lambda m, y: y.detach(), _read("the model's output")),
    _readers("its mean", lambda m, y: y.mean(), _read("mean")),
    _readers("an activation", lambda m, y: y.relu(), _read("relu")),
    _readers("a view", lambda m, y: y.flatten(1), _read("view")),
    _readers("where it is largest", lambda m, y: y.argmax(1), _read("argmax")),
    whole(
        "a skip",
        _cropped_skip,
        _read("slice"),
    ),
    whole("a module, for nothing", _read_for_nothing, _read("for nothing"), e=nn.Identity),
    whole("its sum, for nothing", _summed_for_nothing, _read("reads it too, for nothing")),
    _readers("its device", lambda m, y: torch.zeros(2, device=y.device), merged=EVERY),
    _readers("zeros of its dtype", lambda m, y: y.new_zeros(2), merged=EVERY),
    _readers("how many axes it has", lambda m, y: torch.ones(y.dim()), merged=EVERY),
)


class PerLevel(nn.Module):
    """A head that levels share, each with a norm of its own, as EfficientDet has it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = (x, x[..., ::2, ::2])
        return [norm(self.conv(y)) for norm, y in zip(self.norms, levels, strict=True)]


def _tie(model: Any, name: str) -> None:
    """One tensor for `a` and `e`."""
    setattr(model.e, name, getattr(model.a, name))


def _second_name(model: Any) -> None:
    model.other = model.b


def _tied(names: str) -> str:
    return f"{names} are one tensor"


def _first() -> nn.Module:
    return nn.Conv2d(3, 8, 1)


SHARED: Sequence[Row] = (
    whole(
        "a convolution called twice",
        lambda m, x: tail(m, m.b(m.e(m.e(m.a(x))))),
        (("a", "e"), "used twice", "e is called 2 times"),
        (("e",), "used twice", "e is called 2 times"),
        merged=CD,
        e=lambda: nn.Conv2d(8, 8, 1),
    ),
    whole(
        "both ends called twice",
        lambda m, x: (lambda y: (tail(m, y), tail(m, y.relu())))(head(m, x)),
        *((layers, "used twice", "called 2 times") for layers in (("b", "c"), ("c",), ("d",))),
        merged=(("a", "b"),),
    ),
    whole(
        "a head with a norm for each level",
        lambda m, x: m.e(x),
        (("e.conv",), "used twice", "e.conv is called 2 times"),
        merged=(),
        without="abcd",
        e=PerLevel,
    ),
    whole(
        "a weight of a module that is used",
        lambda m, x: (tail(m, head(m, x)), m.e(x).relu()),
        (("e.weight",), "tied", _tied("a.weight and e.weight")),
        (("e",), "tied", _tied("e.weight")),
        merged=CD,
        prepare=partial(_tie, name="weight"),
        e=_first,
    ),
    whole(
        "a bias of a module that is used",
        lambda m, x: (tail(m, head(m, x)), m.e(x).relu()),
        (("a.weight",), "tied", "bias are one tensor"),
        (("e",), "tied", "bias are one tensor"),
        merged=CD,
        prepare=partial(_tie, name="bias"),
        e=_first,
    ),
    whole(
        "a weight of a module that is not used",
        lambda m, x: tail(m, head(m, x)),
        (("e.weight",), "tied", "weight are one tensor"),
        merged=CD,
        prepare=partial(_tie, name="weight"),
        e=_first,
    ),
    whole(
        "a module under two names",
        lambda m, x: tail(m, head(m, x)),
        (("a", "other"), "tied", "weight are one tensor"),
        (("other",), "tied", "weight are one tensor"),
        merged=CD,
        prepare=_second_name,
    ),
    whole(
        "a module called by two names",
        lambda m, x: (tail(m, m.other(m.a(x))), m.b(m.a(x).relu())),
        (("a",), "used twice", "a is called 2 times"),
        (("other",), "tied", "weight are one tensor"),
        merged=CD,
        prepare=_second_name,
    ),
)


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


def _unseen(*seen: Any) -> None:
    """A hook that changes nothing."""


HOOKS: Mapping[str, Callable[[nn.Module], object]] = {
    "a forward hook": lambda m: m.register_forward_hook(_unseen),
    "a forward hook that changes": lambda m: m.register_forward_hook(lambda m, x, y: y * 2),
    "a pre-hook": lambda m: m.register_forward_pre_hook(_unseen),
    "a backward hook": lambda m: m.register_full_backward_hook(_unseen),
    "a backward pre-hook": lambda m: m.register_full_backward_pre_hook(_unseen),
}


def _hooked(place: str, what: str) -> Row:
    def prepare(model: Any) -> None:
        HOOKS[what](model.get_submodule(place))

    name, sees = f"{what} on {place}", f"{place} calls a hook that sees it"
    if place == "b":
        left: list[Left] = [(("a", "b"), "hook", sees), (("b",), "hook", "b calls a hook")]
        return whole(name, lambda m, x: tail(m, head(m, x)), *left, merged=CD, prepare=prepare)
    if place == "e":
        return between(
            name, lambda m, y: m.e(y), (("b", "c"), "hook", sees), prepare=prepare, e=nn.Identity
        )
    return whole(
        name,
        lambda m, x: tail(m, m.s(x)),
        (("s.1", "c"), "hook", sees),
        merged=(CD[0], ("s.0", "s.1")),
        prepare=prepare,
        without="ab",
        s=lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)),
    )


HOOKED: Sequence[Row] = tuple(_hooked(place, what) for place in ("b", "e", "s") for what in HOOKS)


def _within(
    name: str, context: Callable[[], AbstractContextManager[Any]], *left: Left, **given: Any
) -> Row:
    def forward(model: Any, x: Tensor) -> Tensor:
        y = model.a(x)
        with context():
            y = model.b(y)
        return tail(model, y).sin()

    return whole(name, forward, *left, **given)


_B_IN_CODE: tuple[Left, Left] = (
    (("a", "b"), "in code", "b stands in the code"),
    (("b", "c", "d"), "in code", "b stands in the code"),
)

CALLS: Sequence[Row] = (
    _within("no_grad", torch.no_grad, merged=EVERY),
    _within("enable_grad", torch.enable_grad, *_B_IN_CODE, merged=CD),
    _within("autocast", lambda: torch.autocast("cpu", torch.bfloat16), *_B_IN_CODE, merged=CD),
    whole(
        "an activation in a Sequential",
        lambda m, x: m.s(x),
        (("s.0", "s.2"), "activation", "relu"),
        merged=(("s.2", "s.3"),),
        without="abcd",
        s=lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 3, 1)
        ),
    ),
    whole(
        "an activation on its output, called inside",
        lambda m, x: tail(m, m.s(x)),
        (("s.1", "c"), "activation", "relu"),
        merged=(CD[0], ("s.0", "s.1")),
        without="ab",
        s=lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.ReLU()),
    ),
    whole(
        "another rank behind a view",
        lambda m, x: m.e(m.a(x).flatten(2)),
        (("a", "e"), "not linear", "view"),
        merged=(),
        without="bcd",
        e=lambda: nn.Conv1d(8, 3, 1),
    ),
    whole(
        "another rank behind a new axis",
        lambda m, x: m.e(m.a(x)[:, :, None]),
        (("a", "e"), "not linear", "unsqueeze"),
        merged=(),
        without="bcd",
        e=lambda: nn.Conv3d(8, 3, 1),
    ),
    whole(
        "a linear layer along the last axis",
        lambda m, x: m.e(m.a(x)),
        (("a", "e"), "axes", "different axes"),
        merged=(),
        without="bcd",
        e=lambda: nn.Linear(9, 9),
    ),
    whole(
        "a norm behind a linear layer",
        lambda m, x: m.n(m.e(x)),
        (("e", "n"), "axes", "different axes"),
        merged=(),
        without="abcd",
        e=lambda: nn.Linear(9, 9),
        n=lambda: nn.BatchNorm2d(3),
    ),
    whole(
        "upsampled behind a bias",
        lambda m, x: m.e(m.a(x)),
        (("a", "e"), "not one convolution", "output phase"),
        merged=(),
        without="bcd",
        e=lambda: nn.ConvTranspose2d(8, 3, 3, stride=2),
    ),
    whole(
        "a stride, then upsampled",
        lambda m, x: m.e(m.f(x)),
        (("f", "e"), "not one convolution", "an upsampling by 3 after a stride of 2"),
        merged=(),
        without="abcd",
        f=lambda: nn.Conv2d(3, 8, 1, stride=2, bias=False),
        e=lambda: nn.ConvTranspose2d(8, 3, 1, stride=3),
    ),
)

TABLES: Mapping[str, Sequence[Row]] = {
    "readers": READERS,
    "shared": SHARED,
    "kernels": KERNELS,
    "hooked": HOOKED,
    "calls": CALLS,
}
