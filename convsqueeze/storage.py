"""Which dtype each merged tensor is stored in: its layers' own, or a wider one that holds it.

Knows a merge and its exact values in float64; nothing of files, recipes or modules.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from convsqueeze.algebra.apply import transposed_layout
from convsqueeze.algebra.precision import WIDER, dtype_name, round_once, row_blocks
from convsqueeze.errors import TensorDataError
from convsqueeze.plan import Merge

Named = Mapping[str, Tensor]


@dataclass(frozen=True)
class Widened:
    """A tensor that is stored in a wider `dtype` than its layers', and why.

    `name` is the one within the layer (`weight`, `border.0.bias`), `value` what stands at index
    `at` of the stored tensor; `overflows` or else is lost in the dtype `too_narrow`.
    """

    name: str
    dtype: torch.dtype
    value: float
    at: tuple[int, ...]
    overflows: bool
    too_narrow: torch.dtype

    def note(self, into: str) -> str:
        """What a user is told; `into` is the layer's name."""
        narrow = dtype_name(self.too_narrow)
        why = f"is no finite {narrow} number" if self.overflows else f"is lost in {narrow}"
        return (
            f"{into}.{self.name} is stored as {dtype_name(self.dtype)}: "
            f"{self.value:.4g} at {list(self.at)} {why}"
        )


def round_to_storage(
    merge: Merge, exact: Named, *, widen: bool
) -> tuple[dict[str, Tensor], tuple[Widened, ...]]:
    """The exact values, each tensor rounded once to the merge's dtype, or, with `widen`, to the
    next wider one that holds it: no infinity, and no channel that loses more than rounding.

    Weights in the layout of `Geometry`. Raises TensorDataError where a tensor does not fit.
    """
    rounded = {name: round_once(value, merge.dtype) for name, value in exact.items()}
    widened: dict[str, Widened] = {}
    while found := _overflow(exact, rounded) or _underflow(merge.dtype, exact, rounded):
        name, where, loss = found
        value, at = _first(merge, name, where, exact[name])
        narrow, is_finite = rounded[name].dtype, bool(exact[name].isfinite().all())
        wider = WIDER.get(narrow) if is_finite else None
        if wider is None or not widen:
            held = f"{merge.place}: {merge.into}.{name} would"
            place = f"{value:.4g} at {list(at)}"
            raise TensorDataError(_refusal(held, place, dtype_name(narrow), loss, wider is None))
        rounded[name] = round_once(exact[name], wider)
        widened[name] = Widened(name, wider, value, at, loss is None, narrow)
    return rounded, tuple(widened[name] for name in exact if name in widened)


Misfit = tuple[str, Tensor, str | None]
"""A tensor's name, where values stand that its dtype does not hold, and what is lost with them; the
last is None for values that overflow.
"""


def _overflow(exact: Named, rounded: Named) -> Misfit | None:
    """The first tensor with a value that is no finite number once it is rounded."""
    for name, stored in rounded.items():
        low, high = stored.aminmax()  # which takes no memory; NaN is in both
        if not (low.isfinite() and high.isfinite()):
            return name, ~stored.isfinite(), None
    return None


def _underflow(dtype: torch.dtype, exact: Named, rounded: Named) -> Misfit | None:
    """Rounding costs at most eps of a channel's weights, unless they underflow the dtype.

    Blamed is the tensor that loses most of the first such channel.
    """
    weights = [name for name in exact if name.endswith("weight")]
    lost = {name: _lost(exact[name], rounded[name]) for name in weights}
    total = torch.stack([*lost.values()]).sum(0)
    wide = torch.stack([_absolute_sums(exact[name]) for name in weights]).sum(0)
    bad = (total > torch.finfo(dtype).eps * wide).nonzero()
    if not len(bad):
        return None
    channel = int(bad[0])
    name = max(weights, key=lambda one: float(lost[one][channel]))
    losses = (exact[name][channel] - rounded[name][channel].double()).abs()
    worst = torch.zeros_like(exact[name], dtype=torch.bool)
    worst[channel] = losses == losses.max()
    share = float(total[channel] / wide[channel])
    percent = f"{share:.0%}" if share >= 0.01 else f"{100 * share:.2g}%"
    return name, worst, f"lose {percent} of output channel {channel}"


def _lost(values: Tensor, stored: Tensor) -> Tensor:
    """What rounding takes of the weights of each output channel, summed: (channels,)."""
    blocks = row_blocks(values)
    held = torch.empty_like(blocks[0])  # one for all: freed blocks leave holes that none fits into
    pairs = zip(blocks, row_blocks(stored), strict=True)
    return torch.cat(
        [_absolute_sums(torch.sub(some, kept, out=held[: len(some)])) for some, kept in pairs]
    )


def _absolute_sums(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values.flatten(1), 1, dim=1)


def _first(merge: Merge, name: str, where: Tensor, values: Tensor) -> tuple[float, tuple[int, ...]]:
    """The first value that is meant, and its place in the tensor as it is stored."""
    if name == "weight" and merge.geometry.is_transposed:
        groups = merge.geometry.groups
        where, values = transposed_layout(where, groups), transposed_layout(values, groups)
    place = tuple(where.nonzero()[0].tolist())
    return values[place].item(), place


def _refusal(held: str, place: str, dtype: str, loss: str | None, in_any_dtype: bool) -> str:
    if loss is not None:
        return (
            f"{held} {loss}, whose weights are below the range of {dtype}, such as {place}. Store "
            "these layers in a wider dtype, leave them apart, or keep it with --widen."
        )
    if in_any_dtype:
        return (
            f"{held} hold {place}, which is no finite number in any dtype. Check the layers' "
            "weights, norms and scales."
        )
    return (
        f"{held} hold {place}, which is no finite {dtype} number. Store these layers in a wider "
        "dtype, check the norms' variances and scales, or keep it with --widen."
    )
