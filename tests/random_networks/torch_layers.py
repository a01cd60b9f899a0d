"""What a manifest's layers compute, according to torch alone.

The entry of a manifest, as plain data, becomes `torch.nn` modules in float64, written from torch's
documentation. Imports nothing of convsqueeze: this is the other side of every comparison.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_CONV_TRANSPOSE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_AVG_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_BATCH_NORM = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class BranchesDisagreeError(Exception):
    """Two branches of a sum whose outputs have different shapes."""


class Summed(nn.Module):
    """Branches side by side; unlike torch's `+` it broadcasts nothing."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [branch(x) for branch in self.branches]
        if len({tuple(y.shape) for y in outputs}) > 1:
            raise BranchesDisagreeError(" and ".join(str(tuple(y.shape)) for y in outputs))
        return torch.stack(outputs).sum(0)


class Padded(nn.Module):
    """`F.pad` by one (before, after) pair for each axis. A crop has to leave something, as torch's
    own layers ask of what they give.
    """

    def __init__(self, pairs: list[tuple[int, int]], mode: str) -> None:
        super().__init__()
        self.amounts = [amount for pair in reversed(pairs) for amount in pair]
        self.mode = "constant" if mode == "zeros" else mode

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(x, self.amounts, mode=self.mode)
        if not y.numel():
            raise RuntimeError(f"nothing is left of {tuple(x.shape)}")
        return y


