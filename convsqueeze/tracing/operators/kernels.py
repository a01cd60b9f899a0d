"""Convolutions and linear layers: with stored kernels, or with what code makes of those."""

from collections.abc import Callable, Sequence
from typing import Any

from convsqueeze.algebra.tree import Chain, Sum
from convsqueeze.graph import Reason
from convsqueeze.kinds.conv import ConvLayer
from convsqueeze.kinds.conv_transpose import ConvTransposeLayer
from convsqueeze.kinds.identity import IdentityLayer
from convsqueeze.kinds.linear import LinearLayer
from convsqueeze.kinds.scale import ScaleLayer
from convsqueeze.manifest import Layer
from convsqueeze.tracing.constants import Known, Product, Stored, WithIdentity
from convsqueeze.tracing.operators.axes import are_fixed, on_every_axis, per_axis_numbers
from convsqueeze.tracing.operators.meanings import Linear, Meaning, Parameters, is_raw

BY_SIZE = Reason("not linear", "its stride or padding depends on the size of the input")


def convolution(given: Parameters) -> Meaning:
    """`conv2d`, or `convolution` of both kinds."""
    rank = given.node.meta["val"].ndim - 2
    weight = given["weight"]
    if isinstance(weight, Stored | Product | WithIdentity):
        rank = _weight_ndim(weight) - 2
    if given["transposed"]:
        return transposed(given, rank)
    padding = given["padding"]
    settings = _settings(given, rank, padding=padding)
    if not are_fixed(settings.values()):
        return BY_SIZE
    return _with_kernel(given, rank, lambda names: ConvLayer(**names, **settings))


def transposed(given: Parameters, rank: int | None = None) -> Meaning:
    """`conv_transpose2d`; `rank` where its weight does not tell."""
    weight = given["weight"]
    rank = _weight_ndim(weight) - 2 if isinstance(weight, Stored) else rank or 0
    settings = _settings(given, rank, padding=given["padding"])
    if any(output_padding := per_axis_numbers(given["output_padding"], rank)):
        settings["output_padding"] = on_every_axis(output_padding)
    if not are_fixed(settings.values()):
        return BY_SIZE
    settings["type"] = "conv_transpose"
    return _with_kernel(given, rank, lambda names: ConvTransposeLayer(**names, **settings))


def _weight_ndim(weight: Stored | Product | WithIdentity) -> int:
    if isinstance(weight, Product):
        return max(len(weight.left.shape), len(weight.right.shape))
    return len(weight.kernel.shape if isinstance(weight, WithIdentity) else weight.shape)


def _settings(given: Parameters, rank: int, *, padding: Any) -> dict[str, Any]:
    """Stride, padding, dilation and groups, as far as they are not the default."""
    settings: dict[str, Any] = {}
    for name, default in (("stride", 1), ("dilation", 1)):
        numbers = per_axis_numbers(given[name], rank, default)
        if any(number != default for number in numbers):
            settings[name] = on_every_axis(numbers)
    if isinstance(padding, str):
        settings["padding"] = padding
    elif any(numbers := per_axis_numbers(padding, rank, 0)):
        settings["padding"] = on_every_axis(numbers)
    if (groups := given["groups"]) not in (1, None):
        settings["groups"] = groups
    return settings


Named = Callable[[dict[str, Any]], Layer]


def _with_kernel(given: Parameters, rank: int, layer: Named) -> Meaning:
    """A layer with a kernel: with its name, or those of its tensors, or as layers for what the
    code does to the kernel first.
    """
    weight, bias = given["weight"], given["bias"]
    if given.arguments.get("bias") is not None and not is_raw(bias):
        return Reason("not linear", "its bias is computed")
    bias_keys = bias.keys if isinstance(bias, Stored) else ()
    if isinstance(weight, Stored) and weight.reshaped:
        return Reason("not linear", "its weight is stored in another shape")
    if isinstance(weight, Stored) and is_raw(weight):
        keys = (*weight.keys, *bias_keys)
        return Linear(layer(_names(weight, bias, given.names)), rank, keys)
    if isinstance(weight, WithIdentity) and bias is None and not weight.kernel.reshaped:
        kernel = layer(_names(weight.kernel, None, given.names))
        if _keeps_channels(kernel, weight.kernel.shape):
            return Linear(Sum((kernel, IdentityLayer(type="identity"))), rank, weight.keys)
    if isinstance(weight, Product):
        return _scaled_kernel(given, rank, layer, weight, bias)
    if weight is None or isinstance(weight, Known):
        return Reason("not linear", "its weight is not one of the stored tensors")
    return Reason("not linear", "its weight is computed from stored tensors")


def _keeps_channels(kernel: Layer, shape: Sequence[int]) -> bool:
    """Whether a layer with a 1x1 kernel of `shape` gives as many channels and samples as it takes,
    each group to itself.
    """
    if not isinstance(kernel, ConvLayer):
        return False
    plain = kernel.stride == 1 and kernel.padding in (0, "valid")
    return plain and shape[0] == kernel.groups * shape[1]


def _names(weight: Stored, bias: Stored | None, names: frozenset[str]) -> dict[str, Any]:
    """`name` where the tensors are called after one layer, else `weight` and `bias`."""
    stem, _, leaf = weight.key.rpartition(".")
    own = f"{stem}.bias"
    if leaf == "weight" and stem and (own == bias.key if bias else own not in names):
        return {"name": stem}
    return {"weight": weight.key} | ({"bias": bias.key} if bias else {})


def _scaled_kernel(
    given: Parameters, rank: int, layer: Named, weight: Product, bias: Stored | None
) -> Meaning:
    """A kernel times one number for each output channel: the kernel, then a scale."""
    for kernel, factor in ((weight.left, weight.right), (weight.right, weight.left)):
        channels = kernel.shape[0] if len(kernel.shape) == rank + 2 else 0
        shape = (*(1,) * (rank + 2 - len(factor.shape)), *factor.shape)
        fits = shape == (channels, *(1,) * (rank + 1)) and kernel.factor == factor.factor == 1.0
        if fits and not kernel.reshaped and not given["transposed"]:
            names = {"weight": factor.key} | ({"bias": bias.key} if bias else {})
            links = (
                layer({"weight": kernel.key}),
                ScaleLayer(type="scale", **names),
            )
            return Linear(Chain(links), rank, (*weight.keys, *(bias.keys if bias else ())))
    return Reason("not linear", "its weight is computed from stored tensors")


def linear(given: Parameters) -> Meaning:
    """`linear`, on the last axis."""
    return _with_kernel(given, 0, lambda names: LinearLayer(type="linear", **names))
