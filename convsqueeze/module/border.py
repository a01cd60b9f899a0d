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
    Shortcut,
    Stored,
    Strip,
    add_borders,
    grid_of,
    kernels,
    pack,
    shortcuts,
)
from convsqueeze.algebra.geometry import Axis, Geometry
from convsqueeze.errors import GeometryError

Kind = tuple[tuple[int, ...], torch.device, torch.dtype]
MOST_KEPT = 64
"""Kinds of sizes for which it is kept how kernels are made."""


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
        self._kept: dict[Kind, list[Shortcut] | None] = {}
        for subset in corrections.subsets:
            self.add_module(digits(subset), Term(corrections, subset, geometry, tensors))
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
        terms = dict(self.named_terms())
        stored = {subset: term.stored(dtype) for subset, term in terms.items()}
        tables = self.tables if self.tables.device == x.device else self.packed.to(x.device)
        if not _is_traced(x):
            short = self._shortcuts(strips, stored, tables)
            if short is not None:
                return [one(stored[one.kernel.subset]) for one in short]
        gridded = {subset: terms[subset].gridded(pair) for subset, pair in stored.items()}
        return kernels(gridded, strips, tables, self.axes, signs=self.signs)

    def _shortcuts(
        self, strips: Sequence[Strip], stored: Mapping[Subset, Stored], tables: Tensor
    ) -> list[Shortcut] | None:
        """Kept for each kind of size: they follow from the recipe and not from any value."""
        like = next(self.parameters(), None)
        if like is None:
            return []
        kind = (tuple(map(id, strips)), like.device, _dtype_of(stored))
        kept = self._kept  # looked up once: another thread may be here too
        if kind in kept:
            return kept[kind]
        terms = dict(self.named_terms())
        found = shortcuts(
            stored,
            lambda subset, pair: terms[subset].gridded(pair),
            strips,
            tables,
            self.axes,
            signs=self.signs,
        )
        self._kept = {kind: found} if len(kept) >= MOST_KEPT else {**kept, kind: found}
        return found

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

    def named_terms(self) -> Iterator[tuple[Subset, "Term"]]:
        """Each set of axes with its tensors."""
        for child in self.children():
            if isinstance(child, Term):
                yield child.subset, child


class Term(nn.Module):
    """The tensors of one set of axes."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        corrections: Corrections,
        subset: Subset,
        geometry: Geometry,
        tensors: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        self.subset = subset
        self.grids = corrections.grid(subset, geometry.kernel_size), corrections.bias_grid(subset)
        self.absent = tuple(
            dict(places).get(subset, ())
            for places in (corrections.absent, corrections.absent_biases)
        )
        for role in ("weight", "bias"):
            tensor = tensors.get(term_name(subset, role))
            self.register_parameter(role, None if tensor is None else nn.Parameter(tensor))

    def stored(self, dtype: torch.dtype | None = None) -> Stored:
        """Its tensors, in `dtype` or as they are."""
        if dtype is None:
            return self.weight, self.bias
        return tuple(None if t is None else t.to(dtype) for t in (self.weight, self.bias))  # type: ignore[return-value]

    def gridded(self, stored: Stored) -> Stored:
        """Tensors of this shape as their whole grids."""
        weight, bias = stored
        if weight is not None:
            weight = grid_of(weight, self.grids[0], self.absent[0])
        if bias is not None:
            bias = grid_of(bias, self.grids[1], self.absent[1])
        return weight, bias


def _dtype_of(stored: Mapping[Subset, Stored]) -> torch.dtype:
    return next(t.dtype for pair in stored.values() for t in pair if t is not None)


def _is_traced(x: Tensor) -> bool:
    """Whether what is computed now belongs to a graph, so that nothing of it may be kept."""
    is_plain = type(x) in (Tensor, nn.Parameter)
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or not is_plain  # type: ignore[attr-defined,no-untyped-call]
