"""Products, quotients, sums and differences of one value and a constant."""

from math import isfinite
from typing import Any, TypeGuard

from convsqueeze.algebra.tree import Chain, Tree
from convsqueeze.graph import Reason
from convsqueeze.kinds.scale import ScaleLayer
from convsqueeze.manifest import Layer
from convsqueeze.tracing.constants import Known, Stored
from convsqueeze.tracing.operators.meanings import Linear, Meaning, Parameters, Passing


def scale_meaning(*, factor: float = 1.0, shift: float = 0.0) -> Linear | Passing | Reason:
    """`factor * x + shift`, with numbers that stand in the code."""
    if not isfinite(factor) or not isfinite(shift):
        return Reason("not linear", "it computes with a number that is not finite")
    settings = {"factor": factor} if factor != 1 else {}
    settings |= {"shift": shift} if shift else {}
    return Linear(ScaleLayer(type="scale", **settings), None) if settings else Passing()


def multiplied(given: Parameters) -> Meaning:
    """A product with a number, or with one stored number for each channel, on either side."""
    constant, _ = _constant(given)
    number = _number(constant)
    if number is not None:
        return given.changed() or scale_meaning(factor=number)
    rank = _channel_rank(given, constant)
    if isinstance(rank, Reason):
        return rank
    factor = {"factor": constant.factor} if constant.factor != 1 else {}
    return Linear(ScaleLayer(type="scale", weight=constant.key, **factor), rank, constant.keys)


def divided(given: Parameters) -> Meaning:
    """A quotient by a number."""
    number = _number(given["other"])
    if isinstance(given["other"], Stored):
        return Reason("not linear", "it divides by a stored tensor")
    if not number or given["rounding_mode"] is not None:
        return Reason("not linear", "it divides by a value")
    return given.changed() or scale_meaning(factor=1 / number)


def negated(given: Parameters) -> Meaning:
    """`-x`."""
    return scale_meaning(factor=-1.0)


def combined(given: Parameters) -> Meaning:
    """`add`, `sub` and `rsub`: a value and a constant, on either side, one of them by `alpha`."""
    alpha = given.arguments.get("alpha", 1)
    if not is_number(alpha):
        return Reason("not linear", "it adds a multiple that depends on the input")
    constant, is_second = _constant(given)
    factor, share = shares(given.operator, alpha, is_second=is_second)
    number = _number(constant)
    if number is not None:
        return given.changed() or scale_meaning(factor=factor, shift=share * number)
    rank = _channel_rank(given, constant)
    if isinstance(rank, Reason):
        return rank
    return _with_stored(constant, factor, share * constant.factor, rank)


def shares(operator: str, alpha: float, *, is_second: bool) -> tuple[float, float]:
    """By what a value and a constant are added up in `add`, `sub` and `rsub`; the constant stands
    second, or first.
    """
    first, second = {"add": (1.0, alpha), "sub": (1.0, -alpha), "rsub": (-alpha, 1.0)}[operator]
    return (first, second) if is_second else (second, first)


def _with_stored(constant: Stored, factor: float, share: float, rank: int | None) -> Meaning:
    """`factor * x + share * stored`."""
    if not share or not isfinite(factor / share):
        return Reason("not linear", "it adds no share of a stored tensor")
    inner = {"factor": factor / share} if factor != share else {}
    tree: Tree[Layer] = ScaleLayer(type="scale", bias=constant.key, **inner)
    if share != 1:
        tree = Chain((tree, ScaleLayer(type="scale", factor=share)))
    return Linear(tree, rank, constant.keys)


def _constant(given: Parameters) -> tuple[Any, bool]:
    """What a value is combined with, None if that is not known, and whether it stands second."""
    is_second = given.arguments["self"] is given.value
    return given["other" if is_second else "self"], is_second


def _number(constant: Any) -> float | None:
    """The one number that a constant is, if it is one."""
    if isinstance(constant, Known):
        return constant.number
    return float(constant) if is_number(constant) else None


def is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _channel_rank(given: Parameters, other: Any) -> int | Reason | None:
    """The axes behind the channels that a stored tensor has one number each for."""
    if isinstance(other, Known):
        return Reason("not linear", "it is combined with numbers that no stored tensor holds")
    if not isinstance(other, Stored) or other.spread or len(other.keys) > 1:
        return Reason("not linear", "it is combined with a tensor that is computed")
    if changed := given.changed():
        return changed
    ndim = given.ndim()
    long = [axis - len(other.shape) for axis, size in enumerate(other.shape) if size > 1]
    if not long:
        return None
    if len(long) > 1 or ndim + long[0] == 0:
        return Reason("not linear", "it is combined with a tensor that is not one for each channel")
    return -long[0] - 1
