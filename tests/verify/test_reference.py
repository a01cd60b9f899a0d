"""What verification runs for the original layers is torch's own modules, and bounds their rounding.

The oracle is the module itself; for magnitudes its Jacobian, taken by torch, so that neither knows
how the other is computed.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from convsqueeze.checkpoint import from_state_dict
from convsqueeze.manifest import manifest_from_data
from convsqueeze.plan import Merge, make_plan
from convsqueeze.verify.reference import Run, reference, term_count

pytestmark = pytest.mark.quick

Affine = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One layer: its manifest entry, torch's module for it, and the size of an image."""

    entry: dict[str, Any]
    module: nn.Module
    size: tuple[int, ...]
    channels: int = 4


class Does(nn.Module):
    """A module without tensors that is a function."""

    def __init__(self, run: Affine) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


class Scaled(nn.Module):
    def __init__(
        self, *shape: int, factor: float = 1.0, shift: float = 0.0, bias: bool = False
    ) -> None:
        super().__init__()
        self.factor, self.shift = factor, shift
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(4)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        spread = (-1, *(1,) * (x.ndim - 2))
        y = self.factor * self.weight.reshape(spread) * x + self.shift
        return y if self.bias is None else y + self.bias.reshape(spread)


def padded_by(amounts: tuple[int, ...], layer: nn.Module, mode: str = "constant") -> nn.Module:
    return nn.Sequential(Does(lambda x: F.pad(x, amounts, mode=mode)), layer)


def channels_last(layer: nn.Linear) -> nn.Module:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.movedim(1, -1)).movedim(-1, 1)

    return Last()


