"""Code that pads with what a layer makes of zero, as reparameterized blocks write it.

`f` is a 1x1 convolution or a norm, so that `f(pad(x))` is `f(x)` with a ring of `f(0)` around it.
ECBSR pastes `f(x)` into a map of the bias; the Diverse Branch Block pads `f(x) - f(0)` with zeros
and adds `f(0)` again. Both are told as a pad before `f`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch.fx import Node

from convsqueeze.kinds.call import Constant, Numbers, Stored, axis_pairs
from convsqueeze.tracing.constants import bound, operator_name, shape_of


@dataclass(frozen=True)
class BiasPadded:
    """The value of `inner`, itself a function of one value, padded by what it makes of zero.

    `padding` holds [before, after] for each axis behind the channels.
    """

    inner: Node
    padding: tuple[tuple[int, int], ...]


def bias_padded(node: Node, constants: Mapping[Node, Constant]) -> BiasPadded | None:
    """What the call does, if it completes one of the idioms."""
    operator = operator_name(node.target)
    if operator == "slice_scatter":
        return _pasted(node, constants)
    return _padded_around(node, constants) if operator == "add" else None


def _pasted(node: Node, constants: Mapping[Node, Constant]) -> BiasPadded | None:
    """`ring[..., a:-b, c:-d] = f(x)`, where the ring holds the bias of the convolution `f`."""
    ring, shape = bound(node)["self"], shape_of(node)
    filled = constants.get(ring) if isinstance(ring, Node) else None
    if not isinstance(filled, Stored) or not filled.spread or shape is None:
        return None
    padding = [(0, 0)] * len(shape)
    value: Node = node
    while operator_name(value.target) == "slice_scatter":
        given = bound(value)
        start, end = given["start"] or 0, given["end"]
        if not isinstance(start, int) or not isinstance(end, int) or given["step"] != 1:
            return None
        if not _is_part_of(given["self"], ring) or start < 0 or end >= 0:
            return None
        padding[given["dim"]] = (start, -end)
        value = given["src"]
    if operator_name(value.target) == "copy":
        value = bound(value)["src"]
    if padding[:2] != [(0, 0), (0, 0)] or value in constants:
        return None
    taken = bound(value).get("bias") if _is_pointwise(value) else None
    bias = constants.get(taken) if isinstance(taken, Node) else None
    same = isinstance(bias, Stored) and bias.key == filled.key and filled.factor == 1.0
    channels = (1, shape[1], *(1,) * (len(shape) - 2))
    ends = _as_map(filled, constants, ring) == channels
    return BiasPadded(value, tuple(padding[2:])) if same and ends else None


def _is_part_of(node: Node, ring: Node) -> bool:
    while node is not ring and operator_name(node.target) == "slice":
        node = bound(node)["self"]
    return node is ring


def _as_map(filled: Stored, constants: Mapping[Node, Constant], ring: Node) -> tuple[int, ...]:
    """The shape that was repeated, with leading axes of one."""
    source = ring.args[0]
    before = constants.get(source) if isinstance(source, Node) else None
    shape = before.shape if isinstance(before, Stored) else ()
    return (*(1,) * (len(filled.shape) - len(shape)), *shape)


def _is_pointwise(node: Node) -> bool:
    """Whether the call is a convolution of one tap on the sample itself."""
    if operator_name(node.target) not in ("conv1d", "conv2d", "conv3d"):
        return False
    given = bound(node)
    weight = given["weight"].meta["val"].shape
    steps = all(n == 1 for n in given["stride"])
    padding = given["padding"]
    unpadded = padding == "valid" or (not isinstance(padding, str) and not any(padding))
    return all(n == 1 for n in weight[2:]) and steps and unpadded


def _padded_around(node: Node, constants: Mapping[Node, Constant]) -> BiasPadded | None:
    """`pad(f(x) - f(0)) + f(0)`, where `f` is a norm."""
    given = bound(node)
    pad, of_zero = given["self"], given["other"]
    if (
        not isinstance(pad, Node)
        or not isinstance(of_zero, Node)
        or operator_name(pad.target) != "pad"
    ):
        return None
    padding, difference = bound(pad), bound(pad)["self"]
    flat = padding["pad"]
    plain = padding["mode"] == "constant" and not padding["value"]
    if (
        not plain
        or operator_name(difference.target) != "sub"
        or any(not isinstance(n, int) for n in flat)
    ):
        return None
    terms = bound(difference)
    if terms["other"] is not of_zero or any(g["alpha"] != 1 for g in (given, terms)):
        return None
    if not _is_of_zero(of_zero, terms["self"], constants):
        return None
    axes = terms["self"].meta["val"].ndim - 2
    pairs = axis_pairs(flat)
    return BiasPadded(terms["self"], tuple(pairs)) if len(pairs) == axes else None


def _is_of_zero(of_zero: Node, value: Node, constants: Mapping[Node, Constant]) -> bool:
    """Whether both are the same norm, one of them of zeros of one sample an axis."""
    one, other = _norm_behind(of_zero), _norm_behind(value)
    given = one.args[0] if one is not None else None
    if one is None or other is None or one.args[1:] != other.args[1:]:
        return False
    zeros = constants.get(given) if isinstance(given, Node) else None
    if not isinstance(zeros, Numbers) or zeros.number != 0:
        return False
    lengths = [n for axis, n in enumerate(zeros.value.shape) if axis != 1]
    return lengths == [1] * (value.meta["val"].ndim - 1)


def _norm_behind(node: Node) -> Node | None:
    """The norm in eval mode whose first result it is."""
    if operator_name(node.target) != "getitem" or node.args[1] != 0:
        return None
    norm = node.args[0]
    named = (
        isinstance(norm, Node)
        and operator_name(norm.target) == "_native_batch_norm_legit_no_training"
    )
    return norm if isinstance(norm, Node) and named else None
