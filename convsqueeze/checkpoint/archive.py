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
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from sys import byteorder
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.storage import TypedStorage

from convsqueeze.checkpoint.disk import FileRange, Progress, RangeOfMemory, no_file, no_progress
from convsqueeze.checkpoint.format import Start
from convsqueeze.checkpoint.new_files import Writer
from convsqueeze.checkpoint.sniff import AGAIN, wrong
from convsqueeze.checkpoint.tensors import TensorOnDisk
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
DAMAGED = (
    *(zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError),
    *(struct.error, zlib.error, OverflowError, OSError),
)
"""What zipfile raises for an archive whose directory and records do not fit each other."""


@dataclass(frozen=True)
class Archive:
    """What an archive holds beside values: the byte order they are in, the pickle that names them,
    and the size of each record by the place where its data begins. `regions` are the parts of this
    process's memory that are maps of it: addresses of the first byte and behind the last, and the
    place of the first in the file.
    """

    path: Path
    byteorder: str
    pickle: bytes = field(repr=False)
    sizes: Mapping[int, int] = field(repr=False)
    regions: tuple[tuple[int, int, int], ...] = ()

    def mapped(self, tensors: Iterable[Tensor]) -> "Archive":
        """With the regions that `tensors`, just loaded from it and kept, are maps of.

        Linux tells them; elsewhere none are found. Other maps of files do not count: they may be
        gone when their addresses are asked for.
        """
        spans = sorted(span for tensor in tensors if (span := memory_span(tensor)) is not None)
        starts = [span.start for span in spans]
        regions = []
        table = Path("/proc/self/maps")
        for line in table.read_bytes().splitlines() if table.exists() else ():
            addresses, _, place, _, inode, *_ = line.split(maxsplit=5)
            first, end = [int(address, 16) for address in addresses.split(b"-")]
            above = bisect_left(starts, first)
            if inode != b"0" and above < len(spans) and spans[above].stop <= end:
                regions.append((first, end, int(place, 16)))
        return replace(self, regions=tuple(regions))

    def file_range(self, start: int, stop: int) -> FileRange | None:
        """Where the bytes at these addresses lie in the file; None if they are no map of it."""
        for first, end, place in self.regions:
            if first <= start and stop <= end:
                return FileRange(self.path, place + start - first, stop - start)
        return None

    def is_record(self, storage: torch.UntypedStorage) -> bool:
        """Whether the storage is a record of the archive, whole; elsewhere, as large as one."""
        start = storage.data_ptr()
        found = self.file_range(start, start + storage.nbytes())
        if found is None:
            return storage.nbytes() in self.sizes.values()
        return self.sizes.get(found.offset) == found.nbytes


def read_archive(start: Start) -> Archive:
    """Raises CheckpointError for an archive that is damaged or not as torch.save writes it."""
    path, records = start.path, start.records or {}
    if any(record.compress_type != zipfile.ZIP_STORED for record in records.values()):
        advice = "Unpack and repack it without compression, or save it anew with torch.save."
        raise wrong(path, "a zip archive whose records are compressed", advice)
    if sum(record.file_size for record in records.values()) > start.size:
        raise wrong(path, "a zip archive whose records overlap", "Save it anew with torch.save.")
    sizes: dict[int, int] = {}
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            for record in records.values():
                file.seek(record.header_offset)
                lengths = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
                sizes[record.header_offset + LOCAL_HEADER.size + sum(lengths)] = record.file_size
            data = archive.read(records["data.pkl"])
            # before torch 2.1 no order was told
            order = archive.read(records["byteorder"]) if "byteorder" in records else b"little"
    except DAMAGED as error:
        raise wrong(path, "a zip archive cut off or damaged", AGAIN) from error
    if not torch_reads(path, data):
        raise wrong(path, "a zip archive that torch reads otherwise, or not at all", AGAIN)
    return Archive(path, order.decode("ascii", "replace"), data, sizes)


def torch_reads(path: Path, data: bytes) -> bool:
    """Whether torch's own reader, which takes other ways through a zip archive, finds this pickle,
    in the folder of the first record.
    """
    try:
        with path.open("rb") as file:
            found: bytes = torch._C.PyTorchFileReader(file).get_record("data.pkl")
    except (RuntimeError, OSError):
        return False
    return found == data


def archive_writer(
    saved: Any, mapped: RangeOfMemory = no_file, progress: Progress = no_progress
) -> Writer:
    """Writes `saved` as torch.save does; a TensorOnDisk in it is copied from its file, and so are
    storages that are maps of files, as `mapped` tells.

    Raises what pickling raises, before anything is written.
    """
    pickler = _Pickler(mapped)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TypedStorage is deprecated and what the format names
        pickler.dump(saved)

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            _add(archive, "data.pkl", [pickler.buffer.getbuffer()])
            _add(archive, "byteorder", [memoryview(byteorder.encode())])
            for key, values in enumerate(pickler.values):
                blocks = values.blocks() if isinstance(values, FileRange) else [values]
                _add(archive, f"data/{key}", blocks, values.nbytes, progress)
            _add(archive, "version", [memoryview(b"3\n")])

    return write


class _Pickler(pickle.Pickler):
    """The pickle of everything but the values of storages, which are collected in their order."""

    def __init__(self, mapped: RangeOfMemory) -> None:
        self.buffer = io.BytesIO()
        super().__init__(self.buffer, protocol=2)
        self.values: list[FileRange | memoryview] = []
        self._mapped = mapped
        self._on_disk: dict[int, FileRange] = {}
        self._seen: dict[int, tuple[str, torch.dtype, torch.UntypedStorage]] = {}

    def reducer_override(self, value: Any) -> Any:
        """As torch reduces a tensor, on a storage without memory."""
        if not isinstance(value, TensorOnDisk):
            return NotImplemented
        tensor = torch.empty(value.info.shape, dtype=value.info.dtype, device="meta")
        storage = tensor.untyped_storage()
        self._on_disk[storage._cdata] = value.place
        described: tuple[Any, ...] = (0, tuple(tensor.shape), tensor.stride(), False, OrderedDict())
        if tensor.dtype not in torch.storage._dtype_to_storage_type_map():
            return torch._utils._rebuild_tensor_v3, (storage, *described, tensor.dtype)
        typed = TypedStorage(wrap_storage=storage, dtype=tensor.dtype, _internal=True)
        return torch._utils._rebuild_tensor_v2, (typed, *described)

    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        """What the format says of a storage: its class, key and number of elements."""
        if isinstance(value, torch.UntypedStorage):
            storage, kind, dtype, numel = value, type(value), torch.uint8, value.nbytes()
        elif isinstance(value, TypedStorage):
            storage, dtype, numel = value.untyped(), value.dtype, value.size()
            kind = getattr(torch, value.pickle_storage_type())
        else:
            return None
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = (str(len(self._seen)), dtype, storage)
            self.values.append(self._values(storage))
        key, known, _ = self._seen[storage._cdata]
        if known != dtype:
            raise pickle.PicklingError(f"memory that is both {known} and {dtype}")
        return "storage", kind, key, "cpu", numel

    def _values(self, storage: torch.UntypedStorage) -> FileRange | memoryview:
        if place := self._on_disk.get(storage._cdata):
            return place
        storage = storage.cpu()
        start = storage.data_ptr()
        if place := self._mapped(start, start + storage.nbytes()):
            return place
        return torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data


def _add(
    archive: zipfile.ZipFile,
    name: str,
    blocks: Iterable[memoryview],
    nbytes: int = 0,
    progress: Progress = no_progress,
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
