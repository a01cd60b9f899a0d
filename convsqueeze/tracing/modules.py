"""Torch's own modules in the manifest's words: the layers that a call of one is, if it is any.

Knows modules and their settings; no graph, and no values.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from convsqueeze.graph import Reason
from convsqueeze.kinds.avg_pool import AvgPoolLayer
from convsqueeze.kinds.batch_norm import BatchNormLayer
from convsqueeze.kinds.conv import ConvLayer
from convsqueeze.kinds.conv_transpose import ConvTransposeLayer
from convsqueeze.kinds.linear import LinearLayer
from convsqueeze.manifest import Layer
from convsqueeze.tracing.operators import (
    ACTIVATIONS,
    Linear,
    Meaning,
    Passing,
    axis_pairs,
    no_layer,
    on_every_axis,
    padding_meaning,
    per_axis_numbers,
)


def module_meaning(module: nn.Module, name: str, names: frozenset[str]) -> Meaning:
    """The layer that one of torch's own modules is; `names` are those of the state dict."""
    if "forward" in vars(module):
        return Reason("not linear", f"{name} has a forward of its own")
    rule = next((rule for kind, rule in _MODULES.items() if type(module) is kind), None)
    if rule is None:
        kind = type(module).__name__
        return no_layer(kind.lower() if kind.lower() in ACTIVATIONS else kind)
    meaning = rule(module, name)
    if isinstance(meaning, Linear) and meaning.keys:
        return replace(meaning, keys=keys_of(name, names))
    return meaning


def keys_of(name: str, names: frozenset[str]) -> tuple[str, ...]:
    """The stored tensors of a module."""
    inside = (key for key in names if key.startswith(f"{name}.") and "num_batches" not in key)
    return tuple(sorted(inside))


def _convolution(module: Any, name: str) -> Meaning:
    rank = module.weight.ndim - 2
    settings: dict[str, Any] = {
        field: on_every_axis(getattr(module, field))
        for field, default in (("stride", 1), ("padding", 0), ("dilation", 1))
        if on_every_axis(getattr(module, field)) != default
    }
    if module.groups != 1:
        settings["groups"] = module.groups
    layer: Layer
    if module.transposed:
        if on_every_axis(module.output_padding) != 0:
            settings["output_padding"] = on_every_axis(module.output_padding)
        layer = ConvTransposeLayer(type="conv_transpose", name=name, **settings)
    else:
        if module.padding_mode != "zeros":
            settings["padding_mode"] = module.padding_mode
        layer = ConvLayer(name=name, **settings)
    return Linear(layer, rank, (name,))


def _norm(module: Any, name: str) -> Meaning:
    if module.training or module.running_mean is None:
        what = "is in training mode" if module.training else "keeps no running statistics"
        return Reason("training", f"a norm that {what}, so it is not linear")
    rank = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}[type(module)]
    return Linear(BatchNormLayer(type="batch_norm", name=name, eps=module.eps), rank, (name,))


def _linear(module: Any, name: str) -> Meaning:
    return Linear(LinearLayer(type="linear", name=name), 0, (name,))


def _pool(module: Any, name: str) -> Meaning:
    rank = {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3}[type(module)]
    sizes = {
        field: per_axis_numbers(getattr(module, field), rank)
        for field in ("kernel_size", "stride", "padding")
    }
    padded = any(sizes["padding"])
    if module.ceil_mode or getattr(module, "divisor_override", None):
        return Reason("not linear", "a pool that rounds its size up, or has its own divisor")
    if padded and not module.count_include_pad:
        return Reason("not linear", "a pool that does not count what it pads")
    return Linear(AvgPoolLayer(type="avg_pool", **sizes), rank)


def _padding(mode: str) -> Callable[[Any, str], Meaning]:
    def rule(module: Any, name: str) -> Meaning:
        return padding_meaning(axis_pairs(module.padding), mode)

    return rule


def _dropout(module: Any, name: str) -> Meaning:
    if module.training and module.p:
        return Reason("training", "dropout in training mode")
    return Passing()


def _identity(module: Any, name: str) -> Meaning:
    return Passing()


_MODULES: Mapping[type[nn.Module], Callable[[Any, str], Meaning]] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _convolution),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _norm),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _pool),
    **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d), _padding("zeros")),
    **dict.fromkeys((nn.ReflectionPad1d, nn.ReflectionPad2d), _padding("reflect")),
    **dict.fromkeys((nn.ReplicationPad1d, nn.ReplicationPad2d), _padding("replicate")),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _dropout),
    nn.Linear: _linear,
    nn.Identity: _identity,
}
