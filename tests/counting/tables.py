"""What is counted, what it came to before the rebuild, and what it may come to.

The names of the package that counting needs are all in `HOOKS`. One that is gone is an error.
"""

from collections.abc import Iterator, Mapping

from tests.counting.counter import COPIES, PART_COPIES, RUNS, Counted, Hook

HOOKS: Mapping[str, tuple[str, ...]] = {
    "plans": ("convsqueeze.plan.planner:plan_of",),
    "parts": ("convsqueeze.plan.candidates:candidate_of",),
    "values": ("convsqueeze.squeezing:exact_values",),
}
"""By thing, the functions that do it, as `module:qualname`. *plans*: one for a whole checkpoint.
*parts*: an entry of a manifest, or a part of a region, is planned by itself. *values*: those of one
merge are computed.
"""
KEYS: Mapping[str, str] = {"values": "merge.into"}
"""By thing, what tells which one it is done to: an argument's attribute."""

HEADINGS: Mapping[str, str] = {
    "functions": "functions entered",
    "files": "files",
    "calls": "calls",
    "plans": "plans",
    "parts": "parts planned",
    "merges": "merges",
    "values": "most times a merge's values",
    "copies": "copies, of blocks too",
    "whole copies": "of the whole model",
    "runs": "runs of the model",
}

BEFORE: Mapping[str, Mapping[str, int]] = {
    name: dict(zip(HEADINGS, figures, strict=True))
    for name, figures in {
        "squeeze": (1344, 146, 85886, 2, 26, 7, 2, 11, 4, 21),
        "merge-pairs": (979, 117, 57564, 1, 7, 7, 1, 0, 0, 0),
        "merge-model": (1581, 168, 107784, 2, 26, 7, 2, 12, 5, 21),
        "export-onnx-model": (1140, 180, 57052, 2, 14, 7, 1, 15, 8, 54),
    }.items()
}
"""Measured with Python 3.11 and torch 2.13. Calls of the commands differ by 0.3 % from run to run,
all else does not. Python 3.12 and later make fewer calls.
"""

Limit = tuple[int, int] | str
"""The least and the most that a figure may be, or why there is no limit."""

ONE = (1, 1)
MERGES = (7, 7)
NONE_SET = "no limit"
NO_MODEL = "no model given"
OF_A_MODEL: Mapping[str, Limit] = {
    "files": NONE_SET,
    "plans": ONE,
    "parts": NONE_SET,
    "merges": MERGES,
    "values": ONE,
    "copies": (0, 3),
    "whole copies": "as copies",
    "runs": (1, 8),
}
LIMITS: Mapping[str, Mapping[str, Limit]] = {
    "squeeze": {"functions": (1, 671), "calls": (1, 43_000), **OF_A_MODEL},
    "merge-pairs": {
        "functions": (1, 489),
        "calls": (1, 28_781),
        **OF_A_MODEL,
        "copies": NO_MODEL,
        "whole copies": NO_MODEL,
        "runs": NO_MODEL,
    },
    "merge-model": {"functions": (1, 790), "calls": (1, 53_891), **OF_A_MODEL},
    "export-onnx-model": {"functions": (1, 569), "calls": (1, 28_525), **OF_A_MODEL},
}
"""Functions and calls: fewer than half of those before; for `squeeze` these were told as 1,342 and
86,000. Copies of blocks count against the limit of copies. What happens at least once has a least
value: a count of 0 says that `HOOKS` names what no longer does it.
"""


def hooks() -> list[Hook]:
    return [Hook(thing, name, KEYS.get(thing, "")) for thing in HOOKS for name in HOOKS[thing]]


def figures(found: Counted) -> dict[str, int]:
    """What was counted, by the names of `HEADINGS`."""
    return {
        "functions": found.functions,
        "files": found.files,
        "calls": found.calls,
        "plans": found.total("plans"),
        "parts": found.total("parts"),
        "merges": len(found.things.get("values", {})),
        "values": found.most("values"),
        "copies": found.total(COPIES) + found.total(PART_COPIES),
        "whole copies": found.total(COPIES),
        "runs": found.total(RUNS),
    }


def beyond(command: str, found: Mapping[str, int]) -> Iterator[str]:
    """The figures that are not within their limits."""
    for name, limit in LIMITS[command].items():
        if not isinstance(limit, str) and not limit[0] <= found[name] <= limit[1]:
            yield name


def limit_words(limit: Limit) -> str:
    if isinstance(limit, str):
        return limit
    least, most = limit
    return f"{most:,} needed" if least == most else f"at most {most:,}"
