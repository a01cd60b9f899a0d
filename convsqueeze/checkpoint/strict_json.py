"""JSON as a checkpoint's headers may use it: one object, no key twice, nothing that hangs.

Raises ValueError with a terse reason; the caller says which file and what to do.
"""

import json
from collections import Counter
from math import isfinite
from typing import Any, NoReturn

from convsqueeze.names import shown

LONGEST_NUMBER = 100
"""Digits of a whole number."""


def parse_object(text: bytes) -> dict[str, Any]:
    """The JSON object that `text` holds, its keys in file order."""
    try:
        parsed = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos})") from error
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error
    if b"\\u" in text:
        _check_characters(parsed)
    if not isinstance(parsed, dict):
        raise ValueError("not a JSON object")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {shown(twice)} stands there twice")
    return result


def _check_characters(parsed: Any) -> None:
    """JSON can spell half a surrogate pair, which is no character and cannot be written back."""
    try:
        json.dumps(parsed, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("half of a surrogate pair") from error


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(f"not JSON ({constant} is no JSON value)")


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"not written back by JSON ({text:.20} is no finite number)")
    return number


def _whole(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"not readable (a number of {len(text)} digits)")
    return int(text)
