"""Tensors whose values lie in order in a range of a file: read, waiting there, or as maps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from convsqueeze.checkpoint import memory
from convsqueeze.checkpoint.base import TensorInfo
from convsqueeze.checkpoint.disk import FileRange, unreadable
from convsqueeze.checkpoint.new_files import NewFiles, unwritable


def read_tensor(place: FileRange, info: TensorInfo) -> torch.Tensor:
    """The tensor, on memory of its own. Raises CheckpointError where the file has been cut."""
    data = place.read()
    if not data:
        return torch.empty(info.shape, dtype=info.dtype)
    return torch.frombuffer(data, dtype=info.dtype).reshape(info.shape)


def read_strided(tensor: torch.Tensor, place: FileRange) -> torch.Tensor:
    """The tensor whose span of memory is a map of `place`, on memory of its own."""
    flat = torch.frombuffer(place.read(), dtype=tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.stride())


@dataclass(frozen=True)
class TensorOnDisk:
    """A new tensor whose values wait in a file, in order, until they are written."""

    info: TensorInfo
    place: FileRange

    @property
    def nbytes(self) -> int:
        return self.info.nbytes

    def load(self) -> torch.Tensor:
        return read_tensor(self.place, self.info)


class ScratchFile:
    """Keeps new tensors on disk until the file that they belong to is written.

    Its header comes before the data and describes all of them, and nothing is written before all of
    them are verified. The scratch file is temporary, one of `files`, beside the `place` of the
    output.
    """

    def __init__(self, files: NewFiles, place: Path) -> None:
        self._files, self._place = files, place
        self._file: BinaryIO | None = None

    def keep(self, tensor: torch.Tensor) -> TensorOnDisk:
        """The tensor, its values on disk. Raises OutputError where there is no room for them."""
        if self._file is None:
            self._file = self._files.scratch(self._place)
        info = TensorInfo(tuple(tensor.shape), tensor.dtype)
        start = self._file.tell()
        try:
            self._file.write(memory.raw_bytes(tensor))
            self._file.flush()
        except OSError as error:
            raise unwritable(self._place, error) from error
        return TensorOnDisk(info, FileRange(Path(self._file.name), start, info.nbytes))


class FileMaps:
    """Tensors that take no memory: maps of files, which tell the place of their values.

    Nobody may look at the values through the map: a file that another program cuts short kills the
    process that does. They are copied from the file itself.
    """

    def __init__(self) -> None:
        self._maps: dict[Path, torch.UntypedStorage] = {}
        self._places: dict[int, FileRange] = {}

    def tensor(self, place: FileRange, info: TensorInfo) -> torch.Tensor:
        """The tensor whose values lie at `place`."""
        if not place.nbytes:
            return torch.empty(info.shape, dtype=info.dtype)
        whole = self._map(place.path)
        if whole.nbytes() < place.offset + place.nbytes:
            raise place.cut()
        part = whole[place.offset : place.offset + place.nbytes]
        self._places[part.data_ptr()] = place
        count = place.nbytes // info.dtype.itemsize
        flat = torch.empty(0, dtype=info.dtype).set_(part, 0, (count,), (1,))
        return flat.view(info.shape)

    def file_range(self, start: int, stop: int) -> FileRange | None:
        """Where the bytes of a storage lie that is one of these tensors'; None for any other."""
        place = self._places.get(start)
        return place if place is not None and place.nbytes == stop - start else None

    def _map(self, path: Path) -> torch.UntypedStorage:
        if path not in self._maps:
            try:
                size = path.stat().st_size
                mapped: Any = torch.UntypedStorage.from_file(str(path), False, size)
            except (OSError, RuntimeError) as error:
                wrong = error if isinstance(error, OSError) else OSError(str(error))
                raise unreadable(path, wrong) from error
            self._maps[path] = mapped
        return self._maps[path]
