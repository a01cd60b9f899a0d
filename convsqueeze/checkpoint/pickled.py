"""`.pt`, `.pth`, `.ckpt`, `.bin`: what torch.save writes, zip archives and the older plain pickles.

Reading never runs code: torch's weights-only unpickler builds tensors and plain values and refuses
the rest. Zip archives are memory-mapped, so a tensor nobody touches never enters our own memory;
values are read from the file (see `archive`). Writing gives back the whole saved object, only with
another state dict in it.
"""

import copy
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from convsqueeze.checkpoint import memory
from convsqueeze.checkpoint.archive import (
    Mapped,
    Places,
    Records,
    archive_writer,
    mapped,
    read_records,
    read_strided,
)
from convsqueeze.checkpoint.base import RECIPE_KEY, Checkpoint
from convsqueeze.checkpoint.disk import Advance, FileRange, FileVersion, sha256, unwatched
from convsqueeze.checkpoint.edits import Edit, Late, New, Splice, Spooled, splice
from convsqueeze.checkpoint.new_files import Writer
from convsqueeze.checkpoint.pickle_scan import LARGEST_EXPANSION, Hostile, scan, scan_legacy
from convsqueeze.checkpoint.ranges import FileMaps
from convsqueeze.checkpoint.saved_object import hidden_method, tensors_in
from convsqueeze.checkpoint.sniff import AGAIN, wrong
from convsqueeze.checkpoint.state_dict import (
    METADATA,
    HeldTensors,
    described,
    edited,
    named_tensors,
)
from convsqueeze.checkpoint.wrappers import KeyPath, at, find_state_dict
from convsqueeze.errors import CheckpointError, OutputError
from convsqueeze.names import shown
from convsqueeze.sharing import span as memory_span

DAMAGED = (
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
    OSError,
)
"""What torch.load was seen to raise on 15,000 mutated and on all truncated files."""

UNSAVABLE = (pickle.PicklingError, RuntimeError, TypeError, ValueError, AttributeError)
"""What pickling raises for objects that it cannot pickle."""

DAMAGED_ARCHIVE = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    OverflowError,
    OSError,
)
"""What zipfile raises for an archive whose directory and records do not fit each other."""

FORBIDDEN = re.compile(r"GLOBAL (\S+) (?:was not an allowed global|whose module)")


@dataclass(frozen=True, eq=False)
class PickledTensors(HeldTensors):
    """A state dict inside a saved object, with the rest of that object to write back.

    `source` is the mapped archive; None where all values are in memory.
    """

    saved: Any = field(default=None, repr=False)
    key_path: KeyPath = ()
    source: Mapped | None = None

    def load(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self.state_dict[name]
        place = self._span(tensor)
        return super().load(name) if place is None else read_strided(tensor, place)

    def file_range(self, name: str) -> FileRange | None:
        tensor: torch.Tensor = self.state_dict[name]
        place = self._span(tensor)
        return place if place is not None and tensor.is_contiguous() else None

    def _span(self, tensor: torch.Tensor) -> FileRange | None:
        """Where in the archive it lies, from its first element to its last."""
        span = memory_span(tensor)
        if self.source is None or span is None or not memory.is_plain(tensor):
            return None
        return self.source.file_range(span.start, span.stop)

    def sha256(self, advance: Advance) -> str:
        return sha256((version.path for version in self.files), advance)


def open_pickled(path: Path, *, zipped: bool, key: str | None) -> Checkpoint:
    """Raises CheckpointError for a damaged file, a forbidden class, or no single state dict."""
    version = FileVersion.of(path)
    records = _records(path) if zipped else None
    _check_pickle(path, records, version.size)
    mapping = records is not None and records.native
    saved = _load(path, zipped, mapping)
    if hidden := hidden_method(saved):
        raise wrong(path, f"a pickle in which {hidden}", "Save it anew.")
    key_path = find_state_dict(path, saved, key)
    source = None
    if records is not None and mapping:
        source = mapped(records, (tensor for _, tensor in tensors_in(saved)))
    contents = PickledTensors(str(path), at(saved, key_path), (version,), saved, key_path, source)
    checkpoint = described(path, "pt", ".".join(key_path), contents)
    _check_sizes(path, version.size, saved, source)
    return checkpoint


def _records(path: Path) -> Records:
    try:
        return read_records(path)
    except DAMAGED_ARCHIVE as error:
        raise wrong(path, "a zip archive cut off or damaged", AGAIN) from error


def _check_pickle(path: Path, records: Records | None, size: int) -> None:
    """What torch would do with it, before torch does it."""
    try:
        with path.open("rb") as file:
            if records is None:
                scan_legacy(file, size)
            else:
                scan(BytesIO(records.pickle), size)
    except Hostile as error:
        raise wrong(path, f"a pickle that {error}", AGAIN) from error
    except DAMAGED as error:
        raise _refusal(path, records is not None, error) from error


def _load(path: Path, zipped: bool, mapping: bool) -> object:
    if path.suffix == ".safetensors":  # by this name alone torch.load would read it as such
        raise wrong(path, "a pickle named .safetensors", f"Rename it to {path.stem}.pt.")
    try:
        with warnings.catch_warnings(), torch.sparse.check_sparse_tensor_invariants(True):
            warnings.simplefilter("ignore")  # deprecations of ways in which others saved
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapping)
    except DAMAGED as error:
        raise _refusal(path, zipped, error) from error


