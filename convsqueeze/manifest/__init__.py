"""The manifest: what a user says about the layers of a checkpoint."""

from convsqueeze.kinds import Layer
from convsqueeze.manifest.contract import Contracted, contract
from convsqueeze.manifest.expand import Expansion, expand, unbound
from convsqueeze.manifest.load import (
    Manifest,
    load_manifest,
    manifest_from_data,
    parse_manifest,
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
from convsqueeze.manifest.regions import Request, entry_of, layer_labels, request_of
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
    "Layer",
    "Manifest",
    "PairEntry",
    "Request",
    "SumEntry",
    "SumItem",
    "contract",
    "document_data",
    "entry_of",
    "expand",
    "json_schema",
    "layer_labels",
    "load_manifest",
    "manifest_from_data",
    "manifest_yaml",
    "parse_manifest",
    "request_of",
    "unbound",
]
