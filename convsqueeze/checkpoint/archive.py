"""The zip archive of torch.save: where each storage's bytes lie in one, and writing one.

torch.load maps an archive into memory, which costs nothing until values are looked at; but a map of
a file that another program cuts short kills the process that looks (SIGBUS), with no message. So
the map tells where values lie, and they are read and copied from the file itself.

The archive is written here and not by torch.save because that would look at every value through
the map. Records are stored, not compressed, and begin at multiples of 64 bytes, as torch's own do.
"""

import io
import pickle
import struct
import warnings
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from sys import byteorder
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.storage import TypedStorage

from convsqueeze.checkpoint.disk import FileRange, Progress, RangeOfMemory, no_progress, start_flush
from convsqueeze.checkpoint.new_files import Writer
from convsqueeze.checkpoint.sniff import AGAIN, wrong
from convsqueeze.sharing import span as memory_span

FOLDER = "archive"
"""What torch.save calls the folder in an archive that has no file name."""
ALIGNMENT = 64
PADDING_FIELD = b"FB"
LOCAL_HEADER = struct.Struct("<26xHH")
"""Of a record's own header, the lengths of its name and of its extra field."""
ZIP64_FIELD = 20
"""Bytes that zipfile adds to the header of a record of more than 2 GiB."""
EPOCH = (1980, 1, 1, 0, 0, 0)
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


@dataclass(frozen=True)
class Records:
    """What an archive holds beside values: the byte order they are in, the pickle that names them,
    and the size of each record by the place where its data begins.
    """

    path: Path
    byteorder: str
    pickle: bytes = field(repr=False)
    sizes: Mapping[int, int] = field(repr=False)

    @property
    def native(self) -> bool:
        """Whether values lie in the file as they do in memory."""
        return self.byteorder == byteorder


def read_records(path: Path) -> Records:
    """Raises CheckpointError for an archive that is damaged or not as torch.save writes it."""
    try:
        return _read_records(path)
    except DAMAGED_ARCHIVE as error:
        raise wrong(path, "a zip archive cut off or damaged", AGAIN) from error


def _read_records(path: Path) -> Records:
    small = {"byteorder": b"little", "data.pkl": b""}  # before torch 2.1 no order was told
    sizes: dict[int, int] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        _check_directory(path, archive.infolist())
        for record in archive.infolist():
            file.seek(record.header_offset)
            lengths = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
            start = record.header_offset + LOCAL_HEADER.size + sum(lengths)
            sizes[start] = record.file_size
            name = record.filename.partition("/")[2]
            if name in small:
                small[name] = archive.read(record)
    order = small["byteorder"].decode("ascii", "replace")
    return Records(path, order, small["data.pkl"], sizes)


def _check_directory(path: Path, records: Sequence[zipfile.ZipInfo]) -> None:
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        advice = "Unpack and repack it without compression, or save it anew with torch.save."
        raise wrong(path, "a zip archive whose records are compressed", advice)
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise wrong(path, "a zip archive whose records overlap", "Save it anew with torch.save.")


@dataclass(frozen=True)
class Mapped:
    """The parts of this process's memory that are maps of an archive."""

    records: Records
    regions: tuple[tuple[int, int, int], ...]
    """Address of the first byte, address behind the last, place of the first in the file."""

    def file_range(self, start: int, stop: int) -> FileRange | None:
        """Where the bytes at these addresses lie in the file; None if they are no map of it."""
        for first, end, place in self.regions:
            if first <= start and stop <= end:
                return FileRange(self.records.path, place + start - first, stop - start)
        return None

    def is_record(self, storage: torch.UntypedStorage) -> bool:
        """Whether the storage is a record of the archive, whole; elsewhere, as large as one."""
        start = storage.data_ptr()
        found = self.file_range(start, start + storage.nbytes())
        if found is None:
            return storage.nbytes() in self.records.sizes.values()
        return self.records.sizes.get(found.offset) == found.nbytes


