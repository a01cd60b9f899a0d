"""Which tensors share memory: the same object, the same bytes, or some of them.

Knows tensors only, also those without values (meta and fake ones), which share a storage. All
addresses are in bytes.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import mul

import torch
from torch.nn.parameter import is_lazy


@dataclass(frozen=True, order=True)
class Span:
    """The bytes from a tensor's first element up to behind its last, gaps between included."""

    device: str
    start: int
    stop: int


def span(tensor: torch.Tensor) -> Span | None:
    """The memory of a tensor; None for one without: empty, lazy, sparse, nested, meta or fake, or a
    wrapper of other tensors.
    """
    place = place_of(tensor)
    return place if place is not None and has_address(tensor) else None


def place_of(tensor: torch.Tensor) -> Span | None:
    """As `span`; where there are no values, and so no addresses, the place in the storage."""
    storage = storage_of(tensor)
    if storage is None or not tensor.numel():
        return None
    width, stride = tensor.element_size(), tensor.stride()
    start = storage[1] + int(tensor.storage_offset()) * width
    last = sum(map(mul, tensor.shape, stride)) - sum(stride)
    return Span(storage[0], start, start + (last + 1) * width)


def storage_of(tensor: torch.Tensor) -> tuple[str, int] | None:
    """The device and address of its storage; without values, a name of it and 0. None for a tensor
    that has no storage of its own: lazy, sparse, nested, or a wrapper of other tensors.
    """
    if tensor.layout != torch.strided or tensor.is_nested or is_lazy(tensor):
        return None
    try:
        storage = tensor.untyped_storage()
        if has_address(tensor):
            return str(tensor.device), storage.data_ptr()
    except (RuntimeError, NotImplementedError):
        return None
    return f"storage {storage._cdata}", 0


def has_address(tensor: torch.Tensor) -> bool:
    """Whether its values are in memory: not so for meta tensors and fake ones."""
    fake = sys.modules.get("torch._subclasses.fake_tensor")  # slow to import, and there are none
    is_fake = fake is not None and isinstance(tensor, fake.FakeTensor)
    return tensor.device.type != "meta" and not is_fake


def clusters(tensors: Mapping[str, torch.Tensor]) -> list[list[tuple[Span, str]]]:
    """Places and names of tensors whose spans overlap, directly or through others; each such group
    in address order.
    """
    places = {name: place_of(tensor) for name, tensor in tensors.items()}
    groups: list[list[tuple[Span, str]]] = []
    device, reach = "", 0
    for place, name in sorted((place, name) for name, place in places.items() if place is not None):
        if place.device == device and place.start < reach:
            groups[-1].append((place, name))
            reach = max(reach, place.stop)
        else:
            groups.append([(place, name)])
            device, reach = place.device, place.stop
    return groups


def ties(tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[str, ...], ...]:
    """Groups of names, in the order of `tensors`, of which some element is the same memory.

    Views that interleave (the columns of a matrix) overlap in their spans, but are not tied.
    """
    order = {name: i for i, name in enumerate(tensors)}
    found = [
        tuple(sorted(names, key=order.__getitem__))
        for group in clusters(tensors)
        if len(group) > 1
        for names in _sharing(group, tensors)
        if len(names) > 1
    ]
    return tuple(sorted(found, key=lambda names: order[names[0]]))


def _sharing(
    group: Sequence[tuple[Span, str]], tensors: Mapping[str, torch.Tensor]
) -> list[list[str]]:
    """A cluster, divided by which tensor last laid its label on each element of a map."""
    names = [name for _, name in group]
    views = [tensors[name] for name in names]
    start, stop = group[0][0].start, max(place.stop for place, _ in group)
    unit = views[0].element_size()
    offsets = [place.start - start for place, _ in group]
    sizes = [view.numel() * view.element_size() for view in views]
    regular = all(
        view.element_size() == unit and offset % unit == 0 and size <= stop - start
        for view, offset, size in zip(views, offsets, sizes, strict=True)
    )
    if not regular or sizes == [place.stop - place.start for place, _ in group]:
        return [names]  # reinterpreted or expanded (no finer answer), or without gaps
    owner = torch.full(((stop - start) // unit,), -1, dtype=torch.int32)
    groups: dict[int, list[str]] = {}
    merged: dict[int, int] = {}
    for label, (name, view, offset) in enumerate(zip(names, views, offsets, strict=True)):
        place = owner.as_strided(view.shape, view.stride(), offset // unit)
        groups[label] = [name]
        for earlier in place.unique().tolist():
            while earlier in merged:
                earlier = merged[earlier]
            if earlier not in (-1, label):
                groups[label] += groups.pop(earlier)
                merged[earlier] = label
        place.fill_(label)
    return list(groups.values())
