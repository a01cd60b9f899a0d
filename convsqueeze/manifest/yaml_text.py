"""YAML text -> plain data that knows its lines.

Knows YAML, no manifest. libyaml tells the events of a text (without it ruamel.yaml does, some ten
times slower). Nothing is made of them but mappings, lists and the scalars of YAML 1.2's core
schema, so `1e-5` is a number and `no` is a name; the merge keys of YAML 1.1 (`<<`) are followed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
)

from convsqueeze.names import shown

DEEPEST = 100
"""Mappings and lists in each other."""
MOST_REPEATED = 100_000
"""Values that aliases may repeat."""
MERGE = "<<"

WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
BASES = {"0o": 8, "0x": 16}
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class YamlProblem(ValueError):
    """What is wrong with a text, and the line and the column where, from 0, if that is known."""

    def __init__(self, problem: str, mark: Any = None) -> None:
        super().__init__(problem)
        self.mark: Any = mark


@dataclass(frozen=True)
class Unfit:
    """What stands in the place of a value that no manifest has, and why it has none."""

    reason: str


class Mapped(dict[Any, Any]):
    """A mapping, the line that it begins on and those of its keys, from 1."""

    line: int
    lines: dict[Any, int]


class Listed(list[Any]):
    """A list, the line that it begins on and those of its items, from 1."""

    line: int
    lines: dict[Any, int]


def read_yaml(text: str) -> tuple[Any, int]:
    """The data of the one document in `text`, None where there is none, and how many values are
    written in it. Raises YamlProblem.
    """
    reading = _Reading(YAML(typ="safe").parse(text))
    try:
        return reading.document(), reading.values
    except MarkedYAMLError as error:
        problem = (error.problem or "syntax error").split("\n")[0]
        raise YamlProblem(problem, error.problem_mark or error.context_mark) from error
    except (YAMLError, UnicodeError) as error:
        raise YamlProblem(str(error).strip().split("\n")[0][:100]) from error


class _Reading:
    """Values out of events, and how many there were."""

    def __init__(self, events: Iterator[Any]) -> None:
        self.values = 0
        self._events = events
        self._merged = 0
        self._anchored: dict[str, Any] = {}

    def document(self) -> Any:
        top, documents = None, 0
        for event in self._events:
            documents += isinstance(event, DocumentStartEvent)
            if documents > 1:
                raise YamlProblem("but found another document", event.start_mark)
            if isinstance(event, NodeEvent):
                top = self._value(event, 0)
        return top

    def _value(self, event: Any, depth: int) -> Any:
        """The value that begins with `event`."""
        self.values += 1
        if isinstance(event, AliasEvent):
            if event.anchor not in self._anchored:
                raise YamlProblem(f"found undefined alias {event.anchor!r:.80}", event.start_mark)
            return self._anchored[event.anchor]
        self._anchored.pop(event.anchor, None)  # nothing holds itself
        made: Any
        if isinstance(event, ScalarEvent):
            made = _scalar(event.value) if event.implicit[0] else event.value
        elif depth == DEEPEST:
            raise YamlProblem("nested too deeply", event.start_mark)
        elif isinstance(event, MappingStartEvent):
            made = self._mapped(event, depth)
        else:
            made = self._listed(event, depth)
        if event.tag is not None:
            tag = shown(event.tag.replace("tag:yaml.org,2002:", "!!"))
            made = Unfit(f"has the tag {tag}, plain data was needed. Write it without a tag.")
        if event.anchor:
            self._anchored[event.anchor] = made
        return made

    def _listed(self, event: Any, depth: int) -> Listed:
        made = Listed()
        made.line, made.lines = event.start_mark.line + 1, {}
        while not isinstance(event := next(self._events), SequenceEndEvent):
            made.lines[len(made)] = event.start_mark.line + 1
            made.append(self._value(event, depth + 1))
        return made

    def _mapped(self, begin: Any, depth: int) -> Mapped:
        made, merged = Mapped(), list[Any]()
        made.line, made.lines = begin.start_mark.line + 1, {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            key = self._value(event, depth + 1)
            value = self._value(next(self._events), depth + 1)
            if isinstance(key, Mapped | Listed | Unfit):
                raise YamlProblem("found a key that is no name", event.start_mark)
            if key == MERGE:
                merged += value if isinstance(value, Listed) else [value]
                continue
            if key in made:
                raise YamlProblem(f"found the key {shown(str(key))} twice", event.start_mark)
            made.lines[key] = event.start_mark.line + 1
            made[key] = value
        for one in merged:
            self._merge(one, made, begin)
        return made

    def _merge(self, one: Any, into: Mapped, event: Any) -> None:
        """Takes over the keys that are not there yet."""
        if not isinstance(one, Mapped):
            raise YamlProblem(f"found {MERGE} with what is no mapping", event.start_mark)
        self._merged += len(one)
        if self._merged > MOST_REPEATED:
            raise YamlProblem(f"found {MERGE} that repeat too many keys", event.start_mark)
        for key in [key for key in one if key not in into]:
            into[key] = one[key]
            into.lines[key] = one.lines[key]


def _scalar(text: str) -> Any:
    """A plain scalar of the core schema; one that is not finite is `inf` or `nan`."""
    if text in WORDS:
        return WORDS[text]
    if INTEGER.fullmatch(text):
        try:
            return int(text, BASES.get(text[:2], 10))
        except ValueError:  # of more digits than Python reads
            digits = f"is a number of {len(text):,} digits, no layer has such."
            return Unfit(f"{digits} Write a smaller one.")
    if FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "")) if NOT_FINITE.fullmatch(text) else text
