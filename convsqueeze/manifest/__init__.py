"""The manifest: what a user says about the layers of a checkpoint."""

from convsqueeze.manifest.expand import expand, unbound
from convsqueeze.manifest.load import Manifest, load_manifest, manifest_from_data, parse_manifest
from convsqueeze.manifest.model import (
    Border,
    ChainEntry,
    ChainItem,
    Document,
    Entry,
    SumEntry,
    SumItem,
    data_of,
    json_schema,
)
from convsqueeze.manifest.regions import Request, entry_of, request_of
from convsqueeze.manifest.write import manifest_yaml

__all__ = [
    "Border",
    "ChainEntry",
    "ChainItem",
    "Document",
    "Entry",
    "Manifest",
    "Request",
    "SumEntry",
    "SumItem",
    "data_of",
    "entry_of",
    "expand",
    "json_schema",
    "load_manifest",
    "manifest_from_data",
    "manifest_yaml",
    "parse_manifest",
    "request_of",
    "unbound",
]
