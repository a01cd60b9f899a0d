"""YAML text or plain data -> Manifest, every problem at once with file, line and key.

Knows YAML and the schema, no checkpoint. YAML is read as version 1.2, so `1e-5` is a number and
`no` is a name; ruamel.yaml keeps the lines and refuses duplicate keys.
"""

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

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
from convsqueeze.names import KeyPath, nearest, shown
from convsqueeze.version import newer_version

UNREADABLE = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, AssertionError)
"""What ruamel.yaml raises beside its own errors: for dates that do not exist, endless numbers."""
LONGEST = 2_000_000
"""Characters of a manifest, which take a minute to read."""
DEEPEST = 100
"""Brackets in brackets: their reader takes the square of it."""
MOST_VALUES = 100_000
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
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        names = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = nearest(path.name, names, "Check the path.", cutoff=0.3)
        raise ManifestError([f"{path}: there is no such file. {hint}"]) from error
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path}: cannot be read as text ({error}).{YAML_WANTED}"
        raise ManifestError([message]) from error
    return parse_manifest(text, str(path))


def parse_manifest(text: str, source: str) -> Manifest:
    """The manifest in YAML `text`; `source` names it in messages. Raises ManifestError."""
    if len(text) > LONGEST or _deepest_brackets(text) > DEEPEST:
        what = "is nested too deeply" if len(text) <= LONGEST else f"has {len(text):,} characters"
        raise ManifestError([f"{source}: {what}.{YAML_WANTED}"])
    reader = YAML(typ="rt")
    try:
        data = reader.load(text)
    except RecursionError as error:
        raise ManifestError([f"{source}: is nested too deeply.{YAML_WANTED}"]) from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        column = f", column {mark.column + 1}" if mark else ""
        problem = (error.problem or "syntax error").split("\n")[0]
        message = f"{problem}.{_yaml_advice(text, mark.line if mark else 0)}"
        raise ManifestError([f"{source}{line}: not valid YAML{column}: {message}"]) from error
    except (YAMLError, *UNREADABLE) as error:
        first = str(error).strip().split("\n")[0][:100]
        raise ManifestError([f"{source}: not valid YAML: {first}."]) from error
    return manifest_from_data(data, source)


def _deepest_brackets(text: str) -> int:
    """How deeply brackets nest, those in quoted text taken for real ones."""
    deepest = depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth = depth + 1 if bracket in "[{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return deepest


def _yaml_advice(text: str, line: int) -> str:
    """The two mistakes that YAML's own words do not explain."""
    written = text.splitlines()[line] if line < len(text.splitlines()) else ""
    if "\t" in written:
        return " Indent with spaces, not with tabs."
    if re.search(r"[^\"'\w]\s*[\w.]*\{\w+\}", written):
        return ' Quote names with braces: "blocks.{i}.conv".'
    return ""


class _Reading:
    """Data as what JSON can hold, with the line of every key and what JSON cannot hold."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[str] = []
        self.where = partial(_where, source, self.lines)
        self._values = 1

    def plain(self, node: Any, path: KeyPath = ()) -> Any:
        """The node as plain data. A date is text, as in YAML 1.2.

        Raises RecursionError for what holds itself, and where aliases make too many values.
        """
        if isinstance(node, CommentedMap | CommentedSeq):
            if node.tag.value is not None:
                message = f"has the tag {shown(str(node.tag.value))}, plain data was needed."
                return self._refuse(path, f"{message} Write it without a tag.")
            self._note_lines(node, path)
        if isinstance(node, Mapping):
            if odd := [key for key in node if not isinstance(key, str)]:
                message = f"has the key {shown(str(odd[0]))}, a name was needed."
                return self._refuse(path, f"{message} See `convsqueeze schema`.")
            return {key: self.plain(value, (*path, key)) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [self.plain(value, (*path, index)) for index, value in enumerate(node)]
        if isinstance(node, datetime.date):
            return node.isoformat()
        if isinstance(node, int) and node.bit_length() > LONGEST_NUMBER:
            message = f"is a number of {node.bit_length()} bits, no layer has such."
            return self._refuse(path, f"{message} Write a smaller one.")
        if isinstance(node, float) and not isfinite(node):
            return self._refuse(path, f"is {node}, a finite number was needed.")
        if node is None or isinstance(node, bool | int | float | str):
            return node
        kind = type(node).__name__.removeprefix("Commented").lower()
        message = f"is a {kind}, plain text, a number or a list was needed. Write it plainly."
        return self._refuse(path, message)

    def _note_lines(self, node: CommentedMap | CommentedSeq, path: KeyPath) -> None:
        self._values += len(node)
        if self._values > MOST_VALUES:
            raise RecursionError
        self.lines.setdefault(path, node.lc.line + 1)
        for key, (line, *_) in (node.lc.data or {}).items():
            self.lines[(*path, key)] = line + 1

    def _refuse(self, path: KeyPath, message: str) -> None:
        self.problems.append(f"{self.where(path)}: {message}")


def manifest_from_data(data: Any, source: str = "manifest") -> Manifest:
    """A manifest from plain data (dicts, lists, numbers, strings). Raises ManifestError."""
    reading = _Reading(source)
    try:
        plain = reading.plain(data)
    except RecursionError as error:
        many = f"stands for more than {MOST_VALUES:,} values, by aliases that repeat them"
        advice = "Write an entry once, with placeholders in its names."
        raise ManifestError([f"{source}: {many}. {advice}"]) from error
    if not isinstance(data, Mapping):
        raise ManifestError([f"{source}: is {_shown(data)}.{YAML_WANTED}"])
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
