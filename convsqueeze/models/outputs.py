"""What a model gives back, as named tensors: tuples, dicts, dataclasses and what they hold."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

NamedTensors = dict[str, Tensor]


def named_tensors(output: Any) -> NamedTensors:
    """Every tensor of an output by where it stands in it: `output[0]`, `output["sample"]`,
    `output.logits`; numbers are tensors too. Real, on the CPU, without gradients.
    """
    return {place: _plain(tensor) for place, tensor in given_tensors(output)}


def given_tensors(output: Any) -> Iterator[tuple[str, Tensor]]:
    """The same as the model gives them, with their gradients."""
    return _walk(output, "output", frozenset())


def _walk(value: Any, place: str, above: frozenset[int]) -> Iterator[tuple[str, Tensor]]:
    if id(value) in above:
        return
    within = above | {id(value)}
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, bool | int | float):
        yield place, torch.tensor(value, dtype=torch.float64)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _walk(one, f"{place}[{key!r}]", within)
    elif isinstance(value, list | tuple):
        for index, one in enumerate(value):
            yield from _walk(one, f"{place}[{index}]", within)
    elif is_dataclass(value):
        for one in fields(value):
            yield from _walk(getattr(value, one.name), f"{place}.{one.name}", within)


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.cpu()
