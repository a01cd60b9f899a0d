"""A scan as the manifest that it is, with what each entry saves and what was left out as comments.

Knows words and YAML, no modules.
"""

from collections.abc import Iterator, Sequence

from convsqueeze.errors import printable
from convsqueeze.graph import ReasonKind
from convsqueeze.manifest import manifest_yaml
from convsqueeze.plan import Merge
from convsqueeze.scan.scanning import LeftAlone, Scan

HEADINGS: dict[ReasonKind, str] = {
    "border": "no plain form at the border (border: corrected and border: interior have one)",
    "growth": "would grow",
    "too large": "too large to be merged or verified here",
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
    comments = [entry_text(one.merged) for one in found.entries]
    return manifest_yaml(found.document, head=head, comments=comments) + left


def entry_text(merged: Sequence[Merge]) -> str:
    """What the merges of an entry save: `5 times 40,976 -> 2,320 weights, 167,772,160 -> 9,437,184
    multiplications at 64x64`, and in the next line the same for all of them together.
    """
    alone = list(dict.fromkeys(_saving_text([one]) for one in merged))
    if len(merged) == 1:
        return alone[0]
    together = f"in all {_saving_text(merged)}"
    if len(alone) > 1:
        return f"{len(merged)} times, {together}"
    return f"{len(merged)} times {alone[0]}\n{together}"


def _saving_text(merges: Sequence[Merge]) -> str:
    """`106,496 -> 6,400 weights, 6,815,744 -> 409,600 multiplications at 8x8`, in sum."""
    weights, macs = (
        f"{sum(getattr(one, f'{name}_before') for one in merges):,} -> "
        f"{sum(getattr(one, f'{name}_after') for one in merges):,}"
        for name in ("weights", "macs")
    )
    sizes = dict.fromkeys("x".join(map(str, one.size)) for one in merges if one.size)
    at = f" at {', '.join(sizes)}" if sizes else ""
    text = f"{weights} weights, {macs} multiplications{at}"
    timings = [one.timing for one in merges if one.timing is not None]
    if timings:
        before, after = sum(t.before for t in timings), sum(t.after for t in timings)
        text += f", {before / 1e6:.3g} -> {after / 1e6:.3g} ms"
    return text


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