CONVOLUTIONS = {
    "plain": Case({}, nn.Conv1d(4, 2, 3), (7,)),
    "without a bias": Case({}, nn.Conv1d(4, 2, 3, bias=False), (7,)),
    "steps": Case(
        {"stride": [2, 1], "padding": [1, 2], "dilation": [1, 2], "groups": 2},
        nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2),
        (6, 5),
    ),
    "steps in volumes": Case(
        {"stride": 2, "padding": 1, "groups": 4}, nn.Conv3d(4, 4, 2, 2, 1, groups=4), (3, 4, 2)
    ),
    "same": Case(
        {"padding": "same", "dilation": [1, 3]},
        nn.Conv2d(4, 2, (4, 2), padding="same", dilation=(1, 3)),
        (5, 6),
    ),
    "same, mirrored": Case(
        {"padding": "same", "padding_mode": "reflect", "dilation": 3},
        nn.Conv2d(4, 2, (2, 3), padding="same", padding_mode="reflect", dilation=3),
        (6, 8),
    ),
    "same, mirrored, one number an axis": Case(
        {"padding": "same", "padding_mode": "reflect", "dilation": [3, 1]},
        nn.Conv2d(4, 2, (2, 4), padding="same", padding_mode="reflect", dilation=(3, 1)),
        (6, 8),
    ),
    "valid": Case({"padding": "valid"}, nn.Conv1d(4, 2, 3, padding="valid"), (7,)),
    "valid, around": Case(
        {"padding": "valid", "padding_mode": "circular"},
        nn.Conv1d(4, 2, 3, padding="valid", padding_mode="circular"),
        (7,),
    ),
    "each side": Case(
        {"padding": [[2, 1], [0, 3]], "stride": [1, 2]},
        padded_by((0, 3, 2, 1), nn.Conv2d(4, 2, 3, (1, 2))),
        (4, 5),
    ),
    "each side, around": Case(
        {"padding": [[2, 1], [0, 3]], "padding_mode": "circular"},
        padded_by((0, 3, 2, 1), nn.Conv2d(4, 2, 3), "circular"),
        (4, 5),
    ),
    "mirrored": Case(
        {"padding": [2, 1], "padding_mode": "reflect", "stride": 2, "groups": 2},
        nn.Conv2d(4, 2, 3, 2, (2, 1), groups=2, padding_mode="reflect"),
        (4, 5),
    ),
    "repeated": Case(
        {"padding": 2, "padding_mode": "replicate"},
        nn.Conv1d(4, 2, 3, padding=2, padding_mode="replicate"),
        (4,),
    ),
    "around": Case(
        {"padding": 2, "padding_mode": "circular", "dilation": 2},
        nn.Conv1d(4, 2, 3, padding=2, padding_mode="circular", dilation=2),
        (4,),
    ),
}
OTHERS = {
    "up": Case(
        {"type": "conv_transpose", "stride": [2, 3], "padding": [1, 0], "output_padding": [1, 2]},
        nn.ConvTranspose2d(4, 2, 3, (2, 3), (1, 0), (1, 2)),
        (3, 2),
    ),
    "up in groups": Case(
        {"type": "conv_transpose", "stride": 2, "padding": 1, "dilation": 2, "groups": 2},
        nn.ConvTranspose1d(4, 6, 3, 2, 1, groups=2, dilation=2, bias=False),
        (5,),
    ),
    "up in volumes": Case(
        {"type": "conv_transpose", "stride": 2}, nn.ConvTranspose3d(4, 1, 2, 2), (2, 1, 2)
    ),
    "up, each side": Case(
        {"type": "conv_transpose", "stride": 2, "padding": [[1, 0], [0, 2]]},
        nn.Sequential(nn.ConvTranspose2d(4, 2, 3, 2), Does(lambda y: y[:, :, 1:, :-2])),
        (3, 3),
    ),
    "linear": Case({"type": "linear"}, nn.Linear(4, 3), ()),
    "linear in images": Case({"type": "linear"}, channels_last(nn.Linear(4, 3)), (2, 3)),
    "norm": Case({"type": "batch_norm", "eps": 1e-3}, nn.BatchNorm2d(4, eps=1e-3), (2, 3)),
    "norm without weights": Case(
        {"type": "batch_norm", "eps": 0.1}, nn.BatchNorm1d(4, eps=0.1, affine=False), (3,)
    ),
    "scale": Case({"type": "scale", "factor": -0.3}, Scaled(4, factor=-0.3, bias=True), (2, 3)),
    "one scale": Case({"type": "scale"}, Scaled(1), (3,)),
    "shift": Case(
        {"type": "scale", "factor": -0.3, "shift": -0.7},
        Scaled(4, factor=-0.3, shift=-0.7, bias=True),
        (2, 3),
    ),
    "nothing but a shift": Case({"type": "scale", "shift": 0.6}, Does(lambda x: x + 0.6), (3,)),
    "pool": Case(
        {"type": "avg_pool", "kernel_size": [2, 3], "stride": [1, 2], "padding": [1, 0]},
        nn.AvgPool2d((2, 3), (1, 2), (1, 0)),
        (4, 5),
    ),
    "pool by its own size": Case(
        {"type": "avg_pool", "kernel_size": 3, "padding": 1}, nn.AvgPool1d(3, padding=1), (7,)
    ),
    "pool of volumes": Case({"type": "avg_pool", "kernel_size": 2}, nn.AvgPool3d(2), (4, 2, 5)),
    "identity": Case({"type": "identity"}, nn.Identity(), (3, 2)),
    "padding": Case(
        {"type": "pad", "padding": [[1, 2], [-1, 3]]},
        Does(lambda x: F.pad(x, (-1, 3, 1, 2))),
        (3, 4),
    ),
    "cropping": Case({"type": "pad", "padding": -1}, Does(lambda x: x[:, :, 1:-1]), (5,)),
    "cropping before it repeats": Case(
        {"type": "pad", "padding": [[-2, 3]], "padding_mode": "replicate"},
        Does(lambda x: F.pad(x, (-2, 3), mode="replicate")),
        (5,),
    ),
}
CASES = {**CONVOLUTIONS, **OTHERS}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def of_all_ranks(case: Case) -> dict[str, Any]:
    """A point-wise convolution after the layer, which says how many axes and channels there are."""
    x = torch.zeros(1, case.channels, *case.size, dtype=torch.float64)
    out = case.module.double().eval()(x).shape[1]
    return {"point.weight": torch.eye(out).reshape(out, out, *(1,) * len(case.size))}


def filled(module: nn.Module) -> nn.Module:
    """Every tensor anything but zero and one, variances above zero; in eval mode and float64."""
    generator = torch.Generator().manual_seed(3)
    module = module.double().eval().requires_grad_(False)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.2
            signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
            tensor.copy_(values if name.endswith("running_var") else values * signs)
    return module


def planned(case: Case) -> tuple[Merge, dict[str, Tensor]]:
    """A merge of the layer and of what changes nothing behind it."""
    filled(case.module)
    stored = {
        f"layer.{name.rpartition('.')[2]}": tensor
        for name, tensor in case.module.state_dict().items()
    }
    rank = len(case.size)
    entry = dict(case.entry)
    if stored:
        entry["name"] = "layer"
    point: dict[str, Any] = {"name": "point"}
    if not rank:
        point["type"] = "linear"
    tensors = {**stored, **of_all_ranks(case)}
    data = {"version": 1, "pairs": [{"into": "merged", "chain": [entry, point]}]}
    plan = make_plan(manifest_from_data(data), from_state_dict(tensors), growth="allow")
    return plan.merges[0], tensors


