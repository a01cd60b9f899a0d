"""Names of tensors: prefixes that wrappers of a model put before every one, and near misses.

Knows strings only.
"""

import difflib
import re
from collections.abc import Collection, Iterable
from itertools import islice

KeyPath = tuple[str | int, ...]
"""Where something stands in an entry of a manifest: `("chain", 1)`."""

PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before each name; they nest."""
LONGEST_SHOWN = 100
LONGEST_COMPARED = 1000
"""Characters of two names together: comparing takes the square of it."""


def common_prefix(names: Collection[str]) -> str:
    """The longest run of PREFIXES that every name carries and that leaves none of them empty."""
    first, last = min(names, default=""), max(names, default="")  # all begin as these two do
    prefix = ""
    while part := next((one for one in PREFIXES if first.startswith(prefix + one)), None):
        if prefix + part in names or not last.startswith(prefix + part):
            break
        prefix += part
    return prefix


def shown(name: str) -> str:
    """A name out of a file, fit for one line of a terminal."""
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def as_unicode(name: str) -> str:
    """A file's name as text that any reader of JSON takes: `?` where its bytes are no UTF-8."""
    return name.encode(errors="replace").decode()


def plain_file_name(name: str) -> str:
    """A name for a file that stands in another one, and so in text of UTF-8: what is no character,
    or separates folders somewhere, is `_`.
    """
    return re.sub(r"[/\\:\x00-\x1f\x7f\ud800-\udfff]", "_", name)


def listed(names: Collection[str], most: int = 5) -> str:
    """`a, b and 7 more`: a list short enough for one line."""
    first = ", ".join(shown(name) for name in islice(names, most))
    return first if len(names) <= most else f"{first} and {len(names) - most} more"


def nearest(
    name: str, candidates: Iterable[str], otherwise: str, *, most: int = 3, cutoff: float = 0.6
) -> str:
    """`Did you mean a or b?`, or the advice `otherwise` where nothing comes near."""
    near = [one for one in candidates if len(name) + len(one) <= LONGEST_COMPARED]
    close = difflib.get_close_matches(name, near, n=most, cutoff=cutoff)
    return f"Did you mean {' or '.join(map(shown, close))}?" if close else otherwise
