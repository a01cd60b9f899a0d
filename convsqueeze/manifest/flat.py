"""Entries with nothing nested that need not be: a chain in a chain is more links of it.

Composition and addition are associative, so what is computed stays the same. Knows words only.
"""

from collections.abc import Sequence

from convsqueeze.manifest.load import parts
from convsqueeze.manifest.model import (
    ChainEntry,
    ChainItem,
    Entry,
    Item,
    SumEntry,
    SumItem,
)


def flat(entry: Entry) -> ChainEntry | SumEntry:
    """The same layers with the fewest chains and sums: no chain holds a chain, no sum a sum, and
    none but the entry itself has a single item. A pair becomes a chain.
    """
    kind, found = parts(entry)
    items = tuple(child for _, child in found)
    whole = _flat(ChainItem(chain=items) if kind == "chain" else SumItem(sum=items))
    given = {
        name: getattr(entry, name)
        for name in ("into", "border", "input", "drop")
        if name in entry.model_fields_set
    }
    if isinstance(whole, SumItem):
        return SumEntry(sum=whole.sum, **given)
    return ChainEntry(chain=whole.chain if isinstance(whole, ChainItem) else (whole,), **given)


def _flat(item: Item) -> Item:
    if isinstance(item, ChainItem):
        links = _joined([_flat(link) for link in item.chain], ChainItem)
        return links[0] if len(links) == 1 else ChainItem(chain=links)
    if isinstance(item, SumItem):
        branches = _joined([_flat(branch) for branch in item.sum], SumItem)
        return branches[0] if len(branches) == 1 else SumItem(sum=branches)
    return item


def _joined(items: Sequence[Item], kind: type[ChainItem] | type[SumItem]) -> tuple[Item, ...]:
    """Items of the same kind replaced by what they hold."""
    found: list[Item] = []
    for item in items:
        if isinstance(item, kind):
            found += item.chain if isinstance(item, ChainItem) else item.sum
        else:
            found.append(item)
    return tuple(found)
