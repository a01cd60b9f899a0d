"""Entries of a manifest as regions of operations, and regions as entries."""

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

    @property
    def labels(self) -> tuple[str, ...]:
        """What messages call the layers, in execution order."""
        return tuple(op.label for op in self.region.layers)


def request_of(entry: Entry) -> Request[LayerOp]:
    """What an entry asks for. Operations are named after their keys: `chain.1`, `sum.0`."""
    ops: list[LayerOp | AddOp] = []

    def add(item: Item, path: KeyPath, value: str) -> str:
        """Adds an item's operations on a value; gives the name of their result."""
        if isinstance(item, ChainItem):
            for index, link in enumerate(item.chain):
                value = add(link, (*path, "chain", index), value)
            return value
        if isinstance(item, SumItem):
            ways = [add(way, (*path, "sum", i), value) for i, way in enumerate(item.sum)]
            if len(ways) == 1:
                return ways[0]
            ops.append(AddOp(".".join(map(str, (*path, "sum"))), tuple(ways)))
        else:
            ops.append(LayerOp(".".join(map(str, path)), (value,), layer=item, path=path))
        return ops[-1].name

    if isinstance(entry, PairEntry):
        add(entry.second, ("second",), add(entry.first, ("first",), INPUT))
    else:
        add(entry, (), INPUT)
    return Request(Region(tuple(ops)), entry.into, entry.border, entry.input, entry.drop)


def entry_of(request: Request[LayerOp]) -> ChainEntry | SumEntry:
    """The request as an entry with the fewest chains and sums."""
    whole: Item = fold(
        request.region.expression,
        lambda op: op.layer,
        lambda links: ChainItem(chain=tuple(links)),
        lambda branches: SumItem(sum=tuple(branches)),
    )
    terms: dict[str, Any] = {
        "into": request.into,
        "border": request.border,
        "input": request.input_size,
        "drop": request.drop or None,
    }
    given = {key: value for key, value in terms.items() if value is not None}
    if isinstance(whole, SumItem):
        return SumEntry(sum=whole.sum, **given)
    return ChainEntry(chain=whole.chain if isinstance(whole, ChainItem) else (whole,), **given)
