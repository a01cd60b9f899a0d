"""A disagreeing case made smaller for as long as it disagrees in the same way."""

from collections.abc import Iterator
from dataclasses import replace

from .cases import Case, takes
from .description import Branch, Layer, Node, Row, Sum, children, walk
from .oracle import Disagreement, examine

MOST_TRIES = 60


def shrunk(case: Case, found: Disagreement) -> Disagreement:
    """The disagreement of the smallest case that was found to have one of the same kind."""
    tries = MOST_TRIES
    while tries > 0:
        for smaller in _smaller_cases(case):
            tries -= 1
            told = _disagreement(smaller, found)
            if told is not None and _kind(told) == _kind(found):
                case, found = smaller, told
                break
            if tries <= 0:
                break
        else:
            break
    return found


def _kind(found: Disagreement) -> str:
    """The first words, which name no layer of the case."""
    return " ".join(found.what.split()[:3])


def _disagreement(case: Case, like: Disagreement) -> Disagreement | None:
    try:
        examine(case, [like.settings])
    except Disagreement as found:
        return found
    return None


def _smaller_cases(case: Case) -> Iterator[Case]:
    for name in case.hooks:
        yield replace(case, hooks={n: kind for n, kind in case.hooks.items() if n != name})
    if case.ties:
        yield replace(case, ties=())
    if case.training:
        yield replace(case, training=frozenset())
    if case.model.taps or case.model.output != "tensor":
        yield replace(case, model=replace(case.model, taps=(), output="tensor"))
    for row in _smaller(case.model.row):
        if isinstance(row, Row) and row.parts:
            made = _fitted(case, row)
            if made is not None and takes(made, made.sizes[0]):
                yield made


def _fitted(case: Case, row: Row) -> Case | None:
    """The case with another body, if what was done to its layers still can be."""
    names = dict(walk(row, "body"))
    taken = [*case.training, *(name for pair in case.ties for name in pair)]
    kept = all(isinstance(names.get(name), Layer) for name in taken)
    if not kept or any(name and name not in names for name in case.hooks):
        return None
    taps = tuple(tap for tap in case.model.taps if tap < len(row.parts))
    return replace(case, model=replace(case.model, row=row, taps=taps), sizes=case.sizes[:1])


def _smaller(node: Node) -> Iterator[Node]:
    """A node with less in it: one of its parts alone, one part less, or a part made smaller."""
    parts = [part for _, part in children(node)]
    if not isinstance(node, Row) or len(parts) == 1:
        yield from parts
    if isinstance(node, Row) and len(parts) > 1:
        for index in range(len(parts)):
            yield replace(node, parts=node.parts[:index] + node.parts[index + 1 :])
    if isinstance(node, Sum) and len(node.branches) > 2:
        for index in range(len(node.branches)):
            yield replace(node, branches=node.branches[:index] + node.branches[index + 1 :])
    yield from _with_smaller_part(node)


def _with_smaller_part(node: Node) -> Iterator[Node]:
    if isinstance(node, Row):
        for index, part in enumerate(node.parts):
            for less in _smaller(part):
                yield replace(node, parts=(*node.parts[:index], less, *node.parts[index + 1 :]))
    elif isinstance(node, Sum):
        for index, branch in enumerate(node.branches):
            for less in _smaller(branch.part) if branch.part is not None else ():
                made = (*node.branches[:index], Branch(less, branch.factor))
                yield replace(node, branches=(*made, *node.branches[index + 1 :]))
    elif not isinstance(node, Layer):
        yield from (replace(node, part=less) for less in _smaller(node.part))
