"""How the weights in a file that is not read get into one that is: commands for a user to run.

Knows paths and descriptions of pickles, opens no file.
"""

import json
import shlex
import sys
import zipfile
from collections.abc import Collection, Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path

import torch

from convsqueeze.checkpoint.pickle_calls import Item, Made
from convsqueeze.checkpoint.pickle_scan import PickleScan
from convsqueeze.checkpoint.saved_object import DEPTH, KeyPath, is_of_weights, walk
from convsqueeze.names import LONGEST_SHOWN, listed

MOST_NAMED = 30
MOST_WEIGHTS = 8
REBUILT = ("torch._utils._rebuild_", "torch._tensor._rebuild_")
"""How the names of the functions begin that make tensors."""
INERT = (
    *("argparse.Namespace", "types.SimpleNamespace", "uuid.UUID", "decimal.Decimal"),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *("builtins.frozenset", "builtins.range", "builtins.slice"),
)
"""Classes of plain values: making one runs nothing that the file chooses."""
NUMPY = {
    "multiarray.scalar": "numpy.int8().__reduce__()[0]",
    "multiarray._reconstruct": "numpy.zeros(0).__reduce__()[0]",
    "numpy.ndarray": "numpy.ndarray",
    "numpy.dtype": "numpy.dtype",
}
"""How any version of numpy gives what makes its scalars and arrays, by the end of its name."""
NUMPY_DTYPES = '*{type(numpy.dtype(c)) for c in numpy.typecodes["All"]}'
RUNS = ("os.", "posix.", "nt.", "sys.", "subprocess.", "builtins.exec", "builtins.eval")
"""How the names of functions begin that run commands of the file's choice."""


def resave(path: Path, expression: str) -> str:
    """Advice to save the state dict that an expression of Python gives; `PATH` stands for the file
    in it.
    """
    return _advice(path, expression.replace("PATH", _literal(str(path))), [])


def foreign_names(scanned: PickleScan) -> list[str]:
    """The classes and functions in a pickle that torch's weights-only unpickler refuses, sorted."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # torch answers for whole files only
        named = "".join("c{}\n{}\n".format(*name.split(" ", 1)) for name in scanned.names)
        archive.writestr("names/data.pkl", f"{named}.")
        archive.writestr("names/version", "3")
    buffer.seek(0)
    return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(buffer))


def foreign_message(foreign: Collection[str]) -> str:
    names = listed([name.removeprefix("builtins.") for name in foreign], MOST_NAMED)
    if len(foreign) == 1:
        return f"an object of {names}, which for safety is not loaded"
    return f"objects of {names}, which for safety are not loaded"


def without_foreign(path: Path, scanned: PickleScan, foreign: Collection[str]) -> str:
    """Advice to save the weights in a pickle without the objects of `foreign` classes."""
    if any(name.startswith(RUNS) for name in foreign):
        return "Do not load it: it runs commands. Get the weights from where you trust."
    places = dict(islice(_weights(scanned.top), MOST_WEIGHTS))
    found = [_expression(place, made) for place, made in places.items()]
    source = f'torch.load({_literal(str(path))}, map_location="cpu", weights_only='
    if not found:
        return (
            f"If you trust where it is from, load it with {source}False), which runs code that the "
            "file chooses, and save its state dict with torch.save."
        )
    saved = found[0]
    if len(found) > 1:
        names = (_literal(".".join(place)) for place in places)
        saved = f"{{{', '.join(f'{n}: {e}' for n, e in zip(names, found, strict=True))}}}"
    allowed = [_allowed(name) for name in foreign]
    modules = sorted({name.partition(".")[0] for name in foreign} - {"torch", "builtins"})
    if None not in allowed:
        if "numpy" in modules:
            allowed.append(NUMPY_DTYPES)
        before = f"torch.serialization.add_safe_globals([{', '.join(map(str, allowed))}]); "
        return _advice(path, saved, modules, f"{before}d = {source}True); ")
    needed = [name for name in modules if name not in sys.stdlib_module_names]
    needs = f" and needs {listed(needed, MOST_NAMED)}" if needed else ""
    return (
        f"If you trust where it is from, as this runs code that the file chooses{needs}: "
        f"{_advice(path, saved, [], f'd = {source}False); ')}"
    )


def _weights(top: Item) -> Iterator[tuple[KeyPath, Made]]:
    """The modules and the mappings with tensors that keys of weights lead to."""

    def is_weights(item: Item) -> bool:
        return _is_module(item) or any(map(_is_tensor, getattr(item, "entries", {}).values()))

    def inside(place: KeyPath, item: Item) -> Iterator[tuple[str, Item]]:
        if isinstance(item, Made) and not is_weights(item) and len(place) < DEPTH:
            for key, inner in item.entries.items():
                if is_of_weights(key) and len(key) <= LONGEST_SHOWN:
                    yield key, inner

    return ((place, item) for place, item in walk(top, inside) if is_weights(item))


def _is_module(item: Item) -> bool:
    state = item.state if isinstance(item, Made) else None
    return isinstance(state, Made) and {"_parameters", "_modules"} <= state.entries.keys()


def _is_tensor(item: Item) -> bool:
    return isinstance(item, Made) and item.maker.startswith(REBUILT)


def _expression(place: KeyPath, made: Made) -> str:
    """Of the state dict that lies at a place of `d`."""
    value = "d" + "".join(f"[{_literal(key)}]" for key in place)
    if _is_module(made):
        return f"{value}.state_dict()"
    if all(map(_is_tensor, made.entries.values())):
        return value
    return f"{{k: v for k, v in {value}.items() if torch.is_tensor(v)}}"


def _allowed(name: str) -> str | None:
    """The element for `add_safe_globals` that makes a class of plain values known."""
    if name in INERT:
        return name.removeprefix("builtins.")
    if name.startswith("pathlib."):
        system = "Windows" if "Windows" in name else "Posix"
        return f"(pathlib.Pure{system}Path, {_literal(name)})"
    for end, expression in NUMPY.items():
        if name.startswith("numpy.") and name.endswith(end):
            return f"({expression}, {_literal(name)})"
    return None


def _advice(path: Path, expression: str, modules: Collection[str], before: str = "") -> str:
    new = path.with_name(f"{path.stem}.weights.pt")
    code = f"torch.save({expression}, {_literal(str(new))})"
    command = f"import {', '.join(('torch', *modules))}; {before}{code}"
    return f"Run python -c {shlex.quote(command)} and name {new.name}."


def _literal(text: str) -> str:
    """A string in Python's code."""
    return json.dumps(text, ensure_ascii=not text.isprintable())
