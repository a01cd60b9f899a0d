"""The manifest: what a user says about the layers of a checkpoint."""

from convsqueeze.kinds import Layer
from convsqueeze.manifest.contract import Contracted, contract
from convsqueeze.manifest.expand import Expansion, expand, unbound
from convsqueeze.manifest.flat import flat
from convsqueeze.manifest.load import (
    KeyPath,
    Manifest,
    item_parts,
    load_manifest,
    manifest_from_data,
    parse_manifest,
    parts,
)
from convsqueeze.manifest.model import (
    BORDERS,
    Border,
    ChainEntry,
    ChainItem,
    Document,
    Entry,
    Item,
    PairEntry,
    SumEntry,
    SumItem,
    json_schema,
)
from convsqueeze.manifest.write import document_data, manifest_yaml

__all__ = [
    "BORDERS",
    "Border",
    "ChainEntry",
    "ChainItem",
    "Contracted",
    "Document",
    "Entry",
    "Expansion",
    "Item",
    "KeyPath",
    "Layer",
    "Manifest",
    "PairEntry",
    "SumEntry",
    "SumItem",
    "contract",
    "document_data",
    "expand",
    "flat",
    "item_parts",
    "json_schema",
    "load_manifest",
    "manifest_from_data",
    "manifest_yaml",
    "parse_manifest",
    "parts",
    "unbound",
]