def mapped(records: Records, tensors: Iterable[Tensor]) -> Mapped:
    """The regions of memory that `tensors`, just loaded from the archive and kept, are maps of.

    Linux tells them; elsewhere none are found. Other maps of files do not count: they may be gone
    when their addresses are asked for.
    """
    spans = sorted(span for tensor in tensors if (span := memory_span(tensor)) is not None)
    regions = []
    table = Path("/proc/self/maps")
    for line in table.read_text().splitlines() if table.exists() else ():
        addresses, _, place, _, inode, *_ = line.split(maxsplit=5)
        first, end = (int(address, 16) for address in addresses.split("-"))
        above = bisect_left(spans, first, key=lambda span: span.start)
        if inode != "0" and above < len(spans) and spans[above].stop <= end:
            regions.append((first, end, int(place, 16)))
    return Mapped(records, tuple(regions))


def archive_writer(
    saved: Any,
    places: Sequence[RangeOfMemory] = (),
    progress: Progress = no_progress,
) -> Writer:
    """Writes `saved` as torch.save does; storages that are maps of files are copied from there.

    Raises what pickling raises, before anything is written.
    """
    storages: list[torch.UntypedStorage] = []
    data = _pickled(saved, storages)

    def write(file: BinaryIO) -> None:
        def written(nbytes: int) -> None:
            start_flush(file, nbytes)
            progress(nbytes)

        with zipfile.ZipFile(file, "w") as archive:
            _add(archive, "data.pkl", data)
            _add(archive, "byteorder", byteorder.encode())
            for key, storage in enumerate(storages):
                blocks = _blocks(storage, places)
                _add_blocks(archive, f"data/{key}", blocks, storage.nbytes(), written)
            _add(archive, "version", b"3\n")

    return write


def _pickled(saved: Any, storages: list[torch.UntypedStorage]) -> bytes:
    """The pickle of everything but the storages, which are appended to `storages`."""
    keys: dict[int, tuple[str, torch.dtype]] = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
            if not isinstance(value, TypedStorage | torch.UntypedStorage):
                return None
            storage, kind, dtype, numel = _described(value)
            key, known = keys.setdefault(storage._cdata, (str(len(keys)), dtype))
            if known != dtype:
                raise pickle.PicklingError(f"memory that is both {known} and {dtype}")
            if len(storages) < len(keys):
                storages.append(storage.cpu())
            return "storage", kind, key, "cpu", numel

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TypedStorage is deprecated and what the format names
        Pickler(buffer, protocol=2).dump(saved)
    return buffer.getvalue()


def _described(
    storage: TypedStorage | torch.UntypedStorage,
) -> tuple[torch.UntypedStorage, type, torch.dtype, int]:
    """The bytes, and what the format says of them: the class of storage, dtype and elements."""
    if isinstance(storage, torch.UntypedStorage):
        return storage, torch.UntypedStorage, torch.uint8, storage.nbytes()
    kind = getattr(torch, storage.pickle_storage_type())
    return storage.untyped(), kind, storage.dtype, storage.size()


def _blocks(storage: torch.UntypedStorage, places: Sequence[RangeOfMemory]) -> Iterator[memoryview]:
    start = storage.data_ptr()
    found = (place(start, start + storage.nbytes()) for place in places)
    place = next((one for one in found if one is not None), None)
    if place is not None:
        yield from place.blocks()
    elif storage.nbytes():
        yield torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    _add_blocks(archive, name, iter([memoryview(data)]), len(data), no_progress)


def _add_blocks(
    archive: zipfile.ZipFile,
    name: str,
    blocks: Iterator[memoryview],
    nbytes: int,
    progress: Progress,
) -> None:
    """One record, its data aligned by a field of padding in its header, as torch aligns it."""
    record = zipfile.ZipInfo(f"{FOLDER}/{name}", EPOCH)
    record.file_size = nbytes  # decides on the form of the header
    long = nbytes * 1.05 > zipfile.ZIP64_LIMIT
    header = LOCAL_HEADER.size + len(record.filename) + (ZIP64_FIELD if long else 0) + 4
    padding = -(archive.start_dir + header) % ALIGNMENT
    record.extra = PADDING_FIELD + struct.pack("<H", padding) + bytes(padding)
    with archive.open(record, "w", force_zip64=long) as out:
        for block in blocks:
            out.write(block)
            progress(len(block))
