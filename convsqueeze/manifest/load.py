"""YAML text or plain data -> Manifest, every problem at once with file, line and key.

Knows the schema, no checkpoint.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf, isfinite
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from convsqueeze.errors import ManifestError
from convsqueeze.kinds import LAYER_KINDS
from convsqueeze.manifest.expand import Binding
from convsqueeze.manifest.model import (
    ENTRY_KINDS,
    ITEM_KINDS,
    MANIFEST_VERSION,
    Document,
    data_of,
    entry_tag,
    item_tag,
)
from convsqueeze.manifest.yaml_text import (
    DEEPEST,
    MOST_REPEATED,
    Listed,
    Mapped,
    Unfit,
    YamlProblem,
    read_yaml,
)
from convsqueeze.names import KeyPath, nearest, shown
from convsqueeze.version import newer_version

LARGEST = 10_000_000
"""Bytes of a manifest, which take ten seconds to read."""
LONGEST_NUMBER = 64
"""Bits of a whole number."""

YAML_WANTED = (
    " A manifest was needed: YAML with the keys version and pairs (see `convsqueeze schema`)."
)


@dataclass(frozen=True)
class Manifest:
    """A checked manifest and where each of its keys stands, for messages.

    `source` names the file (or says where the data came from); `lines` maps a key path to its line;
    `indices` are the places that the entries have there, where some were left out.
    """

    document: Document
    source: str = "manifest"
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    indices: tuple[int, ...] | None = None

    def where(self, index: int, path: KeyPath = (), binding: Binding = ()) -> str:
        """The place of a key in an entry, and what its placeholders stand for:
        `pairs.yaml:7 pairs[1].second (i=0)`.
        """
        written = index if self.indices is None else self.indices[index]
        place = _where(self.source, self.lines, ("pairs", written, *path))
        bound = ", ".join(f"{name}={value}" for name, value in binding)
        return f"{place} ({bound})" if bound else place

    def to_data(self) -> dict[str, Any]:
        """The manifest as plain data, defaults left out: what the recipe keeps."""
        return data_of(self.document)


def load_manifest(path: Path) -> Manifest:
    """The manifest in a YAML file. Raises ManifestError with every problem it has."""
    from convsqueeze.checkpoint.disk import read_whole  # takes a moment, and a schema needs none

    try:
        text = read_whole(path, LARGEST).decode("utf-8")
    except FileNotFoundError as error:
        names = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = nearest(path.name, names, "Check the path.", cutoff=0.3)
        raise ManifestError([f"{path}: there is no such file. {hint}"]) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ManifestError([f"{path}: cannot be read ({reason}).{YAML_WANTED}"]) from error
    except ValueError as error:
        reason = "is not UTF-8 text" if isinstance(error, UnicodeError) else str(error)
        raise ManifestError([f"{path}: {reason}.{YAML_WANTED}"]) from error
    return parse_manifest(text, f"{path}")


def parse_manifest(text: str, source: str) -> Manifest:
    """The manifest in YAML `text`; `source` names it in messages. Raises ManifestError."""
    try:
        data, written = read_yaml(text)
    except YamlProblem as error:
        line = f":{error.mark.line + 1}" if error.mark else ""
        column = f", column {error.mark.column + 1}" if error.mark else ""
        problem = f"{error}.{_yaml_advice(text, error.mark.line if error.mark else 0)}"
        raise ManifestError([f"{source}{line}: not valid YAML{column}: {problem}"]) from error
    return _manifest_of(data, _Reading(source, written + MOST_REPEATED))


def _yaml_advice(text: str, line: int) -> str:
    """The two mistakes that YAML's own words do not explain."""
    written = text.splitlines()[line] if line < len(text.splitlines()) else ""
    if "\t" in written:
        return " Indent with spaces, not with tabs."
    if re.search(r"[^\"'\w]\s*[\w.]*\{\w+\}", written):
        return ' Quote names with braces: "blocks.{i}.conv".'
    return ""


class _TooMany(Exception):
    pass