def _refusal(path: Path, zipped: bool, error: Exception) -> CheckpointError:
    reason = str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in reason:
        return wrong(path, "a pickle that asks for more memory than there is", "Save it anew.")
    forbidden = FORBIDDEN.search(reason)
    if not zipped and not _complete(path):
        return wrong(path, "a pickle cut off or damaged", AGAIN)
    if forbidden:
        what = f"a pickle with an object of {shown(forbidden[1])}, which for safety is not loaded"
        load = f'torch.load("{path.name}", weights_only=False)'
        return wrong(path, what, f"If you trust it, load it with {load} and save its state_dict().")
    if "Unsupported operand" in reason:
        what = "a pickle of another protocol, or damaged"
        return wrong(path, what, "Save it with torch.save's default protocol.")
    return wrong(path, "a pickle cut off or damaged", AGAIN)


def _complete(path: Path) -> bool:
    """Whether the four pickles before a legacy file's data parse up to their ends. Runs nothing."""
    try:
        with path.open("rb") as file:
            for _ in range(4):
                for _ in pickletools.genops(file):
                    pass
    except DAMAGED:
        return False
    return True


def _check_sizes(path: Path, size: int, saved: object, source: Mapped | None) -> None:
    """A memory-mapped load believes the pickle about sizes; the archive's directory is right."""
    for name, tensor in tensors_in(saved):
        if memory_span(tensor) is None:
            continue
        if source is not None and not source.is_record(tensor.untyped_storage()):
            raise wrong(path, f"a pickle whose tensor {shown(name)} does not fit its data", AGAIN)
        if tensor.numel() * tensor.element_size() > LARGEST_EXPANSION * max(size, 1 << 16):
            what = f"a pickle whose tensor {shown(name)} expands far beyond the file"
            raise wrong(path, what, "Save it with .clone().")


def pickled_writer(
    source: Checkpoint, edits: Sequence[Edit], recipe: str | Late, advance: Advance = unwatched
) -> Writer:
    """Writes the edited checkpoint as torch.save does. Raises OutputError for what no pickle is."""
    text, maps = Late.of(recipe), FileMaps()
    state_dict = _edited(source, splice(source, edits), text.draft, maps)
    contents = source.contents
    saved: Any = state_dict
    places: list[Places] = [maps]
    if isinstance(contents, PickledTensors):
        saved = _replaced(contents.saved, contents.key_path, state_dict)
        places += [contents.source] if contents.source else []

    def settled() -> None:
        getattr(state_dict, METADATA)[RECIPE_KEY] = text.final()

    try:
        return archive_writer(saved, places, settled=settled, advance=advance)
    except UNSAVABLE as error:
        reason = shown(str(error).partition("\n")[0])
        raise OutputError(
            f"{source.path}: holds what cannot be pickled ({reason}). "
            "Write a .safetensors file instead."
        ) from error


def _edited(
    source: Checkpoint, splicing: Splice, recipe: str, maps: FileMaps
) -> OrderedDict[Any, Any]:
    """The state dict to be saved; values that lie in files stay there."""

    def held(new: New) -> torch.Tensor:
        return maps.tensor(new.place, new.info) if isinstance(new, Spooled) else memory.own(new)

    contents = source.contents
    if not isinstance(contents, HeldTensors):
        kept = {source.prefix + name: _kept(source, name, maps) for name in source.tensors}
        return edited(kept, source.prefix, splicing, recipe, held)
    result = edited(contents.state_dict, source.prefix, splicing, recipe, held)
    elsewhere: Iterable[torch.Tensor] = ()
    if isinstance(contents, PickledTensors):
        rest = {k: v for k, v in contents.state_dict.items() if not isinstance(v, torch.Tensor)}
        others = _replaced(contents.saved, contents.key_path, rest)
        elsewhere = (tensor for _, tensor in tensors_in(others))
    return _parted(contents.state_dict, result, elsewhere)


def _kept(source: Checkpoint, name: str, maps: FileMaps) -> torch.Tensor:
    place = source.file_range(name)
    return source.load(name) if place is None else maps.tensor(place, source.tensors[name])


def _parted(
    before: Mapping[Any, Any], after: OrderedDict[Any, Any], elsewhere: Iterable[torch.Tensor]
) -> OrderedDict[Any, Any]:
    """`after`, without the values of the tensors that it no longer names."""
    old = named_tensors(before)
    kept = {name: tensor for name, tensor in old.items() if after.get(name) is tensor}
    leaving = [tensor for name, tensor in old.items() if name not in kept]
    after.update(memory.part(kept, leaving, elsewhere))
    return after


def _replaced(saved: Any, place: KeyPath, new: object) -> Any:
    """`saved`, copied as deep as `place` leads, with `new` there."""
    if not place:
        return new
    result = copy.copy(saved)
    result[place[0]] = _replaced(saved[place[0]], place[1:], new)
    return result


def left_behind(source: Checkpoint) -> list[str]:
    """Dotted names of what a file of tensors only cannot take over."""
    contents = source.contents
    if not isinstance(contents, HeldTensors):
        return []
    names: list[str] = []
    if isinstance(contents, PickledTensors):
        level = contents.saved
        for depth, key in enumerate(contents.key_path):
            before = contents.key_path[:depth]
            names += [_dotted((*before, other)) for other in level if other != key]
            level = level[key]
    kept = named_tensors(contents.state_dict)
    return names + [_dotted((name,)) for name in contents.state_dict if name not in kept]


def _dotted(place: Iterable[object]) -> str:
    return ".".join(key if isinstance(key, str) else repr(key) for key in place)
