"""Calls with a stored kernel: convolutions, transposed ones, linear layers."""

from typing import Any

from convsqueeze.algebra.tree import Chain
from convsqueeze.kinds.call import Call, Numbers, Product, Stored, Value, are_fixed, on_every_axis
from convsqueeze.kinds.layer import NAMES, WithTensors
from convsqueeze.kinds.scale import ScaleLayer
from convsqueeze.kinds.semantics import Linear, Semantics, not_linear

BY_SIZE = not_linear("its stride or padding depends on the size of the input")


def kernel_settings(call: Call, kind: type[WithTensors]) -> dict[str, Any]:
    """What a kind's words say of a call, beside what is a default."""
    fields = {name: f for name, f in kind.model_fields.items() if name not in NAMES}
    settings = {name: on_every_axis(call[name]) for name in fields}
    return {n: s for n, s in settings.items() if s not in (None, [], fields[n].default)}


def with_kernel(
    call: Call, rank: int, kind: type[WithTensors], settings: dict[str, Any]
) -> Semantics:
    """A layer with a kernel: by its name or those of its tensors, or as layers in a row for what
    the code does to the kernel first.
    """
    if not are_fixed(settings):
        return BY_SIZE
    weight, bias = call["weight"], call["bias"]
    if bias is not None and not (isinstance(bias, Stored) and bias.is_raw):
        return not_linear("its bias is computed")
    bias_keys = () if bias is None else bias.keys
    if isinstance(weight, Stored) and weight.reshaped:
        return not_linear("its weight is stored in another shape")
    if isinstance(weight, Stored) and weight.is_raw:
        names = tensor_names(weight, bias, call.names)
        return Linear(kind(**names, **settings), rank, (*weight.keys, *bias_keys))
    if weight is None or isinstance(weight, Numbers | Value):
        return not_linear("its weight is not one of the stored tensors")
    scaled = _scaled_kernel(weight, bias, rank, kind, settings)
    return scaled or not_linear("its weight is computed from stored tensors")


def tensor_names(weight: Stored, bias: Stored | None, names: frozenset[str]) -> dict[str, Any]:
    """`name` where the tensors are called after one layer, else `weight` and `bias`."""
    stem, _, leaf = weight.key.rpartition(".")
    bias_key = f"{stem}.bias"
    if leaf == "weight" and stem and (bias_key == bias.key if bias else bias_key not in names):
        return {"name": stem}
    return {"weight": weight.key} | ({"bias": bias.key} if bias else {})


def _scaled_kernel(
    weight: Any, bias: Stored | None, rank: int, kind: type[WithTensors], settings: dict[str, Any]
) -> Linear | None:
    """A kernel times one number for each output channel: the kernel, then a scale."""
    if not isinstance(weight, Product) or kind.takes_channels_first:
        return None
    for kernel, factor in ((weight.left, weight.right), (weight.right, weight.left)):
        channels = kernel.shape[0] if len(kernel.shape) == rank + 2 else 0
        shape = (*(1,) * (rank + 2 - len(factor.shape)), *factor.shape)
        fits = shape == (channels, *(1,) * (rank + 1)) and kernel.factor == factor.factor == 1.0
        if fits and not kernel.reshaped:
            names = {"weight": factor.key} | ({"bias": bias.key} if bias else {})
            links = (kind(weight=kernel.key, **settings), ScaleLayer(type="scale", **names))
            return Linear(Chain(links), rank, (*weight.keys, *(bias.keys if bias else ())))
    return None