class _Reading:
    """Data as what JSON can hold, with the line of every key and what JSON cannot hold."""

    def __init__(self, source: str, most: float = inf) -> None:
        self.source = source
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[str] = []
        self.where = partial(_where, source, self.lines)
        self._left = most

    def plain(self, node: Any, path: KeyPath = ()) -> Any:
        """The node as plain data. Raises RecursionError for what is nested too deeply or holds
        itself, _TooMany for too many aliases.
        """
        if len(path) > DEEPEST:
            raise RecursionError
        self._left -= 1
        if self._left < 0:
            raise _TooMany
        if isinstance(node, Mapped | Listed):
            self._note_lines(node, path)
        if isinstance(node, Mapping):
            if odd := [key for key in node if not isinstance(key, str)]:
                message = f"has the key {shown(str(odd[0]))}, a name was needed."
                return self._refuse(path, f"{message} See `convsqueeze schema`.")
            return {key: self.plain(value, (*path, key)) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [self.plain(value, (*path, index)) for index, value in enumerate(node)]
        if problem := _unfit(node):
            return self._refuse(path, problem)
        return node

    def _note_lines(self, node: Mapped | Listed, path: KeyPath) -> None:
        self.lines.setdefault(path, node.line)
        for key, line in node.lines.items():
            self.lines[(*path, key)] = line

    def _refuse(self, path: KeyPath, message: str) -> None:
        self.problems.append(f"{self.where(path)}: {message}")


def _unfit(value: Any) -> str | None:
    """Why a manifest has no such value, which is no mapping and no list."""
    if isinstance(value, Unfit):
        return value.reason
    if isinstance(value, int) and value.bit_length() > LONGEST_NUMBER:
        message = f"is a number of {value.bit_length()} bits, no layer has such."
        return f"{message} Write a smaller one."
    if isinstance(value, float) and not isfinite(value):
        return f"is {value}, a finite number was needed."
    if isinstance(value, str) and re.search(r"[\ud800-\udfff]", value):
        return f"is {value!a:.60}, which is no Unicode text. Write it in UTF-8."
    if value is None or isinstance(value, bool | int | float | str):
        return None
    kind = type(value).__name__
    return f"is a {kind}, plain text, a number or a list was needed. Write it plainly."


def manifest_from_data(data: Any, source: str = "manifest") -> Manifest:
    """A manifest from plain data (dicts, lists, numbers, strings). Raises ManifestError."""
    return _manifest_of(data, _Reading(source))


def _manifest_of(data: Any, reading: _Reading) -> Manifest:
    source = reading.source
    try:
        plain = reading.plain(data)
    except _TooMany as error:
        many = f"stands for more than {MOST_REPEATED:,} values by aliases that repeat them"
        advice = "Write an entry once, with placeholders in its names."
        raise ManifestError([f"{source}: {many}. {advice}"]) from error
    except RecursionError as error:
        nested = "is nested too deeply, or holds itself"
        raise ManifestError([f"{source}: {nested}.{YAML_WANTED}"]) from error
    if not isinstance(data, Mapping):
        is_shown = f"{source}: is {_shown(plain)}.{YAML_WANTED}"
        raise ManifestError(reading.problems or [is_shown])
    if newer := newer_version(data.get("version"), MANIFEST_VERSION):
        place = reading.where(("version",))
        advice = f"or write the manifest in version {MANIFEST_VERSION}"
        raise ManifestError([f"{place}: is {newer}, {advice}."])  # its keys mean nothing here
    if reading.problems:
        raise ManifestError(reading.problems)
    try:
        return Manifest(_document(plain), source, reading.lines)
    except ValidationError as error:
        details = error.errors()
        messages = [_message(detail, plain, reading.where) for detail in details]
        sound = _without_unsound(details, plain, reading)
        raise ManifestError(list(dict.fromkeys(filter(None, messages))), sound) from error


def _document(plain: Any) -> Document:
    return Document.model_validate_json(json.dumps(plain), strict=True)


def _without_unsound(
    details: Sequence[ErrorDetails], plain: Any, reading: _Reading
) -> Manifest | None:
    """The manifest with its unsound entries left out, where that leaves a sound one."""
    places = (detail["loc"] for detail in details)
    unsound = {place[1] for place in places if place[:1] == ("pairs",) and len(place) > 1}
    entries = plain.get("pairs")
    if not unsound or not isinstance(entries, list):
        return None
    kept = [index for index in range(len(entries)) if index not in unsound]
    known = {key: plain[key] for key in plain if key in Document.model_fields}
    try:
        document = _document({**known, "pairs": [entries[index] for index in kept]})
    except ValidationError:
        return None
    return Manifest(document, reading.source, reading.lines, tuple(kept))


def _where(source: str, lines: Mapping[KeyPath, int], path: KeyPath) -> str:
    """`pairs.yaml:7 pairs[1].second`, by the line of the nearest key that has one."""
    known = path
    while known and known not in lines:
        known = known[:-1]
    line = f":{lines[known]}" if known in lines else ""
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{shown(part)}" for part in path)
    return f"{source}{line} {dotted.lstrip('.')}".rstrip()


def _message(detail: ErrorDetails, data: Any, where: Callable[[KeyPath], str]) -> str | None:
    """One pydantic error in the house form; None where a nearer one says it already."""
    path, value = _data_path(detail["loc"], data)
    place = where(path)
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{place}: unknown key. {_nearest(path[-1], _keys_at(path[:-1], data))}"
    if kind == "missing":
        missing = str(detail["loc"][-1])
        return f"{place}: {missing} is missing. {_WHY_NEEDED.get(missing, 'Add it.')}"
    if kind == "union_tag_invalid":
        tag = context["tag"]
        return f"{place}.type: {_shown(tag)} is no layer type. {_nearest(tag, list(LAYER_KINDS))}"
    if kind == "too_short":
        return None if value else f"{place}: is empty, at least one entry was needed. Add one."
    needed = str(context["error"]) if kind == "value_error" else _needed(detail)
    if isinstance(value, dict) and kind == "value_error":
        return f"{place}: has no {needed.removeprefix('a ')}. Add it."
    return f"{place}: is {_shown(value)}, {needed} was needed."


def _data_path(loc: Sequence[str | int], data: Any) -> tuple[KeyPath, Any]:
    """A pydantic location without the tags of its unions, and the value that stands there.

    The part behind an entry or an item is the tag of the class that it was read as.
    """
    path: list[str | int] = []
    for before, part in zip((None, *loc), loc, strict=False):
        if isinstance(before, int) or before in ("first", "second"):
            continue
        if isinstance(data, dict) and part in data:
            data = data[str(part)]
            path.append(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
            path.append(part)
    return tuple(path), data


def _keys_at(path: KeyPath, data: Any) -> list[str]:
    """The keys that a mapping at `path` may have."""
    for part in path:
        data = data[part]
    is_entry = len(path) == 2 and path[0] == "pairs"
    model = ENTRY_KINDS[entry_tag(data)] if is_entry else ITEM_KINDS[item_tag(data)]
    return list((model if path else Document).model_fields)


def _nearest(name: Any, known: Sequence[str]) -> str:
    return nearest(str(name), known, f"Known here: {', '.join(known)}.", most=2, cutoff=0.5)


_NEEDED = {
    "string_type": "a name",
    "string_too_short": "a name",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "tuple_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "finite_number": "a finite number",
}


def _needed(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    if detail["type"] == "literal_error":
        return str(context["expected"]).replace("'", "")
    if detail["type"] == "greater_than_equal":
        return f"{context['ge']} or more"
    return _NEEDED.get(detail["type"], detail["msg"])


_WHY_NEEDED = {
    "eps": "No checkpoint holds it and a wrong one is silently wrong: "
    "take it from the model's code (torch's default is 1.0e-5).",
    "version": "Add: version: 1",
}


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    text = json.dumps(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
