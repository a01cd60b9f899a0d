"""What a squeezed layer adds at its borders, as a torch module.

Knows corrections and tensors; nothing of recipes or files.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convsqueeze.algebra.border.corrections import Corrections, Subset, digits, term_name
from convsqueeze.algebra.border.strips import (
    Kernel,
    KernelPlan,
    Stored,
    add_borders,
    kernel_plan,
    pack,
)
from convsqueeze.algebra.geometry import Axis, Geometry
from convsqueeze.errors import GeometryError

Kind = tuple[tuple[int, ...], torch.device, torch.dtype]
MOST_KEPT = 64
"""Kinds of sizes for which it is kept how kernels are made."""
MOST_KEPT_PLACES = 1 << 20
"""Of such a kind, in all its kernels; larger ones are made anew each time."""


class Border(nn.Module):
    """What a plain operator lacks at the borders: the terms of `algebra.border.corrections`.

    Each set of axes has a child named by their numbers, `0` or `01`, with `weight` and `bias`.
    """

    def __init__(
        self,
        corrections: Corrections,
        geometry: Geometry,
        tensors: Mapping[str, Tensor],
        *,
        signs: bool = True,
    ) -> None:
        super().__init__()
        self.corrections = corrections
        self.axes: tuple[Axis, ...] = geometry.axes
        self.groups, self.signs = geometry.groups, signs
        # Neither a parameter nor a buffer: these numbers follow from the recipe, and a state dict
        # or `to_empty` must not touch them.
        self.packed, self.strips = pack(corrections)
        self.tables = self.packed
        self._kept: dict[Kind, list[KernelPlan]] = {}
        for subset in corrections.subsets:
            self.add_module(digits(subset), Term(subset, tensors))
        self._follow()

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """`y`, the plain operator's output for `x`, made exact in place."""
        return self.added(y, x, self.kernels(x))

    def added(self, y: Tensor, x: Tensor, kernels: Sequence[Kernel]) -> Tensor:
        """`y` with what `kernels(x)` adds, in place."""
        if x.ndim == len(self.axes) + 1:  # without a batch, as torch's own layers take it
            return add_borders(y.unsqueeze(0), x.unsqueeze(0), kernels, self.groups).squeeze(0)
        return add_borders(y, x, kernels, self.groups)

    def kernels(self, x: Tensor, dtype: torch.dtype | None = None) -> list[Kernel]:
        """The kernels for the size of `x`, in `dtype` or as they are stored.

        Raises GeometryError for a size that is not corrected.
        """
        strips = []
        sizes = x.shape[-len(self.axes) :]
        for axis, table, size in zip(self.corrections.axes, self.strips, sizes, strict=True):
            found = table.get(axis.class_size(size))
            if found is None:
                raise GeometryError(axis.not_for(int(size)))
            strips.append(found)
        stored = {term.subset: term.stored(dtype) for term in self.terms()}
        like = next((t for pair in stored.values() for t in pair if t is not None), None)
        if like is None:
            return []
        kind = (tuple(map(id, strips)), like.device, like.dtype)
        kept = {} if _is_traced(x) else self._kept  # looked up once: there may be other threads
        plans = kept.get(kind)
        if plans is None:
            tables = self.tables if self.tables.device == x.device else self.packed.to(x.device)
            plans = [
                kernel_plan(
                    self.corrections, one, strips, tables, self.axes, like.dtype, signs=self.signs
                )
                for one in stored
            ]
            if not _is_traced(x) and sum(map(_places, plans)) <= MOST_KEPT_PLACES:
                self._kept = {**(kept if len(kept) < MOST_KEPT else {}), kind: plans}
        return [plan(stored[plan.subset]) for plan in plans]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Border":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._follow()
        return self

    def _follow(self) -> None:
        """The tables to where the tensors are, if that is one device."""
        devices = {parameter.device for parameter in self.parameters()}
        if len(devices) == 1:
            self.tables = self.packed.to(devices.pop())

    def terms(self) -> "Iterator[Term]":
        """The tensors of each set of axes."""
        return (child for child in self.children() if isinstance(child, Term))


class Term(nn.Module):
    """The tensors of one set of axes."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, subset: Subset, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.subset = subset
        for role in ("weight", "bias"):
            tensor = tensors.get(term_name(subset, role))
            self.register_parameter(role, None if tensor is None else nn.Parameter(tensor))

    def stored(self, dtype: torch.dtype | None = None) -> Stored:
        """Its tensors, in `dtype` or as they are."""
        if dtype is None:
            return self.weight, self.bias
        return tuple(None if t is None else t.to(dtype) for t in (self.weight, self.bias))  # type: ignore[return-value]


def _places(plan: KernelPlan) -> int:
    return sum(one.index.numel() for one in (plan.weight, plan.bias) if one is not None)


def _is_traced(x: Tensor) -> bool:
    """Whether what is computed now belongs to a graph, so that nothing of it may be kept."""
    is_plain = type(x) in (Tensor, nn.Parameter)
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or not is_plain  # type: ignore[attr-defined,no-untyped-call]
