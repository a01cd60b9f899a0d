"""Where tensors lie in memory: how to part them from a big storage, and their bytes.

Knows tensors only. All addresses are in bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping

import torch

from convsqueeze.sharing import clusters, storage_of

PLAIN = (torch.Tensor, torch.nn.Parameter)


def part(
    kept: Mapping[str, torch.Tensor],
    leaving: Iterable[torch.Tensor],
    elsewhere: Iterable[torch.Tensor],
) -> dict[str, torch.Tensor]:
    """`kept`, with each tensor that shared a storage with one of `leaving` on a smaller storage.

    torch.save writes whole storages, so a kept view would take the values that are to vanish with
    it. No value is copied: the new storages are slices of the old, one for each cluster of
    overlapping tensors, so ties and strides stay. A storage that `elsewhere` needs stays whole.
    """
    fixed = {storage_of(tensor) for tensor in elsewhere}
    fixed |= {storage_of(tensor) for tensor in kept.values() if not is_plain(tensor)}
    shrinking = {storage_of(tensor) for tensor in leaving} - fixed - {None}
    moving = {name: tensor for name, tensor in kept.items() if storage_of(tensor) in shrinking}
    empty = {name: tensor for name, tensor in moving.items() if tensor.numel() == 0}
    result = {**kept, **_moved(empty, torch.UntypedStorage(0))}
    for group in clusters(moving):
        views = {name: moving[name] for _, name in group}
        old = moving[group[0][1]].untyped_storage()
        start, stop = group[0][0].start, max(place.stop for place, _ in group)
        result |= _moved(views, old[start - old.data_ptr() : stop - old.data_ptr()])
    return result


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether dtype, shape, strides and storage say all there is to say of it."""
    return (
        type(tensor) in PLAIN
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
        and not (tensor.is_meta or storage_of(tensor) is None)
    )


def _moved(
    views: Mapping[str, torch.Tensor], storage: torch.UntypedStorage
) -> dict[str, torch.Tensor]:
    """The same views on another storage; names that held one object still do."""
    moved = {id(tensor): _view(storage, tensor) for tensor in views.values()}
    return {name: moved[id(tensor)] for name, tensor in views.items()}


def _view(storage: torch.UntypedStorage, like: torch.Tensor) -> torch.Tensor:
    offset = (like.data_ptr() - storage.data_ptr()) // like.element_size() if like.numel() else 0
    view = torch.empty(0, dtype=like.dtype, device=storage.device)
    view.set_(storage, offset, like.shape, like.stride())
    if isinstance(like, torch.nn.Parameter):
        return torch.nn.Parameter(view, requires_grad=like.requires_grad)
    return view.requires_grad_(like.requires_grad)


def compact(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, contiguous, on a storage that holds nothing else."""
    result = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    exact = result.untyped_storage().nbytes() == result.numel() * result.element_size()
    return result if exact else result.clone()


def dense_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The dense tensors that hold a tensor's values: itself, or what it is made of."""
    tensor = tensor.detach()
    if tensor.device.type == "meta":
        return []
    if tensor.is_quantized:
        return [tensor.int_repr()]
    if tensor.layout == torch.strided:
        return [tensor]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    rows = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
    indices = ("crow_indices", "col_indices") if rows else ("ccol_indices", "row_indices")
    return [*(getattr(tensor, name)() for name in indices), tensor.values()]


def sha256(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Of each tensor's name, dtype, shape and bytes, in order."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        described = [name, str(tensor.dtype), list(tensor.shape)]
        digest.update(json.dumps(described).encode() + b"\n")
        for values in dense_parts(tensor):
            digest.update(raw_bytes(values))
    return digest.hexdigest()


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The values in order, as stored; no copy where they lie in order on the CPU already."""
    return as_bytes(tensor.detach().cpu()).numpy().data


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The same values as one row of bytes, where they lie in order on the same memory."""
    flat = tensor.resolve_conj().resolve_neg().contiguous()
    # the stride of a single element is anything, and kept as it is
    return flat.as_strided((flat.numel(),), (1,)).view(torch.uint8)
