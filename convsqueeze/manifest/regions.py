"""Entries of a manifest as regions of operations, and regions as entries."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from convsqueeze.algebra.tree import fold
from convsqueeze.graph import AddOp, LayerOp, Region
from convsqueeze.manifest.model import (
    Border,
    ChainEntry,
    ChainItem,
    Entry,
    Item,
    PairEntry,
    SumEntry,
    SumItem,
)
from convsqueeze.names import KeyPath

L = TypeVar("L", bound=LayerOp, covariant=True)
INPUT = "input"
"""The value that enters an entry's layers."""


@dataclass(frozen=True)
class Request(Generic[L]):
    """A region that is to become one layer, and the terms: as an entry of a manifest says it.

    `into` names the result (None: the first named layer's), `border` is the entry's own policy,
    `input_size` the only size that matters, `drop` what is removed with the merge.
    """

    region: Region[L]
    into: str | None = None
    border: Border | None = None
    input_size: tuple[int, ...] | None = None
    drop: tuple[str, ...] = ()


def request_of(entry: Entry) -> Request[LayerOp]:
    """What an entry asks for. Operations are named after their keys: `chain.1`, `sum.0`."""
    if isinstance(entry, PairEntry):
        ops, _ = _in_series((("first",), entry.first), (("second",), entry.second), value=INPUT)
    else:
        ops, _ = _ops(entry, (), INPUT)
    return Request(Region(tuple(ops)), entry.into, entry.border, entry.input, entry.drop)


Ops = list[LayerOp | AddOp]


def _ops(item: Item, path: KeyPath, value: str) -> tuple[Ops, str]:
    """An item's operations on a value, and the value that they give."""
    if isinstance(item, ChainItem):
        links = (((*path, "chain", i), link) for i, link in enumerate(item.chain))
        return _in_series(*links, value=value)
    if isinstance(item, SumItem) and len(item.sum) == 1:
        return _ops(item.sum[0], (*path, "sum", 0), value)
    if isinstance(item, SumItem):
        ways = [_ops(way, (*path, "sum", i), value) for i, way in enumerate(item.sum)]
        add = AddOp(_name((*path, "sum")), tuple(result for _, result in ways))
        return [*(op for ops, _ in ways for op in ops), add], add.name
    op = LayerOp(_name(path), (value,), layer=item, path=path)
    return [op], op.name


def _in_series(*links: tuple[KeyPath, Item], value: str) -> tuple[Ops, str]:
    ops: Ops = []
    for path, link in links:
        more, value = _ops(link, path, value)
        ops += more
    return ops, value


def _name(path: KeyPath) -> str:
    return ".".join(map(str, path))


def entry_of(request: Request[LayerOp]) -> ChainEntry | SumEntry:
    """The request as an entry with the fewest chains and sums."""
    whole: Item = fold(
        request.region.expression,
        lambda op: op.layer,
        lambda links: ChainItem(chain=tuple(links)),
        lambda branches: SumItem(sum=tuple(branches)),
    )
    terms = dict(_terms(request))
    if isinstance(whole, SumItem):
        return SumEntry(sum=whole.sum, **terms)
    return ChainEntry(chain=whole.chain if isinstance(whole, ChainItem) else (whole,), **terms)


def _terms(request: Request[LayerOp]) -> Iterator[tuple[str, Any]]:
    """The keys beside the layers that an entry needs."""
    for key, value in (
        ("into", request.into),
        ("border", request.border),
        ("input", request.input_size),
        ("drop", request.drop or None),
    ):
        if value is not None:
            yield key, value


def layer_labels(entry: Entry) -> tuple[str, ...]:
    """What messages call an entry's layers, in execution order."""
    return tuple(op.label for op in request_of(entry).region.layers)
