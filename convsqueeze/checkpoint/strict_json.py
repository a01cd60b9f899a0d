"""JSON that can be read and written back without loss: one object, no key twice, finite numbers.

Raises ValueError with a terse reason; the caller says which file and what to do.
"""

import json
from collections import Counter
from typing import Any

from convsqueeze.names import shown


def parse_object(text: bytes) -> dict[str, Any]:
    """The JSON object that `text` holds, its keys in file order."""
    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=unique_keys)
        # not every text that Python reads: NaN, 1e999 and halves of surrogate pairs are not written
        json.dumps(parsed, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos})") from error
    except UnicodeError as error:
        raise ValueError("not UTF-8 text") from error
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error
    if not isinstance(parsed, dict):
        raise ValueError("not a JSON object")
    return parsed


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `object_pairs_hook`: an object of JSON, of which Python would keep the last key only."""
    result = dict(pairs)
    if len(result) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {shown(twice)} stands there twice")
    return result