def drawn(case: Case, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    shape = (batch, case.channels, *case.size)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def assert_same(actual: Run, expected: Affine, x: Tensor) -> None:
    torch.testing.assert_close(actual(x), expected(x), rtol=1e-13, atol=1e-13)


@every_case
def test_the_reference_is_torchs_own_module(case: Case) -> None:
    merge, tensors = planned(case)
    run = reference(merge.tree, tensors.__getitem__)
    assert_same(run, case.module, drawn(case))
    assert float(case.module(drawn(case)).abs().max()) > 0.1


@every_case
def test_the_linear_part_lacks_what_zeros_give(case: Case) -> None:
    merge, tensors = planned(case)
    run = reference(merge.tree, tensors.__getitem__, "linear")
    x = drawn(case)
    assert_same(run, lambda x: case.module(x) - case.module(torch.zeros_like(x)), x)


def absolute(module: nn.Module) -> nn.Module:
    """The same module with the absolute value of every number; means as they are subtracted."""
    made = copy.deepcopy(module)
    for name, tensor in made.state_dict().items():
        tensor.copy_(-tensor.abs() if name.endswith("running_mean") else tensor.abs())
    if isinstance(made, Scaled):
        made.factor, made.shift = abs(made.factor), abs(made.shift)
    return made


def jacobian(module: nn.Module, x: Tensor) -> Tensor:
    """Output numbers by input numbers."""
    found = torch.autograd.functional.jacobian(module, x)
    return found.reshape(module(x).numel(), x.numel())


@every_case
def test_magnitudes_are_sums_of_absolute_values(case: Case) -> None:
    """Without constants at least `|J| |x|` with the Jacobian `J`, and no more where no padding
    shows a sample twice.
    """
    merge, tensors = planned(case)
    x = drawn(case, 1).abs()
    whole = reference(merge.tree, tensors.__getitem__, magnitude=True)
    linear = reference(merge.tree, tensors.__getitem__, "linear", magnitude=True)
    larger = absolute(case.module)
    assert_same(whole, larger, x)
    assert_same(linear, lambda x: larger(x) - larger(torch.zeros_like(x)), x)
    least = (jacobian(case.module, x).abs() @ x.flatten()).reshape(linear(x).shape)
    assert bool((linear(x) >= least * (1 - 1e-12)).all())
    if case.entry.get("padding_mode", "zeros") == "zeros":
        torch.testing.assert_close(linear(x), least, rtol=1e-13, atol=1e-13)


def of_two(kind: str) -> tuple[Merge, dict[str, Tensor], nn.Module, nn.Module]:
    first, second = filled(nn.Conv1d(4, 4, 3, padding=1)), filled(nn.Conv1d(4, 4, 1))
    for tensor in second.state_dict().values():
        tensor.mul_(-0.7)
    tensors = {
        f"{name}.{key}": tensor
        for name, module in (("a", first), ("b", second))
        for key, tensor in module.state_dict().items()
    }
    data = {
        "version": 1,
        "pairs": [{"into": "c", kind: [{"name": "a", "padding": 1}, {"name": "b"}]}],
    }
    plan = make_plan(manifest_from_data(data), from_state_dict(tensors), growth="allow")
    return plan.merges[0], tensors, first, second


def test_chains_run_in_order_and_sums_add_up() -> None:
    x = drawn(CASES["plain"])
    merge, tensors, first, second = of_two("chain")
    assert_same(reference(merge.tree, tensors.__getitem__), lambda x: second(first(x)), x)
    merge, tensors, first, second = of_two("sum")
    assert_same(reference(merge.tree, tensors.__getitem__), lambda x: first(x) + second(x), x)


def test_every_product_of_every_layer_is_a_term() -> None:
    """Those of one output: weights for it, and eight beside them for what else a layer does."""
    for kind in ("chain", "sum"):
        assert term_count(of_two(kind)[0].tree) == (4 * 3 + 8) + (4 * 1 + 8)
    merge, _ = planned(CASES["steps"])
    assert term_count(merge.tree) == (2 * 3 * 2 + 8) + (6 + 8)
    assert merge.layers[0].geometry.groups == 2


def test_the_squares_of_a_length_are_terms_too() -> None:
    """Weight norm sums over all of an output channel, whose products come to that."""
    module = filled(weight_norm(nn.Conv1d(4, 6, 3, groups=2)))
    length, direction = (
        module.state_dict()[f"parametrizations.weight.original{index}"] for index in (0, 1)
    )
    tensors = {
        "a.weight_g": length,
        "a.weight_v": direction,
        "a.bias": module.bias,
        "b.weight": torch.eye(6).reshape(6, 6, 1),
    }
    data = {
        "version": 1,
        "pairs": [{"into": "c", "chain": [{"name": "a", "groups": 2}, {"name": "b"}]}],
    }
    plan = make_plan(manifest_from_data(data), from_state_dict(tensors), growth="allow")
    (merge,) = plan.merges
    assert term_count(merge.tree) == (2 * 3 + 2 * 3 + 8) + (6 + 8)
    assert_same(reference(merge.tree, tensors.__getitem__), module, drawn(CASES["plain"]))
