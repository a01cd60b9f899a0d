"""The manifest's words as frozen values; their JSON Schema comes from the same classes.

Knows what a manifest may say, not what a checkpoint holds or where a line stands in a file.
"""

from collections.abc import Callable
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from convsqueeze.kinds import LAYER_KINDS, Layer
from convsqueeze.kinds.fields import Name, Strict

Border = Literal["exact", "corrected", "interior"]
MANIFEST_VERSION = 1


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("1")
    return value


def item_tag(value: Any) -> str:
    """Which class an item of a chain or sum is: by its key `chain` or `sum`, else its type."""
    given = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    if "chain" in given or "sum" in given:
        return "chain" if "chain" in given else "sum"
    kind = given.get("type", "conv")
    return kind if isinstance(kind, str) else "unknown"


def entry_tag(value: Any) -> str:
    """Which class an entry of `pairs` is."""
    tag = item_tag(value)
    return tag if tag in ("chain", "sum") else "pair"


def _one_of(kinds: dict[str, type[Strict]], tag: Callable[[Any], str]) -> Any:
    """A value of one of these classes, which `tag` tells."""
    tagged = (Annotated[kind, Tag(name)] for name, kind in kinds.items())
    return Annotated[reduce(or_, tagged), Discriminator(tag)]


class ChainItem(Strict):
    """Layers one after the other, the first taking the input."""

    chain: "tuple[Item, ...]" = Field(min_length=1)


class SumItem(Strict):
    """Branches that all take the input; their outputs are added."""

    sum: "tuple[Item, ...]" = Field(min_length=1)


ITEM_KINDS: dict[str, type[Strict]] = {**LAYER_KINDS, "chain": ChainItem, "sum": SumItem}
if TYPE_CHECKING:
    Item = Layer | ChainItem | SumItem
else:
    Item = _one_of(ITEM_KINDS, item_tag)


class _Entry(Strict):
    into: Name | None = Field(
        None, description="Name of the merged layer; the first named layer's by default."
    )
    border: Border | None = Field(None, description="Border policy of this entry.")
    input: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None, description="The only input size that matters, one number for each axis."
    )
    drop: tuple[Name, ...] = Field(
        (), description="Layers or tensors to remove with the merge, as a stale merged copy."
    )


class PairEntry(_Entry):
    """Two layers in execution order."""

    first: Item
    second: Item


class ChainEntry(_Entry, ChainItem):
    """A chain of any length."""


class SumEntry(_Entry, SumItem):
    """Parallel branches, summed."""


ENTRY_KINDS: dict[str, type[Strict]] = {"pair": PairEntry, "chain": ChainEntry, "sum": SumEntry}
if TYPE_CHECKING:
    Entry = PairEntry | ChainEntry | SumEntry
else:
    Entry = _one_of(ENTRY_KINDS, entry_tag)


class Document(Strict):
    """A convsqueeze manifest: which layers to merge, with their geometry in torch's terms."""

    version: Annotated[Literal[1], BeforeValidator(_not_bool)]
    border: Border = Field("exact", description="Border policy of entries that name none.")
    pairs: tuple[Entry, ...] = Field(min_length=1)


def data_of(value: Strict) -> dict[str, Any]:
    """An entry or a document as plain data, what nobody set left out."""
    return value.model_dump(mode="json", exclude_unset=True)


def json_schema() -> dict[str, Any]:
    """The manifest's JSON Schema (draft 2020-12)."""
    schema = Document.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
