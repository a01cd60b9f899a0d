"""Products, quotients, sums and differences of one value and a constant."""

from typing import Any

from convsqueeze.algebra.tree import Chain
from convsqueeze.manifest import ScaleLayer
from convsqueeze.tracing.constants import Known, Stored
from convsqueeze.tracing.graph import Reason
from convsqueeze.tracing.operators.meanings import Linear, Meaning, Parameters, Passing


def multiplied(given: Parameters) -> Meaning:
    """A product with a constant on either side."""
    other = next((c for name in ("other", "self") if (c := given[name]) is not None), None)
    return _scaled(given, other)


def divided(given: Parameters) -> Meaning:
    """A quotient by a number."""
    other = given["other"]
    number = other.number if isinstance(other, Known) else other
    if isinstance(number, int | float) and number and given["rounding_mode"] is None:
        return factor_meaning(1 / number)
    return Reason("not linear", "it divides by a value")


def negated(given: Parameters) -> Meaning:
    """`-x`."""
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
    ndim = given.node.meta["val"].ndim
    long = [axis - len(other.shape) for axis, size in enumerate(other.shape) if size > 1]
    if not long:
        return None if len(other.shape) <= ndim else Reason("not linear", "it adds an axis")
    if len(long) > 1 or len(other.shape) > ndim or ndim + long[0] == 0:
        return Reason("not linear", "it is combined with a tensor that is not one for each channel")
    return -long[0] - 1


def added(given: Parameters) -> Meaning:
    """A sum with a constant on either side."""
    other = next((c for name in ("other", "self") if (c := given[name]) is not None), None)
    return _shifted(given, other, negated=False)


def subtracted(given: Parameters) -> Meaning:
    """A difference from which a constant is taken."""
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
