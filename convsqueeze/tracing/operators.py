"""ATen's operators in the manifest's words: the layers that a call is of one value, if it is any.

Each rule takes a call whose parameters are constants. What it cannot say exactly it does not say:
then the reason comes back. Knows operators, no modules and no order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import Node

from convsqueeze.algebra.tree import Chain, Sum, Tree
from convsqueeze.manifest import (
    AvgPoolLayer,
    BatchNormLayer,
    ConvLayer,
    ConvTransposeLayer,
    IdentityLayer,
    Layer,
    LinearLayer,
    PadLayer,
    ScaleLayer,
)
from convsqueeze.tracing.constants import (
    Constant,
    Known,
    Product,
    Stored,
    WithIdentity,
    bound,
    operator_of,
)
from convsqueeze.tracing.graph import Reason

ACTIVATIONS = {
    *("relu", "relu6", "leaky_relu", "prelu", "_prelu_kernel", "rrelu", "elu", "celu", "selu"),
    *("gelu", "silu", "mish", "sigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid", "glu"),
    *("softplus", "softsign", "softmax", "_softmax", "log_softmax", "logsigmoid", "threshold"),
    *("hardshrink", "softshrink", "tanhshrink", "clamp", "clamp_min", "clamp_max", "abs", "sin"),
    *("cos", "exp", "log", "sqrt", "rsqrt", "pow", "reciprocal", "sign", "square", "logsumexp"),
}
PASSING = {"alias", "clone", "detach", "contiguous", "lift_fresh_copy", "native_dropout", "dropout"}
"""Operators that give what they take, in eval mode."""


@dataclass(frozen=True)
class Linear:
    """The layers that a call is of its input."""

    tree: Tree[Layer]
    rank: int | None
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Passing:
    """A call that gives what it takes."""


@dataclass(frozen=True)
class Adding:
    """A call that adds its inputs; `negated` are those that it subtracts, by their number."""

    negated: frozenset[int] = frozenset()


Meaning = Linear | Passing | Adding | Reason


@dataclass(frozen=True)
class Parameters:
    """What a call is given beside the values: constants by argument, numbers, and the names there
    are in the state dict.
    """

    node: Node
    constants: Mapping[Node, Constant]
    names: frozenset[str]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        value = self.arguments.get(name)
        return self.constants.get(value) if isinstance(value, Node) else value

    def ndim(self) -> int:
        """Dimensions of what comes in."""
        return int(self.node.all_input_nodes[0].meta["val"].ndim)


def meaning_of(
    node: Node, values: Sequence[Node], constants: Mapping[Node, Constant], names: frozenset[str]
) -> Meaning:
    """What the call is of the `values` that come in; its other tensors are constants."""
    operator = operator_of(node)
    given = Parameters(node, constants, names, bound(node))
    if len(values) > 1:
        return _of_several(operator, given, values)
    rule = None if operator in ACTIVATIONS else _RULES.get(operator)
    if rule is None or not values:
        return no_layer(operator)
    meaning = rule(given)
    return meaning if isinstance(meaning, Reason) else _of_one_kind(given, values[0]) or meaning


def _of_one_kind(given: Parameters, value: Node) -> Reason | None:
    """Why a call is no layer although its operator is: it gives another dtype than it takes, or is
    given stored integers.
    """
    taken, made = value.meta["val"], given.node.meta["val"]
    if isinstance(made, Tensor) and made.dtype != taken.dtype:
        return Reason("not linear", f"it converts to {made.dtype}")
    for node in given.node.all_input_nodes:
        constant = given.constants.get(node)
        if isinstance(constant, Stored) and not node.meta["val"].is_floating_point():
            return Reason("not linear", f"{constant.key} is stored as {node.meta['val'].dtype}")
    return None


def no_layer(operator: str) -> Reason:
    """Why an operator without a rule is none of the manifest's layers."""
    if operator.rstrip("_") in ACTIVATIONS:
        return Reason("activation", f"{operator} is not linear")
    return Reason("not linear", f"{operator} is no layer that can be merged")


