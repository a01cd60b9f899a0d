"""Tensors whose values lie in order in a range of a file: read, or on a map of it."""

from pathlib import Path
from typing import Any

import torch

from convsqueeze.checkpoint.base import TensorInfo
from convsqueeze.checkpoint.disk import FileRange, unreadable


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
