"""Pads and average pools: layers without tensors."""

from collections.abc import Sequence
from typing import Any

from convsqueeze.graph import Reason
from convsqueeze.kinds.avg_pool import AvgPoolLayer
from convsqueeze.kinds.pad import PadLayer
from convsqueeze.tracing.operators.axes import (
    are_fixed,
    axis_pairs,
    on_every_axis,
    per_axis_numbers,
)
from convsqueeze.tracing.operators.meanings import Linear, Meaning, Parameters, Passing


def pad(given: Parameters) -> Meaning:
    """`pad`, with a mode or a value."""
    mode = {"constant": "zeros"}.get(given["mode"] or "constant", given["mode"] or "constant")
    if mode == "zeros" and given["value"] not in (None, 0, 0.0):
        return Reason("not linear", f"it pads with {given['value']}")
    return pad_by(given, given["pad"], mode)


def pad_by(given: Parameters, flat: Sequence[Any], mode: str) -> Meaning:
    """A pad by a mode; `flat` holds before and after of the last axis, then those of others."""
    if not all(isinstance(number, int) for number in flat):
        return Reason("not linear", "how far it pads depends on the size of the input")
    pairs = axis_pairs(flat)
    return padding_meaning([(0, 0)] * (given.ndim() - 2 - len(pairs)) + pairs, mode)


def padding_meaning(pairs: Sequence[tuple[int, int]], mode: str = "zeros") -> Linear | Passing:
    """A pad by (before, after) on each axis."""
    numbers = {number for pair in pairs for number in pair}
    if not any(numbers):
        return Passing()
    settings = {} if mode == "zeros" else {"padding_mode": mode}
    padding = pairs[0][0] if len(numbers) == 1 else [list(pair) for pair in pairs]
    return Linear(PadLayer(type="pad", padding=padding, **settings), len(pairs))


def pool(given: Parameters) -> Meaning:
    """An average pool that counts what it pads."""
    rank = int(given.operator[len("avg_pool")])
    kernel, padding = (per_axis_numbers(given[name], rank) for name in ("kernel_size", "padding"))
    stride = per_axis_numbers(given["stride"], rank) if given["stride"] else kernel
    if not are_fixed((kernel, stride, padding)):
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
