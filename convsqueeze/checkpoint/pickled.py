"""`.pt`, `.pth`, `.ckpt`, `.bin`: what torch.save writes, zip archives and the older plain pickles.

Reading never runs code: torch's weights-only unpickler builds tensors and plain values and refuses
the rest. Zip archives are memory-mapped, so a tensor nobody touches never enters our own memory;
values are read from the file (see `archive`). Writing gives back the whole saved object, only with
another state dict in it.
"""

import pickle
import struct
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from sys import byteorder
from typing import Any

import torch

from convsqueeze.checkpoint import memory
from convsqueeze.checkpoint.archive import Archive, archive_writer, read_archive
from convsqueeze.checkpoint.base import RECIPE_KEY, Checkpoint
from convsqueeze.checkpoint.disk import FileVersion, no_file, unicode_path
from convsqueeze.checkpoint.format import Format, Output, Start
from convsqueeze.checkpoint.new_files import NewFiles
from convsqueeze.checkpoint.pickle_calls import LARGEST_EXPANSION, UnsafePickle
from convsqueeze.checkpoint.pickle_scan import PickleScan, scan, scan_legacy
from convsqueeze.checkpoint.resaving import foreign_message, foreign_names, without_foreign
from convsqueeze.checkpoint.saved_object import (
    NestedTooDeeply,
    Place,
    SavedObject,
    dotted,
    find_state_dict,
    hidden_method,
    tensors_in,
)
from convsqueeze.checkpoint.sniff import AGAIN, wrong
from convsqueeze.checkpoint.state_dict import edited, open_saved
from convsqueeze.errors import CheckpointError, OutputError, lacks_memory
from convsqueeze.names import listed, shown
from convsqueeze.sharing import span as memory_span

LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""torch's magic number, itself pickled, behind the two bytes of its pickle's protocol."""
DAMAGED = (
    *(pickle.UnpicklingError, struct.error, EOFError, LookupError, ValueError, TypeError),
    *(AttributeError, AssertionError, RuntimeError, ArithmeticError, MemoryError, OSError),
)
"""What torch.load was seen to raise on 15,000 mutated and on all truncated files."""
UNSAVABLE = (pickle.PicklingError, RuntimeError, TypeError, ValueError, AttributeError)
"""What pickling raises for objects that it cannot pickle."""


def _recognizes(start: Start) -> bool:
    if start.records is None:
        return start.head[2:].startswith(LEGACY)
    of_others = {"constants.pkl", "archive_format", "serialized_exported_program.json"}
    return "data.pkl" in start.records and start.records.keys().isdisjoint(of_others)


def _open(start: Start, key: str | None) -> Checkpoint:
    """Raises CheckpointError for a damaged file, a forbidden class, or no single state dict."""
    path, version = start.path, FileVersion.of(start.path)
    archive = None if start.records is None else read_archive(start)
    is_mapped = archive is not None and archive.byteorder == byteorder
    whole = _load(path, _scanned(path, archive, version.size), is_mapped)
    try:
        hidden, tensors = hidden_method(whole), tensors_in(whole)
    except NestedTooDeeply as error:
        raise wrong(path, f"a pickle that {error}", "Save it anew.") from error
    if hidden:
        raise wrong(path, f"a pickle in which {hidden}", "Save it anew.")
    maps = archive.mapped(tensors.values()) if archive is not None and is_mapped else None
    range_of_memory = no_file if maps is None else maps.file_range
    saved = SavedObject(whole, find_state_dict(path, whole, key), key, range_of_memory)
    checkpoint = open_saved(path, PICKLED.name, saved, (version,))
    _check_sizes(path, version.size, tensors, maps)
    return checkpoint


def _scanned(path: Path, archive: Archive | None, size: int) -> PickleScan:
    """What torch would do with it, before torch does it."""
    try:
        if archive is not None:
            return scan(BytesIO(archive.pickle), size)
        with path.open("rb") as file:
            return scan_legacy(file, size)
    except UnsafePickle as error:
        raise wrong(path, f"a pickle that {error}", AGAIN) from error
    except DAMAGED as error:
        raise _refusal(path, error) from error


def _load(path: Path, scanned: PickleScan, mapping: bool) -> object:
    if path.suffix == ".safetensors":  # by this name alone torch.load would read it as such
        raise wrong(path, "a pickle named .safetensors", f"Rename it to {path.stem}.pt.")
    if scanned.unknown:
        if foreign := foreign_names(scanned):
            raise _foreign(path, scanned, foreign)
        what = f"a pickle that calls {listed(scanned.unknown)}, which no state dict needs"
        raise wrong(path, what, AGAIN)
    try:
        with (
            unicode_path(path) as name,
            warnings.catch_warnings(),
            torch.sparse.check_sparse_tensor_invariants(True),
        ):
            warnings.simplefilter("ignore")  # deprecations of ways in which others saved
            return torch.load(name, map_location="cpu", weights_only=True, mmap=mapping)
    except DAMAGED as error:
        if foreign := foreign_names(scanned):
            raise _foreign(path, scanned, foreign) from error
        raise _refusal(path, error) from error


def _foreign(path: Path, scanned: PickleScan, foreign: list[str]) -> CheckpointError:
    advice = without_foreign(path, scanned, foreign)
    return wrong(path, f"a pickle with {foreign_message(foreign)}", advice)


def _refusal(path: Path, error: Exception) -> CheckpointError:
    reason = str(error)
    if lacks_memory(error):
        return wrong(path, "a pickle that asks for more memory than there is", "Save it anew.")
    if "Unsupported operand" in reason:
        what = "a pickle of another protocol, or damaged"
        return wrong(path, what, "Save it with torch.save's default protocol.")
    return wrong(path, "a pickle cut off or damaged", AGAIN)


def _check_sizes(
    path: Path, size: int, tensors: Mapping[Place, torch.Tensor], maps: Archive | None
) -> None:
    """A memory-mapped load believes the pickle about sizes; the archive's directory is right."""
    for place, tensor in tensors.items():
        if memory_span(tensor) is None:
            continue
        if maps is not None and not maps.is_record(tensor.untyped_storage()):
            problem, advice = "does not fit its data", AGAIN
        elif tensor.numel() * tensor.element_size() > LARGEST_EXPANSION * max(size, 1 << 16):
            problem, advice = "expands far beyond the file", "Save it with .clone()."
        else:
            continue
        raise wrong(path, f"a pickle whose tensor {shown(dotted(place))} {problem}", advice)


def _stage(output: Output, files: NewFiles) -> tuple[str, ...]:
    """Writes it as torch.save does. Raises OutputError for what cannot be pickled."""
    source, saved = output.splicing.source, output.splicing.source.saved
    whole: Any = edited(output.splicing, output.recipe)
    if saved is not None:
        whole = saved.replaced(_parted(saved, whole))
    mapped = no_file if saved is None else saved.range_of_memory
    try:
        write = archive_writer(whole, mapped, output.progress)
    except UNSAVABLE as error:
        reason = shown(str(error).partition("\n")[0])
        raise OutputError(
            f"{source.path}: holds what cannot be pickled ({reason}). "
            "Write a .safetensors file instead."
        ) from error
    files.add(output.place, write)
    lost = [key for key in source.metadata if key not in (RECIPE_KEY, "format")]
    if not lost:
        return ()
    return (f"metadata {listed(lost)}: not kept, a {output.suffix} file has no place for it",)


def _parted(saved: SavedObject, edited: OrderedDict[Any, Any]) -> OrderedDict[Any, Any]:
    """The edited state dict, without the values of the tensors that it no longer names."""
    staying = {name: tensor for name, tensor in saved.tensors.items() if edited.get(name) is tensor}
    leaving = [tensor for name, tensor in saved.tensors.items() if name not in staying]
    edited.update(memory.part(staying, leaving, saved.other_tensors()))
    return edited


PICKLED = Format(
    "pt",
    (".pt", ".pth", ".ckpt", ".bin", ".pth.tar"),
    recognizes=_recognizes,
    open=_open,
    stage=_stage,
    keyed=True,
)
