"""The value that comes nearest to its bound, or goes furthest beyond it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Worst:
    """The largest share of the bound met in one part of the outputs, and where."""

    error: float = 0.0
    bound: float = 0.0
    share: float = 0.0
    place: str = ""

    @property
    def excess(self) -> str:
        """What stands behind `differs by`, of one that is beyond the bound."""
        return f"{self.error:.3e} where at most {self.bound:.3e} is rounding, {self.place}"

    @property
    def problem(self) -> str | None:
        """What is told of it where it is beyond the bound."""
        return None if self.share <= 1.0 else f"differs by {self.excess}"


UNMEASURED = Worst()


def nearer(one: Worst, other: Worst) -> Worst:
    """The larger share; `one` of equals, and of two of which one has no place the other."""
    return max(one, other, key=lambda worst: (bool(worst.place), worst.share))


def share_of(error: Tensor, bound: Tensor) -> Tensor:
    """`error / bound`: zero where nothing differs, infinite where the error is no number."""
    return torch.where(error == 0, 0.0, error / bound).nan_to_num(torch.inf, torch.inf)


def worst_of(
    error: Tensor, bound: Tensor, place: Callable[[list[int]], str], rank: Tensor | None = None
) -> Worst:
    """The value that ranks highest, by default by its share of the bound.

    All tensors have one shape; `place` words an index.
    """
    rank = share_of(error, bound) if rank is None else rank
    index = np.unravel_index(int(rank.argmax()), rank.shape)  # torch's own imports sympy
    found, most = error[index], bound[index]
    at = [int(i) for i in index]
    return Worst(float(found), float(most), float(share_of(found, most)), place(at))
