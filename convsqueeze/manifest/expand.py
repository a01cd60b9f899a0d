"""Placeholders: one entry with `{i}` in its names becomes one entry for every match.

Knows names only: a placeholder stands for one dotted component, the same wherever it stands in the
entry. An entry is matched where all its layers exist; where only some do is told, never guessed.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from convsqueeze.errors import ManifestError
from convsqueeze.kinds.fields import Strict
from convsqueeze.manifest.model import Entry

Binding = tuple[tuple[str, str], ...]
Model = TypeVar("Model", bound=Strict)

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}", re.ASCII)

MOST_IN_COMPONENT = 2
"""Placeholders between two dots: more can be told apart in too many ways."""
MOST_BINDINGS = 100_000


@dataclass(frozen=True)
class Expansion:
    """The entries that one templated entry stands for.

    `partial` are names that match while the rest of the entry has no layers there; `unmatched` are
    the templates that match nothing at all.
    """

    entries: tuple[tuple[Binding, Entry], ...]
    partial: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()


def expand(entry: Entry, names: Sequence[str]) -> Expansion:
    """`entry` for every binding of its placeholders under which all its layers are in `names`.

    `names` are tensor names in file order, which is the order of the result. An entry without
    placeholders stands for itself. Raises ManifestError where it could stand for too many.
    """
    templates = templates_of(entry)
    if not templates:
        return Expansion((((), entry),))
    for template in templates:
        if max(len(_PLACEHOLDER.findall(part)) for part in template.split(".")) > MOST_IN_COMPONENT:
            raise ManifestError(
                [
                    f"{template!r:.80} has more than {MOST_IN_COMPONENT} placeholders between two "
                    "dots. Write entries of their own"
                ]
            )
    found = {template: tuple(dict.fromkeys(_bindings(template, names))) for template in templates}
    joined: list[Binding] = [()]
    for bindings in found.values():
        joined = list(islice(_join(joined, bindings), MOST_BINDINGS + 1))
        if len(joined) > MOST_BINDINGS:
            raise ManifestError(
                [
                    f"stands for more than {MOST_BINDINGS:,} merges. Give layers that belong "
                    "together the same placeholder"
                ]
            )
    partial = [
        _fill(template, dict(binding))
        for template, bindings in found.items()
        for binding in _not_among(bindings, joined)
    ]
    return Expansion(
        tuple((binding, _bound(entry, dict(binding))) for binding in joined),
        tuple(partial),
        templates,
        tuple(template for template, bindings in found.items() if not bindings),
    )


def _join(left: Sequence[Binding], right: Sequence[Binding]) -> Iterator[Binding]:
    """Every pair that agrees on the placeholders both have, made one."""
    shared = _keys(left) & _keys(right)
    by_shared: dict[Binding, list[Binding]] = {}
    for binding in right:
        by_shared.setdefault(_only(binding, shared), []).append(binding)
    for binding in left:
        for other in by_shared.get(_only(binding, shared), ()):
            yield tuple(sorted({**dict(binding), **dict(other)}.items()))


def _not_among(bindings: Sequence[Binding], complete: Sequence[Binding]) -> list[Binding]:
    own = _keys(bindings)
    taken = {_only(binding, own) for binding in complete}
    return [binding for binding in bindings if binding not in taken]


def _keys(bindings: Sequence[Binding]) -> set[str]:
    return {key for key, _ in bindings[0]} if bindings else set()


def _only(binding: Binding, keys: set[str]) -> Binding:
    return tuple((key, value) for key, value in binding if key in keys)


def _data(entry: Strict) -> dict[str, Any]:
    return json.loads(entry.model_dump_json(exclude_unset=True))


def _templates(node: Any, key: str = "") -> Iterator[str]:
    """The names of layers and tensors that hold a placeholder; `into` and `drop` follow them."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _templates(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from _templates(value, key)
    elif isinstance(node, str) and key in ("name", "weight", "bias") and _PLACEHOLDER.search(node):
        yield node


def _bindings(template: str, names: Iterable[str]) -> Iterator[Binding]:
    pattern, seen = "", set()
    for index, part in enumerate(_PLACEHOLDER.split(template)):
        if index % 2 == 0:
            pattern += re.escape(part)
        else:
            pattern += f"(?P={part})" if part in seen else f"(?P<{part}>[^.]+)"
            seen.add(part)
    # a layer's tensor is the one part after its name; deeper ones belong to layers inside it
    matcher = re.compile(pattern + r"(?=\.[^.]+$|\.parametrizations\.|$)")
    for name in names:
        match = matcher.match(name)
        if match:
            yield tuple(sorted(match.groupdict().items()))


def _fill(text: str, binding: dict[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: binding.get(match[1], match[0]), text)


def _bound(entry: Model, binding: dict[str, str]) -> Model:
    return renamed(entry, lambda text: _fill(text, binding))


def renamed(entry: Model, change: Callable[[str], str]) -> Model:
    """`entry` with every text in it changed, from its first to its last."""

    def changed(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: changed(value) for key, value in node.items()}
        if isinstance(node, list):
            return [changed(value) for value in node]
        return change(node) if isinstance(node, str) else node

    return type(entry).model_validate_json(json.dumps(changed(_data(entry))), strict=True)


def templates_of(entry: Entry) -> tuple[str, ...]:
    """The names of its layers and tensors that hold a placeholder."""
    return tuple(dict.fromkeys(_templates(_data(entry))))


def unbound(entry: Entry) -> tuple[str, ...]:
    """The names in a bound entry that still hold a placeholder."""
    return tuple(dict.fromkeys(_PLACEHOLDER.findall(entry.model_dump_json())))
