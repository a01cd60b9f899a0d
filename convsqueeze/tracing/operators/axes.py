"""Numbers for each axis: as ATen gives them, and as the manifest writes them."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch.fx import Node


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


def axis_pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    """(before, after) for each axis in order, of torch's flat list, which begins with the last."""
    return [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)][::-1]


def are_fixed(settings: Iterable[Any]) -> bool:
    """Whether no number in them, or in lists of them, is computed when the model runs."""
    lists = (value if isinstance(value, list) else [value] for value in settings)
    return not any(isinstance(number, Node) for numbers in lists for number in numbers)
