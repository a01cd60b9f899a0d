"""What was measured before on this machine, kept in the user's cache folder: a file a measurement.

A file that is damaged, or of another measurement, is as good as none; nothing here raises.
"""

import contextlib
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from platformdirs import user_cache_path

from convsqueeze.plan import Timing

Key = Mapping[str, str]


def default_folder() -> Path:
    """Where measurements are kept."""
    return user_cache_path("convsqueeze") / "latency"


def processor() -> str:
    """The model of this machine's processor, as its system calls it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def read(folder: Path, key: Key) -> Timing | None:
    """The measurement of `key`, None where there is none that can be read."""
    try:
        data = json.loads(_path(folder, key).read_text(encoding="utf-8"))
        before, after, faster = data["before"], data["after"], data["faster"]
        if data["key"] != dict(key) or not isinstance(faster, bool):
            return None
        numbers = [value for value in (before, after) if type(value) is int and value > 0]
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None
    return Timing(before, after, faster) if len(numbers) == 2 else None


def write(folder: Path, key: Key, timing: Timing) -> None:
    """Keep a measurement, whole or not at all; where that is not possible it is not kept."""
    data = {
        "key": dict(key),
        "before": timing.before,
        "after": timing.after,
        "faster": timing.faster,
    }
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(data, file, indent=1)
            os.replace(name, _path(folder, key))
        except BaseException:
            os.unlink(name)
            raise


def _path(folder: Path, key: Key) -> Path:
    text = json.dumps(dict(key), sort_keys=True)
    return folder / f"{sha256(text.encode()).hexdigest()[:40]}.json"
