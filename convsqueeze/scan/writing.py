"""A scan as the manifest that it is, with what each entry saves and what was left out as comments.

Knows words and YAML, no modules.
"""

from collections.abc import Iterator

from convsqueeze.errors import printable
from convsqueeze.manifest import manifest_yaml
from convsqueeze.plan import Merged
from convsqueeze.scan.scanning import LeftAlone, Scan
from convsqueeze.tracing import ReasonKind

HEADINGS: dict[ReasonKind, str] = {
    "border": "no plain form at the border (border: corrected and border: interior have one)",
    "growth": "would grow",
    "no gain": "would gain nothing",
    "in code": "done by the code of a larger module, which would go on doing it",
    "read elsewhere": "what stands between is read elsewhere too",
    "used twice": "used more than once",
    "tied": "tied weights",
    "hook": "a hook would be lost, or sees what stands between",
    "training": "in training mode",
    "not one convolution": "together not one convolution",
    "axes": "along different axes",
    "not linear": "something between that is no layer which can be merged",
    "activation": "an activation between",
}
"""What the kinds of reasons are called, the ones that a user can do something about first."""


def scan_yaml(found: Scan, source: str) -> str:
    """The manifest with comments; comments alone where nothing is to be merged."""
    head = f"Written by convsqueeze scan {printable(source)}"
    left = "".join(f"# {line}\n" if line else "#\n" for line in left_lines(found.left))
    if found.document is None:
        return f"# {head}: nothing to merge.\n{left}"
    told = [entry_told(merged) for merged in found.merged]
    return manifest_yaml(found.document, head=head, comments=told) + left


def entry_told(merged: Merged) -> str:
    """`106,496 -> 6,400 weights, 6.9 M -> 0.4 M multiplications for 8x8`."""
    merge = merged.merge
    told = f"{merge.weights_before:,} -> {merge.weights_after:,} weights"
    size = "x".join(map(str, merge.size))
    at = f" at {size}" if size else ""
    told += f", {merge.macs_before:,} -> {merge.macs_after:,} multiplications{at}"
    if merged.timing is not None:
        told += f", {merged.timing.before / 1e6:.3g} -> {merged.timing.after / 1e6:.3g} ms"
    return told


def left_lines(left: tuple[LeftAlone, ...]) -> Iterator[str]:
    """What was left alone, by the kind of reason: layers that follow each other, then why."""
    if left:
        yield "Left alone:"
    for kind, heading in HEADINGS.items():
        alike = [one for one in left if one.reason.kind == kind]
        if alike:
            yield f"{heading}:"
        for one in alike:
            yield printable(f"  {', '.join(one.layers)}: {one.reason.text}")