class OnChannels(nn.Module):
    """A layer whose channels come last, on a signal (batch, channels, *size)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.movedim(1, -1)).movedim(-1, 1)


class Scaled(nn.Module):
    """`factor * weight * x + bias + shift`, weight and bias one number or one a channel."""

    def __init__(
        self, factor: float, shift: float, weight: Tensor | None, bias: Tensor | None
    ) -> None:
        super().__init__()
        self.factor, self.shift, self.weight, self.bias = factor, shift, weight, bias

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *(1,) * (x.ndim - 2))
        y = self.factor * x
        if self.weight is not None:
            y = self.weight.reshape(shape) * y
        y = y if self.bias is None else y + self.bias.reshape(shape)
        return y + self.shift


def network(
    entry: Mapping[str, Any], tensors: Mapping[str, Tensor], rank: int, *, magnitude: bool = False
) -> nn.Module:
    """An entry of `pairs` as one module, (batch, channels, *size) in float64.

    With `magnitude` every stored number enters by its absolute value: on `|x|` the module then adds
    up the sizes of all the products behind an output, which is what rounding errors scale with.
    """
    values = {name: tensor.double() for name, tensor in tensors.items()}
    if magnitude:
        values = {
            name: -value.abs() if name.endswith("running_mean") else value.abs()
            for name, value in values.items()
        }
    return _module(entry, values, rank, magnitude).requires_grad_(False).eval()


def _module(
    item: Mapping[str, Any], tensors: Mapping[str, Tensor], rank: int, magnitude: bool
) -> nn.Module:
    if "first" in item:
        item = {"chain": [item["first"], item["second"]]}
    if "chain" in item:
        return nn.Sequential(*(_module(i, tensors, rank, magnitude) for i in item["chain"]))
    if "sum" in item:
        return Summed([_module(i, tensors, rank, magnitude) for i in item["sum"]])
    return _LAYERS[item.get("type", "conv")](item, tensors, rank, magnitude)


def _conv(item: Mapping[str, Any], tensors: Mapping[str, Tensor], rank: int, _: bool) -> nn.Module:
    weight, bias = _weight_and_bias(item, tensors)
    padding = item.get("padding", 0)
    groups = item.get("groups", 1)
    mode = item.get("padding_mode", "zeros")
    layer = _CONV[rank](
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=_torchs(item.get("stride", 1)),
        padding=0 if is_nested(padding) else _torchs(padding),
        dilation=_torchs(item.get("dilation", 1)),
        groups=groups,
        bias=bias is not None,
        padding_mode="zeros" if is_nested(padding) else mode,
        dtype=torch.float64,
    )
    _fill(layer, weight=weight, bias=bias)
    return nn.Sequential(Padded(padding, mode), layer) if is_nested(padding) else layer


def _conv_transpose(
    item: Mapping[str, Any], tensors: Mapping[str, Tensor], rank: int, _: bool
) -> nn.Module:
    weight, bias = _weight_and_bias(item, tensors)
    padding = item.get("padding", 0)
    groups = item.get("groups", 1)
    layer = _CONV_TRANSPOSE[rank](
        weight.shape[0],
        weight.shape[1] * groups,
        tuple(weight.shape[2:]),
        stride=_torchs(item.get("stride", 1)),
        padding=0 if is_nested(padding) else _torchs(padding),
        output_padding=_torchs(item.get("output_padding", 0)),
        dilation=_torchs(item.get("dilation", 1)),
        groups=groups,
        bias=bias is not None,
        dtype=torch.float64,
    )
    _fill(layer, weight=weight, bias=bias)
    if not is_nested(padding):
        return layer
    return nn.Sequential(layer, Padded([(-low, -high) for low, high in padding], "zeros"))


def _linear(
    item: Mapping[str, Any], tensors: Mapping[str, Tensor], rank: int, _: bool
) -> nn.Module:
    weight, bias = _weight_and_bias(item, tensors)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=torch.float64)
    _fill(layer, weight=weight, bias=bias)
    return OnChannels(layer)


def _batch_norm(
    item: Mapping[str, Any], tensors: Mapping[str, Tensor], rank: int, _: bool
) -> nn.Module:
    weight, bias = _weight_and_bias(item, tensors)
    mean = tensors[f"{item['name']}.running_mean"]
    layer = _BATCH_NORM[rank](len(mean), eps=item["eps"], dtype=torch.float64)
    ones, zeros = torch.ones_like(mean), torch.zeros_like(mean)
    _fill(
        layer,
        weight=ones if weight is None else weight,
        bias=zeros if bias is None else bias,
        running_mean=mean,
        running_var=tensors[f"{item['name']}.running_var"],
        num_batches_tracked=torch.tensor(0),
    )
    return layer


def _scale(
    item: Mapping[str, Any], tensors: Mapping[str, Tensor], rank: int, magnitude: bool
) -> nn.Module:
    factor, shift = item.get("factor", 1.0), item.get("shift", 0.0)
    if magnitude:
        factor, shift = abs(factor), abs(shift)
    return Scaled(factor, shift, *_weight_and_bias(item, tensors))


def _avg_pool(
    item: Mapping[str, Any], tensors: Mapping[str, Tensor], rank: int, _: bool
) -> nn.Module:
    padding = item.get("padding", 0)
    stride = item.get("stride")
    layer = _AVG_POOL[rank](
        _torchs(item["kernel_size"]),
        stride=None if stride is None else _torchs(stride),
        padding=0 if is_nested(padding) else _torchs(padding),
    )
    return nn.Sequential(Padded(padding, "zeros"), layer) if is_nested(padding) else layer


def _identity(*_: object) -> nn.Module:
    return nn.Identity()


def _pad(item: Mapping[str, Any], tensors: Mapping[str, Tensor], rank: int, _: bool) -> nn.Module:
    padding = item["padding"]
    per_axis = [padding] * rank if isinstance(padding, int) else padding
    pairs = per_axis if is_nested(padding) else [(amount, amount) for amount in per_axis]
    return Padded(pairs, item.get("padding_mode", "zeros"))


_LAYERS = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "scale": _scale,
    "avg_pool": _avg_pool,
    "identity": _identity,
    "pad": _pad,
}


def _weight_and_bias(
    item: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    return tensors.get(f"{item.get('name')}.weight"), tensors.get(f"{item.get('name')}.bias")


def _fill(layer: nn.Module, **tensors: Tensor | None) -> None:
    layer.load_state_dict({name: value for name, value in tensors.items() if value is not None})


def _torchs(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def is_nested(padding: Any) -> bool:
    """Whether padding is given as one [before, after] pair for each axis."""
    return isinstance(padding, list) and isinstance(padding[0], list | tuple)


def runs(module: nn.Module, channels: int, size: tuple[int, ...]) -> bool:
    """Whether torch runs the module on an input of `size` and something comes out.

    Raises BranchesDisagreeError where the branches of a sum give different shapes.
    """
    try:
        y = module(torch.zeros(1, channels, *size, dtype=torch.float64))
    except RuntimeError:
        return False
    return y.numel() > 0


def smallest_size(module: nn.Module, channels: int, roomy: tuple[int, ...]) -> tuple[int, ...]:
    """The smallest size of each axis on which torch runs the module, the others being `roomy`."""
    found = []
    for axis in range(len(roomy)):
        sizes = ((*roomy[:axis], n, *roomy[axis + 1 :]) for n in range(1, roomy[axis]))
        first = next((size[axis] for size in sizes if runs(module, channels, size)), roomy[axis])
        found.append(first)
    return tuple(found)