def _of_several(operator: str, given: Parameters, values: Sequence[Node]) -> Meaning:
    if operator in ("add", "sub") and given["alpha"] in (1, None) and _alike(values):
        return Adding(frozenset({1} if operator == "sub" else ()))
    if operator == "mul":
        return Reason("not linear", "two values are multiplied")
    if operator in ("add", "sub") and _alike(values):
        return Reason("not linear", "a multiple of a value is added")
    if operator in ("add", "sub"):
        return Reason("not linear", "values of different shapes are added")
    return Reason("not linear", f"{operator} joins several values")


def _alike(values: Sequence[Node]) -> bool:
    """Whether all have the same shape, for every input."""
    shapes = [[str(size) for size in value.meta["val"].shape] for value in values]
    return all(shape == shapes[0] for shape in shapes)


def _convolution(given: Parameters) -> Meaning:
    rank = given.node.meta["val"].ndim - 2
    weight = given["weight"]
    if isinstance(weight, Stored | Product | WithIdentity):
        rank = _weight_ndim(weight) - 2
    if given["transposed"]:
        return _transposed(given, rank)
    padding = given["padding"]
    settings = _settings(given, rank, padding=padding)
    if not _are_fixed(settings):
        return _BY_SIZE
    return _with_kernel(given, rank, lambda names: ConvLayer(**names, **settings))


def _transposed(given: Parameters, rank: int | None = None) -> Meaning:
    weight = given["weight"]
    rank = _weight_ndim(weight) - 2 if isinstance(weight, Stored) else rank or 0
    settings = _settings(given, rank, padding=given["padding"])
    if any(output_padding := per_axis_numbers(given["output_padding"], rank)):
        settings["output_padding"] = on_every_axis(output_padding)
    if not _are_fixed(settings):
        return _BY_SIZE
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


_BY_SIZE = Reason("not linear", "its stride or padding depends on the size of the input")


def _are_fixed(settings: Mapping[str, Any]) -> bool:
    """Whether no setting is a number that is computed when the model runs."""
    lists = (value if isinstance(value, list) else [value] for value in settings.values())
    return not any(isinstance(number, Node) for numbers in lists for number in numbers)


def per_axis_numbers(value: Any, rank: int, default: int = 0) -> list[int]:
    """One number for each axis; ATen gives one for all, or none for the default."""
    if isinstance(value, int):
        return [value] * rank
    numbers = list(value or [default])
    return numbers * rank if len(numbers) == 1 else numbers


def on_every_axis(numbers: int | str | Sequence[int]) -> int | str | list[int]:
    """`2` instead of `[2, 2]`; what is one for all axes already stays."""
    if isinstance(numbers, int | str):
        return numbers
    return numbers[0] if len(set(numbers)) == 1 else list(numbers)


Named = Callable[[dict[str, Any]], Layer]


def _with_kernel(given: Parameters, rank: int, layer: Named) -> Meaning:
    """A layer with a kernel: with its name, or those of its tensors, or as layers for what the
    code does to the kernel first.
    """
    weight, bias = given["weight"], given["bias"]
    if given.arguments.get("bias") is not None and not _is_raw(bias):
        return Reason("not linear", "its bias is computed")
    bias_keys = bias.keys if isinstance(bias, Stored) else ()
    if isinstance(weight, Stored) and weight.reshaped:
        return Reason("not linear", "its weight is stored in another shape")
    if isinstance(weight, Stored) and _is_raw(weight):
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


def _is_raw(constant: Constant | None) -> bool:
    return isinstance(constant, Stored) and constant.factor == 1.0 and not constant.spread


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


def _linear(given: Parameters) -> Meaning:
    return _with_kernel(given, 0, lambda names: LinearLayer(type="linear", **names))


def _batch_norm(given: Parameters) -> Meaning:
    mean, variance = given["running_mean"], given["running_var"]
    if given["training"] or mean is None or variance is None:
        what = "is in training mode" if given["training"] else "keeps no running statistics"
        return Reason("training", f"a norm that {what}, so it is not linear")
    parts = {
        role: given[role]
        for role in ("weight", "bias", "running_mean", "running_var")
        if given[role] is not None
    }
    if not all(_is_raw(part) for part in parts.values()):
        return Reason("not linear", "a norm whose tensors are computed")
    name = mean.key.rpartition(".")[0]
    told = {role: part.key for role, part in parts.items()}
    absent = [r for r in ("weight", "bias") if r not in parts and f"{name}.{r}" in given.names]
    if absent or any(key != f"{name}.{role}" for role, key in told.items()):
        return Reason("not linear", "a norm whose tensors are not named after one layer")
    keys = tuple(key for part in parts.values() for key in part.keys)
    layer = BatchNormLayer(type="batch_norm", name=name, eps=given["eps"])
    return Linear(layer, given.ndim() - 2, keys)


