"""Code that pads with what a layer makes of zero, as reparameterized blocks write it.

`f` is a 1x1 convolution or a norm, so that `f(pad(x))` is `f(x)` with a ring of `f(0)` around it.
ECBSR pastes `f(x)` into a map of the bias; the Diverse Branch Block pads `f(x) - f(0)` with zeros
and adds `f(0)` again. Both are told as a pad before `f`.
"""

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from convsqueeze.kinds.call import Numbers, Stored, axis_pairs
from convsqueeze.tracing.constants import Constants, bound, operator_name, shape_of


@dataclass(frozen=True)
class BiasPadded:
    """The value of `inner`, itself a function of one value, padded by what it makes of zero.

    `padding` holds [before, after] for each axis behind the channels.
    """

    inner: Node
    padding: tuple[tuple[int, int], ...]


def bias_padded(node: Node, constants: Constants) -> BiasPadded | None:
    """What the call does, if it completes one of the idioms."""
    operator = operator_name(node.target)
    if operator == "slice_scatter":
        return _pasted(node, constants)
    return _padded_around(node, constants) if operator == "add" else None


def _pasted(node: Node, constants: Constants) -> BiasPadded | None:
    """`ring[..., a:-b, c:-d] = f(x)`, where the ring holds the bias of the convolution `f`."""
    ring, shape = bound(node)["self"], shape_of(node)
    filled = constants.get(ring)
    if not isinstance(filled, Stored) or not filled.spread or shape is None:
        return None
    padding = [(0, 0)] * len(shape)
    value: Node = node
    while operator_name(value.target) == "slice_scatter":
        given = bound(value)
        start, end = given["start"] or 0, given["end"]
        if not isinstance(start, int) or not isinstance(end, int) or given["step"] != 1:
            return None
        part = given["self"]
        while part is not ring and operator_name(part.target) == "slice":
            part = bound(part)["self"]
        if part is not ring or start < 0 or end >= 0:
            return None
        padding[given["dim"]] = (start, -end)
        value = given["src"]
    if operator_name(value.target) == "copy":
        value = bound(value)["src"]
    if padding[:2] != [(0, 0), (0, 0)] or value in constants or not _is_pointwise(value):
        return None
    bias, source = constants.get(bound(value)["bias"]), constants.get(ring.args[0])
    if not isinstance(bias, Stored) or bias.key != filled.key or filled.factor != 1.0:
        return None
    before = source.shape if isinstance(source, Stored) else ()
    before = (*(1,) * (len(filled.shape) - len(before)), *before)  # what was repeated
    is_map = before == (1, shape[1], *(1,) * (len(shape) - 2))
    return BiasPadded(value, tuple(padding[2:])) if is_map else None


def _is_pointwise(node: Node) -> bool:
    """Whether the call is a convolution of one tap on the sample itself."""
    if operator_name(node.target) not in ("conv1d", "conv2d", "conv3d"):
        return False
    given = bound(node)
    taps = given["weight"].meta["val"].shape[2:]
    unpadded = given["padding"] == "valid" or {*given["padding"]} == {0}
    return unpadded and all(n == 1 for n in (*taps, *given["stride"]))


def _padded_around(node: Node, constants: Constants) -> BiasPadded | None:
    """`pad(f(x) - f(0)) + f(0)`, where `f` is a norm."""
    given = bound(node)
    pad, of_zero = given["self"], given["other"]
    if not isinstance(pad, Node) or operator_name(pad.target) != "pad":
        return None
    padding = bound(pad)
    difference, flat = padding["self"], padding["pad"]
    plain = padding["mode"] == "constant" and not padding["value"]
    fixed = plain and all(isinstance(n, int) for n in flat)
    if not fixed or operator_name(difference.target) != "sub":
        return None
    terms = bound(difference)
    value = terms["self"]
    if terms["other"] is not of_zero or any(g["alpha"] != 1 for g in (given, terms)):
        return None
    pairs = axis_pairs(flat)
    fits = _is_of_zero(of_zero, value, constants) and len(pairs) == value.meta["val"].ndim - 2
    return BiasPadded(value, tuple(pairs)) if fits else None


def _is_of_zero(of_zero: Any, value: Any, constants: Constants) -> bool:
    """Whether both are the same norm, one of them of zeros of one sample an axis."""
    one, other = _norm_behind(of_zero), _norm_behind(value)
    if one is None or other is None or one.args[1:] != other.args[1:]:
        return False
    zeros = constants.get(one.args[0])  # type: ignore[arg-type]
    if not isinstance(zeros, Numbers) or zeros.number != 0:
        return False
    lengths = [n for axis, n in enumerate(zeros.value.shape) if axis != 1]
    return lengths == [1] * (value.meta["val"].ndim - 1)


def _norm_behind(node: Any) -> Node | None:
    """The norm in eval mode whose first result it is."""
    is_first = isinstance(node, Node) and operator_name(node.target) == "getitem"
    if not is_first or node.args[1] != 0:
        return None
    named = operator_name(node.args[0].target) == "_native_batch_norm_legit_no_training"
    return node.args[0] if named else None
