"""Placeholders: one entry with `{i}` in its names becomes one entry for every match.

Knows names only: a placeholder stands for one dotted component, the same wherever it stands in the
entry. An entry is matched where all its layers exist; where only some do is told, never guessed.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Any, TypeVar

from convsqueeze.errors import ManifestError
from convsqueeze.manifest.model import ChainEntry, Entry, PairEntry, SumEntry, data_of

Binding = tuple[tuple[str, str], ...]
Data = dict[str, Any]
EntryT = TypeVar("EntryT", bound=PairEntry | ChainEntry | SumEntry)

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}", re.ASCII)

MOST_IN_COMPONENT = 2
"""Placeholders between two dots: more can be told apart in too many ways."""
MOST_BINDINGS = 100_000


@dataclass(frozen=True)
class Expansion:
    """The entries that one templated entry stands for.

    `partial` are names that match while the rest of the entry has no layers there.
    """

    entries: tuple[tuple[Binding, Entry], ...]
    partial: tuple[str, ...] = ()


def expand(entry: Entry, names: Sequence[str]) -> Expansion:
    """`entry` for every binding of its placeholders under which all its layers are in `names`.

    `names` are tensor names in file order, which is the order of the result. An entry without
    placeholders stands for itself. Raises ManifestError where it stands for none, or could for too
    many.
    """
    data = data_of(entry)
    templates = templates_of(data)
    if not templates:
        return Expansion((((), entry),))
    bindings, partial = matches(templates, names)
    bound = ((binding, entry_from(type(entry), filled(data, binding))) for binding in bindings)
    return Expansion(tuple(bound), tuple(partial))


def matches(templates: Sequence[str], names: Sequence[str]) -> tuple[list[Binding], list[str]]:
    """The bindings under which `names` have every template, and names of only some of them.

    Raises ManifestError as `expand` does.
    """
    for template in templates:
        if max(len(_PLACEHOLDER.findall(part)) for part in template.split(".")) > MOST_IN_COMPONENT:
            problem = f"has more than {MOST_IN_COMPONENT} placeholders between two dots"
            raise ManifestError([f"{template!r:.80} {problem}. Write entries of their own"])
    found = {template: tuple(dict.fromkeys(_bindings(template, names))) for template in templates}
    joined: list[Binding] = [()]
    for bindings in found.values():
        joined = list(islice(_join(joined, bindings), MOST_BINDINGS + 1))
        if len(joined) > MOST_BINDINGS:
            advice = "Give layers that belong together the same placeholder"
            raise ManifestError([f"stands for more than {MOST_BINDINGS:,} merges. {advice}"])
    if not joined:
        raise ManifestError([_why_none(found, names)])
    partial = []
    for template, bindings in found.items():
        complete = {filled(template, binding) for binding in joined}
        wanted = (filled(template, binding) for binding in bindings)
        partial += [name for name in wanted if name not in complete]
    return joined, partial


def _why_none(found: dict[str, tuple[Binding, ...]], names: Sequence[str]) -> str:
    unmatched = [template for template, bindings in found.items() if not bindings]
    if not unmatched:
        return f"no layers match {' and '.join(found)} at once. See `convsqueeze inspect`."
    stems = sorted({name.rpartition(".")[0] for name in names} - {""})
    close = " and ".join(get_close_matches(unmatched[0], stems, n=3, cutoff=0.5))
    hint = f"The nearest names are {close}." if close else "See `convsqueeze inspect`."
    return f"no layer matches {' and '.join(unmatched)}. {hint}"


def _join(left: Sequence[Binding], right: Sequence[Binding]) -> Iterator[Binding]:
    """Every pair that agrees on the placeholders both have, made one."""
    shared = [name for name in dict(left[0]) if name in dict(right[0])] if left and right else []
    alike: dict[tuple[str, ...], list[Binding]] = {}
    for binding in right:
        alike.setdefault(_values(binding, shared), []).append(binding)
    for binding in left:
        for other in alike.get(_values(binding, shared), ()):
            yield tuple(sorted({*binding, *other}))


def _values(binding: Binding, names: Sequence[str]) -> tuple[str, ...]:
    given = dict(binding)
    return tuple(given[name] for name in names)


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
    for match in filter(None, map(matcher.match, names)):
        yield tuple(sorted(match.groupdict().items()))


def texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in plain data and the key that it stands under, from the first to the last."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from texts(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from texts(value, key)
    elif isinstance(node, str):
        yield key, node


def templates_of(data: Data) -> tuple[str, ...]:
    """The names of layers and tensors that hold a placeholder; `into` and `drop` follow them."""
    names = (text for key, text in texts(data) if key in ("name", "weight", "bias"))
    return tuple(dict.fromkeys(filter(_PLACEHOLDER.search, names)))


def renamed(node: Any, change: Callable[[str], str]) -> Any:
    """Plain data with every text in it changed, from its first to its last."""
    if isinstance(node, dict):
        return {key: renamed(value, change) for key, value in node.items()}
    if isinstance(node, list):
        return [renamed(value, change) for value in node]
    return change(node) if isinstance(node, str) else node


def filled(node: Any, binding: Binding) -> Any:
    """Plain data with its placeholders filled in."""
    given = dict(binding)
    return renamed(
        node, lambda text: _PLACEHOLDER.sub(lambda match: given.get(match[1], match[0]), text)
    )


def entry_from(kind: type[EntryT], data: Data) -> EntryT:
    """The entry that `data_of` gives this data of."""
    return kind.model_validate_json(json.dumps(data), strict=True)  # type: ignore[return-value]


def unbound(entry: Entry) -> str | None:
    """What to say of a bound entry whose names still hold a placeholder."""
    names = dict.fromkeys(_PLACEHOLDER.findall(entry.model_dump_json()))
    if not names:
        return None
    listed = ", ".join(f"{{{name}}}" for name in names)
    return f"{listed} stands in no layer's name, so nothing fills it in"