def _trained_norm(given: Parameters) -> Meaning:
    if getattr(given.node.target, "_overloadname", "") == "no_stats":
        return Reason("training", "a norm that keeps no running statistics, so it is not linear")
    return Reason("training", "a norm that is in training mode, so it is not linear")


def _pad(given: Parameters) -> Meaning:
    mode = {"constant": "zeros"}.get(given["mode"] or "constant", given["mode"] or "constant")
    if mode == "zeros" and given["value"] not in (None, 0, 0.0):
        return Reason("not linear", f"it pads with {given['value']}")
    return _padding(given, given["pad"], mode)


def _padding(given: Parameters, flat: Sequence[Any], mode: str) -> Meaning:
    """`flat` holds before and after of the last axis, then of the one before it."""
    if not all(isinstance(number, int) for number in flat):
        return Reason("not linear", "how far it pads depends on the size of the input")
    pairs = axis_pairs(flat)
    return padding_meaning([(0, 0)] * (given.ndim() - 2 - len(pairs)) + pairs, mode)


def axis_pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    """(before, after) for each axis in order, of torch's flat list, which begins with the last."""
    return [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)][::-1]


def padding_meaning(pairs: Sequence[tuple[int, int]], mode: str = "zeros") -> Linear | Passing:
    """A pad by (before, after) on each axis."""
    numbers = {number for pair in pairs for number in pair}
    if not any(numbers):
        return Passing()
    settings = {} if mode == "zeros" else {"padding_mode": mode}
    padding = pairs[0][0] if len(numbers) == 1 else [list(pair) for pair in pairs]
    return Linear(PadLayer(type="pad", padding=padding, **settings), len(pairs))


def _pool(given: Parameters) -> Meaning:
    operator = operator_of(given.node)
    rank = int(operator[len("avg_pool")])
    kernel, padding = (per_axis_numbers(given[name], rank) for name in ("kernel_size", "padding"))
    stride = per_axis_numbers(given["stride"], rank) if given["stride"] else kernel
    if not _are_fixed({"kernel_size": kernel, "stride": stride, "padding": padding}):
        return Reason("not linear", "a pool whose size depends on that of the input")
    if given["ceil_mode"]:
        return Reason("not linear", "a pool that rounds its size up")
    if any(padding) and given["count_include_pad"] is False:
        return Reason("not linear", "a pool that does not count what it pads")
    if given["divisor_override"]:
        return Reason("not linear", "a pool with a divisor of its own")
    settings: dict[str, Any] = {"padding": on_every_axis(padding)} if any(padding) else {}
    if stride != kernel:
        settings["stride"] = on_every_axis(stride)
    return Linear(AvgPoolLayer(type="avg_pool", kernel_size=kernel, **settings), rank)


def _multiplied(given: Parameters) -> Meaning:
    other = next((c for name in ("other", "self") if (c := given[name]) is not None), None)
    return _scaled(given, other)


def _divided(given: Parameters) -> Meaning:
    other = given["other"]
    number = other.number if isinstance(other, Known) else other
    if isinstance(number, int | float) and number and given["rounding_mode"] is None:
        return factor_meaning(1 / number)
    return Reason("not linear", "it divides by a value")


def _negated(given: Parameters) -> Meaning:
    return factor_meaning(-1.0)


def factor_meaning(number: float) -> Linear | Passing:
    """A product with a number that stands in the code."""
    return Passing() if number == 1 else Linear(ScaleLayer(type="scale", factor=number), None)


def _scaled(given: Parameters, other: Any) -> Meaning:
    """A product with a number, or with one stored number for each channel."""
    if isinstance(other, Known) and other.number is not None:
        other = other.number
    if isinstance(other, int | float) and not isinstance(other, bool):
        return factor_meaning(float(other))
    rank = _channel_rank(given, other)
    if isinstance(rank, Reason):
        return rank
    factor = {"factor": other.factor} if other.factor != 1 else {}
    return Linear(ScaleLayer(type="scale", weight=other.key, **factor), rank, other.keys)


