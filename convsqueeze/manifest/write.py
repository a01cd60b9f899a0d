"""A manifest as YAML that `load_manifest` reads again: a layer a line, no defaults."""

import io
from collections.abc import Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from convsqueeze.manifest.model import Document, data_of


def manifest_yaml(document: Document, *, head: str = "", comments: Sequence[str] = ()) -> str:
    """The document as YAML, with a final line break.

    `head` is a comment in front of it all, `comments` has one for each entry.
    """
    writer = YAML()
    writer.width = 4096
    writer.indent(mapping=2, sequence=4, offset=2)
    laid_out = _laid_out(data_of(document))
    for index, comment in enumerate(comments):
        laid_out["pairs"].yaml_set_comment_before_after_key(index, before=comment, indent=2)
    if head:
        laid_out.yaml_set_start_comment(head)
    text = io.StringIO()
    writer.dump(laid_out, text)
    return text.getvalue()


def _laid_out(node: Any) -> Any:
    """What holds no layers goes on one line."""
    if isinstance(node, dict):
        mapping = CommentedMap({key: _laid_out(value) for key, value in node.items()})
        if not node.keys() & {"pairs", "chain", "sum", "first"}:
            mapping.fa.set_flow_style()
        return mapping
    if isinstance(node, list):
        sequence = CommentedSeq([_laid_out(value) for value in node])
        if not any(isinstance(value, dict) for value in node):
            sequence.fa.set_flow_style()
        return sequence
    return node