def _channel_rank(given: Parameters, other: Any) -> int | Reason | None:
    """The axes behind the channels that a stored tensor has one number each for."""
    if isinstance(other, Known):
        return Reason("not linear", "it is combined with numbers that no stored tensor holds")
    if not isinstance(other, Stored) or other.spread or len(other.keys) > 1:
        return Reason("not linear", "it is combined with a tensor that is computed")
    if not _alike([*_values(given), given.node]):
        return Reason("not linear", "it repeats what it takes along an axis")
    ndim = given.node.meta["val"].ndim
    long = [axis - len(other.shape) for axis, size in enumerate(other.shape) if size > 1]
    if not long:
        return None
    if len(long) > 1 or ndim + long[0] == 0:
        return Reason("not linear", "it is combined with a tensor that is not one for each channel")
    return -long[0] - 1


def _values(given: Parameters) -> list[Node]:
    """What of a call's tensors is no constant."""
    return [
        one
        for one in given.node.all_input_nodes
        if one not in given.constants and isinstance(one.meta.get("val"), Tensor)
    ]


def _added(given: Parameters) -> Meaning:
    other = next((c for name in ("other", "self") if (c := given[name]) is not None), None)
    return _shifted(given, other, negated=False)


def _subtracted(given: Parameters) -> Meaning:
    if isinstance(given["self"], Known | Stored):
        return Reason("not linear", "it is subtracted from a constant")
    return _shifted(given, given["other"], negated=True)


def _shifted(given: Parameters, other: Any, *, negated: bool) -> Meaning:
    is_one = isinstance(other, Known) and other.number is not None
    number = other.number if is_one else other
    if isinstance(number, int | float) and not isinstance(number, bool):
        reason = "it adds a number that no stored tensor holds"
        return Reason("not linear", reason) if number else Passing()
    rank = _channel_rank(given, other)
    if isinstance(rank, Reason):
        return rank
    if given["alpha"] not in (1, None) or other.factor != 1:
        return Reason("not linear", "it adds a multiple of a stored tensor")
    shift = ScaleLayer(type="scale", bias=other.key)
    if not negated:
        return Linear(shift, rank, other.keys)
    minus = ScaleLayer(type="scale", factor=-1.0)
    return Linear(Chain((minus, shift, minus)), rank, other.keys)


def _passed(given: Parameters) -> Meaning:
    if given["train"] and given["p"]:
        return Reason("training", "dropout in training mode")
    return Passing()


def _converted(given: Parameters) -> Meaning:
    before, after = (n.meta["val"].dtype for n in (given.node.all_input_nodes[0], given.node))
    return Passing() if before == after else Reason("not linear", f"it converts to {after}")


def _seen(given: Parameters) -> Meaning:
    return Reason("hook", f"{given['module']} calls a hook that sees it")


def _reshaped(given: Parameters) -> Meaning:
    values = (given.node.all_input_nodes[0], given.node)
    same = values[0].meta["val"].dtype == values[1].meta["val"].dtype
    if same and _alike(values):
        return Passing()
    return Reason("not linear", f"{operator_of(given.node)} gives another shape")


_RULES: Mapping[str, Callable[[Parameters], Meaning]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), lambda g: _transposed(g)
    ),
    "linear": _linear,
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), _batch_norm),
    **dict.fromkeys(
        ("_native_batch_norm_legit", "_native_batch_norm_legit_functional"), _trained_norm
    ),
    "pad": _pad,
    "constant_pad_nd": lambda g: _pad(g),
    **{f"reflection_pad{n}d": lambda g: _padding(g, g["padding"], "reflect") for n in (1, 2, 3)},
    **{f"replication_pad{n}d": lambda g: _padding(g, g["padding"], "replicate") for n in (1, 2, 3)},
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _pool),
    "mul": _multiplied,
    "div": _divided,
    "neg": _negated,
    "add": _added,
    "sub": _subtracted,
    **dict.fromkeys(PASSING, _passed),
    **dict.fromkeys(("_to_copy", "to"), _converted),
    "seen": _seen,
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "expand", "slice"), _reshaped),
}
